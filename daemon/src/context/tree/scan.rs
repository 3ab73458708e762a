//! A walk over the union, depth first, each directory's names sorted by their bytes: the order of
//! BuildKit's file sync. One list of directories on the way down, no recursion.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hearth_pack::identity::is_settled;
use rustix::io::Errno;

use super::directory::child_path;
use super::snapshot::Snapshot;
use super::{Child, Found, Layer, Origin, Tree, bare, below, joined};
use crate::context::ContextError;
use crate::context::port::{Entry, EntryKind};
use crate::model::MountTarget;

/// About 250 bytes are kept for each.
pub(in crate::context) const MAX_FILES: usize = 2_000_000;

/// How often a tree that changes under the walk is walked again.
const ATTEMPTS: usize = 4;

/// Longest wait for files that were written a moment ago.
const SETTLE: Duration = Duration::from_millis(25);

/// A directory on the way down.
struct Level {
    /// Length of its path.
    path: usize,
    children: std::vec::IntoIter<Child>,
    /// Mounts with targets strictly below it.
    mounts: Vec<u32>,
}

struct Walk<'t> {
    tree: &'t Tree,
    /// Absolute path of the directory that the context is, without `/` at its start.
    top: Vec<u8>,
    entries: Vec<Entry>,
    origins: Vec<Origin>,
    /// First name of every regular file that has several.
    links: HashMap<(u32, u64, u64), usize>,
}

impl Tree {
    /// The tree below `context_path`, which may lie above, at or below mount targets.
    ///
    /// Files that were written within the last 20 ms are looked at twice, so that a later write
    /// cannot hide behind an equal time stamp. A tree that keeps changing is an error that names a
    /// path which did.
    pub fn scan(&self, context_path: &MountTarget) -> Result<Snapshot, ContextError> {
        for _ in 1..ATTEMPTS {
            match self.walk(context_path) {
                Err(ContextError::Changed { .. }) => {}
                Err(error) => return Err(error),
                Ok(mut snapshot) => {
                    if self.settle(&mut snapshot)? {
                        return Ok(snapshot);
                    }
                }
            }
        }
        self.walk(context_path)
    }

    fn walk(&self, context_path: &MountTarget) -> Result<Snapshot, ContextError> {
        let (top, backed) = self.context_directory(context_path)?;
        let mut walk =
            Walk { tree: self, top, entries: Vec::new(), origins: Vec::new(), links: HashMap::new() };
        walk.run(backed)?;
        let now = since_epoch();
        // Of content alone: names, modes and link targets are what the scan saw, and are sent from it.
        let has_content =
            |index: usize| matches!(walk.entries[index].kind, EntryKind::File | EntryKind::HardLink(_));
        let unsure = |(index, origin): (usize, &Origin)| match origin {
            Origin::Disk { changed, .. } if has_content(index) && !is_settled(*changed, now) => Some(index),
            _ => None,
        };
        let unsure = walk.origins.iter().enumerate().filter_map(unsure).collect();
        Ok(Snapshot::new(self.clone(), walk.top, walk.entries, walk.origins, unsure))
    }

    /// Waits until the youngest files are older than a time stamp is coarse. False when one of them
    /// changed meanwhile. Files that stay unsure (times in the future, coarse clocks) remain marked.
    fn settle(&self, snapshot: &mut Snapshot) -> Result<bool, ContextError> {
        if snapshot.unsure().is_empty() {
            return Ok(true);
        }
        std::thread::sleep(SETTLE);
        let now = since_epoch();
        let mut unsure = Vec::new();
        for &index in snapshot.unsure() {
            if !snapshot.is_unchanged(index)? {
                return Ok(false);
            }
            if let Origin::Disk { changed, .. } = snapshot.origin(index)
                && !is_settled(changed, now)
            {
                unsure.push(index);
            }
        }
        snapshot.set_unsure(unsure);
        Ok(true)
    }
}

fn since_epoch() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

