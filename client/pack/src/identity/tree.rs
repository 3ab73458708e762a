//! The identity of a walked directory: its files hashed by several threads, or known from the cache.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::{ContentHash, HashCache, Node, NodeKind, Remembered, TreeDigest, TreeHasher};
use crate::layer::has_xattrs;
use crate::walk::{ContentError, DiskReader, Entry, EntryKind, Tree, Xattrs};
use crate::workers;

/// A tree with the identity of all that is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashedTree {
    pub digest: TreeDigest,
    /// One for each entry of the tree, in its order.
    pub entries: Vec<HashedEntry>,
}

/// What a list of names and sizes does not say of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashedEntry {
    /// Of a regular file.
    pub content: Option<ContentHash>,
    /// Of a regular file or directory; an image keeps those of no other.
    pub xattrs: Xattrs,
}

/// Hashes `tree`. What `cache` knows in its present state is not looked at; what is read is put into the
/// cache. `workers` is the number of threads, none: one for each core; `progress` is told of bytes that were
/// read or need not be, in no order.
pub fn hash_tree(
    tree: &Tree,
    cache: &mut HashCache,
    workers: Option<u32>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<HashedTree, ContentError> {
    let read_at = now();
    let mut entries = vec![HashedEntry::default(); tree.entries.len()];
    let mut missing = Vec::new();
    for (index, (entry, hashed)) in tree.entries.iter().zip(&mut entries).enumerate() {
        if !has_xattrs(entry) {
            continue;
        }
        let known = cache.remembered(&entry.stamp);
        if entry.kind == EntryKind::File {
            hashed.content = known.map(|known| known.hash);
        }
        if known.is_some_and(|known| known.bare) {
            progress(entry.size);
        } else {
            missing.push((index, std::mem::take(hashed)));
        }
    }
    Work { entries: &tree.entries, progress }.run(tree, &mut missing, workers::count(workers))?;
    for (index, hashed) in missing {
        remember(cache, &tree.entries[index], read_at, &hashed);
        entries[index] = hashed;
    }
    Ok(HashedTree::new(&tree.entries, entries))
}

/// Puts into the cache what was found of an entry in the time since `read_at`.
///
/// A file was verified when it was read. Of another entry, or of attributes alone, it is not certain that it
/// was the listed one; but then that one was renamed after `read_at`, and has another change time for it.
pub(crate) fn remember(cache: &mut HashCache, entry: &Entry, read_at: i64, found: &HashedEntry) {
    let bare = found.xattrs.is_empty();
    match (&entry.kind, found.content) {
        (EntryKind::File, Some(hash)) => cache.remember(&entry.stamp, read_at, Remembered { hash, bare }),
        (EntryKind::Dir, _) if bare => {
            cache.remember(&entry.stamp, read_at, Remembered { hash: ContentHash::of(b""), bare });
        }
        _ => {}
    }
}

/// The clock that files are dated by, in nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

impl HashedTree {
    /// The tree of `entries`, in walk order, each with its hash.
    pub fn new(entries: &[Entry], hashed: Vec<HashedEntry>) -> Self {
        let mut digest = TreeHasher::default();
        for (entry, hashed) in entries.iter().zip(&hashed) {
            digest.node(&node(entry, hashed));
        }
        Self { digest: digest.finish(), entries: hashed }
    }
}

fn node<'a>(entry: &'a Entry, hashed: &'a HashedEntry) -> Node<'a> {
    let (kind, mode) = match (&entry.kind, hashed.content) {
        (EntryKind::Dir, _) => (NodeKind::Directory, entry.mode),
        (EntryKind::File, content) => {
            // A file always has its hash; an empty one's stands in for a caller's mistake.
            let content = content.unwrap_or_else(|| ContentHash::of(b""));
            (NodeKind::File { size: entry.size, content }, entry.mode)
        }
        // A link has no mode of its own; file systems differ in what they report.
        (EntryKind::Symlink { target }, _) => (NodeKind::Symlink { target }, 0o777),
        (EntryKind::Hardlink { to }, _) => (NodeKind::HardLink { to }, entry.mode),
    };
    Node { path: &entry.path, mode, kind, xattrs: &hashed.xattrs }
}

/// Entries that a thread takes at a time: neighbours share the directories that are open.
const CHUNK: usize = 64;
const BUFFER: usize = 256 * 1024;

struct Work<'a> {
    entries: &'a [Entry],
    progress: &'a (dyn Fn(u64) + Sync),
}

impl Work<'_> {
    /// Completes what is known of the entries of `missing`, which are in rising order.
    fn run(
        &self,
        tree: &Tree,
        missing: &mut [(usize, HashedEntry)],
        workers: usize,
    ) -> Result<(), ContentError> {
        let count = missing.len().div_ceil(CHUNK);
        let stop = AtomicBool::new(false);
        // The error of the first entry in order, so that it does not depend on the threads' luck.
        let failed: Mutex<Option<(usize, ContentError)>> = Mutex::new(None);
        let chunks = Mutex::new(missing.chunks_mut(CHUNK));
        let work = || {
            let mut reader = tree.reader();
            let mut buffer = vec![0; BUFFER];
            while !stop.load(Ordering::Relaxed) {
                let Some(chunk) = chunks.lock().next() else { break };
                for (index, hashed) in chunk {
                    if let Err(error) = self.one(&mut reader, &mut buffer, *index, hashed) {
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

    fn one<'t>(
        &'t self,
        reader: &mut DiskReader<'t>,
        buffer: &mut [u8],
        index: usize,
        hashed: &mut HashedEntry,
    ) -> Result<(), ContentError> {
        let entry = &self.entries[index];
        if entry.kind != EntryKind::File || hashed.content.is_some() {
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
