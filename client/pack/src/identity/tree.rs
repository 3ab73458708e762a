//! The identity of a walked directory: its files hashed by several threads, or known from the cache.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{ContentHash, HashCache, Node, NodeKind, TreeDigest, TreeHasher};
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

/// Hashes `tree`. Files that `cache` knows in their present state are not read; what is read is put into
/// the cache. `workers` is the number of threads, none: one for each core; `progress` is told of bytes
/// that were read or need not be, in no order.
pub fn hash_tree(
    tree: &Tree,
    cache: &mut HashCache,
    workers: Option<u32>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<HashedTree, ContentError> {
    let read_at = now();
    let known: Vec<Option<ContentHash>> = tree
        .entries
        .iter()
        .map(|entry| if entry.kind == EntryKind::File { cache.get(&entry.stamp) } else { None })
        .collect();
    let work = Work { entries: &tree.entries, known: &known, progress };
    let entries = work.run(tree, workers::count(workers))?;
    for ((entry, hashed), known) in tree.entries.iter().zip(&entries).zip(&known) {
        if let (Some(hash), None) = (hashed.content, known) {
            cache.put(&entry.stamp, read_at, hash);
        }
    }
    Ok(HashedTree::new(&tree.entries, entries))
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
    known: &'a [Option<ContentHash>],
    progress: &'a (dyn Fn(u64) + Sync),
}

impl Work<'_> {
    fn run(&self, tree: &Tree, workers: usize) -> Result<Vec<HashedEntry>, ContentError> {
        let mut hashed = vec![HashedEntry::default(); self.entries.len()];
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        // The error of the first entry in order, so that it does not depend on the threads' luck.
        let failed: Mutex<Option<(usize, ContentError)>> = Mutex::new(None);
        let chunks: Mutex<Vec<_>> = Mutex::new(hashed.chunks_mut(CHUNK).map(Some).collect());
        std::thread::scope(|scope| {
            for _ in 0..workers.min(self.entries.len().div_ceil(CHUNK)) {
                scope.spawn(|| {
                    let mut reader = tree.reader();
                    let mut buffer = vec![0; BUFFER];
                    while !stop.load(Ordering::Relaxed) {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let chunk = workers::locked(&chunks).get_mut(number).and_then(Option::take);
                        let Some(chunk) = chunk else { break };
                        let first = number * CHUNK;
                        for (index, place) in (first..).zip(chunk) {
                            match self.one(&mut reader, &mut buffer, index) {
                                Ok(found) => *place = found,
                                Err(error) => {
                                    stop.store(true, Ordering::Relaxed);
                                    let mut failed = workers::locked(&failed);
                                    if failed.as_ref().is_none_or(|(earlier, _)| index < *earlier) {
                                        *failed = Some((index, error));
                                    }
                                    return;
                                }
                            }
                        }
                    }
                });
            }
        });
        drop(chunks);
        match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(hashed),
        }
    }

    fn one<'t>(
        &'t self,
        reader: &mut DiskReader<'t>,
        buffer: &mut [u8],
        index: usize,
    ) -> Result<HashedEntry, ContentError> {
        let entry = &self.entries[index];
        let hashed = match (&entry.kind, self.known[index]) {
            (EntryKind::Symlink { .. } | EntryKind::Hardlink { .. }, _) => HashedEntry::default(),
            (EntryKind::Dir, _) => HashedEntry { content: None, xattrs: reader.xattrs(entry)? },
            (EntryKind::File, Some(known)) => {
                HashedEntry { content: Some(known), xattrs: reader.xattrs(entry)? }
            }
            (EntryKind::File, None) => {
                let xattrs = reader.open(entry)?;
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
                HashedEntry { content: Some(ContentHash::from_bytes(sum.finalize().into())), xattrs }
            }
        };
        (self.progress)(entry.size);
        Ok(hashed)
    }
}

#[cfg(test)]
mod tests;
