//! A directory or a single file of a storage as a layer of a context tree.
//!
//! Symbolic links cannot redirect any access: the source is opened once below the storage's root, and everything
//! below the source is opened relative to that handle with symbolic links refused.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use hearth_overlay::attr::{self, InodeStat, read_xattr};
use hearth_overlay::beneath;
use hearth_overlay::lower::{EntryStat, FileIdentity, MAX_DIRECTORY_ENTRIES};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::layer::TreeLayer;
use super::{DirectoryChild, DirectoryContent, EntryOrigin, LayerEntry};
use crate::port::FileKind;
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
        match stat.attr.kind {
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

    /// Opens a handle to an entry that can have extended attributes: a regular file or a directory.
    fn open_for_xattrs(&self, path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
        let handle = match self.open_path(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            other => other?,
        };
        let kind = attr::stat(&handle)?.attr.kind;
        Ok(matches!(kind, FileType::RegularFile | FileType::Directory).then_some(handle))
    }

    /// Opens the regular file at `path`, and returns its stat at that moment.
    pub(super) fn open_file(&self, path: &[u8]) -> Result<(File, InodeStat), Errno> {
        let handle = self.open_path(path)?;
        let stat = attr::stat(&handle)?;
        if stat.attr.kind != FileType::RegularFile {
            return Err(Errno::ISDIR);
        }
        Ok((beneath::reopen(&handle)?, stat))
    }
}

impl TreeLayer for DirectoryLayer {
    fn lookup(&self, mount: u32, path: &[u8]) -> Result<Option<LayerEntry>, Errno> {
        let handle = match self.open_path(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            other => other?,
        };
        let stat = attr::stat(&handle)?;
        layer_entry(mount, &stat, || beneath::link_target(&handle, c"")).map(Some)
    }

    // Entries that disappear during the listing are omitted.
    fn children(
        &self,
        mount: u32,
        path: &[u8],
        parent: Option<&OwnedFd>,
        limit: usize,
    ) -> Result<DirectoryContent, Errno> {
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
        let directory = match parent {
            Some(parent) if !name.is_empty() => beneath::open_directory(parent, name)?,
            _ => beneath::open_directory(&self.source, path)?,
        };
        let xattrs = beneath::xattrs(&directory)?;
        let mut children = Vec::new();
        let mut failed = None;
        beneath::for_each_name(&directory, |name| {
            if is_unfinished(name.to_bytes()) {
                return true;
            }
            let stat = attr::stat_at(&directory, name);
            match stat.and_then(|stat| layer_entry(mount, &stat, || beneath::link_target(&directory, name))) {
                Ok(found) => children.push(DirectoryChild { name: name.to_bytes().into(), found }),
                // The entry was removed after its name was read, or a symbolic link was replaced by another kind of
                // file.
                Err(Errno::NOENT | Errno::INVAL) => {}
                Err(errno) => failed = Some(errno),
            }
            failed.is_none() && children.len() <= limit
        })?;
        match failed {
            Some(errno) => Err(errno),
            None => Ok(DirectoryContent { children, xattrs, directory: Some(Arc::new(directory)) }),
        }
    }

    fn stat(&self, mount: u32, path: &[u8]) -> Result<Option<EntryStat>, Errno> {
        match self.open_path(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            handle => Ok(Some(from_disk(mount, &attr::stat(handle?)?))),
        }
    }

    fn list(&self, mount: u32, path: &[u8]) -> Result<BTreeMap<Box<[u8]>, EntryStat>, Errno> {
        let directory = match self.open_directory(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(BTreeMap::new()),
            other => other?,
        };
        let mut names: Vec<(Box<[u8]>, EntryStat)> = Vec::new();
        let mut failed = None;
        beneath::for_each_name(&directory, |name| {
            if is_unfinished(name.to_bytes()) {
                return true;
            }
            match attr::stat_at(&directory, name) {
                Ok(stat) => names.push((name.to_bytes().into(), from_disk(mount, &stat))),
                Err(Errno::NOENT) => {}
                Err(errno) => failed = Some(errno),
            }
            if names.len() > MAX_DIRECTORY_ENTRIES {
                failed = Some(Errno::OVERFLOW);
            }
            failed.is_none()
        })?;
        // Collecting sorted names in one step is much cheaper than inserting them one by one.
        failed.map_or_else(|| Ok(names.into_iter().collect()), Err)
    }

    fn link_target(&self, path: &[u8]) -> Result<Box<[u8]>, Errno> {
        beneath::link_target(self.open_path(path)?, c"")
    }

    fn xattr(&self, path: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno> {
        let Some(handle) = self.open_for_xattrs(path)? else { return Err(Errno::NODATA) };
        read_xattr(|buffer| rustix::fs::getxattr(proc_path(&handle), name, buffer))
    }

    fn xattr_names(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let Some(handle) = self.open_for_xattrs(path)? else { return Ok(Vec::new()) };
        read_xattr(|buffer| rustix::fs::listxattr(proc_path(&handle), buffer))
    }

    fn as_directory(&self) -> Option<&DirectoryLayer> {
        Some(self)
    }
}

fn from_disk(mount: u32, stat: &InodeStat) -> EntryStat {
    let &InodeStat { attr, file_system, inode, birth } = stat;
    EntryStat {
        attr,
        identity: FileIdentity::Disk { mount, file_system, inode, birth: (birth.seconds, birth.nanos) },
    }
}

fn proc_path(handle: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", handle.as_raw_fd())
}

fn layer_entry(
    mount: u32,
    stat: &InodeStat,
    target: impl FnOnce() -> Result<Box<[u8]>, Errno>,
) -> Result<LayerEntry, Errno> {
    let attr = &stat.attr;
    let kind = FileKind::from_stat(attr.kind, attr.device, (), target)?;
    let size = if kind == FileKind::File(()) { attr.size } else { 0 };
    let (device, changed) = (stat.file_system, attr.changed.as_nanos());
    let origin = EntryOrigin::Disk { mount, device, inode: stat.inode, changed };
    Ok(LayerEntry { kind, mode: attr.mode, size, mtime: attr.modified.as_nanos(), links: attr.links, origin })
}
