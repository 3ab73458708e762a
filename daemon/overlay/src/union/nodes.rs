//! Table of the inodes that the kernel knows: their numbers, the location of their content, and their names.
//!
//! A node lives as long as it was looked up more often than forgotten, is open, or has a known child.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};

use nohash_hasher::IntMap;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::Result;
use super::upper::LinkKey;
use crate::lower::FileIdentity;

/// Inode number of the root directory.
pub const ROOT: u64 = 1;

/// Maximum number of recorded names of one file; enough for `tar` and `cp`, and a limit for a file with
/// 60,000 names.
const MAX_NAMES: usize = 32;

/// Identity of a file, by which a later lookup finds its node again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum NodeKey {
    Upper(u64),
    Lower(FileIdentity),
    /// A synthetic directory of the lower tree, by its path.
    Synthetic(Box<[u8]>),
}

/// Location of a node's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NodeLocation {
    Lower,
    /// The content is at the node's name in the upper directory's `tree/`, or in `work/` when it is an
    /// orphan.
    Upper,
    /// The content is in the upper directory's `links/`.
    Linked(LinkKey),
}

/// An inode that the kernel knows.
#[derive(Clone, Debug)]
pub(super) struct OverlayNode {
    pub kind: FileType,
    pub key: NodeKey,
    /// True while a lookup that finds this key means this file, and not a later one with the same key.
    owns_key: bool,
    pub location: NodeLocation,
    /// Path in the lower tree: the merged directory for a directory; the file's path for any other kind that
    /// is not copied up.
    pub lower: Option<Box<[u8]>>,
    /// Parent and name, newest last. Empty for the root, and for a removed file that is still known.
    pub names: Vec<(u64, Box<[u8]>)>,
    /// Name in `work/`, where the file is kept since its last known name was removed.
    pub orphan: Option<Box<[u8]>>,
    lookups: u64,
    opens: u32,
    children: u32,
}

/// The result of a lookup that has not been registered as a node yet.
#[derive(Clone, Debug)]
pub(super) struct LookupResult {
    pub attr: crate::attr::FileAttributes,
    pub key: NodeKey,
    pub location: NodeLocation,
    pub lower: Option<Box<[u8]>>,
}

/// The known nodes. Nearly all of them have the number derived from their key, so they are found by it.
pub(super) struct NodeTable {
    by_number: IntMap<u64, OverlayNode>,
    /// Numbers of the nodes whose derived number was taken.
    displaced: HashMap<NodeKey, u64>,
}

/// Returns the number derived from a key. A file gets the same number again after it was forgotten, unless
/// another node has it.
fn derived_number(key: &NodeKey) -> u64 {
    (BuildHasherDefault::<DefaultHasher>::default().hash_one(key) >> 1).max(ROOT + 1)
}

impl NodeTable {
    pub fn new(top: Box<[u8]>, has_upper: bool) -> Self {
        let root = OverlayNode {
            kind: FileType::Directory,
            key: NodeKey::Synthetic(Box::default()),
            owns_key: false,
            location: if has_upper { NodeLocation::Upper } else { NodeLocation::Lower },
            lower: Some(top),
            names: Vec::new(),
            orphan: None,
            lookups: 1,
            opens: 0,
            children: 0,
        };
        Self { by_number: std::iter::once((ROOT, root)).collect(), displaced: HashMap::new() }
    }

    pub fn len(&self) -> usize {
        self.by_number.len()
    }

    pub fn get(&self, inode: u64) -> Result<&OverlayNode> {
        self.by_number.get(&inode).ok_or(Errno::STALE)
    }

    pub fn get_mut(&mut self, inode: u64) -> Result<&mut OverlayNode> {
        self.by_number.get_mut(&inode).ok_or(Errno::STALE)
    }

    /// Returns the number that a file has, or would get.
    pub fn number(&self, key: &NodeKey) -> u64 {
        let mut number = match self.find(key) {
            Ok(number) => return number,
            Err(own) => own,
        };
        while self.by_number.contains_key(&number) {
            number += 1;
        }
        number
    }

