//! Access to the tree one path at a time, for callers that do not need a whole scan: they list a directory,
//! or serve files that may change meanwhile.
//!
//! Nothing is cached here: each answer reflects the layers at that moment.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;

use hearth_model::MountTarget;
use hearth_overlay::attr::{FileAttributes, FileTime, InodeStat, read_xattr, stat_at};
use hearth_overlay::beneath;
use hearth_overlay::lower::{EntryStat, FileIdentity, LowerFile, LowerTree, MAX_DIRECTORY_ENTRIES, ReadAt};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::{
    ContextTree, DirectoryLayer, EntryOrigin, ImageLayer, LayerEntry, PackLayer, TreeLayer, bare, below,
    joined,
};
use crate::ContextError;
use crate::port::{EntryKind, Xattr};
use crate::storage::is_unfinished;

/// A path without symbolic links, and its entry.
pub type LocatedEntry = (Box<[u8]>, EntryStat);

/// A file of an image, or of a pack that was uploaded by content.
pub struct LayerFile {
    tree: ContextTree,
    mount: u32,
    place: LayerFileRef,
}

#[derive(Clone, Copy)]
enum LayerFileRef {
    Node(u32),
    Pack { entry: u32, size: u64 },
}

impl LowerTree for ContextTree {
    fn stat(&self, path: &[u8]) -> Result<Option<EntryStat>, Errno> {
        let found = match self.deepest_mount(path) {
            Some((mount, inside)) => self.stat_in(mount, inside)?,
            None => None,
        };
        let is_directory = found.as_ref().is_some_and(|seen| seen.attr.kind == FileType::Directory);
        if !is_directory && (path.is_empty() || !self.mounts_below(path).is_empty()) {
            return Ok(Some(synthetic()));
        }
        Ok(found)
    }

    fn list_directory(&self, path: &[u8]) -> Result<BTreeMap<Box<[u8]>, EntryStat>, Errno> {
        let mut children = match self.deepest_mount(path) {
            Some((mount, inside)) => match self.layer(mount) {
                TreeLayer::Directory(layer) => layer.list(mount, inside)?,
                TreeLayer::Image(layer) => layer
                    .children(mount, inside)
                    .children
                    .into_iter()
                    .map(|child| (child.name, from_image(layer, &child.found)))
                    .collect(),
                TreeLayer::Pack(layer) => layer
                    .children(mount, inside)
                    .children
                    .into_iter()
                    .map(|child| (child.name, from_stored(layer, &child.found)))
                    .collect(),
                TreeLayer::Empty => BTreeMap::new(),
            },
            None => BTreeMap::new(),
        };
        for mount in self.mounts_below(path) {
            let target = bare(&self.mounts[mount as usize].target);
            let rest = below(path, target).unwrap_or_default();
            let name = rest.split(|&byte| byte == b'/').next().unwrap_or_default();
            match self.stat(&joined(path, name))? {
                Some(seen) => children.insert(name.into(), seen),
                None => children.remove(name),
            };
        }
        Ok(children)
    }

    fn link_target(&self, path: &[u8]) -> Result<Box<[u8]>, Errno> {
        let (mount, inside) = self.deepest_mount(path).ok_or(Errno::NOENT)?;
        match self.layer(mount) {
            TreeLayer::Directory(layer) => beneath::link_target(layer.open_path(inside)?, c""),
            TreeLayer::Image(layer) => target_of(layer.lookup(mount, inside)),
            TreeLayer::Pack(layer) => target_of(layer.lookup(mount, inside)),
            TreeLayer::Empty => Err(Errno::NOENT),
        }
    }

    fn open_content(&self, path: &[u8]) -> Result<LowerFile, Errno> {
        let (mount, inside) = self.deepest_mount(path).ok_or(Errno::NOENT)?;
        match self.layer(mount) {
            TreeLayer::Directory(layer) => layer.open_file(inside).map(|(file, _)| LowerFile::Disk(file)),
            TreeLayer::Image(layer) => self.layer_file(mount, layer.lookup(mount, inside)),
            TreeLayer::Pack(layer) => self.layer_file(mount, layer.lookup(mount, inside)),
            TreeLayer::Empty => Err(Errno::NOENT),
        }
    }

