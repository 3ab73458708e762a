//! Open directories, and what each of them held when somebody began to read it.
//!
//! ```text
//! open --> read at 0: listed --> read on, from that list --> read at 0: listed anew --> close
//! ```
//!
//! Names and attributes come in one answer, so a walk through a tree takes no look-up. However long a
//! reader takes, the kernel keeps nothing longer than if it had been asked for a moment ago: what was
//! listed a while before it is handed out is remembered for a shorter time.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fuser::{FileHandle, FopenFlags, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyOpen};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::wire::{self, GENERATION};
use crate::context::attr::Attr;
use crate::context::union::{Found, Listing, Union};

/// Of entries of the kernel's lists, `.` and `..`.
const DOTS: usize = 2;

pub(super) struct Directories {
    union: Arc<Union>,
    /// How long the kernel may remember names and attributes.
    remember: Duration,
    open: Mutex<HashMap<u64, Arc<Reading>>>,
    next: AtomicU64,
}

/// A directory that is being read.
#[derive(Default)]
struct Reading(Mutex<Option<Held>>);

/// What it held at one moment.
struct Held {
    listing: Listing,
    since: Instant,
}

enum Entry<'l> {
    Dot { name: &'static [u8], inode: u64 },
    Listed { held: &'l Held, index: usize },
}

impl Directories {
    pub fn new(union: Arc<Union>, remember: Duration) -> Self {
        Self { union, remember, open: Mutex::default(), next: AtomicU64::new(1) }
    }

    fn opened(&self) -> MutexGuard<'_, HashMap<u64, Arc<Reading>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn open(&self, reply: ReplyOpen) {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.opened().insert(handle, Arc::default());
        // What was read of a directory that never changes needs no second asking. One that is written to
        // does: the kernel would read on here after changes that moved the entries.
        let cached = if self.union.is_constant() && self.union.is_read_only() {
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::empty()
        };
        reply.opened(FileHandle(handle), cached);
    }

    pub fn close(&self, handle: FileHandle) {
        self.opened().remove(&handle.0);
    }

    pub fn read(&self, inode: u64, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let read = self.each(inode, handle, offset, |entry, next| {
            let (name, inode, kind) = match entry {
                Entry::Dot { name, inode } => (name, inode, FileType::Directory),
                Entry::Listed { held, index } => {
                    let listed = &held.listing.entries()[index];
                    (&*listed.name, listed.inode, listed.kind)
                }
            };
            Ok(reply.add(INodeNo(inode), next, wire::kind(kind), OsStr::from_bytes(name)))
        });
        match read {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(wire::errno(errno)),
        }
    }

    pub fn read_plus(&self, inode: u64, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let read = self.each(inode, handle, offset, |entry, next| {
            let (name, found, remember) = match entry {
                // The kernel takes their names only.
                Entry::Dot { name, inode } => {
                    let found = Found { inode, attr: Attr::MADE_DIRECTORY };
                    (name, found, None)
                }
                Entry::Listed { held, index } => {
                    match self.union.look_up_listed(&held.listing, index)? {
                        Some(found) => {
                            let remember = self.remember.saturating_sub(held.since.elapsed());
                            (&*held.listing.entries()[index].name, found, Some(remember))
                        }
                        // Gone since the listing was made.
                        None => return Ok(false),
                    }
                }
            };
            let (attr, name) = (wire::attr(&found), OsStr::from_bytes(name));
            let kept = remember.unwrap_or_default();
            let full = reply.add(INodeNo(found.inode), next, name, &kept, &attr, GENERATION);
            if full && remember.is_some() {
                // It did not fit: the kernel never heard of it.
                self.union.forget(found.inode, 1);
            }
            Ok(full)
        });
        match read {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(wire::errno(errno)),
        }
    }

    /// Gives the entries of a directory from `offset` on to `add`, until it says that it is full.
    fn each(
        &self,
        inode: u64,
        handle: FileHandle,
        offset: u64,
        mut add: impl FnMut(Entry<'_>, u64) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        let reading = self.opened().get(&handle.0).cloned().ok_or(Errno::BADF)?;
        let mut reading = reading.0.lock().unwrap_or_else(PoisonError::into_inner);
        if offset == 0 || reading.is_none() {
            *reading = Some(self.list(inode)?);
        }
        let Some(held) = &*reading else { return Err(Errno::BADF) };
        let first = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
        let mut index = first;
        while index < held.listing.entries().len() + DOTS {
            let entry = match index {
                0 => Entry::Dot { name: b".", inode },
                1 => Entry::Dot { name: b"..", inode: self.union.parent(inode) },
                index => Entry::Listed { held, index: index - DOTS },
            };
            match add(entry, index as u64 + 1) {
                Ok(false) => index += 1,
                Ok(true) => break,
                Err(errno) if index == first => return Err(errno),
                // What was added is given; whoever reads on meets the error.
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn list(&self, inode: u64) -> Result<Held, Errno> {
        let since = Instant::now();
        Ok(Held { listing: self.union.list(inode)?, since })
    }
}
