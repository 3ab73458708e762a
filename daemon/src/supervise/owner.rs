//! Locks by which a daemon owns a directory. A lock is released when its daemon ends for any reason.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// Time for which a taken lock is retried. A lock lives as long as any copy of its file descriptor. A forked child
/// holds a copy until it executes its program, so a daemon killed at that moment still holds its locks for an instant.
/// A living owner holds the lock longer than this.
const RETRY_LIMIT: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);

/// Locks a file, which is created if missing; `None` if another daemon has the lock. Blocks for a short time in that
/// case.
pub fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    let started = Instant::now();
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(file)),
            Err(Errno::WOULDBLOCK) if started.elapsed() < RETRY_LIMIT => std::thread::sleep(PAUSE),
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_goes_soon_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = lock(&path).unwrap().unwrap();
        // A fork duplicates the open file in the same way.
        let copy = first.try_clone().unwrap();
        drop(first);
        let child = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(copy);
        });
        assert!(lock(&path).unwrap().is_some());
        child.join().unwrap();
    }

    #[test]
    fn an_owner_that_stays_is_told_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let owner = lock(&path).unwrap().unwrap();
        assert!(lock(&path).unwrap().is_none());
        drop(owner);
        assert!(lock(&path).unwrap().is_some());
    }
}
