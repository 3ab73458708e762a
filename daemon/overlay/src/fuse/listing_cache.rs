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

use super::convert::{self, GENERATION};
use super::invalidation::InvalidationQueue;
use super::prefetch::{ListingPrefetch, MAX_EXPECTED};
use crate::attr::FileAttributes;
use crate::union::{DirectoryListing, InodeEntry, OverlayFs};

/// Maximum number of cached listings, and of their entries in total; the latest listing is cached whatever
/// its size.
const MAX_LISTINGS: usize = 32;
const MAX_ENTRIES: usize = 200_000;
/// Idle time after which a cached listing is dropped.
const MAX_IDLE: Duration = Duration::from_secs(10);
/// Maximum age of a prefetched listing.
pub(super) const MAX_PREFETCH_AGE: Duration = Duration::from_millis(20);

/// Offsets of `.` and `..`.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// Answers directory reads, and caches the listings of their directories.
pub(super) struct ListingCache {
    union: Arc<OverlayFs>,
    /// Time for which the kernel may cache names and attributes.
    cache_timeout: Duration,
    /// Invalidates listings in the kernel's cache; `None` if they cannot change.
    invalidations: Option<InvalidationQueue>,
    hasher: RandomState,
    /// Cached listings with the time of their last read, newest last.
    listings: Mutex<VecDeque<(Instant, Arc<CachedListing>)>>,
    prefetch: ListingPrefetch<CachedListing>,
}

/// The content of a directory at one moment.
struct CachedListing {
    inode: u64,
    since: Instant,
    listing: DirectoryListing,
    /// Offset of each entry and its index in the listing, sorted by offset.
    order: Box<[(u64, u32)]>,
}

impl ListingCache {
    pub fn new(
        union: Arc<OverlayFs>,
        cache_timeout: Duration,
        invalidations: Option<InvalidationQueue>,
    ) -> Self {
        Self {
            union,
            cache_timeout,
            invalidations,
            hasher: RandomState::new(),
            listings: Mutex::default(),
            prefetch: ListingPrefetch::new(),
        }
    }

    pub fn read(&self, inode: u64, offset: u64, mut reply: ReplyDirectoryPlus) {
        match self.fill(inode, offset, &mut reply) {
            Ok(cached) => {
                reply.ok();
                if offset == 0 {
                    self.prefetch_next(&cached);
                }
            }
            Err(errno) => reply.error(convert::errno(errno)),
        }
    }

    /// Adds the entries of a directory from `offset` on, until no more fit.
    fn fill(
        &self,
        inode: u64,
        offset: u64,
        reply: &mut ReplyDirectoryPlus,
    ) -> Result<Arc<CachedListing>, Errno> {
        let cached = match offset {
            0 => self.cache(self.take_prefetched(inode).map_or_else(|| self.list(inode), Ok)?),
            _ => self.find(inode).map_or_else(|| self.list(inode).map(|new| self.cache(new)), Ok)?,
        };
        let mut any_added = false;
        for (next, name) in [(DOT, "."), (DOT_DOT, "..")] {
            if next <= offset {
                continue;
            }
            let inode = if next == DOT { inode } else { self.union.parent(inode) };
            // The kernel uses only the names of these entries.
            let attr = convert::attr(&InodeEntry { inode, attr: FileAttributes::SYNTHETIC_DIRECTORY });
            if reply.add(INodeNo(inode), next, name, &Duration::ZERO, &attr, GENERATION) {
                return Ok(cached);
            }
            any_added = true;
        }
        let first_unread = cached.order.partition_point(|(next, _)| *next <= offset);
        for &(next, index) in &cached.order[first_unread..] {
            let (found, ttl) = match self.lookup_listed_entry(&cached, index as usize) {
                Ok((Some(found), ttl)) => (found, ttl),
                // Removed since the listing was made.
                Ok((None, _)) => continue,
                // The added entries are returned; the next read reports the error.
                Err(_) if any_added => break,
                Err(errno) => return Err(errno),
            };
            let name = OsStr::from_bytes(&cached.listing.entries()[index as usize].name);
            if reply.add(INodeNo(found.inode), next, name, &ttl, &convert::attr(&found), GENERATION) {
                // The entry did not fit, so the kernel does not know it.
                self.union.forget(found.inode, 1);
                break;
            }
            any_added = true;
        }
        if !any_added {
            self.drop_listing(&cached);
        }
        Ok(cached)
    }

