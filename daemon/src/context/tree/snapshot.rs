use std::cmp::Ordering;
use std::io::{self, Read};

use super::read::Verified;
use super::scan::absolute;
use super::{Layer, Origin, Tree, joined};
use crate::context::ContextError;
use crate::context::beneath::Stat;
use crate::context::error::text;
use crate::context::lineage::{Identity, Seen};
use crate::context::port::{Entry, EntryKind, FileTree};

/// The tree below a context path at one moment: every entry's stat, content on demand.
pub struct Snapshot {
    tree: Tree,
    /// Absolute path of the directory whose tree this is, without `/` at its start.
    top: Vec<u8>,
    entries: Vec<Entry>,
    /// One for each entry.
    origins: Vec<Origin>,
    /// Entries that could change once more without a trace in their times.
    unsure: Vec<usize>,
}

/// Orders paths as BuildKit's file sync does: `/` sorts before every other byte.
pub(in crate::context) fn path_order(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(rank).cmp(b.iter().map(rank))
}

impl Snapshot {
    pub(super) const fn new(
        tree: Tree,
        top: Vec<u8>,
        entries: Vec<Entry>,
        origins: Vec<Origin>,
        unsure: Vec<usize>,
    ) -> Self {
        Self { tree, top, entries, origins, unsure }
    }

    /// Index of the entry at `path`, relative to the root.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        self.entries.binary_search_by(|entry| path_order(&entry.path, path)).ok()
    }

    /// Number and bytes of the regular files, each hard link counted once.
    pub fn files(&self) -> (usize, u64) {
        let regular = self.entries.iter().filter(|entry| entry.kind == EntryKind::File);
        regular.fold((0, 0), |(files, bytes), entry| (files + 1, bytes + entry.size))
    }

    pub(super) fn origin(&self, index: usize) -> Origin {
        self.origins[index]
    }

    pub(super) fn unsure(&self) -> &[usize] {
        &self.unsure
    }

    pub(super) fn set_unsure(&mut self, unsure: Vec<usize>) {
        self.unsure = unsure;
    }

    fn path(&self, index: usize) -> Vec<u8> {
        joined(&self.top, &self.entries[index].path)
    }

    /// Whether an entry still is what it was at the scan.
    pub(super) fn is_unchanged(&self, index: usize) -> Result<bool, ContextError> {
        let (entry, path) = (&self.entries[index], self.path(index));
        let Some((mount, inside)) = self.tree.covering(&path) else { return Ok(false) };
        let found =
            self.tree.lookup_in(mount, inside).map_err(|errno| ContextError::at(&absolute(&path), errno))?;
        Ok(found.is_some_and(|found| {
            (found.mode, found.size, found.mtime, found.origin)
                == (entry.mode, entry.size, entry.mtime, self.origins[index])
        }))
    }

    /// What the lineage policy looks at: every regular file.
    pub(in crate::context) fn seen(&self) -> impl Iterator<Item = Seen<'_>> {
        let mut unsure = self.unsure.iter().peekable();
        self.entries.iter().enumerate().filter_map(move |(index, entry)| {
            let is_unsure = unsure.next_if_eq(&&index).is_some();
            if !matches!(entry.kind, EntryKind::File | EntryKind::HardLink(_)) {
                return None;
            }
            let identity = if is_unsure { Identity::Unsure } else { self.identity(index) };
            let Entry { path, mode, size, mtime, .. } = entry;
            Some(Seen { path, mode: *mode, size: *size, mtime: *mtime, identity })
        })
    }

    fn identity(&self, index: usize) -> Identity {
        match self.origins[index] {
            Origin::Made => Identity::Unsure,
            Origin::Disk { device, inode, changed, .. } => Identity::File { device, inode, changed },
            Origin::Image { mount, node } => match self.tree.layer(mount) {
                Layer::Image(layer) => layer.identity(node),
                _ => Identity::Unsure,
            },
            Origin::Stored { mount, entry } => match self.tree.layer(mount) {
                Layer::Stored(layer) => layer.identity(entry),
                _ => Identity::Unsure,
            },
        }
    }

    fn open_content(&self, index: usize) -> Result<Box<dyn Read + Send>, ContextError> {
        let entry = &self.entries[index];
        let path = self.path(index);
        let shown = || text(&absolute(&path));
        let changed = || ContextError::Changed { path: shown() };
        match (&entry.kind, self.origins[index]) {
            (EntryKind::HardLink(first), _) => self.open_content(*first),
            (EntryKind::File, Origin::Disk { mount, device, inode, changed: change_time, .. }) => {
                let (Layer::Directory(layer), Some((_, inside))) =
                    (self.tree.layer(mount), self.tree.covering(&path))
                else {
                    return Err(changed());
                };
                let (file, stat) =
                    layer.open_file(inside).map_err(|errno| ContextError::at(&absolute(&path), errno))?;
                let expected = Stat {
                    device,
                    inode,
                    changed: change_time,
                    size: entry.size,
                    modified: entry.mtime,
                    ..stat
                };
                if !stat.same_content(&expected) {
                    return Err(changed());
                }
                Ok(Box::new(Verified::new(file, stat, shown())))
            }
            (EntryKind::File, Origin::Image { mount, node }) => match self.tree.layer(mount) {
                Layer::Image(layer) => layer.open(node).ok_or_else(changed),
                _ => Err(changed()),
            },
            (EntryKind::File, Origin::Stored { mount, entry }) => match self.tree.layer(mount) {
                Layer::Stored(layer) => {
                    layer.open(entry).map_err(|source| ContextError::Io { path: shown(), source })
                }
                _ => Err(changed()),
            },
            (kind, _) => Err(ContextError::NotAFile { path: shown(), what: kind_name(kind) }),
        }
    }
}

impl FileTree for Snapshot {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn open(&self, index: usize) -> io::Result<Box<dyn Read + Send>> {
        if index >= self.entries.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.open_content(index).map_err(io::Error::other)
    }
}

pub(super) const fn kind_name(kind: &EntryKind) -> &'static str {
    match kind {
        EntryKind::Directory => "a directory",
        EntryKind::File | EntryKind::HardLink(_) => "a file",
        EntryKind::Symlink(_) => "a link",
        EntryKind::Fifo => "a fifo",
        EntryKind::Socket => "a socket",
        EntryKind::Device { .. } => "a device",
    }
}
