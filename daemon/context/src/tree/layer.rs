//! The layers of a tree: directories on disk, images and packs.
//!
//! A directory changes at any time and is read by path. Images and packs never change; their entries have numbers, and
//! what is known of an entry is asked by its number.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hearth_overlay::attr::{FileAttributes, FileTime};
use hearth_overlay::lower::{EntryStat, FileIdentity, LowerFile, ReadAt};
use hearth_pack::identity::ContentHash;
use rustix::io::Errno;

use super::{DirectoryContent, DirectoryLayer, EntryOrigin, LayerEntry};
use crate::port::{FileKind, SpecialFile, Xattr};

/// A source of files that is mounted in a [`ContextTree`](super::ContextTree). Paths are relative to its root, and
/// `mount` is the number of its mount, which the origins of its entries contain. All methods block.
pub(super) trait TreeLayer: Send + Sync {
    /// Returns the entry at `path`; `None` when there is none, or when a symbolic link is on the path.
    fn lookup(&self, mount: u32, path: &[u8]) -> Result<Option<LayerEntry>, Errno>;

    /// Returns the content of a directory, unsorted, with at most `limit` + 1 children. `parent` is the open parent
    /// directory, if the caller has it.
    fn children(
        &self,
        mount: u32,
        path: &[u8],
        parent: Option<&OwnedFd>,
        limit: usize,
    ) -> Result<DirectoryContent, Errno>;

    /// Returns the stat of the entry at `path`.
    fn stat(&self, mount: u32, path: &[u8]) -> Result<Option<EntryStat>, Errno> {
        Ok(self
            .lookup(mount, path)?
            .map(|found| archived_stat(&found, found.origin.node().and_then(|node| self.link_group(node)))))
    }

    /// Lists the directory at `path`, sorted by name. A missing directory is empty.
    fn list(&self, mount: u32, path: &[u8]) -> Result<BTreeMap<Box<[u8]>, EntryStat>, Errno> {
        let content = self.children(mount, path, None, usize::MAX)?;
        let stat = |found: &LayerEntry| {
            archived_stat(found, found.origin.node().and_then(|node| self.link_group(node)))
        };
        Ok(content.children.into_iter().map(|child| (child.name, stat(&child.found))).collect())
    }

    /// Returns the target of the symbolic link at `path`.
    fn link_target(&self, path: &[u8]) -> Result<Box<[u8]>, Errno> {
        match self.lookup(0, path)?.ok_or(Errno::NOENT)?.kind {
            FileKind::Symlink(target) => Ok(target),
            _ => Err(Errno::INVAL),
        }
    }

    /// Returns the value of an extended attribute of the entry at `path`, or ENODATA.
    fn xattr(&self, path: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno> {
        let node = self.lookup(0, path)?.and_then(|found| found.origin.node());
        let xattrs = node.map(|node| self.xattrs(node)).unwrap_or_default();
        xattrs.into_iter().find(|(known, _)| known == name).map(|(_, value)| value).ok_or(Errno::NODATA)
    }

    /// Returns the names of the extended attributes of the entry at `path`, each with a NUL after it.
    fn xattr_names(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let node = self.lookup(0, path)?.and_then(|found| found.origin.node());
        let xattrs = node.map(|node| self.xattrs(node)).unwrap_or_default();
        Ok(xattrs.iter().flat_map(|(name, _)| [name, &b"\0"[..]].concat()).collect())
    }

    /// Returns the number that the hard links of one file share; `None` for a file with one name.
    fn link_group(&self, _node: u32) -> Option<u64> {
        None
    }

    /// Returns the extended attributes of an entry.
    fn xattrs(&self, _node: u32) -> Vec<Xattr> {
        Vec::new()
    }

    /// Returns the hash of a file's content, and the file's extended attributes, if they are known without reading the
    /// file.
    fn hashed_content(&self, _node: u32) -> Option<(ContentHash, Vec<Xattr>)> {
        None
    }

    /// Opens the content of a file.
    fn open(&self, _node: u32) -> io::Result<Box<dyn Read + Send>> {
        Err(io::ErrorKind::NotFound.into())
    }

    /// Fills `buffer` from `offset` on, as far as the file with `size` bytes reaches. Returns the number of bytes.
    fn read_at(&self, _node: u32, _size: u64, _buffer: &mut [u8], _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::NotFound.into())
    }

    /// Returns the layer if it is a directory on disk, whose files can change.
    fn as_directory(&self) -> Option<&DirectoryLayer> {
        None
    }
}

/// A mount without content, for tests.
#[cfg(test)]
pub(super) struct EmptyLayer;

#[cfg(test)]
impl TreeLayer for EmptyLayer {
    fn lookup(&self, _mount: u32, path: &[u8]) -> Result<Option<LayerEntry>, Errno> {
        Ok(path.is_empty().then(LayerEntry::synthetic_directory))
    }

    fn children(
        &self,
        _mount: u32,
        _path: &[u8],
        _parent: Option<&OwnedFd>,
        _limit: usize,
    ) -> Result<DirectoryContent, Errno> {
        Ok(DirectoryContent::default())
    }
}

/// A file of an image or of a pack.
struct LayerFile {
    layer: Arc<dyn TreeLayer>,
    node: u32,
    size: u64,
}

impl ReadAt for LayerFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.layer.read_at(self.node, self.size, buffer, offset)
    }
}

/// Opens the regular file at `path`.
pub(super) fn open_content(layer: &Arc<dyn TreeLayer>, path: &[u8]) -> Result<LowerFile, Errno> {
    if let Some(directory) = layer.as_directory() {
        return directory.open_file(path).map(|(file, _)| LowerFile::Disk(file));
    }
    let found = layer.lookup(0, path)?.ok_or(Errno::NOENT)?;
    match (found.kind, found.origin.node()) {
        (FileKind::File(()), Some(node)) => {
            let file = LayerFile { layer: Arc::clone(layer), node, size: found.size };
            Ok(LowerFile::Archived(Box::new(file)))
        }
        _ => Err(Errno::ISDIR),
    }
}

/// Builds an entry of an image or a pack. `links` is the number that the hard links of one file share.
fn archived_stat(found: &LayerEntry, links: Option<u64>) -> EntryStat {
    let device = match found.kind {
        FileKind::Special(SpecialFile::Device { major, minor, .. }) => (major, minor),
        _ => (0, 0),
    };
    let size = match &found.kind {
        FileKind::Symlink(target) => target.len() as u64,
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
        kind: found.kind.file_type(),
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
