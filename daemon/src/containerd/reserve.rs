//! Space that is given up when the disk is full: containerd needs some to take anything away, and could not.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use rustix::fs::FallocateFlags;

/// A few pages of containerd's databases, generously.
const BYTES: u64 = 8 << 20;

pub(super) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// Blocking. One that cannot be taken is a log line: it is taken again later.
    pub(super) fn open(path: PathBuf) -> Self {
        let reserve = Self { path };
        reserve.take();
        reserve
    }

    pub(super) fn take(&self) {
        let taken = File::create(&self.path).and_then(|file| {
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BYTES).map_err(io::Error::from)
        });
        if let Err(error) = taken {
            tracing::warn!(%error, path = %self.path.display(), "no space is kept back for containerd");
        }
    }

    pub(super) fn give_up(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "space that was kept back is not free");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_is_really_held_and_really_given_up() {
        use std::os::unix::fs::MetadataExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("reserve");
        let reserve = Reserve::open(path.clone());
        assert!(fs::metadata(&path).unwrap().blocks() * 512 >= BYTES);
        reserve.give_up();
        assert!(!path.exists());
        reserve.take();
        assert!(path.exists());
    }
}
