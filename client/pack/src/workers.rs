//! Worker threads: their number, and running work with ordered results.

mod ordered;

use std::io;
use std::thread::{Scope, ScopedJoinHandle};

pub(crate) use ordered::run_ordered;

/// Maximum number of worker threads. More would be limited by reading, and each holds buffers.
const MAX_WORKERS: usize = 16;

/// Returns the number of worker threads: the requested number, else one for each core, at most [`MAX_WORKERS`].
pub(crate) fn worker_count(asked: Option<u32>) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    asked.map_or_else(cores, |asked| asked as usize).clamp(1, MAX_WORKERS)
}

/// Starts a named thread within `scope`, in the caller's span. Every thread of this crate starts here.
#[expect(clippy::disallowed_methods, reason = "this is the place that starts threads")]
pub(crate) fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    let span = tracing::Span::current();
    std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, move || span.in_scope(work))
}

/// Starts up to `count` threads that share `work` with the calling thread. If the system refuses a thread, fewer are
/// started: the calling thread can do all of the work.
pub(crate) fn start_helpers<'scope>(
    scope: &'scope Scope<'scope, '_>,
    count: usize,
    name: &str,
    work: impl Fn() + Copy + Send + 'scope,
) {
    for _ in 0..count {
        if start(scope, name, work).is_err() {
            break;
        }
    }
}
