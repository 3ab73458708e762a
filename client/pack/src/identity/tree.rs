//! Identity of a walked directory: its files are hashed by several threads, or their hashes come from the cache.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::{CachedHash, ContentHash, HashCache, HashedContent, TreeDigest, TreeHasher, TreeNode};
use crate::file_kind::FileKind;
use crate::layer::has_xattrs;
use crate::walk::{ContentError, DiskReader, EntryXattrs, WalkEntry, WalkedTree};
use crate::workers;

/// Digest of a tree, and the hashes of its entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashedTree {
    pub digest: TreeDigest,
    /// One item for each entry of the tree, in the same order.
    pub entries: Vec<HashedEntry>,
}

/// Content hash and attributes of an entry, which a walk alone does not provide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashedEntry {
    /// Hash of the content; `None` for anything but a regular file.
    pub content: Option<ContentHash>,
    /// Extended attributes of a regular file or directory. An image keeps none of other entries.
    pub xattrs: EntryXattrs,
}

/// Hashes `tree`. Entries that `cache` has in their present state are not read; entries that are read are added to
/// the cache. `workers` is the number of threads, by default one for each core. `progress` is called, in no
/// particular order, with the number of bytes that were read or need not be read.
pub fn hash_tree(
    tree: &WalkedTree,
    cache: &mut HashCache,
    workers: Option<u32>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<HashedTree, ContentError> {
    let read_at = file_clock_now();
    let mut entries = vec![HashedEntry::default(); tree.entries.len()];
    let mut missing = Vec::new();
    for (index, (entry, hashed)) in tree.entries.iter().zip(&mut entries).enumerate() {
        if !has_xattrs(entry) {
            continue;
        }
        let known = cache.lookup(&entry.stamp);
        if entry.kind == FileKind::File(()) {
            hashed.content = known.map(|known| known.hash);
        }
        if known.is_some_and(|known| known.bare) {
            progress(entry.size);
        } else {
            missing.push((index, std::mem::take(hashed)));
        }
    }
    TreeHashJob { entries: &tree.entries, progress }.run(
        tree,
        &mut missing,
        workers::worker_count(workers),
    )?;
    for (index, hashed) in missing {
        cache_hashed_entry(cache, &tree.entries[index], read_at, &hashed);
        entries[index] = hashed;
    }
    Ok(HashedTree::new(&tree.entries, entries))
}

/// Adds to the cache the hash and attributes of an entry that were read since `read_at`.
///
/// A file was verified when it was read. If only attributes were read, or the entry is no file, another entry may
/// have taken the place of the listed one. But in that case the listed one was renamed after `read_at`, which changed
/// its change time, so the cached result is never used for it.
pub(crate) fn cache_hashed_entry(
    cache: &mut HashCache,
    entry: &WalkEntry,
    read_at: i64,
    found: &HashedEntry,
) {
    let bare = found.xattrs.is_empty();
    match (&entry.kind, found.content) {
        (FileKind::File(()), Some(hash)) => cache.insert(&entry.stamp, read_at, CachedHash { hash, bare }),
        (FileKind::Directory, _) if bare => {
            cache.insert(&entry.stamp, read_at, CachedHash { hash: ContentHash::of(b""), bare });
        }
        _ => {}
    }
}

/// Returns the current time of the clock that file times use, in nanoseconds since 1970.
pub(crate) fn file_clock_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

impl HashedTree {
    /// Creates the tree of `entries`, which are in walk order, with the hash of each.
    pub fn new(entries: &[WalkEntry], hashed: Vec<HashedEntry>) -> Self {
        let mut digest = TreeHasher::default();
        for (entry, hashed) in entries.iter().zip(&hashed) {
            digest.node(&node(entry, hashed));
        }
        Self { digest: digest.finish(), entries: hashed }
    }
}

fn node<'a>(entry: &'a WalkEntry, hashed: &'a HashedEntry) -> TreeNode<'a> {
    let (kind, mode) = match (&entry.kind, hashed.content) {
        (FileKind::Directory, _) => (FileKind::Directory, entry.mode),
        (FileKind::File(()), content) => {
            // A file always has its hash; the hash of empty content is a fallback for a mistake of the caller.
            let hash = content.unwrap_or_else(|| ContentHash::of(b""));
            (FileKind::File(HashedContent { size: entry.size, hash }), entry.mode)
        }
        // A symbolic link has no mode of its own; file systems report different ones.
        (FileKind::Symlink(target), _) => (FileKind::Symlink(target.as_slice()), 0o777),
        (FileKind::HardLink(to), _) => (FileKind::HardLink(to.as_slice()), entry.mode),
        (FileKind::Special(never), _) => match *never {},
    };
    TreeNode { path: &entry.path, mode, kind, xattrs: &hashed.xattrs }
}

/// Number of entries that a thread takes at a time: neighbours share open directories.
const ENTRIES_PER_CHUNK: usize = 64;
const BUFFER: usize = 256 * 1024;

struct TreeHashJob<'a> {
    entries: &'a [WalkEntry],
    progress: &'a (dyn Fn(u64) + Sync),
}

impl TreeHashJob<'_> {
    /// Reads the missing hashes and attributes of the entries in `missing`, which are in ascending order.
    fn run(
        &self,
        tree: &WalkedTree,
        missing: &mut [(usize, HashedEntry)],
        workers: usize,
    ) -> Result<(), ContentError> {
        let count = missing.len().div_ceil(ENTRIES_PER_CHUNK);
        let stop = AtomicBool::new(false);
        // The error of the first entry in order is kept, so that the result does not depend on the timing of the
        // threads.
        let failed: Mutex<Option<(usize, ContentError)>> = Mutex::new(None);
        let chunks = Mutex::new(missing.chunks_mut(ENTRIES_PER_CHUNK));
        let work = || {
            let mut reader = tree.reader();
            let mut buffer = vec![0; BUFFER];
            while !stop.load(Ordering::Relaxed) {
                let Some(chunk) = chunks.lock().next() else { break };
                for (index, hashed) in chunk {
                    if let Err(error) = self.hash_entry(&mut reader, &mut buffer, *index, hashed) {
                        stop.store(true, Ordering::Relaxed);
                        let mut failed = failed.lock();
                        if failed.as_ref().is_none_or(|(earlier, _)| *index < *earlier) {
                            *failed = Some((*index, error));
                        }
                        return;
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            workers::start_helpers(scope, workers.min(count).saturating_sub(1), "hash", work);
            work();
        });
        match failed.into_inner() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn hash_entry<'t>(
        &'t self,
        reader: &mut DiskReader<'t>,
        buffer: &mut [u8],
        index: usize,
        hashed: &mut HashedEntry,
    ) -> Result<(), ContentError> {
        let entry = &self.entries[index];
        if entry.kind != FileKind::File(()) || hashed.content.is_some() {
            hashed.xattrs = reader.xattrs(entry)?;
        } else {
            hashed.xattrs = reader.open(entry)?;
            let mut sum = blake3::Hasher::new();
            let mut offset = 0;
            while offset < entry.size {
                let left = usize::try_from(entry.size - offset).unwrap_or(usize::MAX);
                let part = &mut buffer[..left.min(BUFFER)];
                reader.read(offset, part)?;
                sum.update(part);
                offset += part.len() as u64;
            }
            reader.verify()?;
            hashed.content = Some(ContentHash::from_bytes(sum.finalize().into()));
        }
        (self.progress)(entry.size);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
