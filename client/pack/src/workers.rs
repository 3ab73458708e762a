//! How many threads of our own work, and the one way they share.

mod ordered;

pub(crate) use ordered::ordered;

/// More threads than this outrun the reading, and each holds buffers.
const MOST: usize = 16;

/// As many as asked for, else one for each core.
pub(crate) fn count(asked: Option<u32>) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    asked.map_or_else(cores, |asked| asked as usize).clamp(1, MOST)
}
