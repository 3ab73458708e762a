//! The interface through which the rest of the daemon reads the files of a build.

use std::cmp::Ordering;
use std::io::{self, Read};
use std::sync::Arc;

use hearth_pack::identity::ContentHash;

use super::tree::path_order;

/// A tree of files at one moment: the stat of every entry is known, and content is read on demand.
///
/// The root itself is not an entry. The entries are in the order of BuildKit's file sync: depth first, names
/// of a directory sorted by their bytes.
#[expect(clippy::len_without_is_empty, reason = "an empty tree is a tree like any other")]
pub trait FileTree: Send + Sync + 'static {
    /// Number of entries.
    fn len(&self) -> usize;

    /// Returns the entry at `index`, which must be less than [`len`](Self::len).
    fn entry(&self, index: usize) -> TreeEntry<'_>;

    /// Returns the extended attributes of an entry that are transferred with a file: `security.capability`
    /// and `user.*`.
    fn xattrs(&self, index: usize) -> &[Xattr] {
        let _ = index;
        &[]
    }

    /// Reports whether the entry is part of the tree's digest. An entry that is not covered must not be sent,
    /// because it may differ later under the same session id.
    fn is_covered(&self, index: usize) -> bool {
        let _ = index;
        true
    }

    /// Reports whether the directory at `index` was scanned, so that its children are entries. A directory
    /// that was not scanned is not covered, and it may contain files all the same.
    fn is_listed(&self, index: usize) -> bool {
        let _ = index;
        true
    }

    /// Returns the content hash of a regular file; `None` for other entries, and for those that are not covered.
    fn content_hash(&self, index: usize) -> Option<ContentHash> {
        let _ = index;
        None
    }

    /// Opens the content of the regular file at `index`. Blocking.
    ///
    /// The reader returns exactly `size` bytes, or an error that names the path when the file no longer
    /// matches its entry.
    fn open(&self, index: usize) -> io::Result<Box<dyn Read + Send>>;
}

impl dyn FileTree {
    pub fn entries(&self) -> impl Iterator<Item = TreeEntry<'_>> {
        (0..self.len()).map(|index| self.entry(index))
    }

    /// Returns the index of the entry at `path`.
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

pub use hearth_overlay::attr::Xattr;
pub use hearth_pack::{FileKind, SpecialFile};

/// One entry of a [`FileTree`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry<'t> {
    /// Path relative to the root, with `/` between the names; not necessarily UTF-8.
    pub path: &'t [u8],
    pub kind: EntryKind<&'t [u8]>,
    /// Permission, setuid, setgid and sticky bits: `mode & 0o7777`.
    pub mode: u32,
    /// Size in bytes of a regular file; 0 for every other kind.
    pub size: u64,
    /// Modification time in nanoseconds since 1970.
    pub mtime: i64,
}

/// Kind of an entry; `T` is the type of a symbolic link's target. A hard link is another name of the regular file at its
/// (smaller) index, and the entry's `size` is the size of that file.
pub type EntryKind<T = Box<[u8]>> = FileKind<(), T, usize>;

/// Identifiers under which BuildKit stores what it received of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionName {
    /// Id of the session that serves the tree, which identifies this version of the tree: BuildKit requests
    /// no file under an id that it has already received from, so one id must never cover two trees.
    pub id: String,
    /// Key of the earlier transfers that BuildKit may reuse. Two trees may have the same key only if every
    /// file with the same path, mode, size and mtime has the same content in both.
    pub shared_key: String,
}

/// Observer of the transfer of a tree. The methods block.
pub trait TransferWatch: Send + Sync + 'static {
    /// Called after files were sent. Retires the session id if the tree has changed since the scan.
    fn files_sent(&self);
    /// Called when an entry was requested that is not covered, and was therefore not sent. The next build
    /// covers the whole tree.
    fn uncovered_requested(&self);
}

/// A [`TransferWatch`] that ignores every event.
pub struct NoTransferWatch;

impl TransferWatch for NoTransferWatch {
    fn files_sent(&self) {}
    fn uncovered_requested(&self) {}
}

/// The files of a build, as a solve needs them.
#[derive(Clone)]
pub struct ContextFiles {
    /// Source of COPY and ADD.
    pub context: Arc<dyn FileTree>,
    /// The Dockerfile under the name [`dockerfile_name`](Self::dockerfile_name), and its own ignore file if
    /// it has one.
    pub dockerfile: Arc<dyn FileTree>,
    pub dockerfile_name: String,
    pub context_session: SessionName,
    pub dockerfile_session: SessionName,
    pub watch: Arc<dyn TransferWatch>,
}