impl Walk<'_> {
    fn run(&mut self, backed: bool) -> Result<(), ContextError> {
        let mut path = self.top.clone();
        let mounts = self.tree.mounts_below(&path);
        let mut levels = vec![self.level(&path, backed, mounts)?];
        while let Some(level) = levels.last_mut() {
            path.truncate(level.path);
            let Some(Child { name, found }) = level.children.next() else {
                levels.pop();
                continue;
            };
            path = child_path(&path, &name)
                .map_err(|errno| ContextError::at(&absolute(&joined(&path, &name)), errno))?;
            let mounts: Vec<u32> =
                if level.mounts.is_empty() { Vec::new() } else { self.tree.mounts_below(&path) };
            let made = found.origin == Origin::Made;
            if self.push(&path, found)? {
                let level = self.level(&path, !made || self.tree.is_mounted(&path), mounts)?;
                levels.push(level);
            }
        }
        Ok(())
    }

    /// Adds an entry; true when it is a directory.
    fn push(&mut self, path: &[u8], found: Found) -> Result<bool, ContextError> {
        if self.entries.len() >= MAX_FILES {
            return Err(ContextError::TooManyFiles { limit: MAX_FILES });
        }
        let index = self.entries.len();
        let mut kind = found.kind;
        if kind == EntryKind::File
            && let Some(key) = self.tree.link_key(found.origin)
        {
            let first = *self.links.entry(key).or_insert(index);
            if first != index {
                kind = EntryKind::HardLink(first);
            }
        }
        let directory = kind == EntryKind::Directory;
        let path = below(&self.top, path).unwrap_or(path).into();
        self.entries.push(Entry { path, kind, mode: found.mode, size: found.size, mtime: found.mtime });
        self.origins.push(found.origin);
        Ok(directory)
    }

    /// What a directory of the union holds, in order. `backed` when a layer has it.
    fn level(&self, path: &[u8], backed: bool, mounts: Vec<u32>) -> Result<Level, ContextError> {
        let mut children = match self.tree.covering(path) {
            Some((mount, inside)) if backed => self.tree.children(mount, inside, path)?,
            _ => Vec::new(),
        };
        children.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for &mount in &mounts {
            let target = bare(&self.tree.mounts[mount as usize].target);
            let rest = below(path, target).unwrap_or_default();
            let name = rest.split(|&byte| byte == b'/').next().unwrap_or_default();
            let place = children.binary_search_by(|child| child.name.as_ref().cmp(name));
            let found = if name.len() == rest.len() {
                self.tree.mount_root(mount)?
            } else {
                match place {
                    // The parent of a target: a directory stays what it is, anything else makes room for one.
                    Ok(index) if children[index].found.kind == EntryKind::Directory => continue,
                    _ => Found::made_directory(),
                }
            };
            match place {
                Ok(index) => children[index].found = found,
                Err(index) => children.insert(index, Child { name: name.into(), found }),
            }
        }
        Ok(Level { path: path.len(), children: children.into_iter(), mounts })
    }
}

/// As people write it.
pub(super) fn absolute(path: &[u8]) -> Vec<u8> {
    [b"/", path].concat()
}

impl Tree {
    fn is_mounted(&self, path: &[u8]) -> bool {
        self.mounts.iter().any(|mounted| bare(&mounted.target) == path)
    }

    /// What is mounted, as an entry at its target.
    pub(super) fn mount_root(&self, mount: u32) -> Result<Found, ContextError> {
        let target = &self.mounts[mount as usize].target;
        let gone = || ContextError::Changed { path: target.to_string() };
        self.lookup_in(mount, b"")
            .map_err(|errno| ContextError::at(target.as_str().as_bytes(), errno))?
            .ok_or_else(gone)
    }

    pub(super) fn lookup_in(&self, mount: u32, inside: &[u8]) -> Result<Option<Found>, Errno> {
        match self.layer(mount) {
            Layer::Directory(layer) => layer.lookup(mount, inside),
            Layer::Image(layer) => Ok(layer.lookup(mount, inside)),
            Layer::Stored(layer) => Ok(layer.lookup(mount, inside)),
            Layer::Empty => Ok(inside.is_empty().then(Found::made_directory)),
        }
    }

    fn children(&self, mount: u32, inside: &[u8], shown: &[u8]) -> Result<Vec<Child>, ContextError> {
        let children = match self.layer(mount) {
            Layer::Directory(layer) => layer
                .children(mount, inside, MAX_FILES)
                .map_err(|errno| ContextError::at(&absolute(shown), errno))?,
            Layer::Image(layer) => layer.children(mount, inside),
            Layer::Stored(layer) => layer.children(mount, inside),
            Layer::Empty => Vec::new(),
        };
        Ok(children)
    }

    /// What names of one regular file have in common; none for a file with one name.
    fn link_key(&self, origin: Origin) -> Option<(u32, u64, u64)> {
        match origin {
            Origin::Disk { mount, links, device, inode, .. } if links > 1 => Some((mount, device, inode)),
            Origin::Image { mount, node } => match self.layer(mount) {
                Layer::Image(layer) => layer.link_group(node).map(|group| (mount, u64::MAX, group)),
                _ => None,
            },
            Origin::Stored { mount, entry } => match self.layer(mount) {
                Layer::Stored(layer) => layer.link_group(entry).map(|group| (mount, u64::MAX, group)),
                _ => None,
            },
            _ => None,
        }
    }
}
