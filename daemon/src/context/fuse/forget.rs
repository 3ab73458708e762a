//! Makes the kernel forget listings that it keeps.

use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};

/// Listings that wait to be forgotten; who lists more in that time is held up.
const MOST_WAITING: usize = 8192;
/// Listings are forgotten so much too early, to do many at once.
const TOGETHER: Duration = Duration::from_millis(20);

pub(super) struct ForgetLater(SyncSender<Kept>);

/// The other end.
pub(super) struct Forgetting(Receiver<Kept>);

/// The kernel may have a listing of this directory.
struct Kept {
    inode: u64,
    since: Instant,
    within: Duration,
}

pub(super) fn channel() -> (ForgetLater, Forgetting) {
    let (add, waiting) = mpsc::sync_channel(MOST_WAITING);
    (ForgetLater(add), Forgetting(waiting))
}

impl ForgetLater {
    /// `within` is the same for all of them.
    pub fn add(&self, inode: u64, within: Duration) {
        // Nobody listens when the mount has ended.
        let _ = self.0.send(Kept { inode, since: Instant::now(), within });
    }
}

impl Forgetting {
    /// Works in a thread of its own, because the kernel may wait for answers meanwhile; it ends with the mount.
    pub fn spawn(self, kernel: Notifier) -> io::Result<()> {
        let forget = move || {
            let mut last: Option<(u64, Instant)> = None;
            for Kept { inode, since, within } in self.0 {
                // A directory that was read at once is here twice. What it gave must have reached the kernel.
                let reached = since + within / 2;
                if last.is_some_and(|(last, at)| last == inode && reached < at) {
                    continue;
                }
                let left = within.saturating_sub(since.elapsed());
                if left > TOGETHER {
                    std::thread::sleep(left);
                }
                last = Some((inode, Instant::now()));
                if let Err(error) = kernel.inval_inode(INodeNo(inode), 0, 0) {
                    tracing::debug!(%error, inode, "the kernel was not made to forget a listing");
                }
            }
        };
        std::thread::Builder::new().name("fuse-forget".to_owned()).spawn(forget)?;
        Ok(())
    }
}
