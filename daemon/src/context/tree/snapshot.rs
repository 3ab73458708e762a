use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::io::{self, Read};

use hearth_pack::identity::{ContentHash, FileStamp};

use super::identify::Covered;
use super::read::Verified;
use super::scan::absolute;
use super::{Found, Layer, Origin, Tree, joined};
use crate::context::ContextError;
use crate::context::beneath::Stat;
use crate::context::error::text;
use crate::context::port::{Entry, EntryKind, FileTree, Xattr};

/// The tree below a context path at one moment: every entry's stat, content on demand.
///
/// Made for millions of entries: 48 bytes and the path for each, in two pieces of memory.
pub struct Snapshot {
    pub(super) tree: Tree,
    /// Absolute path of the directory whose tree this is, without `/` at its start.
    top: Vec<u8>,
    /// Path of every entry; after that of a link, its target.
    text: Vec<u8>,
    nodes: Vec<Node>,
    /// Numbers of devices that nodes refer to.
    devices: Vec<u64>,
    xattrs: HashMap<u32, Vec<Xattr>>,
    /// Directories that were not looked into.
    unlisted: HashSet<u32>,
    /// Files that could change once more without a trace in their times, in order.
    unsure: Vec<u32>,
    /// Their content, once it is known.
    pub(super) unsure_contents: HashMap<u32, ContentHash>,
    /// First names of files that have several.
    linked: HashSet<u32>,
    /// What may be sent; none before it is known.
    pub(super) covered: Option<Covered>,
}

/// Entries whose stats are summed up at a time.
const STATS: usize = 1024;

/// One entry.
struct Node {
    mtime: i64,
    /// Size of a file; first name of a hard link; length of a link's target; numbers of a device.
    value: u64,
    /// Inode on disk, or node of the image, or entry of the pack.
    source: u64,
    changed: i64,
    /// Where its path begins.
    path: u32,
    mount: u32,
    path_length: u16,
    mode: u16,
    device: u16,
    kind: Kind,
    origin: From,
}

impl Node {
    const BYTES: usize = 48;

    /// All of it but where its path begins, which the others' lengths tell.
    fn bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let numbers = [self.mtime.cast_unsigned(), self.value, self.source, self.changed.cast_unsigned()];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes[32..36].copy_from_slice(&self.mount.to_le_bytes());
        for (place, number) in
            bytes[36..42].chunks_exact_mut(2).zip([self.path_length, self.mode, self.device])
        {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes[42] = self.kind as u8;
        bytes[43] = self.origin as u8;
        bytes
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Directory,
    File,
    Symlink,
    HardLink,
    Fifo,
    Socket,
    CharacterDevice,
    BlockDevice,
}

#[derive(Clone, Copy)]
enum From {
    Made,
    Disk,
    Image,
    Stored,
}

/// Orders paths as BuildKit's file sync does: `/` sorts before every other byte.
pub(in crate::context) fn path_order(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(rank).cmp(b.iter().map(rank))
}

impl Snapshot {
    pub(super) fn new(tree: Tree, top: Vec<u8>) -> Self {
        Self {
            tree,
            top,
            text: Vec::new(),
            nodes: Vec::new(),
            devices: Vec::new(),
            xattrs: HashMap::new(),
            unlisted: HashSet::new(),
            unsure: Vec::new(),
            unsure_contents: HashMap::new(),
            linked: HashSet::new(),
            covered: None,
        }
    }

