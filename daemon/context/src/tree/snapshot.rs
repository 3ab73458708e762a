use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;

use hearth_pack::identity::{ContentHash, FileStamp};

use super::entries::{ScannedEntries, hash_part};
use super::identify::{CoveredEntries, IdentifiedTree};
use super::read::{VerifiedFile, file_stamp};
use super::revalidate::TopDirectory;
use super::scan::absolute;
use super::{ContextTree, EntryOrigin, joined};
use crate::ContextError;
use crate::error::text;
use crate::port::{EntryKind, FileKind, FileTree, SpecialFile, TreeEntry, Xattr};

/// The tree below a context path at one moment: the stat of every entry, and content on demand.
pub struct TreeSnapshot {
    pub(super) tree: ContextTree,
    /// Absolute path of the context directory, without the leading `/`.
    top: Vec<u8>,
    pub(super) entries: Arc<ScannedEntries>,
    /// The context directory before the scan; present if the scan can be revalidated later.
    pub(super) root: Option<TopDirectory>,
    /// Files that could still change without a change of their times, in order.
    unsettled: Vec<u32>,
    /// Content hashes of the unsettled files, once they are known.
    pub(super) unsettled_contents: HashMap<u32, ContentHash>,
    /// The entries that may be sent; `None` until they are known.
    pub(super) covered: Option<CoveredEntries>,
    /// Content hashes of the covered files; `None` until they are known.
    identified: Option<Arc<IdentifiedTree>>,
}

impl TreeSnapshot {
    pub(super) fn new(tree: ContextTree, top: Vec<u8>, entries: Arc<ScannedEntries>) -> Self {
        Self {
            tree,
            top,
            entries,
            root: None,
            unsettled: Vec::new(),
            unsettled_contents: HashMap::new(),
            covered: None,
            identified: None,
        }
    }

    /// Returns a hash that is equal for two scans only if both found the same entries, stats and attributes
    /// in the same mounts. `scope` is additional input that must be equal, too. `None` where equal stats do
    /// not mean equal content.
    pub(crate) fn fingerprint(&self, scope: &[&[u8]]) -> Option<[u8; 32]> {
        if !self.unsettled.is_empty() || !self.entries.are_on_disk() {
            return None;
        }
        let mut sum = blake3::Hasher::new();
        hash_part(&mut sum, &self.top);
        sum.update(&(self.tree.mounts.len() as u64).to_le_bytes());
        self.tree.mounts.iter().for_each(|mounted| hash_part(&mut sum, mounted.target.as_str().as_bytes()));
        scope.iter().for_each(|scope| hash_part(&mut sum, scope));
        self.entries.hash_into(&mut sum);
        Some(sum.finalize().into())
    }

    /// Sets the entries that may be sent, known from a scan with the same fingerprint.
    pub(crate) fn set_covered(&mut self, covered: CoveredEntries) {
        self.covered = Some(covered);
    }

    pub(crate) fn set_identified(&mut self, identified: Arc<IdentifiedTree>) {
        self.identified = Some(identified);
    }

    pub(super) fn set_xattrs(&mut self, index: usize, xattrs: Vec<Xattr>) {
        if !xattrs.is_empty() {
            Arc::make_mut(&mut self.entries).set_xattrs(index, xattrs);
        }
    }

    /// Returns the index of the entry at `path`, relative to the root.
    pub(crate) fn find(&self, path: &[u8]) -> Option<usize> {
        self.entries.find(path)
    }

    /// Returns the number of the regular files and their size in bytes; a file with several hard links counts
    /// once.
    pub(crate) fn files(&self) -> (usize, u64) {
        self.entries.files()
    }

    pub(super) fn origin(&self, index: usize) -> EntryOrigin {
        self.entries.origin(index)
    }

    /// Reports whether a later entry is another hard link of this file.
    pub(super) fn has_links(&self, index: usize) -> bool {
        self.entries.has_links(index)
    }

    pub(super) fn top(&self) -> &[u8] {
        &self.top
    }

    pub(super) fn unsettled(&self) -> &[u32] {
        &self.unsettled
    }

    pub(super) fn set_unsettled(&mut self, unsure: Vec<u32>) {
        self.unsettled = unsure;
    }

    /// Returns the path of an entry from the root of the tree.
    fn path(&self, index: usize) -> Vec<u8> {
        joined(&self.top, self.entries.path(index))
    }

