//! The identity of a scanned tree: the digest of everything that a build may read from it.
//!
//! ```text
//! snapshot -- selection --> covered entries -- hash cache or reading --> content hashes --> digest, times
//! ```
//!
//! Files that no build step can request (because the ignore file hides them, or because the Dockerfile copies
//! other paths) are not read and not part of the digest. If such a file is requested all the same, it is not
//! sent, see
//! [`TreeSnapshot::is_covered`](crate::port::FileTree::is_covered).
//!
//! A file on disk counts as read only if its `stat` was the same before and after. The cache contains only
//! files without transferred extended attributes, so that a hit answers for both. A write through a memory
//! mapping is not noticed before the kernel updates the change time, which it does at the first write after
//! each write-back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hearth_model::MountTarget;
use hearth_overlay::beneath;
use hearth_pack::identity::{
    ContentHash, FileStamp, HashCache, HashedContent, TreeDigest, TreeHasher, TreeNode,
};
use hearth_pack::ignore::{IgnorePatterns, TreeFilter, VisitOutcome};
use hearth_task as task;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::scan::{since_epoch, threads};
use super::{TreeSnapshot, bare, below};
use crate::ContextError;
use crate::port::{FileKind, FileTree as _, TreeEntry, Xattr};

/// Buffer size in bytes for reading a file; one buffer per thread.
const BUFFER: usize = 128 << 10;
/// Number of hashes that a thread collects before it locks the cache.
const FLUSH: usize = 256;

/// The parts of a tree that a build copies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopySelection {
    /// Paths that are copied with everything below them, relative and normalized; `None` when they are
    /// unknown, or when everything is copied.
    pub roots: Option<Vec<Vec<u8>>>,
}

impl CopySelection {
    /// Selects everything at and below the given paths, which are relative to the root and normalized.
    pub fn of(paths: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let sorted: BTreeSet<Vec<u8>> = paths.into_iter().collect();
        let mut roots: Vec<Vec<u8>> = Vec::new();
        for path in sorted {
            if path.is_empty() {
                return Self::default();
            }
            if !roots.iter().any(|root| below(root, &path).is_some()) {
                roots.push(path);
            }
        }
        Self { roots: Some(roots) }
    }

    /// Returns bytes that are equal for equal selections only.
    pub(crate) fn canonical_bytes(&self) -> Vec<u8> {
        match &self.roots {
            None => b"all".to_vec(),
            // A path contains no NUL.
            Some(roots) => [b"of\0".as_slice(), &roots.join(&0)].concat(),
        }
    }
}

/// The covered entries of a snapshot: one flag for each entry.
#[derive(Clone)]
pub struct CoveredEntries(Arc<[bool]>);

/// Identity of a tree: its digest, and the times that BuildKit transfers with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeIdentity {
    pub digest: TreeDigest,
    /// Hash of the modification times of files and symbolic links. Times end up in an image although they are
    /// not part of a tree's digest. Times of directories are ignored, as in BuildKit's comparison.
    pub times: [u8; 32],
    /// Digest of the entries of each mount, by target; paths in it are relative to the target.
    pub mounts: Vec<(MountTarget, TreeDigest)>,
}

/// A tree's identity, and the content hash of each entry that has content.
pub struct IdentifiedTree {
    pub identity: TreeIdentity,
    contents: Vec<ContentHash>,
    /// True if every hash came from the cache and no file was read.
    pub from_cache: bool,
}

/// Placeholder for the content of entries that are not covered.
const UNREAD: ContentHash = ContentHash::from_bytes([0; 32]);

