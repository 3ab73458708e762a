//! Trees that go into builds.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

use crate::binaries::repository;
use crate::daemon::scratch;
use crate::process;
use crate::wait::seconds;

/// A directory to be written. Missing parents of entries are created.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    entries: Vec<(String, Entry)>,
    /// Modification time of every file and directory, in seconds since the epoch.
    time: Option<u64>,
}

#[derive(Clone, Debug)]
enum Entry {
    File { content: Vec<u8>, mode: u32 },
    Link(String),
    Directory { mode: u32 },
}

impl Tree {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn file(self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.with(path, Entry::File { content: content.into(), mode: 0o644 })
    }

    pub fn file_with_mode(self, path: &str, content: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.with(path, Entry::File { content: content.into(), mode })
    }

    pub fn dockerfile(self, content: &str) -> Self {
        self.file("Dockerfile", content)
    }

    pub fn link(self, path: &str, target: &str) -> Self {
        self.with(path, Entry::Link(target.to_owned()))
    }

    pub fn directory(self, path: &str) -> Self {
        self.with(path, Entry::Directory { mode: 0o755 })
    }

    pub fn directory_with_mode(self, path: &str, mode: u32) -> Self {
        self.with(path, Entry::Directory { mode })
    }

    /// Sets the modification time of all files and directories.
    pub fn at(mut self, time: u64) -> Self {
        self.time = Some(time);
        self
    }

    fn with(mut self, path: &str, entry: Entry) -> Self {
        self.entries.push((path.to_owned(), entry));
        self
    }

    /// Writes the tree to a directory, which is created when it is missing.
    #[track_caller]
    pub fn write(&self, directory: &Path) {
        fs::create_dir_all(directory).expect("directory");
        let mut written = vec![directory.to_owned()];
        for (path, entry) in &self.entries {
            let path = directory.join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("parent directory");
            match entry {
                Entry::File { content, mode } => {
                    fs::write(&path, content).expect("file");
                    fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).expect("mode");
                    written.push(path);
                }
                Entry::Link(target) => symlink(target, &path).expect("link"),
                Entry::Directory { mode } => {
                    fs::create_dir_all(&path).expect("directory");
                    fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).expect("mode");
                    written.push(path);
                }
            }
        }
        if let Some(time) = self.time {
            // Directories come after their entries.
            for path in written.iter().rev() {
                set_time(path, time);
            }
        }
    }
}

/// Sets the modification time of a file or directory.
#[track_caller]
pub fn set_time(path: &Path, time: u64) {
    let time = UNIX_EPOCH + Duration::from_secs(time);
    fs::File::open(path).and_then(|file| file.set_modified(time)).expect("modification time");
}

/// Returns path, kind, mode, size, modification time and content of all entries: equal only when nothing changed.
pub fn fingerprint(directory: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut lines = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).expect("stat");
        let content = if meta.is_dir() {
            pending.extend(fs::read_dir(&path).expect("list").map(|entry| entry.expect("entry").path()));
            String::new()
        } else if meta.is_symlink() {
            fs::read_link(&path).expect("link").display().to_string()
        } else {
            sha256(&fs::read(&path).expect("read"))
        };
        let time = (meta.mtime(), meta.mtime_nsec());
        lines.push(format!("{} {:o} {} {time:?} {content}", path.display(), meta.mode(), meta.len()));
    }
    lines.sort();
    lines
}

/// Returns the digest of the bytes: `sha256:...`.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

/// Returns bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Returns the root file system of the base image, which deploy/base-image.sh makes once in a run.
pub fn base_tree() -> &'static Path {
    static TREE: OnceLock<PathBuf> = OnceLock::new();
    TREE.get_or_init(|| {
        let tree = scratch().join("busybox");
        let mut script = Command::new(repository().join("deploy/base-image.sh"));
        let output = process::run(script.arg(&tree), seconds(60));
        assert_eq!(
            output.code, 0,
            "deploy/base-image.sh failed; run deploy/setup.sh --tests first\n{output}"
        );
        tree
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_tree_has_its_modes_links_and_times() {
        let directory = tempfile::tempdir().unwrap();
        let tree = Tree::new()
            .file_with_mode("a/run.sh", "#!/bin/sh\n", 0o755)
            .link("a/link", "../gone")
            .directory_with_mode("empty", 0o700)
            .at(1_000_000_000);
        tree.write(directory.path());
        let meta = fs::metadata(directory.path().join("a/run.sh")).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o755);
        assert_eq!(meta.modified().unwrap(), UNIX_EPOCH + seconds(1_000_000_000));
        assert_eq!(fs::read_link(directory.path().join("a/link")).unwrap(), Path::new("../gone"));
        let before = fingerprint(directory.path());
        assert_eq!(before, fingerprint(directory.path()));
        fs::write(directory.path().join("a/run.sh"), "#!/bin/ss\n").unwrap();
        set_time(&directory.path().join("a/run.sh"), 1_000_000_000);
        assert_ne!(before, fingerprint(directory.path()));
    }

    #[test]
    fn noise_differs_by_seed_only() {
        assert_eq!(noise(1, 1001), noise(1, 1001));
        assert_ne!(noise(1, 1001), noise(3, 1001));
        assert_eq!(noise(1, 1001).len(), 1001);
    }
}
