//! Where the entries of a layer come from: a walked directory, or a list with content from elsewhere. The
//! same entries with the same content give the same bytes.

use crate::walk::{ContentError, DiskReader, Entry, EntryKind, Tree, Xattrs};

/// Entries of a layer and access to their content.
pub trait Source: Sync {
    /// In walk order: each directory before what is in it, names sorted by their bytes.
    fn entries(&self) -> &[Entry];

    /// A reader for one thread; several are at work at a time, on different entries.
    fn reader(&self) -> Box<dyn ContentReader + '_>;
}

/// Reads regular files and directories of a [`Source`], in rising order of their index.
pub trait ContentReader {
    /// Goes to the file or directory at `index` of the entries; answers with its attributes, sorted by
    /// name.
    fn open(&mut self, index: usize) -> Result<Xattrs, ContentError>;

    /// Fills `buffer` with content of the open file, which starts at `offset`. Never asked for more than
    /// the entry's size; a file that turns out to be shorter is an error.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ContentError>;

    /// Called after the last read of a file: whether what was read is what was listed.
    fn verify(&mut self) -> Result<(), ContentError>;
}

impl Source for Tree {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn reader(&self) -> Box<dyn ContentReader + '_> {
        Box::new(TreeReader { entries: &self.entries, disk: self.reader() })
    }
}

struct TreeReader<'a> {
    entries: &'a [Entry],
    disk: DiskReader<'a>,
}

impl ContentReader for TreeReader<'_> {
    fn open(&mut self, index: usize) -> Result<Xattrs, ContentError> {
        self.disk.open(&self.entries[index])
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ContentError> {
        self.disk.read(offset, buffer)
    }

    fn verify(&mut self) -> Result<(), ContentError> {
        self.disk.verify()
    }
}

/// Whether an image keeps attributes of such an entry.
pub(crate) fn has_xattrs(entry: &Entry) -> bool {
    matches!(entry.kind, EntryKind::File | EntryKind::Dir)
}
