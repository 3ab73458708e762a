//! Delayed invalidation of directory listings in the kernel's cache.
//!
//! The kernel keeps a complete directory listing without a time limit, but the lower tree may change at any time. A
//! worker thread therefore invalidates each listing a short delay after the kernel has received it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};
use parking_lot::{Condvar, Mutex, MutexGuard};

use hearth_task as task;

/// Time by which a listing may be invalidated early, so that listings with close due times form one batch.
const BATCH_WINDOW: Duration = Duration::from_millis(20);

/// Queue of directories whose listings are to be invalidated. Dropping the queue ends the worker.
pub(super) struct InvalidationQueue(Arc<InvalidationShared>);

/// Worker that invalidates the queued listings.
pub(super) struct InvalidationWorker(Arc<InvalidationShared>);

#[derive(Default)]
struct InvalidationShared {
    pending: Mutex<PendingInvalidations>,
    changed: Condvar,
}

#[derive(Default)]
struct PendingInvalidations {
    /// Inode numbers of directories whose listing the kernel may cache, with the time of the last reply for it.
    directories: HashMap<u64, Instant>,
    has_ended: bool,
}

pub(super) fn channel() -> (InvalidationQueue, InvalidationWorker) {
    let shared = Arc::<InvalidationShared>::default();
    (InvalidationQueue(Arc::clone(&shared)), InvalidationWorker(shared))
}

impl InvalidationShared {
    fn pending(&self) -> MutexGuard<'_, PendingInvalidations> {
        self.pending.lock()
    }

    /// Waits until the queue is not empty, then removes and returns the directories that have been queued for `delay`.
    /// Returns `None` after the queue was dropped.
    fn due(&self, delay: Duration) -> Option<Vec<u64>> {
        let is_idle =
            |pending: &mut PendingInvalidations| pending.directories.is_empty() && !pending.has_ended;
        let mut pending = self.pending();
        self.changed.wait_while(&mut pending, is_idle);
        if pending.has_ended {
            return None;
        }
        let is_due = |_: &u64, since: &mut Instant| since.elapsed() + BATCH_WINDOW >= delay;
        Some(pending.directories.extract_if(is_due).map(|(directory, _)| directory).collect())
    }
}

impl InvalidationQueue {
    /// Records that the kernel is receiving a listing of this directory. The delay restarts with each call: the kernel
    /// uses a listing only once it is complete, and sends no further requests for it from then on.
    pub fn add(&self, directory: u64) {
        let mut pending = self.0.pending();
        pending.directories.insert(directory, Instant::now());
        if pending.directories.len() == 1 {
            self.0.changed.notify_one();
        }
    }
}

impl Drop for InvalidationQueue {
    fn drop(&mut self) {
        self.0.pending().has_ended = true;
        self.0.changed.notify_one();
    }
}

impl InvalidationWorker {
    /// Starts the worker. It needs its own thread, because an invalidation may block until the kernel has received
    /// replies from the threads that serve requests. The thread ends when the mount ends.
    pub fn spawn(self, kernel: Notifier, delay: Duration) -> io::Result<()> {
        let invalidate = move || {
            while let Some(due) = self.0.due(delay) {
                for directory in due {
                    if let Err(error) = kernel.inval_inode(INodeNo(directory), 0, 0) {
                        tracing::debug!(
                            %error,
                            directory,
                            "failed to invalidate a directory listing in the kernel",
                        );
                    }
                }
                std::thread::sleep(BATCH_WINDOW);
            }
        };
        task::spawn_thread("fuse-invalidate", invalidate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_due_once_and_by_its_last_time() {
        let delay = Duration::from_millis(200);
        let (queue, worker) = channel();
        queue.add(1);
        queue.add(2);
        assert_eq!(worker.0.due(delay), Some(vec![]));
        std::thread::sleep(delay);
        queue.add(2);
        assert_eq!(worker.0.due(delay), Some(vec![1]));
        std::thread::sleep(delay);
        assert_eq!(worker.0.due(delay), Some(vec![2]));
        drop(queue);
        assert_eq!(worker.0.due(delay), None);
    }
}
