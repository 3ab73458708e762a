//! Lookups, attributes and directory listings.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::nodes::{Key, Node, Place, Sight};
use super::upper::{self, LinkKey, Merge};
use super::{Found, ROOT, Result, Union, checked};
use crate::context::attr::{Attr, Stat};
use crate::context::beneath;
use crate::context::tree::{MAX_NAMES, Seen, Source, Tree};

/// The upper and the lower directory that are merged into one directory.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    /// Path of the upper directory, if there is one.
    pub upper: Option<Vec<u8>>,
    /// Path of the lower directory that is visible through it, if there is one.
    pub lower: Option<Box<[u8]>>,
}

/// The content of a directory at one moment, sorted by name.
pub struct Listing {
    directory: u64,
    version: u64,
    entries: Vec<Listed>,
}

pub struct Listed {
    pub name: Box<[u8]>,
    pub kind: FileType,
    sight: Sight,
}

impl Listed {
    pub(super) const fn sight(&self) -> &Sight {
        &self.sight
    }
}

impl Listing {
    pub fn entries(&self) -> &[Listed] {
        &self.entries
    }
}

impl Union {
    /// Looks up `name` in a directory. The node stays known until it is forgotten as often as it was looked
    /// up.
    pub fn look_up(&self, parent: u64, name: &[u8]) -> Result<Found> {
        let name = checked(name)?;
        let _reading = self.reading_names();
        let directory = self.directory(parent)?;
        let sight = self.sight(&directory, name)?.ok_or(Errno::NOENT)?;
        self.meet(&sight, parent, name)
    }

    pub fn forget(&self, inode: u64, count: u64) {
        let mut orphans = Vec::new();
        self.nodes().forget(inode, count, &mut orphans);
        self.drop_orphans(&orphans);
    }

    pub(super) fn drop_orphans(&self, orphans: &[Box<[u8]>]) {
        if let Some(upper) = &self.upper {
            orphans.iter().for_each(|name| upper.drop_work(name));
        }
    }

    pub fn attr(&self, inode: u64) -> Result<Attr> {
        let _reading = self.reading_names();
        self.attr_of(inode)
    }

    /// Returns the parent of a directory; the root is its own parent.
    pub fn parent(&self, inode: u64) -> u64 {
        let nodes = self.nodes();
        let parent = nodes.get(inode).ok().and_then(|node| node.names.last());
        parent.map_or(ROOT, |(parent, _)| *parent)
    }

    pub(super) fn attr_of(&self, inode: u64) -> Result<Attr> {
        let node = self.nodes().get(inode)?.clone();
        let mut may_have_others = false;
        let mut attr = match &node.place {
            Place::Lower => {
                let path = node.lower.as_deref().ok_or(Errno::NOENT)?;
                let seen = self.lower.look(path)?.ok_or(Errno::NOENT)?;
                may_have_others = self.link_key(&seen).is_some();
                let sight = self.sight_below(path.into(), seen);
                if inode != ROOT && sight.key != node.key {
                    return Err(Errno::STALE);
                }
                sight.attr
            }
            Place::Upper | Place::Linked(_) => {
                let (directory, name) = self.locate(inode, &node)?;
                let stat = upper::stat(&directory, &name)?.ok_or(Errno::NOENT)?;
                self.sight_above(&stat).attr
            }
        };
        if attr.kind != node.kind {
            return Err(Errno::STALE);
        }
        if !may_have_others || !node.names.is_empty() {
            self.count_names(&node, &mut attr);
        }
        Ok(attr)
    }

    /// Corrects the link count: hard links in `work/` do not count as names, and a removed file has none.
    #[expect(clippy::unused_self, reason = "reads as a step of the others")]
    fn count_names(&self, node: &Node, attr: &mut Attr) {
        if node.orphan.is_some() {
            attr.links = attr.links.saturating_sub(1);
        } else if node.names.is_empty() && node.place == Place::Lower && attr.links <= 1 {
            attr.links = u32::from(node.key == Key::Made(Box::default()));
        }
    }

