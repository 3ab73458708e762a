//! Revalidation of an earlier scan of one directory on disk, without listing it again.
//!
//! ```text
//! scan -- one directory, reliable file system, all change times settled --> ScanBaseline
//! ScanBaseline -- every entry has the same stat --> the snapshot that a new scan would return
//! ```
//!
//! A name is created or removed, and an attribute of a directory changes, only together with the change time
//! of the directory. Equal change times of all directories therefore mean equal names. A change immediately
//! after the scan began could leave an equal time, so the change times of all directories must be older than
//! one clock step at that moment. A symbolic link keeps its target for its whole life, and replacing it
//! changes the directory.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hearth_model::MountTarget;
use hearth_overlay::{attr, beneath};
use hearth_pack::identity::is_settled;
use hearth_task as task;
use rustix::io::Errno;

use super::directory::DirectoryLayer;
use super::entries::ScannedEntries;
use super::layer::TreeLayer as _;
use super::scan::{since_epoch, threads};
use super::{ContextTree, EntryOrigin, LayerEntry, MountedLayer, TreeSnapshot, bare, below};

/// `f_type` of the file systems that update a directory's change time with every name. Network file systems
/// and FUSE file systems give no such guarantee.
const RELIABLE_FILE_SYSTEMS: [u64; 7] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // Btrfs
    0x0102_1994, // tmpfs
    0x794c_7630, // overlay
    0xf2f5_2010, // F2FS
    0x2fc1_2fc1, // ZFS
];
/// Number of entries that a thread compares before it takes the next ones.
const CHUNK_ENTRIES: usize = 256;
/// Maximum number of directories that a thread keeps open on the way down.
const MAX_OPEN_DIRECTORIES: usize = 64;

/// The directory that a scan starts at, as it was before the scan.
#[derive(Clone)]
pub(super) struct TopDirectory {
    found: LayerEntry,
    /// Time of the stat in nanoseconds since 1970.
    pub(super) observed_at: i64,
}

/// The result of a scan, kept so that a later scan of the same directory can be replaced by a comparison.
#[derive(Clone)]
pub struct ScanBaseline {
    target: MountTarget,
    top: Vec<u8>,
    root: TopDirectory,
    entries: Arc<ScannedEntries>,
}

impl ContextTree {
    /// Returns the only layer if it is a directory, and the path of `top` in it.
    fn only_directory<'t>(&self, top: &'t [u8]) -> Option<(&MountTarget, &DirectoryLayer, &'t [u8])> {
        match &*self.mounts {
            [MountedLayer { target, layer }] => {
                Some((target, layer.as_directory()?, below(bare(target), top)?))
            }
            _ => None,
        }
    }

    pub(super) fn top_directory(&self, top: &[u8]) -> Option<TopDirectory> {
        let (_, layer, inside) = self.only_directory(top)?;
        let observed_at = since_epoch();
        let found = layer.lookup(0, inside).ok().flatten()?;
        Some(TopDirectory { found, observed_at })
    }

    /// Returns the snapshot that a scan would return, or `None` unless every entry still matches the
    /// baseline. Blocking.
    pub(crate) fn revalidate(
        &self,
        context_path: &MountTarget,
        known: &ScanBaseline,
    ) -> Option<TreeSnapshot> {
        let (top, _) = self.context_directory(context_path).ok()?;
        let (target, layer, inside) = self.only_directory(&top)?;
        if (target, &top) != (&known.target, &known.top) || !known.root.is_same(&self.top_directory(&top)?) {
            return None;
        }
        let revalidation = Revalidation {
            top: layer.open_path(inside).ok()?,
            entries: &known.entries,
            next: AtomicUsize::new(0),
            differs: AtomicBool::new(false),
        };
        let helpers = (threads() - 1).min(known.entries.len() / CHUNK_ENTRIES);
        task::in_parallel("context.again", helpers, |_| revalidation.run());
        if revalidation.differs.into_inner() {
            return None;
        }
        let mut snapshot = TreeSnapshot::new(self.clone(), top, Arc::clone(&known.entries));
        snapshot.root = Some(known.root.clone());
        Some(snapshot)
    }
}

impl TopDirectory {
    fn is_same(&self, other: &Self) -> bool {
        let known = |root: &Self| (root.found.mode, root.found.mtime, root.found.origin);
        self.found.kind == other.found.kind && known(self) == known(other)
    }
}