impl TreeSnapshot {
    /// Returns the entries that a selection and an ignore file leave. `.dockerignore` is always covered.
    pub(crate) fn covered(
        &self,
        selection: &CopySelection,
        ignore: Option<IgnorePatterns>,
    ) -> CoveredEntries {
        let roots = selection.roots.as_ref().filter(|_| self.is_link_free(selection));
        let filter = TreeFilter::from_patterns(None, ignore.filter(|ignore| !ignore.is_empty()));
        let mut covered = vec![false; self.len()];
        let mut walk = filter.walk();
        let mut pruned: Option<&[u8]> = None;
        for index in 0..self.len() {
            let entry = self.entry(index);
            let always = entry.path == b".dockerignore";
            if always {
                covered[index] = true;
            }
            let wanted = roots.is_none_or(|roots| {
                roots
                    .iter()
                    .any(|root| below(root, entry.path).is_some() || below(entry.path, root).is_some())
            });
            if !wanted || pruned.is_some_and(|top| below(top, entry.path).is_some()) {
                continue;
            }
            if filter.is_empty() {
                covered[index] = true;
                continue;
            }
            match walk.visit(entry.path, entry.kind == FileKind::Directory, index) {
                VisitOutcome::Keep { parents } => {
                    parents.into_iter().chain([index]).for_each(|index| covered[index] = true);
                }
                VisitOutcome::Hide => {}
                VisitOutcome::Prune => pruned = Some(entry.path),
            }
        }
        CoveredEntries(covered.into())
    }

    /// Reports whether no symbolic link is on the path to a selected root: each selected path then means
    /// exactly that path.
    pub(crate) fn is_link_free(&self, selection: &CopySelection) -> bool {
        selection.roots.iter().flatten().all(|root| self.is_link_free_path(root))
    }

    fn is_link_free_path(&self, path: &[u8]) -> bool {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        ends.chain([path.len()]).all(|end| match self.find(&path[..end]) {
            Some(index) => !matches!(self.entry(index).kind, FileKind::Symlink(_)),
            None => true,
        })
    }

    /// Hashes the covered files that are not in the cache, and computes the digest. Blocking; returns an
    /// error soon after `stop` is cancelled.
    pub(crate) fn identify(
        &mut self,
        covered: CoveredEntries,
        hashes: &Mutex<HashCache>,
        stop: &CancellationToken,
    ) -> Result<IdentifiedTree, ContextError> {
        let (mut contents, missing) = self.cached_hashes(&covered, hashes);
        let from_cache = missing.is_empty();
        for HashedFile { index, hash, xattrs } in self.hash_all(&missing, hashes, stop)? {
            contents[index as usize] = hash;
            self.set_xattrs(index as usize, xattrs);
        }
        let read =
            |index: &u32| Some((*index, contents[*index as usize])).filter(|(_, hash)| *hash != UNREAD);
        self.unsettled_contents = self.unsettled().iter().filter_map(read).collect();
        let identity = self.tree_identity(&covered, &contents);
        self.covered = Some(covered);
        Ok(IdentifiedTree { identity, contents, from_cache })
    }

    /// Returns the entry that holds the content of `index`: itself, or the first name for a hard link.
    fn file(&self, index: usize) -> Option<usize> {
        match self.entry(index).kind {
            FileKind::File(()) => Some(index),
            FileKind::HardLink(first) => Some(first),
            _ => None,
        }
    }

    fn cached_hashes(
        &self,
        covered: &CoveredEntries,
        hashes: &Mutex<HashCache>,
    ) -> (Vec<ContentHash>, Vec<u32>) {
        let mut contents = vec![UNREAD; self.len()];
        let mut missing = Vec::new();
        let mut hashes = hashes.lock();
        for index in covered.indices().filter_map(|index| self.file(index)) {
            if contents[index] != UNREAD {
                continue;
            }
            match self.stamp(index).and_then(|stamp| hashes.get(&stamp)) {
                Some(hash) => contents[index] = hash,
                None => missing.push(index as u32),
            }
        }
        drop(hashes);
        // A file whose first name is not covered is added out of order, and possibly more than once.
        missing.sort_unstable();
        missing.dedup();
        (contents, missing)
    }

