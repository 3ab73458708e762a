//! Room storage and project storage: directories that are opened once. No operation leaves them.
//!
//! The kernel resolves every path below a [`StorageRoot`] with `RESOLVE_BENEATH` and `RESOLVE_NO_MAGICLINKS`:
//! a symbolic link may lead anywhere inside the storage, and one that leads out fails with
//! [`StorageError::Escapes`], even if the tree changes during the operation. For a caller that may use only
//! parts of the storage, [`StorageRoot::with_links`] refuses every link on the path
//! ([`StorageError::IsLink`]). All calls block.

mod error;
mod link;
mod list;
mod read;
mod remove;
mod write;

use std::convert::Infallible;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use hearth_model::access::SymlinkPolicy;
use hearth_overlay::attr::{self, InodeStat};
use hearth_overlay::beneath::{self, LINKS_INSIDE, NO_LINKS};

pub use error::StorageError;
use hearth_pack::FileKind;
pub use list::StorageListing;
pub use write::{StorageWriter, WriteOptions};

pub(super) use write::is_unfinished;

/// The directories that hold a room's files.
#[derive(Clone, Debug)]
pub struct StorageRoots {
    pub room: StorageRoot,
    pub project: StorageRoot,
}

/// A storage directory, held open. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StorageRoot {
    directory: Arc<OwnedFd>,
    path: Arc<Path>,
    links: SymlinkPolicy,
}

/// One file of a storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageEntry {
    /// Path from the storage's root; not necessarily UTF-8.
    pub path: PathBuf,
    pub kind: FileKind<(), PathBuf, Infallible>,
    /// Size in bytes of a regular file; 0 for every other kind.
    pub size: u64,
    /// Permission, setuid, setgid and sticky bits.
    pub mode: u32,
    /// Modification time in nanoseconds since 1970.
    pub modified: i64,
}

impl StorageRoot {
    /// Opens an existing directory.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let fail = |errno| StorageError::at(path, errno);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(fail)?;
        // If openat2 is missing (Linux before 5.6) or filtered, report it now instead of at the first build.
        match beneath::open_path(&directory, b"") {
            Err(Errno::NOSYS | Errno::PERM) => Err(StorageError::Unsupported { path: path.to_owned() }),
            Err(errno) => Err(fail(errno)),
            Ok(_) => {
                Ok(Self { directory: Arc::new(directory), path: path.into(), links: SymlinkPolicy::Followed })
            }
        }
    }

    /// Opens a directory, and creates it and its parents if they are missing.
    pub fn open_or_create(path: &Path) -> Result<Self, StorageError> {
        std::fs::create_dir_all(path).map_err(|source| StorageError::Io { path: path.to_owned(), source })?;
        Self::open(path)
    }

    /// Returns the same directory with another policy for symbolic links in paths.
    #[must_use]
    pub fn with_links(&self, links: SymlinkPolicy) -> Self {
        Self { links, ..self.clone() }
    }

    /// Returns device and inode of the directory.
    pub fn identity(&self) -> std::io::Result<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.directory)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Path of the directory when it was opened; for messages only.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a path as it is. Symbolic links that are followed stay inside the storage.
    fn open_inside(&self, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd, StorageError> {
        let resolve = match self.links {
            SymlinkPolicy::Followed => LINKS_INSIDE,
            SymlinkPolicy::Refused => NO_LINKS,
        };
        let opened = beneath::open(&self.directory, path.as_os_str().as_bytes(), flags, mode, resolve);
        opened.map_err(|errno| match (errno, self.links) {
            (Errno::LOOP, SymlinkPolicy::Refused) => StorageError::IsLink { path: path.to_owned() },
            (errno, _) => StorageError::at(path, errno),
        })
    }

    /// Opens a handle (`O_PATH`) to a directory or regular file that is to be mounted, and reports whether it
    /// is a directory. Symbolic links are never followed.
    pub fn open_mount_source(&self, path: &Path) -> Result<(OwnedFd, bool), StorageError> {
        let path = normalized(path)?;
        let (handle, stat) = self.with_links(SymlinkPolicy::Refused).open_path(&path)?;
        match stat.attr.kind {
            FileType::Directory => Ok((handle, true)),
            FileType::RegularFile => Ok((handle, false)),
            _ => Err(StorageError::NotAFile { path }),
        }
    }

    /// Creates a missing directory that is to be mounted, with its parents. Symbolic links are never followed.
    pub fn make_mount_source(&self, path: &Path) -> Result<(), StorageError> {
        let made = self.with_links(SymlinkPolicy::Refused).make_directories(&normalized(path)?);
        made.map(drop)
    }

    /// Opens a handle (`O_PATH`) to an existing path, without opening the file itself.
    pub(super) fn open_path(&self, path: &Path) -> Result<(OwnedFd, InodeStat), StorageError> {
        let handle = self.open_inside(path, OFlags::PATH, Mode::empty())?;
        let stat = attr::stat(&handle).map_err(|errno| StorageError::at(path, errno))?;
        Ok((handle, stat))
    }
}

/// Normalizes a path below a root as written in a request: `/a//./b` becomes `a/b`; empty is the root.
pub(super) fn normalized(path: &Path) -> Result<PathBuf, StorageError> {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => return Err(StorageError::Escapes { path: path.to_owned() }),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if normal.as_os_str().as_bytes().contains(&0) {
        return Err(StorageError::at(path, Errno::INVAL));
    }
    Ok(normal)
}

fn os_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

impl StorageEntry {
    fn new(
        path: PathBuf,
        stat: &InodeStat,
        target: impl FnOnce() -> Result<Box<[u8]>, Errno>,
    ) -> Result<Self, Errno> {
        let target = || target().map(|target| os_path(&target).to_owned());
        let kind = FileKind::from_stat(stat.attr.kind, stat.attr.device, (), target)?;
        let size = if kind == FileKind::File(()) { stat.attr.size } else { 0 };
        Ok(Self { path, kind, size, mode: stat.attr.mode, modified: stat.attr.modified.as_nanos() })
    }
}

#[cfg(test)]
mod tests;
