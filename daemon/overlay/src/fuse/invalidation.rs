//! Delayed invalidation of directory listings in the kernel's cache.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};
use parking_lot::{Condvar, Mutex, MutexGuard};

use hearth_task as task;

/// Listings that are due within this time are invalidated together.
const BATCH_WINDOW: Duration = Duration::from_millis(20);

/// Queue of directories whose listings the kernel caches. Dropping it ends the worker.
pub(super) struct InvalidationQueue(Arc<InvalidationShared>);

/// Worker that invalidates the queued listings.
pub(super) struct InvalidationWorker(Arc<InvalidationShared>);

#[derive(Default)]
struct InvalidationShared {
    kept: Mutex<PendingInvalidations>,
    changed: Condvar,
}

#[derive(Default)]
struct PendingInvalidations {
    /// Directories whose listing the kernel may cache, with the time when it received the last part.
    directories: HashMap<u64, Instant>,
    has_ended: bool,
}

pub(super) fn channel() -> (InvalidationQueue, InvalidationWorker) {
    let shared = Arc::<InvalidationShared>::default();
    (InvalidationQueue(Arc::clone(&shared)), InvalidationWorker(shared))
}

impl InvalidationShared {
    fn kept(&self) -> MutexGuard<'_, PendingInvalidations> {
        self.kept.lock()
    }

    /// Waits for directories that have been queued for `within`. `None` at the end.
    fn due(&self, within: Duration) -> Option<Vec<u64>> {
        let nothing = |kept: &mut PendingInvalidations| kept.directories.is_empty() && !kept.has_ended;
        let mut kept = self.kept();
        self.changed.wait_while(&mut kept, nothing);
        if kept.has_ended {
            return None;
        }
        let is_due = |_: &u64, since: &mut Instant| since.elapsed() + BATCH_WINDOW >= within;
        Some(kept.directories.extract_if(is_due).map(|(directory, _)| directory).collect())
    }
}

impl InvalidationQueue {
    /// Records that the kernel receives a listing of this directory. The kernel uses a listing only once it
    /// is complete, and sends no requests then, so the last time counts.
    pub fn add(&self, directory: u64) {
        let mut kept = self.0.kept();
        kept.directories.insert(directory, Instant::now());
        if kept.directories.len() == 1 {
            self.0.changed.notify_one();
        }
    }
}

impl Drop for InvalidationQueue {
    fn drop(&mut self) {
        self.0.kept().has_ended = true;
        self.0.changed.notify_one();
    }
}

impl InvalidationWorker {
    /// Starts the worker in its own thread, because the kernel may wait for answers meanwhile. The thread
    /// ends with the mount.
    pub fn spawn(self, kernel: Notifier, within: Duration) -> io::Result<()> {
        let forget = move || {
            while let Some(due) = self.0.due(within) {
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
        task::spawn_thread("fuse-forget", forget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_due_once_and_by_its_last_time() {
        let within = Duration::from_millis(200);
        let (later, forgetting) = channel();
        later.add(1);
        later.add(2);
        assert_eq!(forgetting.0.due(within), Some(vec![]));
        std::thread::sleep(within);
        later.add(2);
        assert_eq!(forgetting.0.due(within), Some(vec![1]));
        std::thread::sleep(within);
        assert_eq!(forgetting.0.due(within), Some(vec![2]));
        drop(later);
        assert_eq!(forgetting.0.due(within), None);
    }
}
