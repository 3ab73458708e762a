//! What the rest of the daemon sees of a build's files.

use std::io::{self, Read};
use std::sync::Arc;

/// A tree of files at one moment: the stat of every entry is known, content is read on demand.
pub trait FileTree: Send + Sync + 'static {
    /// All entries below the root, which itself is not among them, in the order of BuildKit's file
    /// sync: depth first, names of a directory sorted by their bytes.
    fn entries(&self) -> &[Entry];

    /// Content of the regular file at `index` of [`entries`](Self::entries). Blocking.
    ///
    /// Gives exactly `size` bytes, or an error that names the path when the file is no longer what
    /// its entry says.
    fn open(&self, index: usize) -> io::Result<Box<dyn Read + Send>>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the root, `/` between names, not necessarily UTF-8.
    pub path: Box<[u8]>,
    pub kind: EntryKind,
    /// Permission, setuid, setgid and sticky bits: `mode & 0o7777`.
    pub mode: u32,
    /// Of a regular file; 0 for everything else.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    Directory,
    File,
    /// The target as written; never followed.
    Symlink(Box<[u8]>),
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

/// Everything that a solve needs of a build's files.
#[derive(Clone)]
pub struct ContextFiles {
    /// What COPY and ADD read from.
    pub context: Arc<dyn FileTree>,
    /// The Dockerfile under [`dockerfile_name`](Self::dockerfile_name), and its own ignore file if it has one.
    pub dockerfile: Arc<dyn FileTree>,
    pub dockerfile_name: String,
    /// Names what BuildKit may reuse of an earlier transfer: equal for two trees only when every
    /// file that looks the same by path, mode, size and mtime has the same content in both.
    pub shared_key: String,
}
