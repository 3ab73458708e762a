//! Locks that say which daemon owns a directory. A lock ends with its daemon, however that ends.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// A lock lives as long as any copy of its file. A process that forks hands its child one, which goes
/// when the child executes its program: a daemon killed at that moment still holds its locks for an
/// instant. An owner that is there stays longer than this.
const PATIENCE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(5);

/// Takes the lock of a file, which is made if it is missing; none when another daemon has it. Blocks for a
/// moment then.
pub fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    let begun = Instant::now();
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(file)),
            Err(Errno::WOULDBLOCK) if begun.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
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
        // What a fork does: the same open file once more.
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
