//! Change times as a coarse clock leaves them: kernels of today give each write that anyone could tell from the last
//! one a time of its own, those before 6.13 and many file systems do not.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::LazyLock;

use parking_lot::Mutex;

use super::Stat;

/// By device as the metadata of the standard library has it, and inode.
static STANDING: LazyLock<Mutex<BTreeMap<(u64, u64), i64>>> = LazyLock::new(Mutex::default);

/// A file whose change time stands still as long as this lives.
pub struct Standing((u64, u64));

/// Lets the change time of what is at `path` be `changed`, whatever happens to it. Nanoseconds since 1970.
pub fn stand(path: &Path, changed: i64) -> Standing {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    let file = (metadata.dev(), metadata.ino());
    STANDING.lock().insert(file, changed);
    Standing(file)
}

impl Drop for Standing {
    fn drop(&mut self) {
        STANDING.lock().remove(&self.0);
    }
}

pub(super) fn seen(stat: Stat) -> Stat {
    let (major, minor) = ((stat.device >> 32) as u32, stat.device as u32);
    let changed = STANDING.lock().get(&(rustix::fs::makedev(major, minor), stat.inode)).copied();
    Stat { changed: changed.unwrap_or(stat.changed), ..stat }
}
