//! A directory on disk that is as a scan found it, told without listing it again.
//!
//! ```text
//! scan -- one directory on a file system that keeps times, all of them settled --> Known
//! Known -- every entry has the stat that it had --> what a scan would give now
//! ```
//!
//! No name comes or goes, and no attribute of a directory changes, without a new change time of the directory: when
//! all directories have theirs, so are the names in them. A change right after a scan began to look could hide behind
//! an equal time, so those of all directories must have been older than a step of the clock by then. A link keeps its
//! target as long as it lives, and another in its place changes the directory.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hearth_pack::identity::is_settled;
use rustix::io::Errno;

use super::directory::DirectoryLayer;
use super::entries::Entries;
use super::scan::{since_epoch, threads};
use super::{Found, Layer, Mounted, Origin, Snapshot, Tree, bare, below};
use crate::context::beneath;
use crate::model::MountTarget;
use crate::task;

/// `f_type` of file systems that give a directory a new change time with every name: those of a network, or of
/// somebody's program, may give it any.
const KEEP_TIMES: [u64; 7] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // Btrfs
    0x0102_1994, // tmpfs
    0x794c_7630, // overlay
    0xf2f5_2010, // F2FS
    0x2fc1_2fc1, // ZFS
];
/// Entries that a thread looks at before it takes the next ones.
const PIECE: usize = 256;
/// Directories that a thread holds open on the way down.
const HELD: usize = 64;

/// The directory that a tree is of, before it is scanned.
#[derive(Clone)]
pub(super) struct TopDirectory {
    found: Found,
    /// Nanoseconds since 1970.
    pub(super) looked_at: i64,
}

/// What a scan found, to be known again.
#[derive(Clone)]
pub struct Known {
    target: MountTarget,
    top: Vec<u8>,
    root: TopDirectory,
    entries: Arc<Entries>,
}

impl Tree {
    /// The only layer, if that is a directory, and the path of `top` in it.
    fn only_directory<'t>(&self, top: &'t [u8]) -> Option<(&MountTarget, &DirectoryLayer, &'t [u8])> {
        match &*self.mounts {
            [Mounted { target, layer: Layer::Directory(layer) }] => {
                Some((target, layer, below(bare(target), top)?))
            }
            _ => None,
        }
    }

    pub(super) fn root(&self, top: &[u8]) -> Option<TopDirectory> {
        let (_, layer, inside) = self.only_directory(top)?;
        let looked_at = since_epoch();
        let found = layer.lookup(0, inside).ok().flatten()?;
        Some(TopDirectory { found, looked_at })
    }

    /// What a scan would give, if that is what is known. Blocking.
    pub fn again(&self, context_path: &MountTarget, known: &Known) -> Option<Snapshot> {
        let (top, _) = self.context_directory(context_path).ok()?;
        let (target, layer, inside) = self.only_directory(&top)?;
        if (target, &top) != (&known.target, &known.top) || !known.root.is_same(&self.root(&top)?) {
            return None;
        }
        let look = Look {
            top: layer.hold(inside).ok()?,
            entries: &known.entries,
            next: AtomicUsize::new(0),
            differs: AtomicBool::new(false),
        };
        let helpers = (threads() - 1).min(known.entries.len() / PIECE);
        task::in_parallel("context.again", helpers, |_| look.run());
        if look.differs.into_inner() {
            return None;
        }
        let mut snapshot = Snapshot::new(self.clone(), top, Arc::clone(&known.entries));
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

impl Snapshot {
    /// None where equal times of directories do not mean equal names.
    pub fn as_known(&self) -> Option<Known> {
        let root = self.root.clone()?;
        let (target, layer, inside) = self.tree.only_directory(self.top())?;
        let Origin::Disk { device: root_device, changed, .. } = root.found.origin else { return None };
        let keeps_times = || {
            let status = rustix::fs::fstatfs(layer.hold(inside).ok()?).ok()?;
            Some(KEEP_TIMES.contains(&u64::try_from(status.f_type).ok()?))
        };
        let is_settled = |changed| is_settled(changed, root.looked_at);
        let is_sure = |index| match self.entries.origin(index) {
            Origin::Disk { device, changed, .. } => {
                device == root_device && (!self.entries.is_directory(index) || is_settled(changed))
            }
            _ => false,
        };
        let is_sure = self.unsure().is_empty() && is_settled(changed) && (0..self.entries.len()).all(is_sure);
        (is_sure && keeps_times() == Some(true)).then(|| Known {
            target: target.clone(),
            top: self.top().to_vec(),
            root: root.clone(),
            entries: Arc::clone(&self.entries),
        })
    }
}

impl Known {
    /// Their number, which memory grows with.
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// Whether both are of the same directory.
    pub fn is_beside(&self, other: &Self) -> bool {
        let place = |known: &Self| match known.root.found.origin {
            Origin::Disk { device, inode, .. } => Some((device, inode)),
            _ => None,
        };
        (&self.target, &self.top, place(self)) == (&other.target, &other.top, place(other))
    }
}

/// One comparison, by several threads.
struct Look<'k> {
    top: OwnedFd,
    entries: &'k Entries,
    next: AtomicUsize,
    differs: AtomicBool,
}

/// Where a thread is: the directories on the way to it, of which each has the path of the last up to a length.
#[derive(Default)]
struct Place {
    path: Vec<u8>,
    held: Vec<(usize, OwnedFd)>,
    name: Vec<u8>,
}

impl Look<'_> {
    fn run(&self) {
        let mut place = Place::default();
        while !self.differs.load(Ordering::Relaxed) {
            let start = self.next.fetch_add(PIECE, Ordering::Relaxed);
            if start >= self.entries.len() {
                return;
            }
            let mut piece = start..self.entries.len().min(start + PIECE);
            // Whatever cannot be looked at is for a scan to tell.
            if !piece.all(|index| self.is_same(index, &mut place).unwrap_or(false)) {
                self.differs.store(true, Ordering::Relaxed);
            }
        }
    }

    fn is_same(&self, index: usize, place: &mut Place) -> Result<bool, Errno> {
        let path = self.entries.path(index);
        let (directory, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&[][..], path),
        };
        place.go(&self.top, directory)?;
        place.name.clear();
        place.name.extend_from_slice(name);
        place.name.push(0);
        let name = CStr::from_bytes_with_nul(&place.name).map_err(|_| Errno::INVAL)?;
        let directory = place.held.last().map_or(&self.top, |(_, directory)| directory);
        Ok(self.entries.is_same(index, &beneath::stat_at(directory, name)?))
    }
}

impl Place {
    /// Goes to a directory below `top`, with no link allowed on the way.
    fn go(&mut self, top: &OwnedFd, directory: &[u8]) -> Result<(), Errno> {
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
        let opened = beneath::hold_directory(above, rest)?;
        if self.held.len() >= HELD {
            self.held.pop();
        }
        self.path.clear();
        self.path.extend_from_slice(directory);
        self.held.push((directory.len(), opened));
        Ok(())
    }
}