    fn xattr(&self, path: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno> {
        if let Some(known) = self.layer_xattrs(path) {
            let found = known.iter().find(|(known, _)| known == name);
            return found.map(|(_, value)| value.clone()).ok_or(Errno::NODATA);
        }
        let Some(held) = self.open_for_xattrs(path)? else { return Err(Errno::NODATA) };
        read_xattr(|buffer| rustix::fs::getxattr(proc_path(&held), name, buffer))
    }

    fn xattr_names(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        if let Some(known) = self.layer_xattrs(path) {
            return Ok(known.iter().flat_map(|(name, _)| [name, &b"\0"[..]].concat()).collect());
        }
        let Some(held) = self.open_for_xattrs(path)? else { return Ok(Vec::new()) };
        read_xattr(|buffer| rustix::fs::listxattr(proc_path(&held), buffer))
    }

    fn is_immutable(&self) -> bool {
        !self.mounts.iter().any(|mounted| matches!(mounted.layer, TreeLayer::Directory(_)))
    }

    fn mount_name(&self, mount: u32) -> String {
        self.mount_target(mount).to_string()
    }
}

impl ContextTree {
    fn stat_in(&self, mount: u32, inside: &[u8]) -> Result<Option<EntryStat>, Errno> {
        Ok(match self.layer(mount) {
            TreeLayer::Directory(layer) => layer.look(mount, inside)?,
            TreeLayer::Image(layer) => layer.lookup(mount, inside).map(|found| from_image(layer, &found)),
            TreeLayer::Pack(layer) => layer.lookup(mount, inside).map(|found| from_stored(layer, &found)),
            TreeLayer::Empty => inside.is_empty().then(synthetic),
        })
    }

    fn layer_file(&self, mount: u32, found: Option<LayerEntry>) -> Result<LowerFile, Errno> {
        let found = found.ok_or(Errno::NOENT)?;
        let place = match (found.kind, found.origin) {
            (EntryKind::File, EntryOrigin::Image { node, .. }) => LayerFileRef::Node(node),
            (EntryKind::File, EntryOrigin::Pack { entry, .. }) => {
                LayerFileRef::Pack { entry, size: found.size }
            }
            _ => return Err(Errno::ISDIR),
        };
        Ok(LowerFile::Archived(Box::new(LayerFile { tree: self.clone(), mount, place })))
    }

    /// Returns `None` when the entry at `path` is on disk.
    fn layer_xattrs(&self, path: &[u8]) -> Option<Vec<Xattr>> {
        let (mount, inside) = self.deepest_mount(path)?;
        match self.layer(mount) {
            TreeLayer::Image(layer) => match layer.lookup(mount, inside)?.origin {
                EntryOrigin::Image { node, .. } => Some(layer.xattrs(node).to_vec()),
                _ => None,
            },
            TreeLayer::Pack(layer) => match layer.lookup(mount, inside)?.origin {
                EntryOrigin::Pack { entry, .. } => Some(layer.xattrs(entry)),
                _ => None,
            },
            TreeLayer::Directory(_) | TreeLayer::Empty => None,
        }
    }

    /// Opens a handle to an entry on disk that can have extended attributes: a regular file or a directory.
    fn open_for_xattrs(&self, path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
        let Some((mount, inside)) = self.deepest_mount(path) else { return Ok(None) };
        let TreeLayer::Directory(layer) = self.layer(mount) else { return Ok(None) };
        let held = match layer.open_path(inside) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            other => other?,
        };
        let kind = stat_at(&held, c"")?.attr.kind;
        Ok(matches!(kind, FileType::RegularFile | FileType::Directory).then_some(held))
    }

    /// Resolves `path`, following symbolic links inside the tree, and returns the resolved path and its
    /// entry.
    pub fn resolve(&self, path: &[u8]) -> Result<Option<LocatedEntry>, ContextError> {
        let Some((canonical, _)) = super::resolve::resolve(self, path)? else { return Ok(None) };
        let seen = self.stat(&canonical).map_err(|errno| ContextError::at(&canonical, errno))?;
        Ok(seen.map(|seen| (canonical.into(), seen)))
    }

    /// Returns the directory that a context path names, following symbolic links inside the tree.
    pub fn directory_at(&self, path: &MountTarget) -> Result<Box<[u8]>, ContextError> {
        self.context_directory(path).map(|(canonical, _)| canonical.into())
    }

