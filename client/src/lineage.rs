//! Stable name of a directory that reveals nothing about its path.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use hearth_pack::identity::ContentHash;

/// Returns a hash of machine and canonical path: the same for a directory each time it is packed,
/// different for any other directory on any machine.
pub fn of(directory: &Path) -> String {
    let path = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    let machine = ["/etc/machine-id", "/proc/sys/kernel/hostname"]
        .iter()
        .find_map(|file| fs::read(file).ok().filter(|content| !content.is_empty()))
        .unwrap_or_default();
    let name = [b"hearth lineage 1\n", machine.as_slice(), b"\n", path.as_os_str().as_bytes()].concat();
    ContentHash::of(&name).to_string().trim_start_matches("blake3:").to_owned()
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
        assert_eq!(of(&one), of(&two));
        assert_ne!(of(&one), of(dir.path()));
        assert_eq!(of(&one).len(), 64);
    }
}
