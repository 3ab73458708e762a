//! Compact storage for the entries of a scan: stats, paths and attributes, independent of the mounts.
//!
//! Designed for millions of entries: each takes 48 bytes and its path, in two allocations overall.

use std::collections::{HashMap, HashSet};

use hearth_overlay::attr::InodeStat;
use rustix::fs::FileType;

use super::{EntryOrigin, LayerEntry, path_order};
use crate::port::{FileKind, SpecialFile, TreeEntry, Xattr};

/// Number of entries whose stats are hashed in one call.
const STATS_PER_CHUNK: usize = 1024;

/// Entries in the order of their paths, which are relative to the root. The root itself is not an entry.
#[derive(Clone, Default)]
pub(super) struct ScannedEntries {
    /// Path of every entry; the target of a symbolic link follows its path.
    text: Vec<u8>,
    nodes: Vec<PackedEntry>,
    /// Device numbers, to which the entries refer by index.
    devices: Vec<u64>,
    xattrs: HashMap<u32, Vec<Xattr>>,
    /// Directories that were not scanned.
    unlisted: HashSet<u32>,
    /// Entries that are the first name of a file with several hard links.
    linked: HashSet<u32>,
}

/// One entry in 48 bytes.
#[derive(Clone)]
struct PackedEntry {
    mtime: i64,
    /// Size of a file; index of the first name for a hard link; length of a symbolic link's target; device
    /// numbers.
    value: u64,
    /// Inode on disk, node of the image, or entry of the pack.
    source: u64,
    changed: i64,
    /// Offset of the path in `text`.
    path: u32,
    mount: u32,
    path_length: u16,
    mode: u16,
    device: u16,
    kind: PackedKind,
    origin: PackedOrigin,
}

impl PackedEntry {
    const BYTES: usize = 48;

