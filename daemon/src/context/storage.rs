//! Room storage and project storage: directories that are opened once, and never left.
//!
//! Every path below a [`Root`] is resolved by the kernel with `RESOLVE_BENEATH` and
//! `RESOLVE_NO_MAGICLINKS`: a link may lead anywhere inside the storage, and one that leads out is
//! [`StorageError::Escapes`], however the tree changes meanwhile. For whoever may use parts of the storage only,
//! [`Root::with_links`] refuses every link on the way ([`StorageError::IsLink`]). All calls block.

mod error;
mod list;
mod read;
mod remove;
mod write;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::beneath::{self, LINKS_INSIDE, NO_LINKS, Stat};
use crate::model::access::PathLinks;

pub use error::StorageError;
pub use list::Listing;
pub use write::{WriteOptions, Writer};

pub(super) use write::is_unfinished;

/// The directories that a room's files lie in.
#[derive(Clone, Debug)]
pub struct Storage {
    pub room: Root,
    pub project: Root,
}

/// A directory, held open. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Root {
    directory: Arc<OwnedFd>,
    path: Arc<Path>,
    links: PathLinks,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// From the storage's root, not necessarily UTF-8.
    pub path: PathBuf,
    pub kind: FileKind,
    /// Of a regular file; 0 for everything else.
    pub size: u64,
    /// Permission, setuid, setgid and sticky bits.
    pub mode: u32,
    /// Nanoseconds since 1970.
    pub modified: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    File,
    Directory,
    /// The target as written; never followed.
    Symlink(PathBuf),
    /// A socket, fifo or device.
    Other,
}

impl Root {
    /// Opens an existing directory.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let fail = |errno| StorageError::at(path, errno);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(fail)?;
        // Where the system call is missing (Linux before 5.6) or filtered, say so now and not at the first build.
        match beneath::hold(&directory, b"") {
            Err(Errno::NOSYS | Errno::PERM) => Err(StorageError::Unsupported { path: path.to_owned() }),
            Err(errno) => Err(fail(errno)),
            Ok(_) => {
                Ok(Self { directory: Arc::new(directory), path: path.into(), links: PathLinks::Followed })
            }
        }
    }

    /// Opens a directory, and makes it and its parents where they are missing.
    pub fn open_or_create(path: &Path) -> Result<Self, StorageError> {
        std::fs::create_dir_all(path).map_err(|source| StorageError::Io { path: path.to_owned(), source })?;
        Self::open(path)
    }

    /// The same directory, with links in paths treated so.
    #[must_use]
    pub fn with_links(&self, links: PathLinks) -> Self {
        Self { links, ..self.clone() }
    }

    /// Where the directory was when it was opened; for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a path as it is; links that are followed stay inside.
    fn open_inside(&self, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd, StorageError> {
        let resolve = match self.links {
            PathLinks::Followed => LINKS_INSIDE,
            PathLinks::Refused => NO_LINKS,
        };
        let opened = beneath::open(&self.directory, path.as_os_str().as_bytes(), flags, mode, resolve);
        opened.map_err(|errno| match (errno, self.links) {
            (Errno::LOOP, PathLinks::Refused) => StorageError::IsLink { path: path.to_owned() },
            (errno, _) => StorageError::at(path, errno),
        })
    }

    /// Holds a directory or regular file that is to be mounted, and says whether it is a directory. No link is followed,
    /// whoever asks. With `make`, a directory is made where nothing is.
    pub fn hold_source(&self, path: &Path, make: bool) -> Result<(OwnedFd, bool), StorageError> {
        let path = normal(path)?;
        let root = self.with_links(PathLinks::Refused);
        let (held, stat) = match root.hold(&path) {
            Err(StorageError::NotFound { .. }) if make => {
                root.make_directories(&path)?;
                root.hold(&path)?
            }
            other => other?,
        };
        match stat.kind {
            FileType::Directory => Ok((held, true)),
            FileType::RegularFile => Ok((held, false)),
            _ => Err(StorageError::NotAFile { path }),
        }
    }

    /// Holds a path that exists, without opening what is there.
    pub(super) fn hold(&self, path: &Path) -> Result<(OwnedFd, Stat), StorageError> {
        let held = self.open_inside(path, OFlags::PATH, Mode::empty())?;
        let stat = beneath::stat(&held).map_err(|errno| StorageError::at(path, errno))?;
        Ok((held, stat))
    }
}

/// A path below a root, as written in requests: `/a//./b` is `a/b`; empty is the root.
pub(super) fn normal(path: &Path) -> Result<PathBuf, StorageError> {
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

impl FileStat {
    fn new(
        path: PathBuf,
        stat: &Stat,
        target: impl FnOnce() -> Result<Box<[u8]>, Errno>,
    ) -> Result<Self, Errno> {
        let kind = match stat.kind {
            FileType::RegularFile => FileKind::File,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink(os_path(&target()?).to_owned()),
            _ => FileKind::Other,
        };
        let size = if kind == FileKind::File { stat.size } else { 0 };
        Ok(Self { path, kind, size, mode: stat.mode, modified: stat.modified })
    }
}

#[cfg(test)]
mod tests;