impl TreeSnapshot {
    /// Returns the baseline for later revalidation, or `None` where equal times of directories do not prove
    /// equal names.
    pub(crate) fn baseline(&self) -> Option<ScanBaseline> {
        let root = self.root.clone()?;
        let (target, layer, inside) = self.tree.only_directory(self.top())?;
        let EntryOrigin::Disk { device: root_device, changed, .. } = root.found.origin else { return None };
        let keeps_times = || {
            let status = rustix::fs::fstatfs(layer.open_path(inside).ok()?).ok()?;
            Some(RELIABLE_FILE_SYSTEMS.contains(&u64::try_from(status.f_type).ok()?))
        };
        let is_settled = |changed| is_settled(changed, root.observed_at);
        let is_sure = |index| match self.entries.origin(index) {
            EntryOrigin::Disk { device, changed, .. } => {
                device == root_device && (!self.entries.is_directory(index) || is_settled(changed))
            }
            _ => false,
        };
        let is_sure =
            self.unsettled().is_empty() && is_settled(changed) && (0..self.entries.len()).all(is_sure);
        (is_sure && keeps_times() == Some(true)).then(|| ScanBaseline {
            target: target.clone(),
            top: self.top().to_vec(),
            root: root.clone(),
            entries: Arc::clone(&self.entries),
        })
    }
}

impl ScanBaseline {
    /// Number of entries, which determines the memory use.
    pub(crate) fn entry_count(&self) -> usize {
        self.entries.len()
    }

    /// Reports whether both baselines are of the same directory.
    pub(crate) fn is_same_directory(&self, other: &Self) -> bool {
        let place = |known: &Self| match known.root.found.origin {
            EntryOrigin::Disk { device, inode, .. } => Some((device, inode)),
            _ => None,
        };
        (&self.target, &self.top, place(self)) == (&other.target, &other.top, place(other))
    }
}

/// One comparison of a baseline with the disk, done by several threads.
struct Revalidation<'k> {
    top: OwnedFd,
    entries: &'k ScannedEntries,
    next: AtomicUsize,
    differs: AtomicBool,
}

/// Position of one thread in the tree: the open directories on its path. Each is stored with the length of
/// its path, which is a prefix of the path of the last one.
#[derive(Default)]
struct DirectoryCursor {
    path: Vec<u8>,
    held: Vec<(usize, OwnedFd)>,
    name: Vec<u8>,
}

impl Revalidation<'_> {
    fn run(&self) {
        let mut cursor = DirectoryCursor::default();
        while !self.differs.load(Ordering::Relaxed) {
            let start = self.next.fetch_add(CHUNK_ENTRIES, Ordering::Relaxed);
            if start >= self.entries.len() {
                return;
            }
            let mut piece = start..self.entries.len().min(start + CHUNK_ENTRIES);
            // An entry that cannot be read counts as different; the scan then reports the error.
            if !piece.all(|index| self.is_same(index, &mut cursor).unwrap_or(false)) {
                self.differs.store(true, Ordering::Relaxed);
            }
        }
    }

    fn is_same(&self, index: usize, cursor: &mut DirectoryCursor) -> Result<bool, Errno> {
        let path = self.entries.path(index);
        let (directory, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&[][..], path),
        };
        cursor.move_to(&self.top, directory)?;
        cursor.name.clear();
        cursor.name.extend_from_slice(name);
        cursor.name.push(0);
        let name = CStr::from_bytes_with_nul(&cursor.name).map_err(|_| Errno::INVAL)?;
        let directory = cursor.held.last().map_or(&self.top, |(_, directory)| directory);
        Ok(self.entries.is_same(index, &attr::stat_at(directory, name)?))
    }
}

impl DirectoryCursor {
    /// Moves to a directory below `top`. Symbolic links on the path are refused.
    fn move_to(&mut self, top: &OwnedFd, directory: &[u8]) -> Result<(), Errno> {
        while let Some((length, _)) = self.held.last() {
            if below(&self.path[..*length], directory).is_some() {
                break;
            }
            self.held.pop();
        }
        let (above, length) = match self.held.last() {
            Some((length, above)) => (above, *length),
            None => (top, 0),
        };
        let rest = below(&self.path[..length], directory).unwrap_or(directory);
        if rest.is_empty() {
            return Ok(());
        }
        let opened = beneath::open_directory_path(above, rest)?;
        if self.held.len() >= MAX_OPEN_DIRECTORIES {
            self.held.pop();
        }
        self.path.clear();
        self.path.extend_from_slice(directory);
        self.held.push((directory.len(), opened));
        Ok(())
    }
}
