//! Content hashes of directories that were sent before, in files outside them: one for each directory.
//!
//! A cache that cannot be read or written costs time and nothing else.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use hearth_pack::identity::{ContentHash, HashCache};

/// A directory's place among all directories of all machines, in a form that tells nothing of it.
pub fn lineage(directory: &Path) -> String {
    let path = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    let machine = ["/etc/machine-id", "/proc/sys/kernel/hostname"]
        .iter()
        .find_map(|file| fs::read(file).ok().filter(|content| !content.is_empty()))
        .unwrap_or_default();
    let name = [b"hearth lineage 1\n", machine.as_slice(), b"\n", path.as_os_str().as_bytes()].concat();
    ContentHash::of(&name).to_string().trim_start_matches("blake3:").to_owned()
}

/// The hashes of one directory.
#[derive(Debug)]
pub struct ScanCache {
    path: Option<PathBuf>,
    pub hashes: HashCache,
}

impl ScanCache {
    /// Reads what is known of the directory with this lineage.
    pub fn open(lineage: &str) -> Self {
        let path = directory().map(|directory| directory.join(format!("{lineage}.hashes")));
        let hashes = path.as_deref().map(HashCache::load).transpose();
        let hashes = hashes.unwrap_or_else(|error| {
            tracing::debug!(%error, "the scan cache is not used");
            None
        });
        Self { path, hashes: hashes.unwrap_or_default() }
    }

    /// Writes what is known now; files that were not asked for are forgotten.
    pub fn save(mut self) {
        let Some(path) = self.path else { return };
        self.hashes.next_round(1);
        if !self.hashes.is_changed() {
            return;
        }
        if let Some(directory) = path.parent()
            && let Err(error) = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
        {
            tracing::debug!(%error, "the scan cache has no directory");
            return;
        }
        if let Err(error) = self.hashes.save(&path) {
            tracing::debug!(%error, "the scan cache was not written");
        }
    }
}

/// `$XDG_CACHE_HOME/hearth/scans`, or below `~/.cache`.
fn directory() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("hearth").join("scans"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_lineage_however_it_is_written_and_none_shows_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&one).unwrap();
        std::os::unix::fs::symlink(&one, &two).unwrap();
        assert_eq!(lineage(&one), lineage(&two));
        assert_ne!(lineage(&one), lineage(dir.path()));
        assert_eq!(lineage(&one).len(), 64);
    }
}
