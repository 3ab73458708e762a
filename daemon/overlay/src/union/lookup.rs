//! Lookups, attributes and directory listings.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::nodes::{LookupResult, NodeKey, NodeLocation, OverlayNode};
use super::upper::{self, LinkKey, MergeTarget};
use super::{InodeEntry, OverlayFs, ROOT, Result, checked_name};
use crate::attr::{FileAttributes, InodeStat};
use crate::beneath;
use crate::lower::{EntryStat, FileIdentity, MAX_DIRECTORY_ENTRIES, child_path};

/// The upper and the lower directory that are merged into one directory.
#[derive(Clone, Debug)]
pub(super) struct MergedDirectory {
    /// Path of the upper directory, if there is one.
    pub upper: Option<Vec<u8>>,
    /// Path of the lower directory that is visible through it, if there is one.
    pub lower: Option<Box<[u8]>>,
}

/// The content of a directory at one moment, sorted by name.
pub struct DirectoryListing {
    directory: u64,
    version: u64,
    entries: Vec<ListingEntry>,
}

pub struct ListingEntry {
    pub name: Box<[u8]>,
    pub kind: FileType,
    lookup_result: LookupResult,
}

impl ListingEntry {
    pub(super) const fn lookup_result(&self) -> &LookupResult {
        &self.lookup_result
    }
}

impl DirectoryListing {
    pub fn entries(&self) -> &[ListingEntry] {
        &self.entries
    }
}