    pub fn inode_of(&self, key: &NodeKey) -> Option<u64> {
        self.find(key).ok()
    }

    /// Returns the number of a node, or the derived number as an error if there is none.
    fn find(&self, key: &NodeKey) -> std::result::Result<u64, u64> {
        let own = derived_number(key);
        match self.by_number.get(&own) {
            Some(node) if node.owns_key && node.key == *key => Ok(own),
            _ => self.displaced.get(key).copied().ok_or(own),
        }
    }

    /// Registers a lookup of `name` in `parent`: updates the node, or creates it.
    pub fn register(&mut self, found: &LookupResult, parent: u64, name: &[u8]) -> Result<u64> {
        let number = self.number(&found.key);
        let only = found.attr.links <= 1;
        if !self.by_number.contains_key(&parent) {
            return Err(Errno::STALE);
        }
        if let Some(node) = self.by_number.get_mut(&number) {
            let is_this_name = |known: &(u64, Box<[u8]>)| known.0 == parent && *known.1 == *name;
            let position = node.names.iter().position(is_this_name);
            // A lower file may be renamed during use: the location of the latest lookup counts.
            node.location = found.location.clone();
            node.lower.clone_from(&found.lower);
            node.lookups += 1;
            let mut dropped = Vec::new();
            if let Some(position) = position {
                let last = node.names.len() - 1;
                node.names.swap(position, last);
            } else {
                node.names.push((parent, name.into()));
            }
            if node.orphan.is_none() && (only || node.names.len() > MAX_NAMES) {
                let keep = if only { 1 } else { MAX_NAMES };
                dropped.extend(node.names.drain(..node.names.len() - keep));
            }
            if position.is_none() {
                self.count_child(parent);
            }
            for (parent, _) in dropped {
                self.uncount_child(parent, &mut Vec::new());
            }
            return Ok(number);
        }
        let node = OverlayNode {
            kind: found.attr.kind,
            key: found.key.clone(),
            owns_key: false,
            location: found.location.clone(),
            lower: found.lower.clone(),
            names: vec![(parent, name.into())],
            orphan: None,
            lookups: 1,
            opens: 0,
            children: 0,
        };
        self.by_number.insert(number, node);
        self.attach(number);
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

    /// Removes a name that no longer belongs to this file.
    pub fn remove_name(&mut self, inode: u64, parent: u64, name: &[u8]) {
        let Some(node) = self.by_number.get_mut(&inode) else { return };
        let before = node.names.len();
        node.names.retain(|known| !(known.0 == parent && *known.1 == *name));
        if node.names.len() < before {
            self.uncount_child(parent, &mut Vec::new());
        }
    }

    pub fn add_name(&mut self, inode: u64, parent: u64, name: &[u8]) {
        let Some(node) = self.by_number.get_mut(&inode) else { return };
        node.names.push((parent, name.into()));
        self.count_child(parent);
    }

    /// Gives a node another key and location, after its content was copied.
    pub fn rekey(&mut self, inode: u64, key: NodeKey, location: NodeLocation) {
        self.detach(inode);
        if let Some(other) = self.inode_of(&key) {
            self.detach(other);
        }
        let Some(node) = self.by_number.get_mut(&inode) else { return };
        node.key = key;
        node.location = location;
        self.attach(inode);
    }

    fn attach(&mut self, inode: u64) {
        let Some(node) = self.by_number.get_mut(&inode) else { return };
        node.owns_key = true;
        if derived_number(&node.key) != inode {
            self.displaced.insert(node.key.clone(), inode);
        }
    }

    /// Separates a node from its key, because its file is gone: a later file with the same key is another
    /// one.
    pub fn detach(&mut self, inode: u64) {
        let Some(node) = self.by_number.get_mut(&inode) else { return };
        if std::mem::take(&mut node.owns_key) {
            self.displaced.remove(&node.key);
        }
    }

    pub fn count_open(&mut self, inode: u64) -> Result<()> {
        self.get_mut(inode)?.opens += 1;
        Ok(())
    }

    /// Ends one open of a node. Names in `work/` that are not needed any more are added to `orphans`.
    pub fn count_close(&mut self, inode: u64, orphans: &mut Vec<Box<[u8]>>) {
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

    /// Returns the path of a directory in the upper directory's `tree/`, whether it exists there or not.
    pub fn path(&self, inode: u64) -> Result<Vec<u8>> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut current = inode;
        while current != ROOT {
            let (parent, name) = self.get(current)?.names.last().ok_or(Errno::NOENT)?;
            names.push(name);
            current = *parent;
            // A directory has one name, so the loop ends; the limit is a safeguard.
            if names.len() > crate::beneath::MAX_PATH {
                return Err(Errno::NAMETOOLONG);
            }
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// Reports whether `directory` is `inode` or below it.
    pub fn is_below(&self, directory: u64, inode: u64) -> bool {
        let mut current = directory;
        let mut depth = 0;
        while current != inode {
            let Some((parent, _)) = self.by_number.get(&current).and_then(|node| node.names.last()) else {
                return false;
            };
            current = *parent;
            depth += 1;
            if depth > crate::beneath::MAX_PATH {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::FileAttributes;

    fn nodes() -> NodeTable {
        NodeTable::new(Box::default(), true)
    }

    fn meet(nodes: &mut NodeTable, key: &NodeKey, name: &[u8]) -> u64 {
        let attr = FileAttributes { kind: FileType::RegularFile, ..FileAttributes::SYNTHETIC_DIRECTORY };
        let found = LookupResult { attr, key: key.clone(), location: NodeLocation::Lower, lower: None };
        nodes.register(&found, ROOT, name).unwrap()
    }

    #[test]
    fn a_file_keeps_its_number_until_another_has_it() {
        let mut nodes = nodes();
        let key = NodeKey::Upper(7);
        let number = meet(&mut nodes, &key, b"a");
        assert_eq!(meet(&mut nodes, &key, b"a"), number);
        nodes.forget(number, 2, &mut Vec::new());
        assert_eq!((nodes.len(), nodes.inode_of(&key)), (1, None));
        assert_eq!(meet(&mut nodes, &key, b"b"), number);

        // Removed while it is known: the next file with the same upper inode is another one.
        nodes.detach(number);
        assert_eq!(nodes.inode_of(&key), None);
        let other = meet(&mut nodes, &key, b"c");
        assert_ne!(other, number);
        assert_eq!((nodes.inode_of(&key), nodes.number(&key)), (Some(other), other));
        nodes.forget(number, 1, &mut Vec::new());
        assert_eq!(nodes.inode_of(&key), Some(other), "the forgotten node no longer owned the key");
        nodes.forget(other, 1, &mut Vec::new());
        assert_eq!((nodes.inode_of(&key), nodes.number(&key)), (None, number));
        assert!(nodes.displaced.is_empty());
    }

    #[test]
    fn a_file_with_other_content_is_known_by_that_and_keeps_its_number() {
        let mut nodes = nodes();
        let (below, above) = (NodeKey::Synthetic(b"f".as_slice().into()), NodeKey::Upper(8));
        let number = meet(&mut nodes, &below, b"f");
        nodes.rekey(number, above.clone(), NodeLocation::Upper);
        assert_eq!((nodes.inode_of(&below), nodes.inode_of(&above)), (None, Some(number)));
        assert_eq!(meet(&mut nodes, &above, b"f"), number);
        assert_ne!(meet(&mut nodes, &below, b"g"), number);

        // A node that has the new key already loses it.
        let (one, other) = (NodeKey::Upper(9), NodeKey::Upper(10));
        let (first, second) = (meet(&mut nodes, &one, b"h"), meet(&mut nodes, &other, b"i"));
        nodes.rekey(first, other.clone(), NodeLocation::Upper);
        assert_eq!((nodes.inode_of(&one), nodes.inode_of(&other)), (None, Some(first)));
        nodes.forget(second, 1, &mut Vec::new());
        assert_eq!(nodes.inode_of(&other), Some(first));
        nodes.forget(first, 1, &mut Vec::new());
        assert_eq!(nodes.inode_of(&other), None);
    }
}
