//! Measures the bytes that builds have written below the root of a builder, by change time, independently of
//! BuildKit's own records.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A builder that wrote less than the floor divided by this is not stopped when the disk lacks space.
pub(super) const MIN_GROWTH_DIVISOR: u64 = 8;

/// Bytes on disk that were written since a point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DiskGrowth {
    pub(super) bytes: u64,
    /// Part of the tree could not be read, or the time limit was reached: there may be more.
    pub(super) partial: bool,
}

/// Scans the tree below `root` for at most `limit`, newest snapshots first. Blocking.
pub(super) fn growth_since(root: &Path, since: SystemTime, limit: Duration) -> DiskGrowth {
    let end = Instant::now() + limit;
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), i64::from(since.subsec_nanos()));
    let mut growth = DiskGrowth::default();
    let mut linked: HashSet<u64> = HashSet::new();
    let Ok(device) = fs::symlink_metadata(root).map(|root| root.dev()) else { return growth };
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = match entries(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                // An entry that disappears during the scan is not growth.
                growth.partial |= error.kind() != io::ErrorKind::NotFound;
                continue;
            }
        };
        for path in entries {
            if Instant::now() >= end {
                return DiskGrowth { partial: true, ..growth };
            }
            let found = match fs::symlink_metadata(&path) {
                Ok(found) => found,
                Err(error) => {
                    growth.partial |= error.kind() != io::ErrorKind::NotFound;
                    continue;
                }
            };
            if found.dev() != device {
                continue;
            }
            if (found.ctime(), found.ctime_nsec()) >= since
                && (found.nlink() < 2 || linked.insert(found.ino()))
            {
                growth.bytes = growth.bytes.saturating_add(found.blocks().saturating_mul(512));
            }
            if found.is_dir() {
                directories.push(path);
            }
        }
    }
    growth
}

/// Returns the entries of a directory. Snapshot directories have numeric names; the highest comes last, so the caller,
/// which pops from the end, scans it first.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names: Vec<OsString> = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    names.sort_by_key(|name| name.to_str().and_then(|name| name.parse::<u64>().ok()));
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn only_what_was_written_since_counts_and_links_count_once() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: usize| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![1; bytes]).unwrap();
        };
        write("snapshots/1/fs/old", 1 << 20);
        std::thread::sleep(Duration::from_millis(50));
        let since = SystemTime::now();
        std::thread::sleep(Duration::from_millis(50));
        let before = growth_since(root.path(), since, LONG);
        assert_eq!(before, DiskGrowth::default());
        write("snapshots/2/fs/new", 2 << 20);
        fs::hard_link(root.path().join("snapshots/2/fs/new"), root.path().join("linked")).unwrap();
        let grown = growth_since(root.path(), since, LONG);
        assert!((2 << 20..(2 << 20) + (64 << 10)).contains(&grown.bytes) && !grown.partial, "{grown:?}");
        assert!(growth_since(root.path(), since, Duration::ZERO).partial);
    }
}
