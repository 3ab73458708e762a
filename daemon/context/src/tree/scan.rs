//! The scan: a walk over the tree, depth first, each directory's names sorted by their bytes, which is the
//! order of BuildKit's file sync. The walk keeps a list of directories instead of recursion;
//! [`listing`](super::listing) lists directories ahead of it on other threads.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::vec::IntoIter;

use hearth_model::MountTarget;
use hearth_overlay::lower::child_path;
use hearth_pack::identity::{is_settled, settles_in};
use hearth_pack::prefetch::PrefetchQueue;
use hearth_task as task;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::bounds::ScanBounds;
use super::entries::ScannedEntries;
use super::listing::{DirectoryLister, ListedDirectory, ListingRequest, MAX_QUEUED_ENTRIES};
use super::snapshot::TreeSnapshot;
use super::{ContextTree, DirectoryChild, DirectoryContent, EntryOrigin, LayerEntry, bare, below, joined};
use crate::ContextError;
use crate::port::{FileKind, FileTree as _};

/// Maximum number of entries of a scan. Each takes about 110 bytes here and about 180 bytes in the hash
/// cache.
pub(crate) const MAX_FILES: usize = hearth_overlay::lower::MAX_DIRECTORY_ENTRIES;

/// Number of threads of one scan, at least two: a directory may have to be read from a disk.
pub(super) fn threads() -> usize {
    // Determining the parallelism reads a dozen files, which takes as long as the stat of a hundred entries.
    static COUNT: LazyLock<usize> =
        LazyLock::new(|| std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 4)));
    *COUNT
}

/// Maximum number of walks over a tree that changes during the walk.
const ATTEMPTS: usize = 4;

/// Maximum wait for recently written files to settle.
const MAX_SETTLE_WAIT: Duration = Duration::from_millis(25);

/// A directory on the path to the current entry.
struct ScanLevel {
    /// Length of the directory's path.
    path: usize,
    children: IntoIter<DirectoryChild>,
    directories: IntoIter<Option<usize>>,
}

struct ScanWalk<'t> {
    tree: &'t ContextTree,
    listings: &'t PrefetchQueue<'t, DirectoryLister<'t>>,
    /// Absolute path of the context directory, without the leading `/`.
    top: Vec<u8>,
    entries: ScannedEntries,
    /// Index of the first name of every regular file with several hard links.
    links: HashMap<(u32, u64, u64), usize>,
}

impl ContextTree {
    /// Scans the tree below `context_path`, which may lie above, at or below mount targets.
    ///
    /// Files that were written within the last 20 ms are checked twice, so that a later write cannot hide
    /// behind an equal time stamp. A tree that keeps changing is an error that names a changed path.
    ///
    /// Directories outside `bounds` are not read.
    pub(crate) fn scan(
        &self,
        context_path: &MountTarget,
        bounds: &ScanBounds<'_>,
    ) -> Result<TreeSnapshot, ContextError> {
        for _ in 1..ATTEMPTS {
            match self.walk(context_path, bounds) {
                Err(ContextError::Changed { .. }) => {}
                Err(error) => return Err(error),
                Ok(mut snapshot) => {
                    if self.settle(&mut snapshot)? {
                        return Ok(snapshot);
                    }
                }
            }
        }
        self.walk(context_path, bounds)
    }

    fn walk(
        &self,
        context_path: &MountTarget,
        bounds: &ScanBounds<'_>,
    ) -> Result<TreeSnapshot, ContextError> {
        let (top, backed) = self.context_directory(context_path)?;
        let root = self.top_directory(&top);
        let listing = DirectoryLister { tree: self, top: &top, bounds };
        let listings = PrefetchQueue::new(&listing, MAX_QUEUED_ENTRIES);
        let walked = Mutex::new(Err(ContextError::ShuttingDown));
        task::in_parallel("context.scan", threads() - 1, |number| {
            if number > 0 {
                return listings.run_helper();
            }
            let _end = listings.stop_guard();
            let walk = ScanWalk {
                tree: self,
                listings: &listings,
                top: top.clone(),
                entries: ScannedEntries::default(),
                links: HashMap::new(),
            };
            *walked.lock() = walk.run(backed);
        });
        let entries = walked.into_inner()?;
        let mut snapshot = TreeSnapshot::new(self.clone(), top.clone(), Arc::new(entries));
        snapshot.root = root;
        let now = since_epoch();
        // Only content can be unsettled: names, modes and link targets are sent as the scan read them.
        let is_unsure = |index: &u32| match snapshot.stamp(*index as usize) {
            Some(stamp) => !is_settled(stamp.changed, now),
            None => false,
        };
        let unsure = (0..snapshot.len() as u32).filter(is_unsure).collect();
        snapshot.set_unsettled(unsure);
        Ok(snapshot)
    }

