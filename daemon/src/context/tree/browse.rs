//! Access to the tree one path at a time, for callers that do not need a whole scan: they list a directory,
//! or serve files that may change meanwhile.
//!
//! Nothing is cached here: each answer reflects the layers at that moment.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::directory::child_path;
use super::{DirectoryLayer, Found, ImageLayer, Layer, Origin, StoredLayer, Tree, bare, below, joined};
use crate::context::ContextError;
use crate::context::attr::{Attr, Stat, Time, stat_at};
use crate::context::beneath;
use crate::context::port::{EntryKind, Xattr};
use crate::context::storage::is_unfinished;
use crate::model::MountTarget;

/// Attributes and identity of an entry.
#[derive(Clone, Debug)]
pub struct Seen {
    pub attr: Attr,
    pub source: Source,
}

/// A path without symbolic links, and its entry.
pub type Located = (Box<[u8]>, Seen);

/// Identity of a file while the tree is open. All hard links of a file have the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A synthetic directory, which no layer contains.
    Made,
    Disk {
        mount: u32,
        file_system: u64,
        inode: u64,
        born: (i64, u32),
    },
    /// Entry of an image or a pack. The hard links of a file share a number in `links` and have no `node`.
    Image {
        mount: u32,
        node: u32,
        links: Option<u64>,
    },
}

/// A regular file of the tree, open for reading at any offset.
pub enum Content {
    File(File),
    Layer(LayerFile),
}

/// A file of an image, or of a pack that was uploaded by content.
pub struct LayerFile {
    tree: Tree,
    mount: u32,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    Node(u32),
    Stored { entry: u32, size: u64 },
}

/// Maximum number of names in one directory listing.
pub const MAX_NAMES: usize = super::scan::MAX_FILES;

impl Tree {
    /// Returns the entry at `path`, which has no leading `/`. `None` when there is none, or when a symbolic
    /// link is on the path.
    pub fn look(&self, path: &[u8]) -> Result<Option<Seen>, Errno> {
        let found = match self.covering(path) {
            Some((mount, inside)) => self.look_in(mount, inside)?,
            None => None,
        };
        let is_directory = found.as_ref().is_some_and(|seen| seen.attr.kind == FileType::Directory);
        if !is_directory && (path.is_empty() || !self.mounts_below(path).is_empty()) {
            return Ok(Some(made()));
        }
        Ok(found)
    }

    fn look_in(&self, mount: u32, inside: &[u8]) -> Result<Option<Seen>, Errno> {
        Ok(match self.layer(mount) {
            Layer::Directory(layer) => layer.look(mount, inside)?,
            Layer::Image(layer) => layer.lookup(mount, inside).map(|found| from_image(layer, &found)),
            Layer::Stored(layer) => layer.lookup(mount, inside).map(|found| from_stored(layer, &found)),
            Layer::Empty => inside.is_empty().then(made),
        })
    }

    /// Lists the directory at `path`, sorted by name. A missing directory is empty.
    pub fn names(&self, path: &[u8]) -> Result<BTreeMap<Box<[u8]>, Seen>, Errno> {
        let mut children = match self.covering(path) {
            Some((mount, inside)) => match self.layer(mount) {
                Layer::Directory(layer) => layer.list(mount, inside)?,
                Layer::Image(layer) => layer
                    .children(mount, inside)
                    .children
                    .into_iter()
                    .map(|child| (child.name, from_image(layer, &child.found)))
                    .collect(),
                Layer::Stored(layer) => layer
                    .children(mount, inside)
                    .children
                    .into_iter()
                    .map(|child| (child.name, from_stored(layer, &child.found)))
                    .collect(),
                Layer::Empty => BTreeMap::new(),
            },
            None => BTreeMap::new(),
        };
        for mount in self.mounts_below(path) {
            let target = bare(&self.mounts[mount as usize].target);
            let rest = below(path, target).unwrap_or_default();
            let name = rest.split(|&byte| byte == b'/').next().unwrap_or_default();
            match self.look(&joined(path, name))? {
                Some(seen) => children.insert(name.into(), seen),
                None => children.remove(name),
            };
        }
        Ok(children)
    }

