//! A directory of a storage (or a single file of one) as a layer.
//!
//! Nothing is ever opened by a path that a link could bend: the source is opened once, below the
//! storage's root, and everything below it with no link allowed on the way.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::{Child, Children, Found, Origin, joined};
use crate::context::beneath::{self, Stat};
use crate::context::port::EntryKind;
use crate::context::storage::{Root, StorageError, is_unfinished, normal};

pub struct DirectoryLayer {
    /// The source itself, held.
    source: OwnedFd,
    is_directory: bool,
}

impl DirectoryLayer {
    /// A directory or a regular file of a storage; links in `path` are the root's matter.
    pub fn open(root: &Root, path: &Path) -> Result<Self, StorageError> {
        let path = normal(path)?;
        let (source, stat) = root.hold(&path)?;
        match stat.kind {
            FileType::Directory => Ok(Self { source, is_directory: true }),
            FileType::RegularFile => Ok(Self { source, is_directory: false }),
            _ => Err(StorageError::NotADirectory { path }),
        }
    }

    pub(super) fn hold(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        if path.is_empty() {
            return rustix::io::fcntl_dupfd_cloexec(&self.source, 0);
        }
        if self.is_directory { beneath::hold(&self.source, path) } else { Err(Errno::NOTDIR) }
    }

    pub(super) fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        if self.is_directory { beneath::directory(&self.source, path) } else { Err(Errno::NOTDIR) }
    }

    /// What is at `path`; none when nothing is, or when it goes through a link.
    pub(super) fn lookup(&self, mount: u32, path: &[u8]) -> Result<Option<Found>, Errno> {
        let held = match self.hold(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            other => other?,
        };
        let stat = beneath::stat(&held)?;
        found(mount, &stat, || beneath::link_target(&held, c"")).map(Some)
    }

    /// What a directory holds, in no order. What vanishes meanwhile is left out; `limit` bounds the answer.
    /// `above` is the directory that it is in, where that is at hand.
    pub(super) fn children(
        &self,
        mount: u32,
        path: &[u8],
        above: Option<&OwnedFd>,
        limit: usize,
    ) -> Result<Children, Errno> {
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
        let directory = match above {
            Some(above) if !name.is_empty() => beneath::directory(above, name)?,
            _ => beneath::directory(&self.source, path)?,
        };
        let xattrs = beneath::xattrs(&directory)?;
        let mut children = Vec::new();
        let mut failed = None;
        beneath::for_each_name(&directory, |name| {
            if is_unfinished(name.to_bytes()) {
                return true;
            }
            let stat = beneath::stat_at(&directory, name);
            match stat.and_then(|stat| found(mount, &stat, || beneath::link_target(&directory, name))) {
                Ok(found) => children.push(Child { name: name.to_bytes().into(), found }),
                // Gone since the name was read. A link that is none any more counts as gone, too.
                Err(Errno::NOENT | Errno::INVAL) => {}
                Err(errno) => failed = Some((errno, name.to_owned())),
            }
            failed.is_none() && children.len() <= limit
        })?;
        match failed {
            Some((errno, _)) => Err(errno),
            None => Ok(Children { children, xattrs, directory: Some(Arc::new(directory)) }),
        }
    }

    /// The regular file at `path`, and its stat at the moment it was opened.
    pub(super) fn open_file(&self, path: &[u8]) -> Result<(File, Stat), Errno> {
        let held = self.hold(path)?;
        let stat = beneath::stat(&held)?;
        if stat.kind != FileType::RegularFile {
            return Err(Errno::ISDIR);
        }
        Ok((beneath::reopen(&held)?, stat))
    }
}

fn found(mount: u32, stat: &Stat, target: impl FnOnce() -> Result<Box<[u8]>, Errno>) -> Result<Found, Errno> {
    let device = |character| EntryKind::Device { character, major: stat.node.0, minor: stat.node.1 };
    let kind = match stat.kind {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink(target()?),
        FileType::Fifo => EntryKind::Fifo,
        FileType::Socket => EntryKind::Socket,
        FileType::CharacterDevice => device(true),
        FileType::BlockDevice => device(false),
        FileType::Unknown => return Err(Errno::IO),
    };
    let size = if kind == EntryKind::File { stat.size } else { 0 };
    let origin = Origin::Disk { mount, device: stat.device, inode: stat.inode, changed: stat.changed };
    Ok(Found { kind, mode: stat.mode, size, mtime: stat.modified, links: stat.links, origin })
}

/// Path of a child, checked against what system calls take.
pub(super) fn child_path(directory: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno> {
    let path = joined(directory, name);
    if path.len() > beneath::MAX_PATH { Err(Errno::NAMETOOLONG) } else { Ok(path) }
}