    /// Waits until the youngest files are older than the resolution of time stamps. Returns false when one of
    /// them changed meanwhile. Files that stay unsettled (times in the future, coarse clocks) remain marked.
    fn settle(&self, snapshot: &mut TreeSnapshot) -> Result<bool, ContextError> {
        if snapshot.unsettled().is_empty() {
            return Ok(true);
        }
        std::thread::sleep(snapshot.unsettled().iter().fold(Duration::ZERO, |wait, &index| {
            let changed = snapshot.stamp(index as usize).map_or(0, |stamp| stamp.changed);
            wait.max(Duration::from_nanos(settles_in(changed, since_epoch())).min(MAX_SETTLE_WAIT))
        }));
        let now = since_epoch();
        let mut unsure = Vec::new();
        for &index in snapshot.unsettled() {
            if !snapshot.is_unchanged(index as usize)? {
                return Ok(false);
            }
            if snapshot.stamp(index as usize).is_some_and(|stamp| !is_settled(stamp.changed, now)) {
                unsure.push(index);
            }
        }
        snapshot.set_unsettled(unsure);
        Ok(true)
    }
}

pub(super) fn since_epoch() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

impl ScanWalk<'_> {
    fn run(mut self, backed: bool) -> Result<ScannedEntries, ContextError> {
        let mut path = self.top.clone();
        let mounts = self.tree.mounts_below(&path);
        let top = self.listings.request(ListingRequest { path: path.clone(), backed, mounts, parent: None });
        let mut levels = vec![ScanLevel::new(path.len(), self.listings.take(top)?)];
        while let Some(level) = levels.last_mut() {
            path.truncate(level.path);
            let Some(DirectoryChild { name, found }) = level.children.next() else {
                levels.pop();
                continue;
            };
            path = child_path(&path, &name)
                .map_err(|errno| ContextError::at(&absolute(&joined(&path, &name)), errno))?
                .into_vec();
            let directory = match found.kind {
                FileKind::Directory => level.directories.next().flatten(),
                _ => None,
            };
            let is_directory = found.kind == FileKind::Directory;
            let index = self.push(&path, found)?;
            if let Some(directory) = directory {
                let mut listed = self.listings.take(directory)?;
                self.entries.set_xattrs(index, std::mem::take(&mut listed.xattrs));
                levels.push(ScanLevel::new(path.len(), listed));
            } else if is_directory {
                self.entries.set_unlisted(index);
            }
        }
        self.entries.finish();
        Ok(self.entries)
    }

    /// Appends an entry.
    fn push(&mut self, path: &[u8], mut found: LayerEntry) -> Result<usize, ContextError> {
        let full = || ContextError::TooManyFiles { limit: MAX_FILES };
        let index = self.entries.len();
        if index >= MAX_FILES {
            return Err(full());
        }
        if found.kind == FileKind::File(())
            && let Some(key) = self.tree.link_key(&found)
        {
            let first = *self.links.entry(key).or_insert(index);
            if first != index {
                found.kind = FileKind::HardLink(first);
            }
        }
        self.entries.push(below(&self.top, path).unwrap_or(path), &found).ok_or_else(full)
    }
}

impl ScanLevel {
    fn new(path: usize, listed: ListedDirectory) -> Self {
        let ListedDirectory { children, directories, .. } = listed;
        Self { path, children: children.into_iter(), directories: directories.into_iter() }
    }
}

/// Returns a path in the form that users write.
pub(super) fn absolute(path: &[u8]) -> Vec<u8> {
    [b"/", path].concat()
}

impl ContextTree {
    pub(super) fn is_mounted(&self, path: &[u8]) -> bool {
        self.mounts.iter().any(|mounted| bare(&mounted.target) == path)
    }

    /// Returns the root of a mount, as an entry at its target.
    pub(super) fn mount_root(&self, mount: u32) -> Result<LayerEntry, ContextError> {
        let target = &self.mounts[mount as usize].target;
        let gone = || ContextError::Changed { path: target.to_string() };
        self.lookup_in(mount, b"")
            .map_err(|errno| ContextError::at(target.as_str().as_bytes(), errno))?
            .ok_or_else(gone)
    }

    pub(super) fn lookup_in(&self, mount: u32, inside: &[u8]) -> Result<Option<LayerEntry>, Errno> {
        self.layer(mount).lookup(mount, inside)
    }

    pub(super) fn children(
        &self,
        mount: u32,
        inside: &[u8],
        parent: Option<&OwnedFd>,
        path_in_tree: &[u8],
    ) -> Result<DirectoryContent, ContextError> {
        let children = self.layer(mount).children(mount, inside, parent, MAX_FILES);
        children.map_err(|errno| ContextError::at(&absolute(path_in_tree), errno))
    }

    /// Returns the key that all hard links of one regular file share; `None` for a file with one name.
    fn link_key(&self, found: &LayerEntry) -> Option<(u32, u64, u64)> {
        match found.origin {
            EntryOrigin::Disk { mount, device, inode, .. } if found.links > 1 => Some((mount, device, inode)),
            EntryOrigin::Image { mount, node } | EntryOrigin::Pack { mount, entry: node } => {
                self.layer(mount).link_group(node).map(|group| (mount, u64::MAX, group))
            }
            _ => None,
        }
    }
}
