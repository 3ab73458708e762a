//! Source of a layer's entries: a walked directory, or a list with content from another place. The same entries with
//! the same content give the same bytes.

use crate::file_kind::FileKind;
use crate::walk::{ContentError, DiskReader, EntryXattrs, WalkEntry, WalkedTree};

/// Entries of a layer and access to their content.
pub trait LayerSource: Sync {
    /// Returns the entries in walk order: each directory before its content, names sorted by their bytes.
    fn entries(&self) -> &[WalkEntry];

    /// Returns a reader for one thread. Several readers work at the same time, on different entries.
    fn reader(&self) -> Box<dyn ContentReader + '_>;
}

/// Reader for regular files and directories of a [`LayerSource`], in ascending order of their index.
pub trait ContentReader {
    /// Opens the file or directory at `index` of the entries. Returns its attributes, sorted by name.
    fn open(&mut self, index: usize) -> Result<EntryXattrs, ContentError>;

    /// Fills `buffer` with content of the open file from `offset` on. The caller never reads beyond the entry's size;
    /// a file that turns out to be shorter is an error.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ContentError>;

    /// Verifies that the file that was read is the listed one, unchanged. Called after the last read of a file.
    fn verify(&mut self) -> Result<(), ContentError>;
}

impl LayerSource for WalkedTree {
    fn entries(&self) -> &[WalkEntry] {
        &self.entries
    }

    fn reader(&self) -> Box<dyn ContentReader + '_> {
        Box::new(TreeReader { entries: &self.entries, disk: self.reader() })
    }
}

struct TreeReader<'a> {
    entries: &'a [WalkEntry],
    disk: DiskReader<'a>,
}

impl ContentReader for TreeReader<'_> {
    fn open(&mut self, index: usize) -> Result<EntryXattrs, ContentError> {
        self.disk.open(&self.entries[index])
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ContentError> {
        self.disk.read(offset, buffer)
    }

    fn verify(&mut self) -> Result<(), ContentError> {
        self.disk.verify()
    }
}

/// Reports whether an image keeps attributes of such an entry.
pub(crate) fn has_xattrs(entry: &WalkEntry) -> bool {
    matches!(entry.kind, FileKind::File(()) | FileKind::Directory)
}
