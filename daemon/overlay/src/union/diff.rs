//! Comparison of the file system with its lower tree, derived from the upper directory: directories that
//! exist only in the lower tree are not read.

use std::collections::BTreeMap;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::TreeDifference;
use super::lookup::MergedDirectory;
use super::nodes::NodeLocation;
use super::{OverlayFs, ROOT, Result};
use crate::lower::child_path;

impl OverlayFs {
    /// Calls `each` with every difference from the lower tree, in walk order, until it returns false. A file
    /// that was written to counts as changed whatever was written, and a renamed one as removed and added.
    pub fn changes(&self, each: &mut dyn FnMut(TreeDifference, &[u8]) -> bool) -> Result<()> {
        let root = {
            let _reading = self.reading_names();
            self.directory(ROOT)?
        };
        let below = root.lower.clone();
        // Directories from the root down to the current one, with their remaining entries.
        let mut levels = vec![self.diff_level(Vec::new(), &root, below.as_deref())?];
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
            if let Some((directory, below)) = change.inside {
                let next = self.diff_level(path.into_vec(), &directory, below.as_deref())?;
                levels.push(next);
            }
        }
        Ok(())
    }

    fn diff_level(
        &self,
        path: Vec<u8>,
        directory: &MergedDirectory,
        below: Option<&[u8]>,
    ) -> Result<DiffLevel> {
        let _reading = self.reading_names();
        let mut was = match below {
            Some(below) => self.lower.list_directory(below)?,
            None => BTreeMap::new(),
        };
        let mut changes = BTreeMap::new();
        // A file with several names in the lower tree was copied up by one of them; the other names may be
        // anywhere.
        let has_linked =
            |upper: &super::upper::UpperLayer| upper.linked().values().any(|linked| linked.inode.is_some());
        let linked = self.upper.as_ref().is_some_and(has_linked);
        for entry in self.entries(directory)? {
            let old = was.remove(&entry.name);
            let natural = match below {
                Some(below) => Some(child_path(below, &entry.name)?),
                None => None,
            };
            let sight = entry.lookup_result();
            let is_directory = entry.kind == FileType::Directory;
            let below_only = old.is_some() && sight.location == NodeLocation::Lower && sight.lower == natural;
            if below_only && !(is_directory && linked) {
                continue;
            }
            let was_directory = old.as_ref().is_some_and(|old| old.attr.kind == FileType::Directory);
            let difference = match &old {
                None => Some(TreeDifference::Added),
                Some(old) if is_directory && was_directory => {
                    let same = (old.attr.mode, old.attr.uid, old.attr.gid)
                        == (sight.attr.mode, sight.attr.uid, sight.attr.gid);
                    (!same).then_some(TreeDifference::Changed)
                }
                Some(_) => Some(TreeDifference::Changed),
            };
            let inside = if is_directory {
                let upper = match (&sight.location, &directory.upper) {
                    (NodeLocation::Upper, Some(above)) => Some(child_path(above, &entry.name)?.into_vec()),
                    _ => None,
                };
                let inside = MergedDirectory { upper, lower: sight.lower.clone() };
                Some((inside, natural.filter(|_| was_directory)))
            } else {
                None
            };
            changes.insert(entry.name.clone(), EntryDiff { difference, inside });
        }
        let removed = EntryDiff { difference: Some(TreeDifference::Removed), inside: None };
        changes.extend(was.into_keys().map(|name| (name, removed.clone())));
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
    /// A directory to descend into, and the lower directory that it is compared with.
    inside: Option<(MergedDirectory, Option<Box<[u8]>>)>,
}
