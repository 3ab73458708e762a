//! Makes the kernel forget listings that it keeps.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::task;

/// Listings are forgotten so much too early, to do many at once.
const TOGETHER: Duration = Duration::from_millis(20);

/// When it is dropped, nothing is forgotten any more.
pub(super) struct ForgetLater(Arc<Shared>);

/// The other end.
pub(super) struct Forgetting(Arc<Shared>);

#[derive(Default)]
struct Shared {
    kept: Mutex<Kept>,
    changed: Condvar,
}

#[derive(Default)]
struct Kept {
    /// Directories of which the kernel may have a listing, and when it got the last of it.
    directories: HashMap<u64, Instant>,
    has_ended: bool,
}

pub(super) fn channel() -> (ForgetLater, Forgetting) {
    let shared = Arc::<Shared>::default();
    (ForgetLater(Arc::clone(&shared)), Forgetting(shared))
}

impl Shared {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock()
    }

    /// Waits for directories that were kept for `within`. None at the end.
    fn due(&self, within: Duration) -> Option<Vec<u64>> {
        let nothing = |kept: &mut Kept| kept.directories.is_empty() && !kept.has_ended;
        let mut kept = self.kept();
        self.changed.wait_while(&mut kept, nothing);
        if kept.has_ended {
            return None;
        }
        let is_due = |_: &u64, since: &mut Instant| since.elapsed() + TOGETHER >= within;
        Some(kept.directories.extract_if(is_due).map(|(directory, _)| directory).collect())
    }
}

impl ForgetLater {
    /// The kernel gets a listing of this directory. It goes by it only once it has all of it, and asks no more
    /// then: so the last time counts.
    pub fn add(&self, directory: u64) {
        let mut kept = self.0.kept();
        kept.directories.insert(directory, Instant::now());
        if kept.directories.len() == 1 {
            self.0.changed.notify_one();
        }
    }
}

impl Drop for ForgetLater {
    fn drop(&mut self) {
        self.0.kept().has_ended = true;
        self.0.changed.notify_one();
    }
}

impl Forgetting {
    /// Works in a thread of its own, because the kernel may wait for answers meanwhile; it ends with the mount.
    pub fn spawn(self, kernel: Notifier, within: Duration) -> io::Result<()> {
        let forget = move || {
            while let Some(due) = self.0.due(within) {
                for directory in due {
                    if let Err(error) = kernel.inval_inode(INodeNo(directory), 0, 0) {
                        tracing::debug!(%error, directory, "the kernel was not made to forget a listing");
                    }
                }
                std::thread::sleep(TOGETHER);
            }
        };
        task::thread("fuse-forget", forget)
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