impl OverlayFs {
    /// Looks up `name` in a directory. The node stays known until it is forgotten as often as it was looked
    /// up.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<InodeEntry> {
        let name = checked_name(name)?;
        let _reading = self.reading_names();
        let directory = self.directory(parent)?;
        let found = self.lookup_entry(&directory, name)?.ok_or(Errno::NOENT)?;
        self.register_lookup(&found, parent, name)
    }

    pub fn forget(&self, inode: u64, count: u64) {
        let mut orphans = Vec::new();
        self.nodes().forget(inode, count, &mut orphans);
        self.remove_orphans(&orphans);
    }

    pub(super) fn remove_orphans(&self, orphans: &[Box<[u8]>]) {
        if let Some(upper) = &self.upper {
            orphans.iter().for_each(|name| upper.remove_work(name));
        }
    }

    pub fn attr(&self, inode: u64) -> Result<FileAttributes> {
        let _reading = self.reading_names();
        self.attr_of(inode)
    }

    /// Returns the parent of a directory; the root is its own parent.
    pub fn parent(&self, inode: u64) -> u64 {
        let nodes = self.nodes();
        let parent = nodes.get(inode).ok().and_then(|node| node.names.last());
        parent.map_or(ROOT, |(parent, _)| *parent)
    }

    pub(super) fn attr_of(&self, inode: u64) -> Result<FileAttributes> {
        let node = self.nodes().get(inode)?.clone();
        let mut may_have_others = false;
        let mut attr = match &node.location {
            NodeLocation::Lower => {
                let path = node.lower.as_deref().ok_or(Errno::NOENT)?;
                let lower_stat = self.lower.stat(path)?.ok_or(Errno::NOENT)?;
                may_have_others = self.link_key(&lower_stat).is_some();
                let found = self.result_from_lower(path.into(), lower_stat);
                if inode != ROOT && found.key != node.key {
                    return Err(Errno::STALE);
                }
                found.attr
            }
            NodeLocation::Upper | NodeLocation::Linked(_) => {
                let (directory, name) = self.locate(inode, &node)?;
                let stat = upper::stat(&directory, &name)?.ok_or(Errno::NOENT)?;
                self.result_from_upper(&stat).attr
            }
        };
        if attr.kind != node.kind {
            return Err(Errno::STALE);
        }
        if !may_have_others || !node.names.is_empty() {
            self.adjust_link_count(&node, &mut attr);
        }
        Ok(attr)
    }

    /// Corrects the link count: hard links in `work/` do not count as names, and a removed file has none.
    #[expect(clippy::unused_self, reason = "reads as a step of the others")]
    fn adjust_link_count(&self, node: &OverlayNode, attr: &mut FileAttributes) {
        if node.orphan.is_some() {
            attr.links = attr.links.saturating_sub(1);
        } else if node.names.is_empty() && node.location == NodeLocation::Lower && attr.links <= 1 {
            attr.links = u32::from(node.key == NodeKey::Synthetic(Box::default()));
        }
    }

    /// Returns the location of a node in the upper directory: a handle to the containing directory, and a
    /// name in it. The root has the name `.`.
    pub(super) fn locate(&self, inode: u64, node: &OverlayNode) -> Result<(OwnedFd, Box<[u8]>)> {
        let upper = self.upper()?;
        let duplicate = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 0);
        if let NodeLocation::Linked(key) = &node.location {
            return Ok((duplicate(upper.links_directory())?, key.as_bytes().into()));
        }
        if let Some(orphan) = &node.orphan {
            return Ok((duplicate(upper.work_directory())?, orphan.clone()));
        }
        if inode == ROOT {
            return Ok((upper.open_path(b"")?, b".".as_slice().into()));
        }
        let (parent, name) = node.names.last().ok_or(Errno::NOENT)?;
        let path = self.nodes().path(*parent)?;
        Ok((upper.open_path(&path)?, name.clone()))
    }

    pub(super) fn directory(&self, inode: u64) -> Result<MergedDirectory> {
        let nodes = self.nodes();
        let node = nodes.get(inode)?;
        if node.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        if inode != ROOT && node.names.is_empty() {
            return Err(Errno::NOENT);
        }
        let upper = match node.location {
            NodeLocation::Lower => None,
            NodeLocation::Upper | NodeLocation::Linked(_) => Some(nodes.path(inode)?),
        };
        Ok(MergedDirectory { upper, lower: node.lower.clone() })
    }

    pub(super) fn register_lookup(
        &self,
        found: &LookupResult,
        parent: u64,
        name: &[u8],
    ) -> Result<InodeEntry> {
        let mut nodes = self.nodes();
        let inode = nodes.register(found, parent, name)?;
        let mut attr = found.attr;
        self.adjust_link_count(nodes.get(inode)?, &mut attr);
        Ok(InodeEntry { inode, attr })
    }

    /// Looks up `name` in a directory, without registering a node; `None` when nothing is there.
    pub(super) fn lookup_entry(
        &self,
        directory: &MergedDirectory,
        name: &[u8],
    ) -> Result<Option<LookupResult>> {
        if let Some(path) = &directory.upper {
            let handle = self.upper()?.open_path(path)?;
            if let Some(stat) = upper::stat(&handle, name)? {
                if upper::is_whiteout(&stat) {
                    return Ok(None);
                }
                return self.lookup_upper(directory, &handle, name, &stat).map(Some);
            }
        }
        self.lookup_lower(directory, name)
    }

    pub(super) fn lookup_lower(
        &self,
        directory: &MergedDirectory,
        name: &[u8],
    ) -> Result<Option<LookupResult>> {
        let Some(lower) = &directory.lower else { return Ok(None) };
        let path = child_path(lower, name)?;
        match self.lower.stat(&path)? {
            Some(lower_stat) => self.result_from_lower_or_link(path, lower_stat).map(Some),
            None => Ok(None),
        }
    }

    fn lookup_upper(
        &self,
        directory: &MergedDirectory,
        handle: &OwnedFd,
        name: &[u8],
        stat: &InodeStat,
    ) -> Result<LookupResult> {
        let mut found = self.result_from_upper(stat);
        if stat.attr.kind == FileType::Directory {
            found.lower = match upper::merge_target(handle, name)? {
                MergeTarget::Opaque => None,
                MergeTarget::Other(path) => Some(path),
                MergeTarget::Same => match &directory.lower {
                    Some(lower) => Some(child_path(lower, name)?),
                    None => None,
                },
            };
        }
        Ok(found)
    }

    fn result_from_upper(&self, stat: &InodeStat) -> LookupResult {
        let mut attr = stat.attr;
        let mut location = NodeLocation::Upper;
        if attr.kind != FileType::Directory
            && let Some((key, linked)) = self.upper.as_ref().and_then(|upper| upper.key_of(stat.inode))
        {
            attr.links = (linked.lower_names.saturating_sub(linked.removed_names) + attr.links)
                .saturating_sub(1)
                .max(1);
            location = NodeLocation::Linked(key);
        }
        LookupResult { attr, key: NodeKey::Upper(stat.inode), location, lower: None }
    }

    /// A file with several names may have been copied up by another name.
    fn result_from_lower_or_link(&self, path: Box<[u8]>, lower_stat: EntryStat) -> Result<LookupResult> {
        if let Some(upper) = &self.upper
            && let Some(key) = self.link_key(&lower_stat)
            && upper.linked().get(&key).is_some_and(|linked| linked.inode.is_some())
        {
            let stat = upper::stat(upper.links_directory(), key.as_bytes())?.ok_or(Errno::IO)?;
            return Ok(self.result_from_upper(&stat));
        }
        let mut found = self.result_from_lower(path, lower_stat);
        // It was just found by a name, so it has at least one.
        found.attr.links = found.attr.links.max(1);
        Ok(found)
    }

    /// Builds the result for a lower entry. Its link count excludes hidden names: 0 when all of them are
    /// hidden.
    fn result_from_lower(&self, path: Box<[u8]>, lower_stat: EntryStat) -> LookupResult {
        let mut attr = lower_stat.attr;
        if let Some(upper) = &self.upper
            && let Some(key) = self.link_key(&lower_stat)
        {
            let removed_names = upper.linked().get(&key).map_or(0, |linked| linked.removed_names);
            attr.links = attr.links.saturating_sub(removed_names);
        }
        let key = match lower_stat.identity {
            FileIdentity::Synthetic => NodeKey::Synthetic(path.clone()),
            source => NodeKey::Lower(source),
        };
        LookupResult { attr, key, location: NodeLocation::Lower, lower: Some(path) }
    }

    /// Returns the key that all names of one lower file share, however often it is mounted; `None` for a file
    /// with one name.
    pub(super) fn link_key(&self, lower_stat: &EntryStat) -> Option<LinkKey> {
        if lower_stat.attr.kind == FileType::Directory {
            return None;
        }
        let text = match &lower_stat.identity {
            FileIdentity::Disk { mount, inode, birth: born, .. } if lower_stat.attr.links > 1 => {
                format!("{} disk {inode} {} {}", self.lower.mount_name(*mount), born.0, born.1)
            }
            FileIdentity::Image { mount, links: Some(links), .. } => {
                format!("{} image {links}", self.lower.mount_name(*mount))
            }
            _ => return None,
        };
        Some(hex::encode(&blake3::hash(text.as_bytes()).as_bytes()[..16]).into())
    }

    /// Lists a directory.
    pub fn list(&self, inode: u64) -> Result<DirectoryListing> {
        let _reading = self.reading_names();
        let directory = self.directory(inode)?;
        let version = self.version.load(Ordering::Acquire);
        let entries = self.entries(&directory)?;
        Ok(DirectoryListing { directory: inode, version, entries })
    }

    pub(super) fn entries(&self, directory: &MergedDirectory) -> Result<Vec<ListingEntry>> {
        let mut lower = match &directory.lower {
            Some(path) => self.lower.list_directory(path)?,
            None => std::collections::BTreeMap::new(),
        };
        let mut listed = Vec::with_capacity(lower.len());
        if let Some(path) = &directory.upper {
            let handle = self.upper()?.open_tree_directory(path)?;
            let mut names: Vec<Box<[u8]>> = Vec::new();
            beneath::for_each_name(&handle, |name| {
                names.push(name.to_bytes().into());
                names.len() <= MAX_DIRECTORY_ENTRIES
            })?;
            for name in names {
                let Some(stat) = upper::stat(&handle, &name)? else { continue };
                lower.remove(&name);
                if !upper::is_whiteout(&stat) {
                    let found = self.lookup_upper(directory, &handle, &name, &stat)?;
                    listed.push((name, found));
                }
            }
        }
        if let Some(path) = &directory.lower {
            for (name, lower_stat) in lower {
                let path = child_path(path, &name)?;
                let found = self.result_from_lower_or_link(path, lower_stat)?;
                listed.push((name, found));
            }
        }
        if directory.upper.is_some() {
            listed.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        }
        let entry = |(name, found): (Box<[u8]>, LookupResult)| ListingEntry {
            kind: found.attr.kind,
            name,
            lookup_result: found,
        };
        Ok(listed.into_iter().map(entry).collect())
    }

    /// Reports whether nothing was changed through this file system since a listing was made. The lower tree
    /// may have changed.
    pub(crate) fn is_current(&self, listing: &DirectoryListing) -> bool {
        self.version.load(Ordering::Acquire) == listing.version
    }

    /// Returns the inode number that an entry has, or would get by a lookup.
    pub fn inode_number(&self, listed: &ListingEntry) -> u64 {
        self.nodes().number(&listed.lookup_result.key)
    }

    /// Looks up an entry of a listing, and reuses the listing's result if nothing can have changed here.
    /// `None` if the entry is gone.
    pub fn lookup_listed(&self, listing: &DirectoryListing, index: usize) -> Result<Option<InodeEntry>> {
        let Some(listed) = listing.entries.get(index) else { return Ok(None) };
        let _reading = self.reading_names();
        if self.is_current(listing) {
            return self.register_lookup(&listed.lookup_result, listing.directory, &listed.name).map(Some);
        }
        let directory = self.directory(listing.directory)?;
        match self.lookup_entry(&directory, &listed.name)? {
            Some(found) => self.register_lookup(&found, listing.directory, &listed.name).map(Some),
            None => Ok(None),
        }
    }

    pub fn read_link(&self, inode: u64) -> Result<Box<[u8]>> {
        let _reading = self.reading_names();
        let node = self.nodes().get(inode)?.clone();
        if node.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        match node.location {
            NodeLocation::Lower => self.lower.link_target(node.lower.as_deref().ok_or(Errno::NOENT)?),
            NodeLocation::Upper | NodeLocation::Linked(_) => {
                let (directory, name) = self.locate(inode, &node)?;
                let target = rustix::fs::readlinkat(directory, &*name, Vec::with_capacity(128))?;
                Ok(target.into_bytes().into_boxed_slice())
            }
        }
    }
}
