//! Selection of the entries of a tree that a file sync request shows, and their stats.
//!
//! BuildKit sends three lists. Exclude patterns come from the ignore file; include patterns and follow paths name what
//! the Dockerfile copies. A follow path may contain symbolic links: each link on the way, and its target, is shown.

use bytes::Bytes;
use hearth_pack::ignore::{IgnoreError, TreeFilter, VisitOutcome};
use std::collections::HashMap;

use super::follow_paths;
use super::wire::{FsutilStat, StatXattr};
use crate::context::{FileKind, FileTree, SpecialFile, TreeEntry, Xattr};

/// The three lists of one request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SelectionPatterns {
    pub(super) includes: Vec<Vec<u8>>,
    pub(super) excludes: Vec<Vec<u8>>,
    pub(super) follow: Vec<Vec<u8>>,
}

/// Go's `FileMode` bits for the types other than regular file, and for the three special permissions.
mod go {
    pub(super) const DIR: u32 = 1 << 31;
    pub(super) const SYMLINK: u32 = 1 << 27;
    pub(super) const DEVICE: u32 = 1 << 26;
    pub(super) const NAMED_PIPE: u32 = 1 << 25;
    pub(super) const SETUID: u32 = 1 << 23;
    pub(super) const SETGID: u32 = 1 << 22;
    pub(super) const CHAR_DEVICE: u32 = 1 << 21;
    pub(super) const STICKY: u32 = 1 << 20;
}

/// Returns the entries to show, as indexes in the order of sending. A directory comes before its content, also when it
/// is shown only for that. The result also contains each unlisted directory that may hold something to show; it is not
/// covered, so the transfer stops before anything is sent.
pub(super) fn select(tree: &dyn FileTree, wanted: &SelectionPatterns) -> Result<Vec<usize>, IgnoreError> {
    let mut includes = wanted.includes.clone();
    if !wanted.follow.is_empty() {
        // `None` means the root itself, so the follow paths restrict nothing.
        includes.extend(follow_paths::included_targets(tree, &wanted.follow).into_iter().flatten());
    }
    let filter = TreeFilter::new(&includes, &wanted.excludes)?;
    if filter.is_empty() {
        return Ok((0..tree.len()).collect());
    }
    let mut walk = filter.walk();
    let mut selected = Vec::new();
    let mut pruned: Option<&[u8]> = None;
    for (index, entry) in tree.entries().enumerate() {
        if pruned.is_some_and(|dir| is_below(entry.path, dir)) {
            continue;
        }
        match walk.visit(entry.path, entry.kind == FileKind::Directory, index) {
            VisitOutcome::Keep { parents } => {
                selected.extend(parents);
                selected.push(index);
            }
            VisitOutcome::Hide => {
                let is_open = entry.kind == FileKind::Directory && !tree.is_listed(index);
                if is_open && filter.may_show_below(entry.path) {
                    selected.push(index);
                }
            }
            VisitOutcome::Prune => pruned = Some(entry.path),
        }
    }
    Ok(selected)
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.len() > dir.len() && path.starts_with(dir) && path[dir.len()] == b'/'
}

/// Makes the stat of each shown entry, and remembers the first shown name of each hard-linked file.
///
/// Sizes are those that `lstat` will report of the receiver's copy, also for both kinds of links. A receiver that has
/// an entry from an earlier transfer compares the two: when they differ it creates the entry again, and recreating a
/// hard link in place leaves a file `.tmp.NUMBER` in the context permanently.
#[derive(Default)]
pub(super) struct StatBuilder {
    /// First shown path of each file, by the index of the file in the tree.
    first_names: HashMap<usize, Bytes>,
}

impl StatBuilder {
    /// Returns the stat, and the index of the file whose content may be requested.
    pub(super) fn stat_of(&mut self, tree: &dyn FileTree, index: usize) -> (FsutilStat, Option<usize>) {
        let entry = tree.entry(index);
        let path = Bytes::copy_from_slice(entry.path);
        let mut stat = FsutilStat {
            path: path.clone(),
            mode: go_mode(&entry),
            mtime: entry.mtime,
            ..FsutilStat::default()
        };
        let xattr = |(name, value): &Xattr| StatXattr {
            name: Bytes::copy_from_slice(name),
            value: Bytes::copy_from_slice(value),
        };
        stat.xattrs = tree.xattrs(index).iter().map(xattr).collect();
        let content = match &entry.kind {
            FileKind::File(()) | FileKind::HardLink(_) => {
                let file = if let FileKind::HardLink(file) = entry.kind { file } else { index };
                stat.size = i64::try_from(entry.size).unwrap_or(i64::MAX);
                match self.first_names.get(&file) {
                    Some(first) => stat.link = first.clone(),
                    None => drop(self.first_names.insert(file, path)),
                }
                Some(file)
            }
            FileKind::Symlink(target) => {
                stat.link = Bytes::copy_from_slice(target);
                stat.size = i64::try_from(target.len()).unwrap_or(i64::MAX);
                None
            }
            FileKind::Special(SpecialFile::Device { major, minor, .. }) => {
                (stat.major, stat.minor) = (i64::from(*major), i64::from(*minor));
                None
            }
            FileKind::Directory | FileKind::Special(SpecialFile::Fifo | SpecialFile::Socket) => None,
        };
        (stat, content)
    }
}

fn go_mode(entry: &TreeEntry<'_>) -> u32 {
    let kind = match &entry.kind {
        FileKind::Directory => go::DIR,
        FileKind::Symlink(_) => go::SYMLINK,
        FileKind::Special(SpecialFile::Fifo) => go::NAMED_PIPE,
        FileKind::Special(SpecialFile::Device { character: true, .. }) => go::DEVICE | go::CHAR_DEVICE,
        FileKind::Special(SpecialFile::Device { character: false, .. }) => go::DEVICE,
        // fsutil clears the type bit of a socket, which makes it an empty file.
        FileKind::File(()) | FileKind::HardLink(_) | FileKind::Special(SpecialFile::Socket) => 0,
    };
    let special = [(0o4000, go::SETUID), (0o2000, go::SETGID), (0o1000, go::STICKY)];
    let bits = special.iter().filter(|(unix, _)| entry.mode & unix != 0).map(|(_, go)| go);
    kind | (entry.mode & 0o777) | bits.sum::<u32>()
}

#[cfg(test)]
pub(super) mod tests;