    /// Encodes every field but the offset of the path, which follows from the lengths of the other paths.
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

/// Kind of an entry in one byte; what belongs to the kind is in [`PackedEntry::value`].
#[derive(Clone, Copy)]
enum PackedKind {
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
enum PackedOrigin {
    Synthetic,
    Disk,
    Image,
    Pack,
}

impl ScannedEntries {
    /// Appends an entry; `path` must be the next one in order. `None` when a field would overflow.
    pub fn push(&mut self, path: &[u8], found: &LayerEntry) -> Option<usize> {
        let index = self.nodes.len();
        let (kind, value, target): (_, u64, &[u8]) = match &found.kind {
            FileKind::Directory => (PackedKind::Directory, 0, &[]),
            FileKind::File(()) => (PackedKind::File, found.size, &[]),
            FileKind::Symlink(target) => (PackedKind::Symlink, target.len() as u64, target),
            FileKind::HardLink(first) => {
                self.linked.insert(*first as u32);
                (PackedKind::HardLink, *first as u64, &[])
            }
            FileKind::Special(special) => match *special {
                SpecialFile::Fifo => (PackedKind::Fifo, 0, &[]),
                SpecialFile::Socket => (PackedKind::Socket, 0, &[]),
                SpecialFile::Device { character, major, minor } => {
                    let kind = if character { PackedKind::CharacterDevice } else { PackedKind::BlockDevice };
                    (kind, u64::from(major) << 32 | u64::from(minor), &[])
                }
            },
        };
        let (origin, mount, source, device, changed) = match found.origin {
            EntryOrigin::Synthetic => (PackedOrigin::Synthetic, 0, 0, 0, 0),
            EntryOrigin::Disk { mount, device, inode, changed } => {
                (PackedOrigin::Disk, mount, inode, self.device(device)?, changed)
            }
            EntryOrigin::Image { mount, node } => (PackedOrigin::Image, mount, u64::from(node), 0, 0),
            EntryOrigin::Pack { mount, entry } => (PackedOrigin::Pack, mount, u64::from(entry), 0, 0),
        };
        let node = PackedEntry {
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

    fn device(&mut self, device: u64) -> Option<u16> {
        let position = self.devices.iter().rposition(|known| *known == device);
        let position = position.unwrap_or_else(|| {
            self.devices.push(device);
            self.devices.len() - 1
        });
        u16::try_from(position).ok()
    }

    /// Releases spare capacity.
    pub fn finish(&mut self) {
        self.text.shrink_to_fit();
        self.nodes.shrink_to_fit();
    }

    pub fn set_xattrs(&mut self, index: usize, xattrs: Vec<Xattr>) {
        if !xattrs.is_empty() {
            self.xattrs.insert(index as u32, xattrs);
        }
    }

    pub fn set_unlisted(&mut self, index: usize) {
        self.unlisted.insert(index as u32);
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the index of the entry at `path`, relative to the root.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        self.nodes.binary_search_by(|node| path_order(self.path_of(node), path)).ok()
    }

    /// Returns the number of the regular files and their size in bytes; a file with several hard links counts
    /// once.
    pub fn files(&self) -> (usize, u64) {
        let regular = self.nodes.iter().filter(|node| matches!(node.kind, PackedKind::File));
        regular.fold((0, 0), |(files, bytes), node| (files + 1, bytes + node.value))
    }

    pub fn origin(&self, index: usize) -> EntryOrigin {
        let &PackedEntry { mount, source, changed, device, ref origin, .. } = &self.nodes[index];
        match origin {
            PackedOrigin::Synthetic => EntryOrigin::Synthetic,
            PackedOrigin::Disk => {
                EntryOrigin::Disk { mount, device: self.devices[usize::from(device)], inode: source, changed }
            }
            PackedOrigin::Image => EntryOrigin::Image { mount, node: source as u32 },
            PackedOrigin::Pack => EntryOrigin::Pack { mount, entry: source as u32 },
        }
    }

    /// Reports whether a later entry is another hard link of this file.
    pub fn has_links(&self, index: usize) -> bool {
        !self.linked.is_empty() && self.linked.contains(&(index as u32))
    }

    fn path_of(&self, node: &PackedEntry) -> &[u8] {
        let start = node.path as usize;
        &self.text[start..start + usize::from(node.path_length)]
    }

    pub fn entry(&self, index: usize) -> TreeEntry<'_> {
        let node = &self.nodes[index];
        let &PackedEntry { mtime, value, mode, .. } = node;
        let mut size = 0;
        let device = |character| {
            let (major, minor) = ((value >> 32) as u32, value as u32);
            FileKind::Special(SpecialFile::Device { character, major, minor })
        };
        let kind = match node.kind {
            PackedKind::Directory => FileKind::Directory,
            PackedKind::File => {
                size = value;
                FileKind::File(())
            }
            PackedKind::Symlink => {
                let start = node.path as usize + usize::from(node.path_length);
                FileKind::Symlink(&self.text[start..start + value as usize])
            }
            PackedKind::HardLink => {
                size = self.nodes[value as usize].value;
                FileKind::HardLink(value as usize)
            }
            PackedKind::Fifo => FileKind::Special(SpecialFile::Fifo),
            PackedKind::Socket => FileKind::Special(SpecialFile::Socket),
            PackedKind::CharacterDevice => device(true),
            PackedKind::BlockDevice => device(false),
        };
        TreeEntry { path: self.path_of(node), kind, mode: u32::from(mode), size, mtime }
    }

    pub fn xattrs(&self, index: usize) -> &[Xattr] {
        if self.xattrs.is_empty() {
            return &[];
        }
        let index = match self.nodes[index].kind {
            PackedKind::HardLink => self.nodes[index].value as u32,
            _ => index as u32,
        };
        self.xattrs.get(&index).map(Vec::as_slice).unwrap_or_default()
    }

    pub fn is_listed(&self, index: usize) -> bool {
        !self.unlisted.contains(&(index as u32))
    }

    /// Reports whether all entries are on disk or synthetic. Only then do equal stats mean equal content:
    /// entries of images and packs have no change time.
    pub fn are_on_disk(&self) -> bool {
        self.nodes.iter().all(|node| matches!(node.origin, PackedOrigin::Disk | PackedOrigin::Synthetic))
    }

    /// Adds all entries to a hash, so that only equal entries give an equal hash.
    pub fn hash_into(&self, sum: &mut blake3::Hasher) {
        sum.update(&(self.nodes.len() as u64).to_le_bytes());
        let mut stats = Vec::with_capacity(STATS_PER_CHUNK * PackedEntry::BYTES);
        for nodes in self.nodes.chunks(STATS_PER_CHUNK) {
            stats.clear();
            nodes.iter().for_each(|node| stats.extend_from_slice(&node.bytes()));
            sum.update(&stats);
        }
        hash_part(sum, &self.text);
        self.devices.iter().for_each(|device| _ = sum.update(&device.to_le_bytes()));
        let mut unlisted: Vec<u32> = self.unlisted.iter().copied().collect();
        unlisted.sort_unstable();
        sum.update(&(unlisted.len() as u64).to_le_bytes());
        unlisted.iter().for_each(|index| _ = sum.update(&index.to_le_bytes()));
        let mut xattrs: Vec<(&u32, &Vec<Xattr>)> = self.xattrs.iter().collect();
        xattrs.sort_unstable_by_key(|(index, _)| **index);
        for (index, xattrs) in xattrs {
            sum.update(&index.to_le_bytes()).update(&(xattrs.len() as u64).to_le_bytes());
            xattrs.iter().flat_map(|(name, value)| [name, value]).for_each(|text| hash_part(sum, text));
        }
    }

    /// Memory in bytes of the paths and stats.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<PackedEntry>() + self.text.capacity()
    }

    pub fn path(&self, index: usize) -> &[u8] {
        self.path_of(&self.nodes[index])
    }

    pub fn is_directory(&self, index: usize) -> bool {
        matches!(self.nodes[index].kind, PackedKind::Directory)
    }

    /// Reports whether an entry on disk still has the same stat.
    pub fn is_same(&self, index: usize, stat: &InodeStat) -> bool {
        let attr = &stat.attr;
        let &PackedEntry { mtime, value, source, changed, mode, device, kind, .. } = &self.nodes[index];
        let is_kind = match kind {
            PackedKind::Directory => attr.kind == FileType::Directory,
            PackedKind::File => attr.kind == FileType::RegularFile && attr.size == value,
            PackedKind::HardLink => {
                attr.kind == FileType::RegularFile && attr.size == self.nodes[value as usize].value
            }
            PackedKind::Symlink => attr.kind == FileType::Symlink,
            PackedKind::Fifo => attr.kind == FileType::Fifo,
            PackedKind::Socket => attr.kind == FileType::Socket,
            PackedKind::CharacterDevice => attr.kind == FileType::CharacterDevice,
            PackedKind::BlockDevice => attr.kind == FileType::BlockDevice,
        };
        is_kind
            && (attr.mode, attr.modified.as_nanos(), attr.changed.as_nanos())
                == (u32::from(mode), mtime, changed)
            && (stat.file_system, stat.inode) == (self.devices[usize::from(device)], source)
    }
}

/// Adds one part to a hash, prefixed with its length.
pub(super) fn hash_part(sum: &mut blake3::Hasher, part: &[u8]) {
    sum.update(&(part.len() as u64).to_le_bytes()).update(part);
}