    /// Reads files on several threads. If several files fail, the error of the first one in order is
    /// returned.
    fn hash_all(
        &self,
        missing: &[u32],
        hashes: &Mutex<HashCache>,
        stop: &CancellationToken,
    ) -> Result<Vec<HashedFile>, ContextError> {
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<HashedFile>> = Mutex::default();
        let failed: Mutex<Option<(u32, ContextError)>> = Mutex::default();
        let work = |_| {
            let mut buffer = vec![0; BUFFER];
            let mut own = Vec::new();
            let mut fresh: Vec<(FileStamp, i64, ContentHash)> = Vec::new();
            while let Some(&index) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let read_at = since_epoch();
                match self.hash_one(index as usize, &mut buffer, stop) {
                    Ok((hash, xattrs)) => {
                        if let Some(stamp) = self.stamp(index as usize)
                            && xattrs.is_empty()
                        {
                            fresh.push((stamp, read_at, hash));
                        }
                        own.push(HashedFile { index, hash, xattrs });
                    }
                    Err(error) => {
                        let mut failed = failed.lock();
                        if failed.as_ref().is_none_or(|(first, _)| index < *first) {
                            *failed = Some((index, error));
                        }
                        next.store(missing.len(), Ordering::Relaxed);
                    }
                }
                if fresh.len() >= FLUSH {
                    store_hashes(&mut fresh, hashes);
                }
            }
            store_hashes(&mut fresh, hashes);
            done.lock().append(&mut own);
        };
        match missing {
            [] => {}
            [_] => work(0),
            _ => task::in_parallel("context.hash", threads() - 1, work),
        }
        match failed.into_inner() {
            Some((_, error)) => Err(error),
            None => Ok(done.into_inner()),
        }
    }

    fn hash_one(
        &self,
        index: usize,
        buffer: &mut [u8],
        stop: &CancellationToken,
    ) -> Result<(ContentHash, Vec<Xattr>), ContextError> {
        let failed = |error: io::Error| match error.downcast::<ContextError>() {
            Ok(error) => error,
            Err(source) => ContextError::Io { path: self.shown(index), source },
        };
        let origin = self.origin(index);
        if let (Some(mount), Some(node)) = (origin.mount(), origin.node()) {
            let hashed = self.tree.layer(mount).hashed_content(node);
            return hashed.ok_or_else(|| ContextError::Changed { path: self.shown(index) });
        }
        let mut content = self.open_on_disk(index)?;
        let xattrs = beneath::xattrs(content.file()).map_err(|errno| failed(errno.into()))?;
        let mut sum = blake3::Hasher::new();
        loop {
            if stop.is_cancelled() {
                return Err(ContextError::Cancelled);
            }
            match content.read(buffer) {
                Ok(0) => return Ok((ContentHash::from_bytes(sum.finalize().into()), xattrs)),
                Ok(count) => _ = sum.update(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    fn tree_identity(&self, covered: &CoveredEntries, contents: &[ContentHash]) -> TreeIdentity {
        let mut whole = TreeDigestBuilder::default();
        let mut times = blake3::Hasher::new();
        let mut pending = Vec::with_capacity(16 << 10);
        let mut mounts: BTreeMap<u32, TreeDigestBuilder> = BTreeMap::new();
        // A single mount at or above the context covers all entries, so its digest is that of the tree.
        let is_whole = match &*self.tree.mounts {
            [mounted] => below(bare(&mounted.target), self.top()).is_some(),
            _ => false,
        };
        for index in covered.indices() {
            let entry = self.entry(index);
            if entry.kind != FileKind::Directory {
                pending.extend_from_slice(&entry.mtime.to_le_bytes());
                if pending.len() >= 16 << 10 {
                    times.update(&pending);
                    pending.clear();
                }
            }
            whole.add(self, index, 0, contents);
            let Some(mount) = self.origin(index).mount() else { continue };
            let sum = mounts.entry(mount).or_default();
            if !is_whole && let Some(skip) = self.below_mount(mount, &entry) {
                sum.add(self, index, skip, contents);
            }
        }
        times.update(&pending);
        let digest = whole.hasher.finish();
        let mounts = mounts.into_iter().map(|(mount, sum)| {
            let digest = if is_whole { digest } else { sum.hasher.finish() };
            (self.tree.mounts[mount as usize].target.clone(), digest)
        });
        TreeIdentity { digest, times: times.finalize().into(), mounts: mounts.collect() }
    }

    /// Returns the length of the part of an entry's path that leads to the mount's target; `None` for a
    /// directory that is the target itself.
    fn below_mount(&self, mount: u32, entry: &TreeEntry<'_>) -> Option<usize> {
        let target = bare(&self.tree.mounts[mount as usize].target);
        match below(self.top(), target) {
            // The target is at or above the context, so its paths start at the context.
            None | Some([]) => Some(0),
            Some(inside) => match below(inside, entry.path)? {
                [] if entry.kind == FileKind::Directory => None,
                [] => Some(inside.len()),
                _ => Some(inside.len() + 1),
            },
        }
    }
}

fn store_hashes(fresh: &mut Vec<(FileStamp, i64, ContentHash)>, hashes: &Mutex<HashCache>) {
    let mut hashes = hashes.lock();
    for (stamp, read_at, hash) in fresh.drain(..) {
        hashes.insert_hash(&stamp, read_at, hash);
    }
}

struct HashedFile {
    index: u32,
    hash: ContentHash,
    xattrs: Vec<Xattr>,
}

/// Digest computation in progress. The first added name of a file represents it.
#[derive(Default)]
struct TreeDigestBuilder {
    hasher: TreeHasher,
    names: HashMap<usize, usize>,
}

impl TreeDigestBuilder {
    /// Adds an entry, omitting the first `skip` bytes of its path.
    fn add(&mut self, snapshot: &TreeSnapshot, index: usize, skip: usize, contents: &[ContentHash]) {
        let entry = snapshot.entry(index);
        let mut file = |file: usize, linked: bool| {
            // Only hard link entries and the first names of linked files can have other names.
            let first = if linked { *self.names.entry(file).or_insert(index) } else { index };
            match first == index {
                true => FileKind::File(HashedContent { size: entry.size, hash: contents[file] }),
                false => FileKind::HardLink(&snapshot.entry(first).path[skip..]),
            }
        };
        let kind = match entry.kind {
            FileKind::Directory => FileKind::Directory,
            FileKind::File(()) => file(index, snapshot.has_links(index)),
            FileKind::HardLink(first) => file(first, true),
            FileKind::Symlink(target) => FileKind::Symlink(target),
            FileKind::Special(special) => FileKind::Special(special),
        };
        let path = &entry.path[skip..];
        self.hasher.node(&TreeNode { path, mode: entry.mode, kind, xattrs: snapshot.xattrs(index) });
    }
}

impl CoveredEntries {
    pub(crate) fn has(&self, index: usize) -> bool {
        self.0.get(index).copied().unwrap_or_default()
    }

    fn indices(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().filter(|(_, covered)| **covered).map(|(index, _)| index)
    }
}

impl IdentifiedTree {
    /// Returns the content hash of each covered regular file, by index.
    pub(crate) fn contents<'s>(
        &'s self,
        snapshot: &'s TreeSnapshot,
    ) -> impl Iterator<Item = (usize, ContentHash)> + 's {
        let covered = snapshot.covered.as_ref().into_iter().flat_map(CoveredEntries::indices);
        covered.filter_map(|index| Some((index, self.content_hash(snapshot, index)?)))
    }

    /// Returns the content hash of a covered regular file.
    pub(super) fn content_hash(&self, snapshot: &TreeSnapshot, index: usize) -> Option<ContentHash> {
        self.contents.get(snapshot.file(index)?).copied()
    }
}
