//! Directory reads of the kernel, served from a cache of listings.
//!
//! ```text
//! read at offset 0: list and cache --> read on: from the cache --> no more entries: drop
//! ```
//!
//! The kernel reads directories without opening them, because this takes fewer requests: a walk through a
//! tree needs two per directory. The offset is therefore the only state of a reader. Offsets are hashes of
//! names, and entries are returned in their order: a reader that continues in a newer listing sees every
//! entry that existed all the time, and each one once.
//!
//! Names and attributes are returned in one answer, so a walk needs no lookups. However slow a reader is, the
//! kernel caches nothing longer than an answer obtained just now: entries of an older listing get a shorter
//! cache timeout, or are looked up again.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::hash::BuildHasher as _;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{INodeNo, ReplyDirectoryPlus};
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::ahead::{Ahead, MOST_EXPECTED};
use super::forget::ForgetLater;
use super::wire::{self, GENERATION};
use crate::context::attr::Attr;
use crate::context::union::{Found, Listing, Union};

/// Maximum number of cached listings, and of their entries in total; the latest listing is cached whatever
/// its size.
const MOST_HELD: usize = 32;
const MOST_ENTRIES: usize = 200_000;
/// Idle time after which a cached listing is dropped.
const HELD: Duration = Duration::from_secs(10);
/// Maximum age of a prefetched listing.
pub(super) const AHEAD: Duration = Duration::from_millis(20);

/// Offsets of `.` and `..`.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// Answers directory reads, and caches the listings of their directories.
pub(super) struct Directories {
    union: Arc<Union>,
    /// Time for which the kernel may cache names and attributes.
    remember: Duration,
    /// Invalidates listings in the kernel's cache; `None` if they cannot change.
    forget_later: Option<ForgetLater>,
    hasher: RandomState,
    /// Cached listings with the time of their last read, newest last.
    held: Mutex<VecDeque<(Instant, Arc<Held>)>>,
    ahead: Ahead<Held>,
}

/// The content of a directory at one moment.
struct Held {
    inode: u64,
    since: Instant,
    listing: Listing,
    /// Offset of each entry and its index in the listing, sorted by offset.
    order: Box<[(u64, u32)]>,
}

impl Directories {
    pub fn new(union: Arc<Union>, remember: Duration, forget_later: Option<ForgetLater>) -> Self {
        Self {
            union,
            remember,
            forget_later,
            hasher: RandomState::new(),
            held: Mutex::default(),
            ahead: Ahead::new(),
        }
    }

    pub fn read(&self, inode: u64, offset: u64, mut reply: ReplyDirectoryPlus) {
        match self.fill(inode, offset, &mut reply) {
            Ok(held) => {
                reply.ok();
                if offset == 0 {
                    self.list_ahead(&held);
                }
            }
            Err(errno) => reply.error(wire::errno(errno)),
        }
    }

    /// Adds the entries of a directory from `offset` on, until no more fit.
    fn fill(&self, inode: u64, offset: u64, reply: &mut ReplyDirectoryPlus) -> Result<Arc<Held>, Errno> {
        let held = match offset {
            0 => self.hold(self.listed_ahead(inode).map_or_else(|| self.list(inode), Ok)?),
            _ => self.find(inode).map_or_else(|| self.list(inode).map(|new| self.hold(new)), Ok)?,
        };
        let mut given = false;
        for (next, name) in [(DOT, "."), (DOT_DOT, "..")] {
            if next <= offset {
                continue;
            }
            let inode = if next == DOT { inode } else { self.union.parent(inode) };
            // The kernel uses only the names of these entries.
            let attr = wire::attr(&Found { inode, attr: Attr::MADE_DIRECTORY });
            if reply.add(INodeNo(inode), next, name, &Duration::ZERO, &attr, GENERATION) {
                return Ok(held);
            }
            given = true;
        }
        let left = held.order.partition_point(|(next, _)| *next <= offset);
        for &(next, index) in &held.order[left..] {
            let (found, remember) = match self.look_up(&held, index as usize) {
                Ok((Some(found), remember)) => (found, remember),
                // Removed since the listing was made.
                Ok((None, _)) => continue,
                // The added entries are returned; the next read reports the error.
                Err(_) if given => break,
                Err(errno) => return Err(errno),
            };
            let name = OsStr::from_bytes(&held.listing.entries()[index as usize].name);
            if reply.add(INodeNo(found.inode), next, name, &remember, &wire::attr(&found), GENERATION) {
                // The entry did not fit, so the kernel does not know it.
                self.union.forget(found.inode, 1);
                break;
            }
            given = true;
        }
        if !given {
            self.let_go(&held);
        }
        Ok(held)
    }