    /// Adds an entry at a path relative to the root, which must be the next one in order. None when there
    /// is no more room.
    pub(super) fn push(&mut self, path: &[u8], found: &Found) -> Option<usize> {
        let index = self.nodes.len();
        let (kind, value, target): (_, u64, &[u8]) = match &found.kind {
            EntryKind::Directory => (Kind::Directory, 0, &[]),
            EntryKind::File => (Kind::File, found.size, &[]),
            EntryKind::Symlink(target) => (Kind::Symlink, target.len() as u64, target),
            EntryKind::HardLink(first) => {
                self.linked.insert(*first as u32);
                (Kind::HardLink, *first as u64, &[])
            }
            EntryKind::Fifo => (Kind::Fifo, 0, &[]),
            EntryKind::Socket => (Kind::Socket, 0, &[]),
            &EntryKind::Device { character, major, minor } => {
                let kind = if character { Kind::CharacterDevice } else { Kind::BlockDevice };
                (kind, u64::from(major) << 32 | u64::from(minor), &[])
            }
        };
        let (origin, mount, source, device, changed) = match found.origin {
            Origin::Made => (From::Made, 0, 0, 0, 0),
            Origin::Disk { mount, device, inode, changed } => {
                (From::Disk, mount, inode, self.device(device)?, changed)
            }
            Origin::Image { mount, node } => (From::Image, mount, u64::from(node), 0, 0),
            Origin::Stored { mount, entry } => (From::Stored, mount, u64::from(entry), 0, 0),
        };
        let node = Node {
            mtime: found.mtime,
            value,
            source,
            changed,
            path: u32::try_from(self.text.len()).ok()?,
            mount,
            path_length: u16::try_from(path.len()).ok()?,
            mode: u16::try_from(found.mode & 0o7777).unwrap_or_default(),
            device,
            kind,
            origin,
        };
        self.text.extend_from_slice(path);
        self.text.extend_from_slice(target);
        self.nodes.push(node);
        Some(index)
    }

    /// Equal for two scans only when they saw the same: entries, stats and attributes, of the same mounts. `scope` is
    /// what else makes a difference. None where equal stats do not mean equal content.
    pub fn fingerprint(&self, scope: &[&[u8]]) -> Option<[u8; 32]> {
        let on_disk = |node: &Node| matches!(node.origin, From::Disk | From::Made);
        if !self.unsure.is_empty() || !self.nodes.iter().all(on_disk) {
            return None;
        }
        let mut sum = blake3::Hasher::new();
        let part = |sum: &mut blake3::Hasher, part: &[u8]| {
            sum.update(&(part.len() as u64).to_le_bytes()).update(part);
        };
        part(&mut sum, &self.top);
        sum.update(&(self.tree.mounts.len() as u64).to_le_bytes());
        self.tree.mounts.iter().for_each(|mounted| part(&mut sum, mounted.target.as_str().as_bytes()));
        scope.iter().for_each(|scope| part(&mut sum, scope));
        sum.update(&(self.nodes.len() as u64).to_le_bytes());
        let mut stats = Vec::with_capacity(STATS * Node::BYTES);
        for nodes in self.nodes.chunks(STATS) {
            stats.clear();
            nodes.iter().for_each(|node| stats.extend_from_slice(&node.bytes()));
            sum.update(&stats);
        }
        part(&mut sum, &self.text);
        self.devices.iter().for_each(|device| _ = sum.update(&device.to_le_bytes()));
        let mut unlisted: Vec<u32> = self.unlisted.iter().copied().collect();
        unlisted.sort_unstable();
        sum.update(&(unlisted.len() as u64).to_le_bytes());
        unlisted.iter().for_each(|index| _ = sum.update(&index.to_le_bytes()));
        let mut xattrs: Vec<(&u32, &Vec<Xattr>)> = self.xattrs.iter().collect();
        xattrs.sort_unstable_by_key(|(index, _)| **index);
        for (index, xattrs) in xattrs {
            sum.update(&index.to_le_bytes()).update(&(xattrs.len() as u64).to_le_bytes());
            xattrs.iter().flat_map(|(name, value)| [name, value]).for_each(|text| part(&mut sum, text));
        }
        Some(sum.finalize().into())
    }

    /// What may be sent, where that is known from a scan with the same fingerprint.
    pub fn set_covered(&mut self, covered: Covered) {
        self.covered = Some(covered);
    }

    /// Memory for what every entry has.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>() + self.text.capacity()
    }

    fn device(&mut self, device: u64) -> Option<u16> {
        let place = self.devices.iter().rposition(|known| *known == device);
        let place = place.unwrap_or_else(|| {
            self.devices.push(device);
            self.devices.len() - 1
        });
        u16::try_from(place).ok()
    }

