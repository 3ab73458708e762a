//! A pack that was sent by content, as a layer: a list of entries whose content hashes are known.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::Arc;

use hearth_pack::identity::{ContentHash, NodeKind};
use hearth_pack::listing::Listed;

use super::{Child, Children, Found, Origin};
use crate::context::port::{EntryKind, Xattr};
use crate::packs::port::PackTree;

pub struct StoredLayer {
    pack: Arc<PackTree>,
    /// Entries of files that have more names.
    linked: HashSet<u32>,
}

impl StoredLayer {
    pub fn new(pack: Arc<PackTree>) -> Self {
        let first = |entry: Listed<'_>| match entry.kind {
            NodeKind::HardLink { to } => pack.listing.find(to).and_then(|first| u32::try_from(first).ok()),
            _ => None,
        };
        let linked = pack.listing.entries().filter_map(first).collect();
        Self { pack, linked }
    }

    /// The entry at `path`, below the root.
    fn find(&self, path: &[u8]) -> Option<u32> {
        self.pack.listing.find(path).and_then(|entry| u32::try_from(entry).ok())
    }

    fn entry(&self, entry: u32) -> Listed<'_> {
        self.pack.listing.entry(entry as usize)
    }

    /// Of a hard link, the file that it is another name of.
    fn first_name(&self, entry: u32) -> u32 {
        match self.entry(entry).kind {
            NodeKind::HardLink { to } => self.find(to).unwrap_or(entry),
            _ => entry,
        }
    }

    fn found(&self, mount: u32, entry: u32) -> Found {
        let first = self.first_name(entry);
        let listed = self.entry(first);
        let (kind, size) = match listed.kind {
            NodeKind::File { size, .. } => (EntryKind::File, size),
            NodeKind::Symlink { target } => (EntryKind::Symlink(target.into()), 0),
            // A list has files, links and directories.
            _ => (EntryKind::Directory, 0),
        };
        // Names of one file have one origin; a pack's times are all 0.
        let origin = Origin::Stored { mount, entry: first };
        Found { kind, mode: listed.mode, size, mtime: 0, links: 1, origin }
    }

    pub(super) fn lookup(&self, mount: u32, path: &[u8]) -> Option<Found> {
        if path.is_empty() {
            // The root is no entry of the list; its mode is that of a directory that the union makes.
            let origin = Origin::Stored { mount, entry: u32::MAX };
            return Some(Found { origin, ..Found::made_directory() });
        }
        self.find(path).map(|entry| self.found(mount, entry))
    }

    pub(super) fn children(&self, mount: u32, path: &[u8]) -> Children {
        let listing = &self.pack.listing;
        let mut xattrs = Vec::new();
        let (mut at, end, skip) = if path.is_empty() {
            (0, listing.len(), 0)
        } else {
            let Some(directory) = listing.find(path) else { return Children::default() };
            xattrs = listing.entry(directory).xattrs;
            (directory + 1, listing.end_of(directory), path.len() + 1)
        };
        let mut children = Vec::new();
        while at < end {
            let name = listing.path(at).get(skip..).unwrap_or_default().into();
            let found = self.found(mount, u32::try_from(at).unwrap_or(u32::MAX));
            at = if found.kind == EntryKind::Directory { listing.end_of(at) } else { at + 1 };
            children.push(Child { name, found });
        }
        Children { children, xattrs, directory: None }
    }

    /// What names of one file have in common.
    pub(super) fn link_group(&self, entry: u32) -> Option<u64> {
        self.linked.contains(&entry).then_some(entry.into())
    }

    /// Hash of a file's content, and its attributes.
    pub(super) fn content(&self, entry: u32) -> Option<(ContentHash, Vec<Xattr>)> {
        let listed = self.entry(entry);
        let (hash, _) = listed.content()?;
        Some((hash, listed.xattrs))
    }

    /// Of anything but the root, which has none.
    pub(super) fn xattrs(&self, entry: u32) -> Vec<Xattr> {
        if entry == u32::MAX { Vec::new() } else { self.entry(entry).xattrs }
    }

    pub(super) fn open(&self, entry: u32) -> io::Result<Box<dyn Read + Send>> {
        self.open_at(entry, 0)
    }

    /// Content from `offset` on.
    pub(super) fn open_at(&self, entry: u32, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let (content, size) = self.entry(entry).content().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Box::new(self.pack.open_at(&content, size, offset)?))
    }
}
