//! Packs as layers of a context tree. A pack is a stored listing of entries with the content hash of each file.

use std::collections::HashSet;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hearth_pack::identity::{ContentHash, HashedContent};
use hearth_pack::listing::ListingEntry;
use rustix::io::Errno;

use super::layer::TreeLayer;
use super::{DirectoryChild, DirectoryContent, EntryOrigin, LayerEntry};
use crate::pack::{PackContentReader, PackTree};
use crate::port::{FileKind, Xattr};

/// A pack as a layer. The root of the layer is the root of the pack.
pub struct PackLayer {
    pack: Arc<PackTree>,
    /// First entries of the files that have several hard links.
    linked: HashSet<u32>,
}

impl PackLayer {
    pub fn new(pack: Arc<PackTree>) -> Self {
        let first = |entry: ListingEntry<'_>| match entry.kind {
            FileKind::HardLink(to) => pack.listing.find(to).and_then(|first| u32::try_from(first).ok()),
            _ => None,
        };
        let linked = pack.listing.entries().filter_map(first).collect();
        Self { pack, linked }
    }

    /// Returns the index of the entry at `path`, relative to the root.
    fn find(&self, path: &[u8]) -> Option<u32> {
        self.pack.listing.find(path).and_then(|entry| u32::try_from(entry).ok())
    }

    fn entry(&self, entry: u32) -> ListingEntry<'_> {
        self.pack.listing.entry(entry as usize)
    }

    /// Returns the first name for a hard link, and the entry itself for every other kind.
    fn first_name(&self, entry: u32) -> u32 {
        match self.entry(entry).kind {
            FileKind::HardLink(to) => self.find(to).unwrap_or(entry),
            _ => entry,
        }
    }

    fn layer_entry(&self, mount: u32, entry: u32) -> LayerEntry {
        let first = self.first_name(entry);
        let listed = self.entry(first);
        let (kind, size) = match listed.kind {
            FileKind::File(HashedContent { size, .. }) => (FileKind::File(()), size),
            FileKind::Symlink(target) => (FileKind::Symlink(target.into()), 0),
            // A listing contains only files, symbolic links and directories.
            _ => (FileKind::Directory, 0),
        };
        // All hard links of a file have the same origin. A pack stores no times, so the mtime is 0.
        let origin = EntryOrigin::Pack { mount, entry: first };
        LayerEntry { kind, mode: listed.mode, size, mtime: 0, links: 1, origin }
    }

    /// Opens the content of a file from `offset` on.
    fn content(&self, entry: u32, offset: u64) -> io::Result<PackContentReader> {
        let (content, size) = self.entry(entry).content().ok_or(io::ErrorKind::InvalidInput)?;
        self.pack.open_at(&content, size, offset)
    }
}

impl TreeLayer for PackLayer {
    fn lookup(&self, mount: u32, path: &[u8]) -> Result<Option<LayerEntry>, Errno> {
        if path.is_empty() {
            // The root is not in the listing; it has the mode of a synthetic directory.
            let origin = EntryOrigin::Pack { mount, entry: u32::MAX };
            return Ok(Some(LayerEntry { origin, ..LayerEntry::synthetic_directory() }));
        }
        Ok(self.find(path).map(|entry| self.layer_entry(mount, entry)))
    }

    fn children(
        &self,
        mount: u32,
        path: &[u8],
        _parent: Option<&OwnedFd>,
        _limit: usize,
    ) -> Result<DirectoryContent, Errno> {
        let listing = &self.pack.listing;
        let mut xattrs = Vec::new();
        let (mut index, end, skip) = if path.is_empty() {
            (0, listing.len(), 0)
        } else {
            let Some(directory) = listing.find(path) else { return Ok(DirectoryContent::default()) };
            xattrs = listing.entry(directory).xattrs;
            (directory + 1, listing.end_of(directory), path.len() + 1)
        };
        let mut children = Vec::new();
        while index < end {
            let name = listing.path(index).get(skip..).unwrap_or_default().into();
            let found = self.layer_entry(mount, u32::try_from(index).unwrap_or(u32::MAX));
            index = if found.kind == FileKind::Directory { listing.end_of(index) } else { index + 1 };
            children.push(DirectoryChild { name, found });
        }
        Ok(DirectoryContent { children, xattrs, directory: None })
    }

    fn link_group(&self, entry: u32) -> Option<u64> {
        self.linked.contains(&entry).then_some(entry.into())
    }

    fn hashed_content(&self, entry: u32) -> Option<(ContentHash, Vec<Xattr>)> {
        let entry = self.entry(entry);
        entry.content().map(|(hash, _)| (hash, entry.xattrs))
    }

    fn xattrs(&self, entry: u32) -> Vec<Xattr> {
        if entry == u32::MAX { Vec::new() } else { self.entry(entry).xattrs }
    }

    fn open(&self, entry: u32) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(self.content(entry, 0)?))
    }

    fn read_at(&self, entry: u32, size: u64, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let count = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        if count > 0 {
            self.content(entry, offset)?.read_exact(&mut buffer[..count])?;
        }
        Ok(count)
    }
}
