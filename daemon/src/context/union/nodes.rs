//! The inodes that the kernel knows: their numbers, where their content is, and by which names.
//!
//! A node lives as long as it was looked up more often than forgotten, is open, or has a known child.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::Result;
use super::upper::LinkKey;
use crate::context::tree::Source;

pub const ROOT: u64 = 1;

/// Names that are remembered of one file; enough for `tar` and `cp`, and a bound for a file with 60,000.
const MAX_NAMES: usize = 32;

/// What a file is known by when it is met again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Upper(u64),
    Lower(Source),
    /// A directory that the lower union made, by its path.
    Made(Box<[u8]>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Lower,
    /// At its name in the upper's tree, or in `work/` when it is an orphan.
    Upper,
    /// In the upper's `links/`.
    Linked(LinkKey),
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub kind: FileType,
    pub key: Key,
    pub place: Place,
    /// Of a directory, the lower one it is merged with; of anything else, where it is while it is below.
    pub lower: Option<Box<[u8]>>,
    /// Parent and name, newest last. Empty for the root, and for what was removed while it is known.
    pub names: Vec<(u64, Box<[u8]>)>,
    /// Its name in `work/`, where it is kept since its last known name was removed.
    pub orphan: Option<Box<[u8]>>,
    lookups: u64,
    opens: u32,
    children: u32,
}

/// A file as it was found, not yet a node.
#[derive(Clone, Debug)]
pub(super) struct Sight {
    pub attr: crate::context::attr::Attr,
    pub key: Key,
    pub place: Place,
    pub lower: Option<Box<[u8]>>,
}

pub(super) struct Nodes {
    by_number: HashMap<u64, Node>,
    by_key: HashMap<Key, u64>,
    hasher: BuildHasherDefault<DefaultHasher>,
}

impl Nodes {
    pub fn new(top: Box<[u8]>, has_upper: bool) -> Self {
        let root = Node {
            kind: FileType::Directory,
            key: Key::Made(Box::default()),
            place: if has_upper { Place::Upper } else { Place::Lower },
            lower: Some(top),
            names: Vec::new(),
            orphan: None,
            lookups: 1,
            opens: 0,
            children: 0,
        };
        Self {
            by_number: HashMap::from([(ROOT, root)]),
            by_key: HashMap::new(),
            hasher: BuildHasherDefault::default(),
        }
    }

    pub fn len(&self) -> usize {
        self.by_number.len()
    }

    pub fn get(&self, inode: u64) -> Result<&Node> {
        self.by_number.get(&inode).ok_or(Errno::STALE)
    }

    pub fn get_mut(&mut self, inode: u64) -> Result<&mut Node> {
        self.by_number.get_mut(&inode).ok_or(Errno::STALE)
    }

    /// The number that a file has, or would get.
    pub fn number(&self, key: &Key) -> u64 {
        if let Some(&number) = self.by_key.get(key) {
            return number;
        }
        // The same file gets the same number again after it was forgotten, unless another has it now.
        let mut number = self.hasher.hash_one(key) >> 1;
        while number <= ROOT || self.by_number.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        number
    }

    pub fn known(&self, key: &Key) -> Option<u64> {
        self.by_key.get(key).copied()
    }

    /// The node of what was found as `name` of `parent`, made where there is none.
    pub fn meet(&mut self, sight: &Sight, parent: u64, name: &[u8]) -> Result<u64> {
        let number = self.number(&sight.key);
        let only = sight.attr.links <= 1;
        if !self.by_number.contains_key(&parent) {
            return Err(Errno::STALE);
        }
        if let Some(node) = self.by_number.get_mut(&number) {
            let here = |known: &(u64, Box<[u8]>)| known.0 == parent && *known.1 == *name;
            let place = node.names.iter().position(here);
            // A lower may be renamed under us: what counts is where it was seen last.
            node.place = sight.place.clone();
            node.lower.clone_from(&sight.lower);
            node.lookups += 1;
            let mut dropped = Vec::new();
            if let Some(place) = place {
                let last = node.names.len() - 1;
                node.names.swap(place, last);
            } else {
                node.names.push((parent, name.into()));
            }
            if node.orphan.is_none() && (only || node.names.len() > MAX_NAMES) {
                let keep = if only { 1 } else { MAX_NAMES };
                dropped.extend(node.names.drain(..node.names.len() - keep));
            }
            if place.is_none() {
                self.count_child(parent);
            }
            for (parent, _) in dropped {
                self.uncount_child(parent, &mut Vec::new());
            }
            return Ok(number);
        }
        let node = Node {
            kind: sight.attr.kind,
            key: sight.key.clone(),
            place: sight.place.clone(),
            lower: sight.lower.clone(),
            names: vec![(parent, name.into())],
            orphan: None,
            lookups: 1,
            opens: 0,
            children: 0,
        };
        self.by_number.insert(number, node);
        self.by_key.insert(sight.key.clone(), number);
        self.count_child(parent);
        Ok(number)
    }

