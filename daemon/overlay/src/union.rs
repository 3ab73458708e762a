//! A union file system: a [`LowerTree`] as the read-only lower tree, and an upper directory that receives
//! every change.
//!
//! ```text
//! fuse (kernel interface) --> OverlayFs: nodes, open files --> LowerTree   (read-only)
//!                                                         '--> UpperLayer  (a directory)
//! ```
//!
//! This module does not depend on FUSE: operations take inode numbers and names, as any kernel interface
//! would, and fail with an errno. Without an upper layer the file system is read-only, and every change fails
//! with EROFS.
//!
//! A lookup creates a [node](nodes), which keeps its inode number as long as the kernel knows it, even when
//! the file is copied up, renamed, or loses its last name while it is open. The upper directory contains the
//! complete persistent state (the module `upper` has the format). Each operation becomes visible in it by one rename,
//! link or unlink: a daemon killed at any point leaves the tree as it was before or after the operation, and
//! opening the same upper directory again shows the same tree.
//!
//! Lock order: `names_lock` (write-locked while names change), then `nodes` and `open_handles` (held briefly).
//! Content is copied up without any lock.

mod content;
mod copy_up;
mod create;
mod diff;
mod lookup;
mod nodes;
mod remove;
mod rename;
mod set_attributes;
mod upper;
mod xattrs;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use rustix::io::Errno;

use crate::attr::{FileAttributes, FileTime};
use crate::lower::LowerTree;
use content::OpenHandle;
use nodes::NodeTable;

pub use content::OpenedFile;
pub use lookup::{DirectoryListing, ListingEntry};
pub use nodes::ROOT;
pub use upper::UpperLayer;

pub type Result<T> = std::result::Result<T, Errno>;

/// Maximum length in bytes of a file name.
pub const MAX_NAME: usize = 255;

/// A file, as returned by a lookup.
#[derive(Clone, Copy, Debug)]
pub struct InodeEntry {
    pub inode: u64,
    pub attr: FileAttributes,
}

/// Owner and permission bits of a new file.
#[derive(Clone, Copy, Debug)]
pub struct CreateAttr {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

/// Attributes to change; `None` leaves an attribute as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub accessed: Option<SetTime>,
    pub modified: Option<SetTime>,
}

/// A new access or modification time.
#[derive(Clone, Copy, Debug)]
pub enum SetTime {
    Now,
    At(FileTime),
}

/// Treatment of an existing file at the destination of a rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    Replace,
    NoReplace,
    Exchange,
}

/// Difference of an entry between two trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeDifference {
    Added,
    Removed,
    Changed,
}

/// The union file system.
pub struct OverlayFs {
    lower: Box<dyn LowerTree>,
    upper: Option<UpperLayer>,
    names_lock: RwLock<()>,
    nodes: Mutex<NodeTable>,
    open_handles: Mutex<HashMap<u64, Arc<OpenHandle>>>,
    next_handle: AtomicU64,
    /// Counts changes of names: a directory listing that is older than the last change is rebuilt.
    version: AtomicU64,
    /// Called by tests when content has been copied up and the copy is not yet in its place.
    #[cfg(feature = "test-hooks")]
    after_copy: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

impl OverlayFs {
    /// Creates a file system that shows the lower tree at `top`, a path without a leading `/`.
    pub fn new(lower: impl LowerTree, top: &[u8], upper: Option<UpperLayer>) -> Result<Self> {
        let seen = lower.stat(top)?.ok_or(Errno::NOENT)?;
        if let Some(upper) = &upper {
            upper.prepare_root(&lower, top, &seen.attr)?;
        }
        let nodes = Mutex::new(NodeTable::new(top.into(), upper.is_some()));
        Ok(Self {
            lower: Box::new(lower),
            upper,
            names_lock: RwLock::default(),
            nodes,
            open_handles: Mutex::default(),
            next_handle: AtomicU64::new(1),
            version: AtomicU64::new(0),
            #[cfg(feature = "test-hooks")]
            after_copy: Mutex::default(),
        })
    }

    /// Sets a function that runs after each copy-up, before the copy becomes visible.
    #[cfg(feature = "test-hooks")]
    pub fn set_after_copy_hook(&self, hook: impl FnMut() + Send + 'static) {
        *self.after_copy.lock() = Some(Box::new(hook));
    }

    pub(crate) const fn is_read_only(&self) -> bool {
        self.upper.is_none()
    }

    /// Reports whether only this file system can change what it shows.
    pub(crate) fn is_sole_writer(&self) -> bool {
        self.lower.is_immutable()
    }

    /// Number of known inodes; limited by what the kernel keeps, and their parents.
    pub fn node_count(&self) -> usize {
        self.nodes().len()
    }

    pub fn upper(&self) -> Result<&UpperLayer> {
        self.upper.as_ref().ok_or(Errno::ROFS)
    }

    /// Number of the last change of names.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    // A panic while a lock is held leaves the disk as consistent as a kill would, and memory behind by one
    // operation at most. Continuing is better than a file system that answers nothing.

    fn nodes(&self) -> MutexGuard<'_, NodeTable> {
        self.nodes.lock()
    }

    fn open_files(&self) -> MutexGuard<'_, HashMap<u64, Arc<OpenHandle>>> {
        self.open_handles.lock()
    }

    fn reading_names(&self) -> RwLockReadGuard<'_, ()> {
        self.names_lock.read()
    }

    fn changing_names(&self) -> RwLockWriteGuard<'_, ()> {
        let guard = self.names_lock.write();
        self.version.fetch_add(1, Ordering::Release);
        guard
    }
}

/// Checks that a file can have this name.
fn checked_name(name: &[u8]) -> Result<&[u8]> {
    match name {
        b"" | b"." | b".." => Err(Errno::INVAL),
        name if name.len() > MAX_NAME => Err(Errno::NAMETOOLONG),
        name if name.iter().any(|&byte| byte == b'/' || byte == 0) => Err(Errno::INVAL),
        name => Ok(name),
    }
}
