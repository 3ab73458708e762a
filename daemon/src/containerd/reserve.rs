//! Disk space reserve, which is released when the disk is full: containerd needs some free space to delete anything.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use rustix::fs::FallocateFlags;

/// Size of the reserve in bytes: far more than the few pages that containerd's databases need.
const BYTES: u64 = 8 << 20;

pub(super) struct DiskReserve {
    path: PathBuf,
}

impl DiskReserve {
    /// Allocates the reserve. A failure is only logged: the reserve is allocated again later. Blocking.
    pub(super) fn open(path: PathBuf) -> Self {
        let reserve = Self { path };
        reserve.allocate();
        reserve
    }

    pub(super) fn allocate(&self) {
        let reserved = File::create(&self.path).and_then(|file| {
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BYTES).map_err(io::Error::from)
        });
        if let Err(error) = reserved {
            tracing::warn!(%error, path = %self.path.display(), "failed to reserve disk space for containerd");
        }
    }

    pub(super) fn release(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "failed to release the reserved disk space");
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
        let reserve = DiskReserve::open(path.clone());
        assert!(fs::metadata(&path).unwrap().blocks() * 512 >= BYTES);
        reserve.release();
        assert!(!path.exists());
        reserve.allocate();
        assert!(path.exists());
    }
}
