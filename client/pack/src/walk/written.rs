//! Paths that packing itself writes, which never belong to the tree although they may be in its directory.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A path that packing itself writes, such as the archive: a file or a whole directory. It is found by the identity
/// of a directory above it, so links and mounts on the way do not matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenPath {
    /// Device and inode of a directory above the path.
    directory: (u64, u64),
    /// Path relative to that directory.
    path: Vec<u8>,
}

impl WrittenPath {
    /// Returns `None` if the directory of `path` cannot be read, which means that no walk finds the path either.
    pub fn at(path: &Path) -> Option<Self> {
        let name = path.file_name()?.as_bytes().to_vec();
        Some(Self { directory: directory_id(crate::new_file::parent(path))?, path: name })
    }

    /// `directory` is the device and inode of a directory, `path` is relative to it.
    pub fn below(directory: (u64, u64), path: &str) -> Self {
        Self { directory, path: crate::ignore::clean(path).trim_start_matches('/').as_bytes().to_vec() }
    }

    pub(super) fn in_directory(&self, id: (u64, u64)) -> Option<Vec<u8>> {
        (self.directory == id).then(|| self.path.clone())
    }
}

/// Returns the written paths that are below the root of a walk although their directory is above it, relative to the
/// root.
pub(super) fn from_above(root: &Path, root_id: (u64, u64), written: &[WrittenPath]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    if written.is_empty() {
        return found;
    }
    // Without a canonical path, only directories of the tree itself are compared.
    let root = root.canonicalize().unwrap_or_else(|_| PathBuf::new());
    for above in root.ancestors().skip(1) {
        let Some(id) = directory_id(above).filter(|id| *id != root_id) else { continue };
        let Ok(way) = root.strip_prefix(above) else { continue };
        let rest = |path: Vec<u8>| {
            let rest = path.strip_prefix(way.as_os_str().as_bytes())?.strip_prefix(b"/")?;
            Some(rest.to_vec())
        };
        found.extend(written.iter().filter_map(|path| path.in_directory(id)).filter_map(rest));
    }
    found
}

fn directory_id(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

pub(super) fn id_of(directory: &OwnedFd) -> rustix::io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(directory)?;
    Ok((stat.st_dev, stat.st_ino))
}
