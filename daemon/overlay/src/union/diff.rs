//! Differences between the overlay and its lower tree. They are derived from the upper directory, so that
//! directories without an upper directory are not read.

use std::collections::BTreeMap;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::TreeDifference;
use super::lookup::MergedDirectory;
use super::nodes::NodeLocation;
use super::{OverlayFs, ROOT, Result};
use crate::lower::child_path;

impl OverlayFs {
    /// Calls `each` with every difference from the lower tree, in walk order, until `each` returns false. A file
    /// that was written to counts as changed, even if the written content is equal. A renamed file
    /// counts as one removed and one added file.
    pub fn changes(&self, each: &mut dyn FnMut(TreeDifference, &[u8]) -> bool) -> Result<()> {
        let root = {
            let _reading = self.reading_names();
            self.directory(ROOT)?
        };
        let lower_directory = root.lower.clone();
        // Directories from the root down to the current one, with their remaining entries.
        let mut levels = vec![self.diff_level(Vec::new(), &root, lower_directory.as_deref())?];
        while let Some(level) = levels.last_mut() {
            let Some((name, change)) = level.changes.pop_first() else {
                levels.pop();
                continue;
            };
            let path = child_path(&level.path, &name)?;
            if let Some(difference) = change.difference
                && !each(difference, &path)
            {
                return Ok(());
            }
            if let Some((directory, lower_directory)) = change.subdirectory {
                let next = self.diff_level(path.into_vec(), &directory, lower_directory.as_deref())?;
                levels.push(next);
            }
        }
        Ok(())
    }

    fn diff_level(
        &self,
        path: Vec<u8>,
        directory: &MergedDirectory,
        lower_directory: Option<&[u8]>,
    ) -> Result<DiffLevel> {
        let _reading = self.reading_names();
        let mut lower_entries = match lower_directory {
            Some(lower_directory) => self.lower.list_directory(lower_directory)?,
            None => BTreeMap::new(),
        };
        let mut changes = BTreeMap::new();
        // A file with several names in the lower tree may have been copied up through a name in another
        // directory, so even directories that exist only in the lower tree must be read.
        let has_linked =
            |upper: &super::upper::UpperLayer| upper.linked().values().any(|linked| linked.inode.is_some());
        let linked = self.upper.as_ref().is_some_and(has_linked);
        for entry in self.entries(directory)? {
            let lower_entry = lower_entries.remove(&entry.name);
            let lower_path = match lower_directory {
                Some(lower_directory) => Some(child_path(lower_directory, &entry.name)?),
                None => None,
            };
            let found = entry.lookup_result();
            let is_directory = entry.kind == FileType::Directory;
            let is_unchanged =
                lower_entry.is_some() && found.location == NodeLocation::Lower && found.lower == lower_path;
            if is_unchanged && !(is_directory && linked) {
                continue;
            }
            let lower_is_directory =
                lower_entry.as_ref().is_some_and(|lower_entry| lower_entry.attr.kind == FileType::Directory);
            let difference = match &lower_entry {
                None => Some(TreeDifference::Added),
                Some(lower_entry) if is_directory && lower_is_directory => {
                    let same = (lower_entry.attr.mode, lower_entry.attr.uid, lower_entry.attr.gid)
                        == (found.attr.mode, found.attr.uid, found.attr.gid);
                    (!same).then_some(TreeDifference::Changed)
                }
                Some(_) => Some(TreeDifference::Changed),
            };
            let subdirectory = if is_directory {
                let upper = match (&found.location, &directory.upper) {
                    (NodeLocation::Upper, Some(parent)) => Some(child_path(parent, &entry.name)?.into_vec()),
                    _ => None,
                };
                let subdirectory = MergedDirectory { upper, lower: found.lower.clone() };
                Some((subdirectory, lower_path.filter(|_| lower_is_directory)))
            } else {
                None
            };
            changes.insert(entry.name.clone(), EntryDiff { difference, subdirectory });
        }
        let removed = EntryDiff { difference: Some(TreeDifference::Removed), subdirectory: None };
        changes.extend(lower_entries.into_keys().map(|name| (name, removed.clone())));
        if path.len() > crate::beneath::MAX_PATH {
            return Err(Errno::NAMETOOLONG);
        }
        Ok(DiffLevel { path, changes })
    }
}

struct DiffLevel {
    path: Vec<u8>,
    changes: BTreeMap<Box<[u8]>, EntryDiff>,
}

#[derive(Clone)]
struct EntryDiff {
    difference: Option<TreeDifference>,
    /// Directory to descend into, and the path of the lower directory that it is compared with.
    subdirectory: Option<(MergedDirectory, Option<Box<[u8]>>)>,
}
