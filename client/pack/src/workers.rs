//! Worker threads: their number, and running work with ordered results.

mod ordered;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use ordered::ordered;

/// Maximum number of worker threads. More would be limited by reading, and each holds buffers.
const MOST: usize = 16;

/// Returns the number of worker threads: the requested number, else one for each core, at most [`MAX_WORKERS`].
pub(crate) fn count(asked: Option<u32>) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    asked.map_or_else(cores, |asked| asked as usize).clamp(1, MOST)
}

/// Locks a mutex and ignores poisoning: the panic of a thread is propagated when it is joined, and until then the
/// others may continue.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
