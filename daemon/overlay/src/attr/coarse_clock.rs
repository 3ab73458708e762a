//! Simulates file systems with a coarse clock in tests: recent kernels give every distinguishable write its
//! own change time, but kernels before 6.13 and many file systems do not.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::LazyLock;

use parking_lot::Mutex;

use super::{FileTime, InodeStat};

/// Frozen change times by device (as in the metadata of the standard library) and inode.
static FROZEN: LazyLock<Mutex<BTreeMap<(u64, u64), i64>>> = LazyLock::new(Mutex::default);

/// Guard that keeps the change time of one file constant while it lives.
pub struct FrozenChangeTime((u64, u64));

/// Fixes the change time of the file at `path` to `changed` (nanoseconds since 1970) until the guard is
/// dropped.
pub fn freeze_change_time(path: &Path, changed: i64) -> std::io::Result<FrozenChangeTime> {
    let metadata = std::fs::symlink_metadata(path)?;
    let file = (metadata.dev(), metadata.ino());
    FROZEN.lock().insert(file, changed);
    Ok(FrozenChangeTime(file))
}

impl Drop for FrozenChangeTime {
    fn drop(&mut self) {
        FROZEN.lock().remove(&self.0);
    }
}

pub(super) fn with_frozen_time(mut stat: InodeStat) -> InodeStat {
    let (major, minor) = ((stat.file_system >> 32) as u32, stat.file_system as u32);
    if let Some(changed) = FROZEN.lock().get(&(rustix::fs::makedev(major, minor), stat.inode)) {
        stat.attr.changed = FileTime::from_nanos(*changed);
    }
    stat
}
