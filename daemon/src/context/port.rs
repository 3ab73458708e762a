//! What the rest of the daemon sees of a build's files.

use std::cmp::Ordering;
use std::io::{self, Read};
use std::sync::Arc;

use super::tree::path_order;

/// A tree of files at one moment: the stat of every entry is known, content is read on demand.
///
/// Its entries are all below the root, which itself is not among them, in the order of BuildKit's file
/// sync: depth first, names of a directory sorted by their bytes.
#[expect(clippy::len_without_is_empty, reason = "an empty tree is a tree like any other")]
pub trait FileTree: Send + Sync + 'static {
    /// Number of entries.
    fn len(&self) -> usize;

    /// The entry at `index`, which must be below [`len`](Self::len).
    fn entry(&self, index: usize) -> Entry<'_>;

    /// Its extended attributes, those that travel with a file: `security.capability` and `user.*`.
    fn xattrs(&self, index: usize) -> &[Xattr] {
        let _ = index;
        &[]
    }

    /// Whether the entry is part of what the tree is known by. An entry that is not must not be sent:
    /// it may be another one day under the same session id.
    fn is_covered(&self, index: usize) -> bool {
        let _ = index;
        true
    }

    /// Whether what is in the directory at `index` is among the entries. One that is not listed is not covered:
    /// something below it may be there all the same.
    fn is_listed(&self, index: usize) -> bool {
        let _ = index;
        true
    }

    /// Content of the regular file at `index`. Blocking.
    ///
    /// Gives exactly `size` bytes, or an error that names the path when the file is no longer what
    /// its entry says.
    fn open(&self, index: usize) -> io::Result<Box<dyn Read + Send>>;
}

impl dyn FileTree {
    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        (0..self.len()).map(|index| self.entry(index))
    }

    /// Index of the entry at `path`.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        let (mut start, mut end) = (0, self.len());
        while start < end {
            let middle = usize::midpoint(start, end);
            match path_order(self.entry(middle).path, path) {
                Ordering::Equal => return Some(middle),
                Ordering::Less => start = middle + 1,
                Ordering::Greater => end = middle,
            }
        }
        None
    }
}

/// Name and value.
pub type Xattr = (Vec<u8>, Vec<u8>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'t> {
    /// Relative to the root, `/` between names, not necessarily UTF-8.
    pub path: &'t [u8],
    pub kind: EntryKind<&'t [u8]>,
    /// Permission, setuid, setgid and sticky bits: `mode & 0o7777`.
    pub mode: u32,
    /// Of a regular file; 0 for everything else.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime: i64,
}

/// `T` holds a link's target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind<T = Box<[u8]>> {
    Directory,
    File,
    /// The target as written; never followed.
    Symlink(T),
    /// Another name of the regular file at this (smaller) index. `size` is that file's.
    HardLink(usize),
    Fifo,
    Socket,
    Device {
        character: bool,
        major: u32,
        minor: u32,
    },
}

/// What a tree is known by to BuildKit, which keeps what it received of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionName {
    /// Id of the session that serves it. Stands for this version of the tree: BuildKit asks for no file
    /// under an id that it has served before, so one id never covers two trees.
    pub id: String,
    /// Names what BuildKit may reuse of an earlier transfer: equal for two trees only when every
    /// file that looks the same by path, mode, size and mtime has the same content in both.
    pub shared_key: String,
}

/// Told what becomes of a tree that is sent. Its methods block.
pub trait TransferWatch: Send + Sync + 'static {
    /// Files were sent. Sees to it that the session id is not used again when the tree is another by now.
    fn sent(&self);
    /// An entry was asked for that is not covered; it was not sent. The next time the tree covers more.
    fn asked_beyond(&self);
}

/// Nobody is told.
pub struct Unwatched;

impl TransferWatch for Unwatched {
    fn sent(&self) {}
    fn asked_beyond(&self) {}
}

impl<T: AsRef<[u8]>> EntryKind<T> {
    pub fn borrowed(&self) -> EntryKind<&[u8]> {
        match self {
            Self::Directory => EntryKind::Directory,
            Self::File => EntryKind::File,
            Self::Symlink(target) => EntryKind::Symlink(target.as_ref()),
            &Self::HardLink(first) => EntryKind::HardLink(first),
            Self::Fifo => EntryKind::Fifo,
            Self::Socket => EntryKind::Socket,
            &Self::Device { character, major, minor } => EntryKind::Device { character, major, minor },
        }
    }
}

/// Everything that a solve needs of a build's files.
#[derive(Clone)]
pub struct ContextFiles {
    /// What COPY and ADD read from.
    pub context: Arc<dyn FileTree>,
    /// The Dockerfile under [`dockerfile_name`](Self::dockerfile_name), and its own ignore file if it has one.
    pub dockerfile: Arc<dyn FileTree>,
    pub dockerfile_name: String,
    pub context_session: SessionName,
    pub dockerfile_session: SessionName,
    pub watch: Arc<dyn TransferWatch>,
}