    /// Looks up an entry, and returns the time for which the kernel may cache it. `None` when it is gone.
    fn look_up(&self, held: &Held, index: usize) -> Result<(Option<Found>, Duration), Errno> {
        let left = self.remember.saturating_sub(held.since.elapsed());
        if !left.is_zero() {
            return Ok((self.union.look_up_listed(&held.listing, index)?, left));
        }
        match self.union.look_up(held.inode, &held.listing.entries()[index].name) {
            Err(Errno::NOENT) => Ok((None, self.remember)),
            found => Ok((Some(found?), self.remember)),
        }
    }

    fn all_held(&self) -> MutexGuard<'_, VecDeque<(Instant, Arc<Held>)>> {
        self.held.lock()
    }

    fn find(&self, inode: u64) -> Option<Arc<Held>> {
        let mut all = self.all_held();
        let place = all.iter().position(|(_, held)| held.inode == inode)?;
        let (_, held) = all.remove(place)?;
        all.push_back((Instant::now(), Arc::clone(&held)));
        Some(held)
    }

    fn list(&self, inode: u64) -> Result<Held, Errno> {
        let since = Instant::now();
        let listing = self.union.list(inode)?;
        let order = self.order(&listing);
        Ok(Held { inode, since, listing, order })
    }

    /// Returns the prefetched listing of a directory, unless it is too old or was changed through the kernel.
    fn listed_ahead(&self, inode: u64) -> Option<Held> {
        let held = self.ahead.come_to(inode)?;
        let holds = self.union.is_current(&held.listing) && held.since.elapsed() < AHEAD;
        holds.then_some(held)
    }

    /// Prefetches the directory that a walk reads after this one.
    fn list_ahead(&self, read: &Held) {
        let listed = read.order.iter().map(|&(_, index)| &read.listing.entries()[index as usize]);
        let directories = listed.filter(|listed| listed.kind == FileType::Directory).take(MOST_EXPECTED);
        let numbers: Vec<u64> = directories.map(|listed| self.union.number(listed)).collect();
        let Some(next) = self.ahead.expect(&numbers) else { return };
        // If listing fails, the reader of that directory gets the error.
        self.ahead.listed(next, self.list(next).ok());
    }

    /// Caches a listing for the next reads.
    fn hold(&self, new: Held) -> Arc<Held> {
        let (inode, new) = (new.inode, Arc::new(new));
        let mut all = self.all_held();
        all.retain(|(read, held)| held.inode != inode && read.elapsed() < HELD);
        let mut entries: usize =
            all.iter().map(|(_, held)| held.order.len()).sum::<usize>() + new.order.len();
        while all.len() >= MOST_HELD || entries > MOST_ENTRIES {
            let Some((_, oldest)) = all.pop_front() else { break };
            entries -= oldest.order.len();
        }
        all.push_back((Instant::now(), Arc::clone(&new)));
        drop(all);
        // From here on the kernel caches the entries that it is given.
        self.forget_later(inode);
        new
    }

    fn order(&self, listing: &Listing) -> Box<[(u64, u32)]> {
        // Two bits stay free: offsets are signed, and entries with equal hashes get successive offsets.
        let offset = |name: &[u8]| (self.hasher.hash_one(name) >> 2).max(DOT_DOT + 1);
        let numbers = 0..u32::MAX;
        let mut order: Box<[(u64, u32)]> = listing
            .entries()
            .iter()
            .zip(numbers)
            .map(|(listed, index)| (offset(&listed.name), index))
            .collect();
        order.sort_unstable();
        let mut last = DOT_DOT;
        for (offset, _) in &mut order {
            *offset = (*offset).max(last + 1);
            last = *offset;
        }
        order
    }

    /// Drops a listing after its last entry was read, because few readers continue.
    fn let_go(&self, read: &Arc<Held>) {
        self.all_held().retain(|(_, held)| !Arc::ptr_eq(held, read));
        // The kernel now has the complete listing and uses it.
        self.forget_later(read.inode);
    }

    fn forget_later(&self, inode: u64) {
        if let Some(forget_later) = &self.forget_later {
            forget_later.add(inode);
        }
    }
}