    pub(super) fn shown(&self, index: usize) -> String {
        text(&absolute(&self.path(index)))
    }

    /// Returns the key of a file on disk in the hash cache.
    pub(super) fn stamp(&self, index: usize) -> Option<FileStamp> {
        let TreeEntry { kind: FileKind::File(()), size, mtime: modified, .. } = self.entry(index) else {
            return None;
        };
        match self.origin(index) {
            EntryOrigin::Disk { device, inode, changed, .. } => {
                Some(FileStamp { device, inode, size, modified, changed })
            }
            _ => None,
        }
    }

    /// Reports whether an entry is still as the scan found it.
    pub(super) fn is_unchanged(&self, index: usize) -> Result<bool, ContextError> {
        let (entry, path) = (self.entry(index), self.path(index));
        let Some((mount, inside)) = self.tree.deepest_mount(&path) else { return Ok(false) };
        let found =
            self.tree.lookup_in(mount, inside).map_err(|errno| ContextError::at(&absolute(&path), errno))?;
        Ok(found.is_some_and(|found| {
            (found.mode, found.size, found.mtime, found.origin)
                == (entry.mode, entry.size, entry.mtime, self.origin(index))
        }))
    }

    /// Opens a file on disk, or fails if it changed since the scan.
    pub(super) fn open_on_disk(&self, index: usize) -> Result<VerifiedFile, ContextError> {
        let path = self.path(index);
        let path_text = || text(&absolute(&path));
        let changed = || ContextError::Changed { path: path_text() };
        let stamp = self.stamp(index).ok_or_else(changed)?;
        let Some((mount, inside)) = self.tree.deepest_mount(&path) else { return Err(changed()) };
        let Some(layer) = self.tree.layer(mount).as_directory() else { return Err(changed()) };
        let (file, stat) =
            layer.open_file(inside).map_err(|errno| ContextError::at(&absolute(&path), errno))?;
        if file_stamp(&stat) != stamp {
            return Err(changed());
        }
        Ok(VerifiedFile::new(file, stamp, path_text()))
    }

    fn open_content(&self, index: usize) -> Result<Box<dyn Read + Send>, ContextError> {
        match (self.entry(index).kind, self.origin(index)) {
            (FileKind::HardLink(first), _) => self.open_content(first),
            (FileKind::File(()), EntryOrigin::Disk { .. }) => {
                let verified = self.open_on_disk(index)?;
                Ok(match self.unsettled_contents.get(&(index as u32)) {
                    // The stat does not reveal a write in the same clock tick, so the content itself is
                    // compared.
                    Some(hash) => Box::new(verified.with_content(*hash)),
                    None => Box::new(verified),
                })
            }
            (
                FileKind::File(()),
                EntryOrigin::Image { mount, node } | EntryOrigin::Pack { mount, entry: node },
            ) => {
                let opened = self.tree.layer(mount).open(node);
                opened.map_err(|source| ContextError::Io { path: self.shown(index), source })
            }
            (kind, _) => Err(ContextError::NotAFile { path: self.shown(index), what: kind_name(&kind) }),
        }
    }
}

impl FileTree for TreeSnapshot {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn entry(&self, index: usize) -> TreeEntry<'_> {
        self.entries.entry(index)
    }

    fn xattrs(&self, index: usize) -> &[Xattr] {
        self.entries.xattrs(index)
    }

    fn is_covered(&self, index: usize) -> bool {
        self.covered.as_ref().is_none_or(|covered| covered.has(index))
    }

    fn is_listed(&self, index: usize) -> bool {
        self.entries.is_listed(index)
    }

    fn content_hash(&self, index: usize) -> Option<ContentHash> {
        self.identified.as_ref().filter(|_| self.is_covered(index))?.content_hash(self, index)
    }

    fn open(&self, index: usize) -> io::Result<Box<dyn Read + Send>> {
        if index >= self.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.open_content(index).map_err(io::Error::other)
    }
}

pub(super) const fn kind_name<T>(kind: &EntryKind<T>) -> &'static str {
    match kind {
        FileKind::Directory => "a directory",
        FileKind::File(()) | FileKind::HardLink(_) => "a file",
        FileKind::Symlink(_) => "a link",
        FileKind::Special(SpecialFile::Fifo) => "a fifo",
        FileKind::Special(SpecialFile::Socket) => "a socket",
        FileKind::Special(SpecialFile::Device { .. }) => "a device",
    }
}
