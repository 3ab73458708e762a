use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hearth_pack::identity::ContentHash;
use rustix::io::Errno;

use super::layer::TreeLayer;
use super::{DirectoryChild, DirectoryContent, EntryOrigin, LayerEntry};
use crate::layers::ImageTree;
use crate::port::{FileKind, Xattr};

/// An image, or the part of it below a path, as a layer.
pub struct ImageLayer {
    image: Arc<ImageTree>,
    /// Node that is the root of the layer.
    top: u32,
}

impl ImageLayer {
    /// Returns `None` when `subpath` is not in the image. Symbolic links in it are followed inside the image.
    pub fn new(image: Arc<ImageTree>, subpath: &str) -> Option<Self> {
        let top = image.resolve(subpath.as_bytes())?;
        Some(Self { image, top })
    }

    fn layer_entry(&self, mount: u32, node: u32) -> LayerEntry {
        let stat = self.image.stat(node);
        let kind = match stat.kind {
            FileKind::Directory => FileKind::Directory,
            FileKind::File(_) => FileKind::File(()),
            FileKind::Symlink(target) => FileKind::Symlink(target.clone()),
            FileKind::HardLink(never) => match *never {},
            FileKind::Special(special) => FileKind::Special(*special),
        };
        LayerEntry {
            kind,
            mode: stat.mode,
            size: stat.size,
            mtime: stat.mtime,
            links: 1,
            origin: EntryOrigin::Image { mount, node },
        }
    }
}

impl TreeLayer for ImageLayer {
    fn lookup(&self, mount: u32, path: &[u8]) -> Result<Option<LayerEntry>, Errno> {
        Ok(self.image.lookup(self.top, path).map(|node| self.layer_entry(mount, node)))
    }

    fn children(
        &self,
        mount: u32,
        path: &[u8],
        _above: Option<&OwnedFd>,
        _limit: usize,
    ) -> Result<DirectoryContent, Errno> {
        let Some(directory) = self.image.lookup(self.top, path) else {
            return Ok(DirectoryContent::default());
        };
        let child = |(name, node): (&[u8], u32)| DirectoryChild {
            name: name.into(),
            found: self.layer_entry(mount, node),
        };
        let children = self.image.children(directory).map(child).collect();
        Ok(DirectoryContent { children, xattrs: self.image.xattrs(directory).to_vec(), directory: None })
    }

    fn link_group(&self, node: u32) -> Option<u64> {
        self.image.link_group(node)
    }

    fn xattrs(&self, node: u32) -> Vec<Xattr> {
        self.image.xattrs(node).to_vec()
    }

    fn hashed_content(&self, node: u32) -> Option<(ContentHash, Vec<Xattr>)> {
        Some((self.image.content_hash(node), self.xattrs(node)))
    }

    fn open(&self, node: u32) -> io::Result<Box<dyn Read + Send>> {
        self.image.open(node).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn read_at(&self, node: u32, _size: u64, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.image.read_at(node, buffer, offset)
    }
}