    /// Returns the target of a mount, by the mount number of a [`FileIdentity`].
    pub fn mount_target(&self, mount: u32) -> &MountTarget {
        &self.mounts[mount as usize].target
    }
}

impl DirectoryLayer {
    fn look(&self, mount: u32, path: &[u8]) -> Result<Option<EntryStat>, Errno> {
        match self.open_path(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            held => Ok(Some(from_disk(mount, &stat_at(held?, c"")?))),
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
            match stat_at(&directory, name) {
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
}

fn from_disk(mount: u32, stat: &InodeStat) -> EntryStat {
    let &InodeStat { attr, file_system, inode, birth: born } = stat;
    EntryStat {
        attr,
        identity: FileIdentity::Disk { mount, file_system, inode, birth: (born.seconds, born.nanos) },
    }
}

fn target_of(found: Option<LayerEntry>) -> Result<Box<[u8]>, Errno> {
    match found.ok_or(Errno::NOENT)?.kind {
        EntryKind::Symlink(target) => Ok(target),
        _ => Err(Errno::INVAL),
    }
}

fn from_image(layer: &ImageLayer, found: &LayerEntry) -> EntryStat {
    let links = match found.origin {
        EntryOrigin::Image { node, .. } => layer.link_group(node),
        _ => None,
    };
    from_layer(found, links)
}

fn from_stored(layer: &PackLayer, found: &LayerEntry) -> EntryStat {
    let links = match found.origin {
        EntryOrigin::Pack { entry, .. } => layer.link_group(entry),
        _ => None,
    };
    from_layer(found, links)
}

/// Builds an entry of an image or a pack. `links` is the number that the hard links of one file share.
fn from_layer(found: &LayerEntry, links: Option<u64>) -> EntryStat {
    let (kind, device) = match &found.kind {
        EntryKind::Directory => (FileType::Directory, (0, 0)),
        EntryKind::File | EntryKind::HardLink(_) => (FileType::RegularFile, (0, 0)),
        EntryKind::Symlink(_) => (FileType::Symlink, (0, 0)),
        EntryKind::Fifo => (FileType::Fifo, (0, 0)),
        EntryKind::Socket => (FileType::Socket, (0, 0)),
        &EntryKind::Device { character: true, major, minor } => (FileType::CharacterDevice, (major, minor)),
        &EntryKind::Device { character: false, major, minor } => (FileType::BlockDevice, (major, minor)),
    };
    let size = match &found.kind {
        EntryKind::Symlink(target) => target.len() as u64,
        _ => found.size,
    };
    let (source, links) = match found.origin {
        EntryOrigin::Image { mount, node } | EntryOrigin::Pack { mount, entry: node } => {
            let node = if links.is_some() { u32::MAX } else { node };
            // The exact number of hard links is unknown; 2 says that there are others.
            (FileIdentity::Image { mount, node, links }, if links.is_some() { 2 } else { 1 })
        }
        _ => (FileIdentity::Synthetic, 1),
    };
    let time = FileTime::from_nanos(found.mtime);
    let attr = FileAttributes {
        kind,
        mode: found.mode,
        uid: 0,
        gid: 0,
        links,
        size,
        blocks: size.div_ceil(512),
        accessed: time,
        modified: time,
        changed: time,
        device,
    };
    EntryStat { attr, identity: source }
}

const fn synthetic() -> EntryStat {
    EntryStat { attr: FileAttributes::SYNTHETIC_DIRECTORY, identity: FileIdentity::Synthetic }
}

fn proc_path(held: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", held.as_raw_fd())
}

impl ReadAt for LayerFile {
    /// Fills `buffer` from `offset` on, as far as the file reaches. Returns the number of bytes.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match (self.tree.layer(self.mount), self.place) {
            (TreeLayer::Image(layer), LayerFileRef::Node(node)) => layer.read_at(node, buffer, offset),
            (TreeLayer::Pack(_), LayerFileRef::Pack { size, .. }) if offset >= size => Ok(0),
            (TreeLayer::Pack(layer), LayerFileRef::Pack { entry, size }) => {
                let room = usize::try_from(size - offset).unwrap_or(usize::MAX).min(buffer.len());
                layer.open_at(entry, offset)?.read_exact(&mut buffer[..room])?;
                Ok(room)
            }
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}
