use std::io::{self, Read};
use std::sync::Arc;

use hearth_pack::identity::ContentHash;

use super::{DirectoryChild, DirectoryContent, EntryOrigin, LayerEntry};
use crate::layers::{ImageNodeKind, ImageTree};
use crate::port::EntryKind;

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
        let mut size = 0;
        let kind = match stat.kind {
            ImageNodeKind::Directory(_) => EntryKind::Directory,
            ImageNodeKind::File { .. } => {
                size = stat.size;
                EntryKind::File
            }
            ImageNodeKind::Symlink(target) => EntryKind::Symlink(target.clone()),
            ImageNodeKind::Fifo => EntryKind::Fifo,
            &ImageNodeKind::Device { character, major, minor } => {
                EntryKind::Device { character, major, minor }
            }
        };
        LayerEntry {
            kind,
            mode: stat.mode,
            size,
            mtime: stat.mtime,
            links: 1,
            origin: EntryOrigin::Image { mount, node },
        }
    }

    pub(super) fn lookup(&self, mount: u32, path: &[u8]) -> Option<LayerEntry> {
        self.image.lookup(self.top, path).map(|node| self.layer_entry(mount, node))
    }

    pub(super) fn children(&self, mount: u32, path: &[u8]) -> DirectoryContent {
        let Some(directory) = self.image.lookup(self.top, path) else { return DirectoryContent::default() };
        let child = |(name, node): (&[u8], u32)| DirectoryChild {
            name: name.into(),
            found: self.layer_entry(mount, node),
        };
        let children = self.image.children(directory).map(child).collect();
        DirectoryContent { children, xattrs: self.image.xattrs(directory).to_vec(), directory: None }
    }

    pub(super) fn link_group(&self, node: u32) -> Option<u64> {
        self.image.link_group(node)
    }

    /// Returns the hash of a file's content.
    pub fn content_hash(&self, node: u32) -> ContentHash {
        self.image.content_hash(node)
    }

    /// Returns the extended attributes, sorted by name.
    pub fn xattrs(&self, node: u32) -> &[(Vec<u8>, Vec<u8>)] {
        self.image.xattrs(node)
    }

    /// Fills `buffer` from `offset` on, as far as the file reaches. Returns the number of bytes.
    pub fn read_at(&self, node: u32, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.image.read_at(node, buffer, offset)
    }

    pub(super) fn open(&self, node: u32) -> Option<Box<dyn Read + Send>> {
        self.image.open(node)
    }
}