    /// Gives back what was taken in advance.
    pub(super) fn finish(&mut self) {
        self.text.shrink_to_fit();
        self.nodes.shrink_to_fit();
    }

    pub(super) fn set_xattrs(&mut self, index: usize, xattrs: Vec<Xattr>) {
        if !xattrs.is_empty() {
            self.xattrs.insert(index as u32, xattrs);
        }
    }

    pub(super) fn set_unlisted(&mut self, index: usize) {
        self.unlisted.insert(index as u32);
    }

    /// Index of the entry at `path`, relative to the root.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        self.nodes.binary_search_by(|node| path_order(self.path_of(node), path)).ok()
    }

    /// Number and bytes of the regular files, each hard link counted once.
    pub fn files(&self) -> (usize, u64) {
        let regular = self.nodes.iter().filter(|node| matches!(node.kind, Kind::File));
        regular.fold((0, 0), |(files, bytes), node| (files + 1, bytes + node.value))
    }

    pub(super) fn origin(&self, index: usize) -> Origin {
        let &Node { mount, source, changed, device, ref origin, .. } = &self.nodes[index];
        match origin {
            From::Made => Origin::Made,
            From::Disk => {
                Origin::Disk { mount, device: self.devices[usize::from(device)], inode: source, changed }
            }
            From::Image => Origin::Image { mount, node: source as u32 },
            From::Stored => Origin::Stored { mount, entry: source as u32 },
        }
    }

    pub(super) fn top(&self) -> &[u8] {
        &self.top
    }

    /// Whether a later entry is another name of this file.
    pub(super) fn has_links(&self, index: usize) -> bool {
        !self.linked.is_empty() && self.linked.contains(&(index as u32))
    }

    pub(super) fn unsure(&self) -> &[u32] {
        &self.unsure
    }

    pub(super) fn set_unsure(&mut self, unsure: Vec<u32>) {
        self.unsure = unsure;
    }

    fn path_of(&self, node: &Node) -> &[u8] {
        let start = node.path as usize;
        &self.text[start..start + usize::from(node.path_length)]
    }

    /// In the whole tree of mounts.
    fn path(&self, index: usize) -> Vec<u8> {
        joined(&self.top, self.path_of(&self.nodes[index]))
    }

    pub(super) fn shown(&self, index: usize) -> String {
        text(&absolute(&self.path(index)))
    }

    /// What the cache of hashes knows a file on disk by.
    pub(super) fn stamp(&self, index: usize) -> Option<FileStamp> {
        let Node { kind: Kind::File, value: size, mtime: modified, .. } = self.nodes[index] else {
            return None;
        };
        match self.origin(index) {
            Origin::Disk { device, inode, changed, .. } => {
                Some(FileStamp { device, inode, size, modified, changed })
            }
            _ => None,
        }
    }

    /// Whether an entry still is what it was at the scan.
    pub(super) fn is_unchanged(&self, index: usize) -> Result<bool, ContextError> {
        let (entry, path) = (self.entry(index), self.path(index));
        let Some((mount, inside)) = self.tree.covering(&path) else { return Ok(false) };
        let found =
            self.tree.lookup_in(mount, inside).map_err(|errno| ContextError::at(&absolute(&path), errno))?;
        Ok(found.is_some_and(|found| {
            (found.mode, found.size, found.mtime, found.origin)
                == (entry.mode, entry.size, entry.mtime, self.origin(index))
        }))
    }

    /// The content of a file on disk, as it was at the scan.
    pub(super) fn open_on_disk(&self, index: usize) -> Result<Verified, ContextError> {
        let path = self.path(index);
        let shown = || text(&absolute(&path));
        let changed = || ContextError::Changed { path: shown() };
        let Some(FileStamp { device, inode, size, modified, changed: change_time }) = self.stamp(index)
        else {
            return Err(changed());
        };
        let mount = self.nodes[index].mount;
        let (Layer::Directory(layer), Some((_, inside))) =
            (self.tree.layer(mount), self.tree.covering(&path))
        else {
            return Err(changed());
        };
        let (file, stat) =
            layer.open_file(inside).map_err(|errno| ContextError::at(&absolute(&path), errno))?;
        let expected = Stat { device, inode, changed: change_time, size, modified, ..stat };
        if !stat.same_content(&expected) {
            return Err(changed());
        }
        Ok(Verified::new(file, stat, shown()))
    }

    fn open_content(&self, index: usize) -> Result<Box<dyn Read + Send>, ContextError> {
        let changed = || ContextError::Changed { path: self.shown(index) };
        match (self.entry(index).kind, self.origin(index)) {
            (EntryKind::HardLink(first), _) => self.open_content(first),
            (EntryKind::File, Origin::Disk { .. }) => {
                let verified = self.open_on_disk(index)?;
                Ok(match self.unsure_contents.get(&(index as u32)) {
                    // Its stat tells nothing of a write in the same tick: the content itself is compared.
                    Some(hash) => Box::new(verified.with_content(*hash)),
                    None => Box::new(verified),
                })
            }
            (EntryKind::File, Origin::Image { mount, node }) => match self.tree.layer(mount) {
                Layer::Image(layer) => layer.open(node).ok_or_else(changed),
                _ => Err(changed()),
            },
            (EntryKind::File, Origin::Stored { mount, entry }) => match self.tree.layer(mount) {
                Layer::Stored(layer) => {
                    layer.open(entry).map_err(|source| ContextError::Io { path: self.shown(index), source })
                }
                _ => Err(changed()),
            },
            (kind, _) => Err(ContextError::NotAFile { path: self.shown(index), what: kind_name(&kind) }),
        }
    }
}

