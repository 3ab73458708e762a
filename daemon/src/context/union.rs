//! A union file system: a [`Tree`] below that is only read, and a directory above that takes every change.
//!
//! ```text
//! fuse (a shell) --> Union: nodes, open files --> Tree    (lower: mounts of rooms, projects, images)
//!                                            '--> Upper   (a directory of the daemon's own)
//! ```
//!
//! Nothing here knows of FUSE: operations take inode numbers and names, as any kernel would ask, and
//! fail with an errno. Without an upper the union is read-only, and everything that changes is EROFS.
//!
//! What is looked up becomes a [node](nodes), which keeps its number as long as the kernel knows it,
//! whether the file moves up, is renamed, or loses its last name while it is open. The upper is the
//! whole truth on disk ([`upper`] has the format): each operation becomes visible in it by one rename,
//! link or unlink, so that a daemon killed at any point leaves the tree as it was before the operation
//! or as it is after, and the same upper opened again shows the same tree.
//!
//! Locks, in this order: `names` (held for writing while names change), `nodes` and `open` (for moments).
//! Content is copied up with no lock held.

mod change;
mod changes;
mod content;
mod copy_up;
mod look;
mod nodes;
mod remove;
mod rename;
mod set;
pub mod upper;
mod xattrs;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use rustix::io::Errno;

use super::attr::{Attr, Time};
use super::tree::Tree;
use content::Handle;
use nodes::Nodes;
use upper::Upper;

pub use content::Opened;
pub use look::{Listed, Listing};
pub use nodes::ROOT;
pub(super) use upper::user_xattrs;

pub type Result<T> = std::result::Result<T, Errno>;

/// Longest name of a file.
pub const MAX_NAME: usize = 255;

/// A file, as a look-up finds it.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub inode: u64,
    pub attr: Attr,
}

/// Who makes a file, and its permission bits.
#[derive(Clone, Copy, Debug)]
pub struct Maker {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

/// What is to be changed of a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub accessed: Option<NewTime>,
    pub modified: Option<NewTime>,
}

#[derive(Clone, Copy, Debug)]
pub enum NewTime {
    Now,
    At(Time),
}

/// How a rename treats what has the new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    Replace,
    NoReplace,
    Exchange,
}

pub struct Union {
    lower: Tree,
    upper: Option<Upper>,
    names: RwLock<()>,
    nodes: Mutex<Nodes>,
    open: Mutex<HashMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
    /// Counts changes of names: a listing that is older than the last one is looked through again.
    version: AtomicU64,
    /// What a test does when content has been copied up and the copy is in no place yet.
    #[cfg(test)]
    after_copy: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

impl Union {
    /// Shows what `lower` has at `top`, a path without `/` at its start.
    pub fn new(lower: Tree, top: &[u8], upper: Option<Upper>) -> Result<Self> {
        let seen = lower.look(top)?.ok_or(Errno::NOENT)?;
        if let Some(upper) = &upper {
            upper.prepare_root(&lower, top, &seen.attr)?;
        }
        let nodes = Mutex::new(Nodes::new(top.into(), upper.is_some()));
        Ok(Self {
            lower,
            upper,
            names: RwLock::default(),
            nodes,
            open: Mutex::default(),
            next_handle: AtomicU64::new(1),
            version: AtomicU64::new(0),
            #[cfg(test)]
            after_copy: Mutex::default(),
        })
    }

    pub const fn is_read_only(&self) -> bool {
        self.upper.is_none()
    }

    /// Whether nobody but this union can change what it shows.
    pub fn is_constant(&self) -> bool {
        self.lower.is_constant()
    }

    /// How many inodes are known; bounded by what the kernel keeps, and their parents.
    pub fn known(&self) -> usize {
        self.nodes().len()
    }

    pub fn upper(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or(Errno::ROFS)
    }

    /// Number of the last change of names.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    // A panic while a lock is held leaves the disk as consistent as a kill would, and memory behind by
    // one operation at most: going on is better than a file system that answers nothing.

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock()
    }

    fn open_files(&self) -> MutexGuard<'_, HashMap<u64, Arc<Handle>>> {
        self.open.lock()
    }

    fn reading_names(&self) -> RwLockReadGuard<'_, ()> {
        self.names.read()
    }

    fn changing_names(&self) -> RwLockWriteGuard<'_, ()> {
        let guard = self.names.write();
        self.version.fetch_add(1, Ordering::Release);
        guard
    }
}

/// A name that a file can have.
fn checked(name: &[u8]) -> Result<&[u8]> {
    match name {
        b"" | b"." | b".." => Err(Errno::INVAL),
        name if name.len() > MAX_NAME => Err(Errno::NAMETOOLONG),
        name if name.iter().any(|&byte| byte == b'/' || byte == 0) => Err(Errno::INVAL),
        name => Ok(name),
    }
}

#[cfg(test)]
mod tests;