    /// Returns the location of a node in the upper directory: a handle to the containing directory, and a
    /// name in it. The root has the name `.`.
    pub(super) fn locate(&self, inode: u64, node: &Node) -> Result<(OwnedFd, Box<[u8]>)> {
        let upper = self.upper()?;
        let again = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 0);
        if let Place::Linked(key) = &node.place {
            return Ok((again(upper.links())?, key.as_bytes().into()));
        }
        if let Some(orphan) = &node.orphan {
            return Ok((again(upper.work())?, orphan.clone()));
        }
        if inode == ROOT {
            return Ok((upper.hold(b"")?, b".".as_slice().into()));
        }
        let (parent, name) = node.names.last().ok_or(Errno::NOENT)?;
        let path = self.nodes().path(*parent)?;
        Ok((upper.hold(&path)?, name.clone()))
    }

    pub(super) fn directory(&self, inode: u64) -> Result<Directory> {
        let nodes = self.nodes();
        let node = nodes.get(inode)?;
        if node.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        if inode != ROOT && node.names.is_empty() {
            return Err(Errno::NOENT);
        }
        let upper = match node.place {
            Place::Lower => None,
            Place::Upper | Place::Linked(_) => Some(nodes.path(inode)?),
        };
        Ok(Directory { upper, lower: node.lower.clone() })
    }

    pub(super) fn meet(&self, sight: &Sight, parent: u64, name: &[u8]) -> Result<Found> {
        let mut nodes = self.nodes();
        let inode = nodes.meet(sight, parent, name)?;
        let mut attr = sight.attr;
        self.count_names(nodes.get(inode)?, &mut attr);
        Ok(Found { inode, attr })
    }

    /// Looks up `name` in a directory, without registering a node; `None` when nothing is there.
    pub(super) fn sight(&self, directory: &Directory, name: &[u8]) -> Result<Option<Sight>> {
        if let Some(path) = &directory.upper {
            let held = self.upper()?.hold(path)?;
            if let Some(stat) = upper::stat(&held, name)? {
                if upper::is_whiteout(&stat) {
                    return Ok(None);
                }
                return self.upper_sight(directory, &held, name, &stat).map(Some);
            }
        }
        self.lower_sight(directory, name)
    }

    pub(super) fn lower_sight(&self, directory: &Directory, name: &[u8]) -> Result<Option<Sight>> {
        let Some(lower) = &directory.lower else { return Ok(None) };
        let path = Tree::child_path(lower, name)?;
        match self.lower.look(&path)? {
            Some(seen) => self.lower_or_linked(path, seen).map(Some),
            None => Ok(None),
        }
    }

    fn upper_sight(&self, directory: &Directory, held: &OwnedFd, name: &[u8], stat: &Stat) -> Result<Sight> {
        let mut sight = self.sight_above(stat);
        if stat.attr.kind == FileType::Directory {
            sight.lower = match upper::merge_of(held, name)? {
                Merge::Opaque => None,
                Merge::Other(path) => Some(path),
                Merge::Same => match &directory.lower {
                    Some(lower) => Some(Tree::child_path(lower, name)?),
                    None => None,
                },
            };
        }
        Ok(sight)
    }

    fn sight_above(&self, stat: &Stat) -> Sight {
        let mut attr = stat.attr;
        let mut place = Place::Upper;
        if attr.kind != FileType::Directory
            && let Some((key, linked)) = self.upper.as_ref().and_then(|upper| upper.key_of(stat.inode))
        {
            attr.links = (linked.names.saturating_sub(linked.gone) + attr.links).saturating_sub(1).max(1);
            place = Place::Linked(key);
        }
        Sight { attr, key: Key::Upper(stat.inode), place, lower: None }
    }

    /// A file with several names may have been copied up by another name.
    fn lower_or_linked(&self, path: Box<[u8]>, seen: Seen) -> Result<Sight> {
        if let Some(upper) = &self.upper
            && let Some(key) = self.link_key(&seen)
            && upper.linked().get(&key).is_some_and(|linked| linked.inode.is_some())
        {
            let stat = upper::stat(upper.links(), key.as_bytes())?.ok_or(Errno::IO)?;
            return Ok(self.sight_above(&stat));
        }
        let mut sight = self.sight_below(path, seen);
        // It was just found by a name, so it has at least one.
        sight.attr.links = sight.attr.links.max(1);
        Ok(sight)
    }

    /// Builds the result for a lower entry. Its link count excludes hidden names: 0 when all of them are
    /// hidden.
    fn sight_below(&self, path: Box<[u8]>, seen: Seen) -> Sight {
        let mut attr = seen.attr;
        if let Some(upper) = &self.upper
            && let Some(key) = self.link_key(&seen)
        {
            let gone = upper.linked().get(&key).map_or(0, |linked| linked.gone);
            attr.links = attr.links.saturating_sub(gone);
        }
        let key = match seen.source {
            Source::Made => Key::Made(path.clone()),
            source => Key::Lower(source),
        };
        Sight { attr, key, place: Place::Lower, lower: Some(path) }
    }

    /// Returns the key that all names of one lower file share, however often it is mounted; `None` for a file
    /// with one name.
    pub(super) fn link_key(&self, seen: &Seen) -> Option<LinkKey> {
        if seen.attr.kind == FileType::Directory {
            return None;
        }
        let text = match &seen.source {
            Source::Disk { mount, inode, born, .. } if seen.attr.links > 1 => {
                format!("{} disk {inode} {} {}", self.lower.target(*mount), born.0, born.1)
            }
            Source::Image { mount, links: Some(links), .. } => {
                format!("{} image {links}", self.lower.target(*mount))
            }
            _ => return None,
        };
        let hash = hearth_pack::identity::ContentHash::of(text.as_bytes());
        Some(hex::encode(&hash.as_bytes()[..16]).into())
    }

    /// Lists a directory.
    pub fn list(&self, inode: u64) -> Result<Listing> {
        let _reading = self.reading_names();
        let directory = self.directory(inode)?;
        let version = self.version.load(Ordering::Acquire);
        let entries = self.entries(&directory)?;
        Ok(Listing { directory: inode, version, entries })
    }

    pub(super) fn entries(&self, directory: &Directory) -> Result<Vec<Listed>> {
        let mut lower = match &directory.lower {
            Some(path) => self.lower.names(path)?,
            None => std::collections::BTreeMap::new(),
        };
        let mut listed = Vec::with_capacity(lower.len());
        if let Some(path) = &directory.upper {
            let held = self.upper()?.read_directory(path)?;
            let mut names: Vec<Box<[u8]>> = Vec::new();
            beneath::for_each_name(&held, |name| {
                names.push(name.to_bytes().into());
                names.len() <= MAX_NAMES
            })?;
            for name in names {
                let Some(stat) = upper::stat(&held, &name)? else { continue };
                lower.remove(&name);
                if !upper::is_whiteout(&stat) {
                    let sight = self.upper_sight(directory, &held, &name, &stat)?;
                    listed.push((name, sight));
                }
            }
        }
        if let Some(path) = &directory.lower {
            for (name, seen) in lower {
                let path = Tree::child_path(path, &name)?;
                let sight = self.lower_or_linked(path, seen)?;
                listed.push((name, sight));
            }
        }
        if directory.upper.is_some() {
            listed.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        }
        let entry = |(name, sight): (Box<[u8]>, Sight)| Listed { kind: sight.attr.kind, name, sight };
        Ok(listed.into_iter().map(entry).collect())
    }

    /// Reports whether nothing was changed through this file system since a listing was made. The lower tree
    /// may have changed.
    pub fn is_current(&self, listing: &Listing) -> bool {
        self.version.load(Ordering::Acquire) == listing.version
    }

    /// Returns the inode number that an entry has, or would get by a lookup.
    pub fn number(&self, listed: &Listed) -> u64 {
        self.nodes().number(&listed.sight.key)
    }

    /// Looks up an entry of a listing, and reuses the listing's result if nothing can have changed here.
    /// `None` if the entry is gone.
    pub fn look_up_listed(&self, listing: &Listing, index: usize) -> Result<Option<Found>> {
        let Some(listed) = listing.entries.get(index) else { return Ok(None) };
        let _reading = self.reading_names();
        if self.is_current(listing) {
            return self.meet(&listed.sight, listing.directory, &listed.name).map(Some);
        }
        let directory = self.directory(listing.directory)?;
        match self.sight(&directory, &listed.name)? {
            Some(sight) => self.meet(&sight, listing.directory, &listed.name).map(Some),
            None => Ok(None),
        }
    }

    pub fn read_link(&self, inode: u64) -> Result<Box<[u8]>> {
        let _reading = self.reading_names();
        let node = self.nodes().get(inode)?.clone();
        if node.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        match node.place {
            Place::Lower => self.lower.link_target(node.lower.as_deref().ok_or(Errno::NOENT)?),
            Place::Upper | Place::Linked(_) => {
                let (directory, name) = self.locate(inode, &node)?;
                let target = rustix::fs::readlinkat(directory, &*name, Vec::with_capacity(128))?;
                Ok(target.into_bytes().into_boxed_slice())
            }
        }
    }
}