    /// Looks up an entry, and returns the time for which the kernel may cache it. `None` when it is gone.
    fn lookup_listed_entry(
        &self,
        cached: &CachedListing,
        index: usize,
    ) -> Result<(Option<InodeEntry>, Duration), Errno> {
        let remaining = self.cache_timeout.saturating_sub(cached.since.elapsed());
        if !remaining.is_zero() {
            return Ok((self.union.lookup_listed(&cached.listing, index)?, remaining));
        }
        match self.union.lookup(cached.inode, &cached.listing.entries()[index].name) {
            Err(Errno::NOENT) => Ok((None, self.cache_timeout)),
            found => Ok((Some(found?), self.cache_timeout)),
        }
    }

    fn listings(&self) -> MutexGuard<'_, VecDeque<(Instant, Arc<CachedListing>)>> {
        self.listings.lock()
    }

    fn find(&self, inode: u64) -> Option<Arc<CachedListing>> {
        let mut all = self.listings();
        let position = all.iter().position(|(_, cached)| cached.inode == inode)?;
        let (_, cached) = all.remove(position)?;
        all.push_back((Instant::now(), Arc::clone(&cached)));
        Some(cached)
    }

    fn list(&self, inode: u64) -> Result<CachedListing, Errno> {
        let since = Instant::now();
        let listing = self.union.list(inode)?;
        let order = self.order_by_offset(&listing);
        Ok(CachedListing { inode, since, listing, order })
    }

    /// Returns the prefetched listing of a directory, unless it is too old or was changed through the kernel.
    fn take_prefetched(&self, inode: u64) -> Option<CachedListing> {
        let cached = self.prefetch.visit(inode)?;
        let is_usable = self.union.is_current(&cached.listing) && cached.since.elapsed() < MAX_PREFETCH_AGE;
        is_usable.then_some(cached)
    }

    /// Prefetches the directory that a walk reads after this one.
    fn prefetch_next(&self, read: &CachedListing) {
        let listed = read.order.iter().map(|&(_, index)| &read.listing.entries()[index as usize]);
        let directories = listed.filter(|listed| listed.kind == FileType::Directory).take(MAX_EXPECTED);
        let numbers: Vec<u64> = directories.map(|listed| self.union.inode_number(listed)).collect();
        let Some(next) = self.prefetch.next_to_list(&numbers) else { return };
        // If listing fails, the reader of that directory gets the error.
        self.prefetch.store(next, self.list(next).ok());
    }

    /// Caches a listing for the next reads.
    fn cache(&self, new: CachedListing) -> Arc<CachedListing> {
        let (inode, new) = (new.inode, Arc::new(new));
        let mut all = self.listings();
        all.retain(|(read, cached)| cached.inode != inode && read.elapsed() < MAX_IDLE);
        let mut entries: usize =
            all.iter().map(|(_, cached)| cached.order.len()).sum::<usize>() + new.order.len();
        while all.len() >= MAX_LISTINGS || entries > MAX_ENTRIES {
            let Some((_, oldest)) = all.pop_front() else { break };
            entries -= oldest.order.len();
        }
        all.push_back((Instant::now(), Arc::clone(&new)));
        drop(all);
        // From here on the kernel caches the entries that it is given.
        self.invalidate_later(inode);
        new
    }

    fn order_by_offset(&self, listing: &DirectoryListing) -> Box<[(u64, u32)]> {
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
    fn drop_listing(&self, read: &Arc<CachedListing>) {
        self.listings().retain(|(_, cached)| !Arc::ptr_eq(cached, read));
        // The kernel now has the complete listing and uses it.
        self.invalidate_later(read.inode);
    }

    fn invalidate_later(&self, inode: u64) {
        if let Some(invalidations) = &self.invalidations {
            invalidations.add(inode);
        }
    }
}
