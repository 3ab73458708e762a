//! A directory or a single file of a storage as a layer.
//!
//! No path is opened in a way that a symbolic link could redirect: the source is opened once below the
//! storage's root, and everything below it is opened with symbolic links refused.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use hearth_overlay::beneath::{self, DiskStat};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::{DirectoryChild, DirectoryContent, EntryOrigin, LayerEntry, joined};
use crate::port::EntryKind;
use crate::storage::{StorageError, StorageRoot, is_unfinished, normalized};

pub struct DirectoryLayer {
    /// Handle (`O_PATH`) to the source.
    source: OwnedFd,
    is_directory: bool,
}

impl DirectoryLayer {
    /// Opens a directory or a regular file of a storage. The root's policy applies to symbolic links in
    /// `path`.
    pub fn open(root: &StorageRoot, path: &Path) -> Result<Self, StorageError> {
        let path = normalized(path)?;
        let (source, stat) = root.open_path(&path)?;
        match stat.kind {
            FileType::Directory => Ok(Self { source, is_directory: true }),
            FileType::RegularFile => Ok(Self { source, is_directory: false }),
            _ => Err(StorageError::NotADirectory { path }),
        }
    }

    pub(super) fn open_path(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        if path.is_empty() {
            return rustix::io::fcntl_dupfd_cloexec(&self.source, 0);
        }
        if self.is_directory { beneath::open_path(&self.source, path) } else { Err(Errno::NOTDIR) }
    }

    pub(super) fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        if self.is_directory { beneath::open_directory(&self.source, path) } else { Err(Errno::NOTDIR) }
    }

    /// Returns the entry at `path`; `None` when there is none, or when a symbolic link is on the path.
    pub(super) fn lookup(&self, mount: u32, path: &[u8]) -> Result<Option<LayerEntry>, Errno> {
        let held = match self.open_path(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            other => other?,
        };
        let stat = beneath::stat(&held)?;
        layer_entry(mount, &stat, || beneath::link_target(&held, c"")).map(Some)
    }

    /// Returns the content of a directory, unsorted. Entries that vanish meanwhile are omitted. The result
    /// has at most `limit` + 1 children. `above` is the open parent directory, if the caller has it.
    pub(super) fn children(
        &self,
        mount: u32,
        path: &[u8],
        above: Option<&OwnedFd>,
        limit: usize,
    ) -> Result<DirectoryContent, Errno> {
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
        let directory = match above {
            Some(above) if !name.is_empty() => beneath::open_directory(above, name)?,
            _ => beneath::open_directory(&self.source, path)?,
        };
        let xattrs = beneath::xattrs(&directory)?;
        let mut children = Vec::new();
        let mut failed = None;
        beneath::for_each_name(&directory, |name| {
            if is_unfinished(name.to_bytes()) {
                return true;
            }
            let stat = beneath::stat_at(&directory, name);
            match stat.and_then(|stat| layer_entry(mount, &stat, || beneath::link_target(&directory, name))) {
                Ok(found) => children.push(DirectoryChild { name: name.to_bytes().into(), found }),
                // Gone since the name was read. A symbolic link that was replaced by another kind counts as
                // gone, too.
                Err(Errno::NOENT | Errno::INVAL) => {}
                Err(errno) => failed = Some((errno, name.to_owned())),
            }
            failed.is_none() && children.len() <= limit
        })?;
        match failed {
            Some((errno, _)) => Err(errno),
            None => Ok(DirectoryContent { children, xattrs, directory: Some(Arc::new(directory)) }),
        }
    }

    /// Opens the regular file at `path`, and returns its stat at that moment.
    pub(super) fn open_file(&self, path: &[u8]) -> Result<(File, DiskStat), Errno> {
        let held = self.open_path(path)?;
        let stat = beneath::stat(&held)?;
        if stat.kind != FileType::RegularFile {
            return Err(Errno::ISDIR);
        }
        Ok((beneath::reopen(&held)?, stat))
    }
}

fn layer_entry(
    mount: u32,
    stat: &DiskStat,
    target: impl FnOnce() -> Result<Box<[u8]>, Errno>,
) -> Result<LayerEntry, Errno> {
    let device =
        |character| EntryKind::Device { character, major: stat.device_number.0, minor: stat.device_number.1 };
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
    let origin = EntryOrigin::Disk { mount, device: stat.device, inode: stat.inode, changed: stat.changed };
    Ok(LayerEntry { kind, mode: stat.mode, size, mtime: stat.modified, links: stat.links, origin })
}

/// Returns the path of a child, or ENAMETOOLONG if it is too long for a system call.
pub(super) fn child_path(directory: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno> {
    let path = joined(directory, name);
    if path.len() > beneath::MAX_PATH { Err(Errno::NAMETOOLONG) } else { Ok(path) }
}