    /// Returns the target of the symbolic link at `path`.
    pub fn link_target(&self, path: &[u8]) -> Result<Box<[u8]>, Errno> {
        let (mount, inside) = self.covering(path).ok_or(Errno::NOENT)?;
        match self.layer(mount) {
            Layer::Directory(layer) => beneath::link_target(layer.hold(inside)?, c""),
            Layer::Image(layer) => target_of(layer.lookup(mount, inside)),
            Layer::Stored(layer) => target_of(layer.lookup(mount, inside)),
            Layer::Empty => Err(Errno::NOENT),
        }
    }

    /// Opens the regular file at `path`; no other kind of file is ever opened.
    pub fn content(&self, path: &[u8]) -> Result<Content, Errno> {
        let (mount, inside) = self.covering(path).ok_or(Errno::NOENT)?;
        match self.layer(mount) {
            Layer::Directory(layer) => layer.open_file(inside).map(|(file, _)| Content::File(file)),
            Layer::Image(layer) => self.layer_file(mount, layer.lookup(mount, inside)),
            Layer::Stored(layer) => self.layer_file(mount, layer.lookup(mount, inside)),
            Layer::Empty => Err(Errno::NOENT),
        }
    }

    fn layer_file(&self, mount: u32, found: Option<Found>) -> Result<Content, Errno> {
        let found = found.ok_or(Errno::NOENT)?;
        let place = match (found.kind, found.origin) {
            (EntryKind::File, Origin::Image { node, .. }) => Place::Node(node),
            (EntryKind::File, Origin::Stored { entry, .. }) => Place::Stored { entry, size: found.size },
            _ => return Err(Errno::ISDIR),
        };
        Ok(Content::Layer(LayerFile { tree: self.clone(), mount, place }))
    }

    /// Returns the value of an extended attribute.
    pub fn xattr(&self, path: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno> {
        if let Some(known) = self.layer_xattrs(path) {
            let found = known.iter().find(|(known, _)| known == name);
            return found.map(|(_, value)| value.clone()).ok_or(Errno::NODATA);
        }
        let Some(held) = self.held(path)? else { return Err(Errno::NODATA) };
        read_xattr(|buffer| rustix::fs::getxattr(proc_path(&held), name, buffer))
    }

    /// Returns the names of the extended attributes, each followed by a NUL.
    pub fn xattrs(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        if let Some(known) = self.layer_xattrs(path) {
            return Ok(known.iter().flat_map(|(name, _)| [name, &b"\0"[..]].concat()).collect());
        }
        let Some(held) = self.held(path)? else { return Ok(Vec::new()) };
        read_xattr(|buffer| rustix::fs::listxattr(proc_path(&held), buffer))
    }

    /// Returns `None` when the entry at `path` is on disk.
    fn layer_xattrs(&self, path: &[u8]) -> Option<Vec<Xattr>> {
        let (mount, inside) = self.covering(path)?;
        match self.layer(mount) {
            Layer::Image(layer) => match layer.lookup(mount, inside)?.origin {
                Origin::Image { node, .. } => Some(layer.xattrs(node).to_vec()),
                _ => None,
            },
            Layer::Stored(layer) => match layer.lookup(mount, inside)?.origin {
                Origin::Stored { entry, .. } => Some(layer.xattrs(entry)),
                _ => None,
            },
            Layer::Directory(_) | Layer::Empty => None,
        }
    }

    /// Opens a handle to an entry on disk that can have extended attributes: a regular file or a directory.
    fn held(&self, path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
        let Some((mount, inside)) = self.covering(path) else { return Ok(None) };
        let Layer::Directory(layer) = self.layer(mount) else { return Ok(None) };
        let held = match layer.hold(inside) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            other => other?,
        };
        let kind = stat_at(&held, c"")?.attr.kind;
        Ok(matches!(kind, FileType::RegularFile | FileType::Directory).then_some(held))
    }

    /// Resolves `path`, following symbolic links inside the tree, and returns the resolved path and its
    /// entry.
    pub fn find(&self, path: &[u8]) -> Result<Option<Located>, ContextError> {
        let Some((canonical, _)) = super::resolve::resolve(self, path)? else { return Ok(None) };
        let seen = self.look(&canonical).map_err(|errno| ContextError::at(&canonical, errno))?;
        Ok(seen.map(|seen| (canonical.into(), seen)))
    }

    /// Returns the directory that a context path names, following symbolic links inside the tree.
    pub fn directory_at(&self, path: &MountTarget) -> Result<Box<[u8]>, ContextError> {
        self.context_directory(path).map(|(canonical, _)| canonical.into())
    }