impl FileTree for Snapshot {
    fn len(&self) -> usize {
        self.nodes.len()
    }

    fn entry(&self, index: usize) -> Entry<'_> {
        let node = &self.nodes[index];
        let &Node { mtime, value, mode, .. } = node;
        let mut size = 0;
        let device = |character| {
            let (major, minor) = ((value >> 32) as u32, value as u32);
            EntryKind::Device { character, major, minor }
        };
        let kind = match node.kind {
            Kind::Directory => EntryKind::Directory,
            Kind::File => {
                size = value;
                EntryKind::File
            }
            Kind::Symlink => {
                let start = node.path as usize + usize::from(node.path_length);
                EntryKind::Symlink(&self.text[start..start + value as usize])
            }
            Kind::HardLink => {
                size = self.nodes[value as usize].value;
                EntryKind::HardLink(value as usize)
            }
            Kind::Fifo => EntryKind::Fifo,
            Kind::Socket => EntryKind::Socket,
            Kind::CharacterDevice => device(true),
            Kind::BlockDevice => device(false),
        };
        Entry { path: self.path_of(node), kind, mode: u32::from(mode), size, mtime }
    }

    fn xattrs(&self, index: usize) -> &[Xattr] {
        if self.xattrs.is_empty() {
            return &[];
        }
        let index = match self.nodes[index].kind {
            Kind::HardLink => self.nodes[index].value as u32,
            _ => index as u32,
        };
        self.xattrs.get(&index).map(Vec::as_slice).unwrap_or_default()
    }

    fn is_covered(&self, index: usize) -> bool {
        self.covered.as_ref().is_none_or(|covered| covered.has(index))
    }

    fn is_listed(&self, index: usize) -> bool {
        !self.unlisted.contains(&(index as u32))
    }

    fn open(&self, index: usize) -> io::Result<Box<dyn Read + Send>> {
        if index >= self.nodes.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.open_content(index).map_err(io::Error::other)
    }
}

pub(super) const fn kind_name<T>(kind: &EntryKind<T>) -> &'static str {
    match kind {
        EntryKind::Directory => "a directory",
        EntryKind::File | EntryKind::HardLink(_) => "a file",
        EntryKind::Symlink(_) => "a link",
        EntryKind::Fifo => "a fifo",
        EntryKind::Socket => "a socket",
        EntryKind::Device { .. } => "a device",
    }
}