    fn count_child(&mut self, parent: u64) {
        if let Some(parent) = self.by_number.get_mut(&parent) {
            parent.children += 1;
        }
    }

    fn uncount_child(&mut self, parent: u64, orphans: &mut Vec<Box<[u8]>>) {
        if let Some(node) = self.by_number.get_mut(&parent) {
            node.children -= 1;
            self.drop_unused(parent, orphans);
        }
    }

    /// Takes a name away, since it names this file no more.
    pub fn lose_name(&mut self, inode: u64, parent: u64, name: &[u8]) {
        let Some(node) = self.by_number.get_mut(&inode) else { return };
        let before = node.names.len();
        node.names.retain(|known| !(known.0 == parent && *known.1 == *name));
        if node.names.len() < before {
            self.uncount_child(parent, &mut Vec::new());
        }
    }

    pub fn gain_name(&mut self, inode: u64, parent: u64, name: &[u8]) {
        let Some(node) = self.by_number.get_mut(&inode) else { return };
        node.names.push((parent, name.into()));
        self.count_child(parent);
    }

    /// It has other content from now on, and is known by that.
    pub fn rekey(&mut self, inode: u64, key: Key, place: Place) {
        let Some(node) = self.by_number.get_mut(&inode) else { return };
        let old = std::mem::replace(&mut node.key, key.clone());
        node.place = place;
        if self.by_key.get(&old) == Some(&inode) {
            self.by_key.remove(&old);
        }
        self.by_key.insert(key, inode);
    }

    /// It is on no disk any more: what has its key next is another file.
    pub fn detach(&mut self, inode: u64) {
        if let Some(node) = self.by_number.get(&inode)
            && self.by_key.get(&node.key) == Some(&inode)
        {
            let key = node.key.clone();
            self.by_key.remove(&key);
        }
    }

    pub fn opened(&mut self, inode: u64) -> Result<()> {
        self.get_mut(inode)?.opens += 1;
        Ok(())
    }

    /// Names in `work/` that are not needed any more are added to `orphans`.
    pub fn closed(&mut self, inode: u64, orphans: &mut Vec<Box<[u8]>>) {
        if let Some(node) = self.by_number.get_mut(&inode) {
            node.opens = node.opens.saturating_sub(1);
            self.drop_unused(inode, orphans);
        }
    }

    pub fn forget(&mut self, inode: u64, count: u64, orphans: &mut Vec<Box<[u8]>>) {
        if let Some(node) = self.by_number.get_mut(&inode) {
            node.lookups = node.lookups.saturating_sub(count);
            self.drop_unused(inode, orphans);
        }
    }

    fn drop_unused(&mut self, inode: u64, orphans: &mut Vec<Box<[u8]>>) {
        let mut pending = vec![inode];
        while let Some(inode) = pending.pop() {
            let Some(node) = self.by_number.get(&inode) else { continue };
            if inode == ROOT || node.lookups > 0 || node.opens > 0 || node.children > 0 {
                continue;
            }
            self.detach(inode);
            let Some(node) = self.by_number.remove(&inode) else { continue };
            orphans.extend(node.orphan);
            for (parent, _) in node.names {
                if let Some(node) = self.by_number.get_mut(&parent) {
                    node.children -= 1;
                    pending.push(parent);
                }
            }
        }
    }

    /// Path of a directory in the upper's tree, whether it is there or not.
    pub fn path(&self, inode: u64) -> Result<Vec<u8>> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut current = inode;
        while current != ROOT {
            let (parent, name) = self.get(current)?.names.last().ok_or(Errno::NOENT)?;
            names.push(name);
            current = *parent;
            // Directories have one name each, so this ends; a bound all the same.
            if names.len() > crate::context::beneath::MAX_PATH {
                return Err(Errno::NAMETOOLONG);
            }
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// Whether `directory` is `inode` or lies below it.
    pub fn is_below(&self, directory: u64, inode: u64) -> bool {
        let mut current = directory;
        let mut depth = 0;
        while current != inode {
            let Some((parent, _)) = self.by_number.get(&current).and_then(|node| node.names.last()) else {
                return false;
            };
            current = *parent;
            depth += 1;
            if depth > crate::context::beneath::MAX_PATH {
                return false;
            }
        }
        true
    }
}