    /// Returns the target of a mount, by the mount number of a [`FileIdentity`].
    pub fn target(&self, mount: u32) -> &MountTarget {
        &self.mounts[mount as usize].target
    }

    /// Reports whether all files come from images and packs, and therefore never change.
    pub fn is_constant(&self) -> bool {
        !self.mounts.iter().any(|mounted| matches!(mounted.layer, Layer::Directory(_)))
    }

    /// Returns the path of a child, or ENAMETOOLONG if it is too long for a system call.
    pub fn child_path(directory: &[u8], name: &[u8]) -> Result<Box<[u8]>, Errno> {
        child_path(directory, name).map(Vec::into_boxed_slice)
    }
}

impl DirectoryLayer {
    fn look(&self, mount: u32, path: &[u8]) -> Result<Option<Seen>, Errno> {
        match self.hold(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            held => Ok(Some(from_disk(mount, &stat_at(held?, c"")?))),
        }
    }

    fn list(&self, mount: u32, path: &[u8]) -> Result<BTreeMap<Box<[u8]>, Seen>, Errno> {
        let directory = match self.open_directory(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(BTreeMap::new()),
            other => other?,
        };
        let mut names: Vec<(Box<[u8]>, Seen)> = Vec::new();
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
            if names.len() > MAX_NAMES {
                failed = Some(Errno::OVERFLOW);
            }
            failed.is_none()
        })?;
        // Collecting sorted names in one step is much cheaper than inserting them one by one.
        failed.map_or_else(|| Ok(names.into_iter().collect()), Err)
    }
}

fn from_disk(mount: u32, stat: &Stat) -> Seen {
    let &Stat { attr, file_system, inode, born } = stat;
    Seen { attr, source: Source::Disk { mount, file_system, inode, born: (born.seconds, born.nanos) } }
}

fn target_of(found: Option<Found>) -> Result<Box<[u8]>, Errno> {
    match found.ok_or(Errno::NOENT)?.kind {
        EntryKind::Symlink(target) => Ok(target),
        _ => Err(Errno::INVAL),
    }
}

fn from_image(layer: &ImageLayer, found: &Found) -> Seen {
    let links = match found.origin {
        Origin::Image { node, .. } => layer.link_group(node),
        _ => None,
    };
    from_layer(found, links)
}

fn from_stored(layer: &StoredLayer, found: &Found) -> Seen {
    let links = match found.origin {
        Origin::Stored { entry, .. } => layer.link_group(entry),
        _ => None,
    };
    from_layer(found, links)
}

/// Builds an entry of an image or a pack. `links` is the number that the hard links of one file share.
fn from_layer(found: &Found, links: Option<u64>) -> Seen {
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
        Origin::Image { mount, node } | Origin::Stored { mount, entry: node } => {
            let node = if links.is_some() { u32::MAX } else { node };
            // The exact number of hard links is unknown; 2 says that there are others.
            (Source::Image { mount, node, links }, if links.is_some() { 2 } else { 1 })
        }
        _ => (Source::Made, 1),
    };
    let time = Time::from_nanos(found.mtime);
    let attr = Attr {
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
    Seen { attr, source }
}

const fn made() -> Seen {
    Seen { attr: Attr::MADE_DIRECTORY, source: Source::Made }
}

fn proc_path(held: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", held.as_raw_fd())
}

/// Maximum size in bytes of a value and of a list of names in the kernel.
const MAX_XATTR: usize = 64 * 1024;

/// Reads a complete attribute value or list of names, even if it grows meanwhile.
pub fn read_xattr(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 1024];
    loop {
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < MAX_XATTR => buffer = vec![0; MAX_XATTR],
            Err(errno) => return Err(errno),
        }
    }
}

impl LayerFile {
    /// Fills `buffer` from `offset` on, as far as the file reaches. Returns the number of bytes.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match (self.tree.layer(self.mount), self.place) {
            (Layer::Image(layer), Place::Node(node)) => layer.read_at(node, buffer, offset),
            (Layer::Stored(_), Place::Stored { size, .. }) if offset >= size => Ok(0),
            (Layer::Stored(layer), Place::Stored { entry, size }) => {
                let room = usize::try_from(size - offset).unwrap_or(usize::MAX).min(buffer.len());
                layer.open_at(entry, offset)?.read_exact(&mut buffer[..room])?;
                Ok(room)
            }
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}
