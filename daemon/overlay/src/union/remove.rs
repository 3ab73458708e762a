//! Removal of names.

use rustix::fs::{FileType, RenameFlags};
use rustix::io::Errno;

use super::lookup::MergedDirectory;
use super::nodes::{LookupResult, NodeLocation};
use super::upper::{self, LinkKey, UpperLayer};
use super::{OverlayFs, Result, checked_name};
use crate::lower::child_path;

impl OverlayFs {
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        let name = checked_name(name)?;
        let upper = self.upper()?;
        let _changing = self.changing_names();
        let directory = self.directory(parent)?;
        let found = self.lookup_entry(&directory, name)?.ok_or(Errno::NOENT)?;
        if found.attr.kind == FileType::Directory {
            return Err(Errno::ISDIR);
        }
        let lower_exists = self.lookup_lower(&directory, name)?.is_some();
        let hidden = self.hidden_link_key(&directory, name)?;
        self.copy_up_directories(parent)?;
        let handle = upper.open_path(self.directory(parent)?.upper.as_deref().ok_or(Errno::STALE)?)?;
        let known = self.nodes().inode_of(&found.key);
        if upper::stat(&handle, name)?.is_none() {
            upper::make_whiteout(&handle, name)?;
        } else if let Some(inode) = known.filter(|inode| self.is_last_known_name(*inode, &found)) {
            let orphan = upper.work_name();
            let flags = if lower_exists { RenameFlags::WHITEOUT } else { RenameFlags::empty() };
            upper::rename(&handle, name, upper.work_directory(), &orphan, flags)?;
            self.nodes().get_mut(inode)?.orphan = Some(orphan);
        } else if lower_exists {
            let whiteout = upper.make_work_whiteout()?;
            upper::rename(upper.work_directory(), &whiteout, &handle, name, RenameFlags::empty())?;
        } else {
            upper::unlink(&handle, name)?;
        }
        if let Some(inode) = known {
            self.nodes().remove_name(inode, parent, name);
        }
        self.count_hidden_name(upper, hidden)
    }

    /// Reports whether removing one name of an upper file would make it unreachable.
    pub(super) fn is_last_known_name(&self, inode: u64, found: &LookupResult) -> bool {
        let nodes = self.nodes();
        let node = nodes.get(inode);
        found.location == NodeLocation::Upper
            && node.is_ok_and(|node| node.orphan.is_none() && node.names.len() <= 1)
    }

    /// Returns the key of the lower file whose name the first upper entry with this name would hide.
    pub(super) fn hidden_link_key(
        &self,
        directory: &MergedDirectory,
        name: &[u8],
    ) -> Result<Option<LinkKey>> {
        if let Some(path) = &directory.upper
            && upper::stat(self.upper()?.open_path(path)?, name)?.is_some()
        {
            return Ok(None);
        }
        let Some(lower) = &directory.lower else { return Ok(None) };
        let lower_stat = self.lower.stat(&child_path(lower, name)?)?;
        Ok(lower_stat.and_then(|lower_stat| self.link_key(&lower_stat)))
    }

    #[expect(clippy::unused_self, reason = "reads as a step of the others")]
    pub(super) fn count_hidden_name(&self, upper: &UpperLayer, hidden: Option<LinkKey>) -> Result<()> {
        hidden.map_or(Ok(()), |key| upper.count_removed_name(&key))
    }

    pub fn remove_directory(&self, parent: u64, name: &[u8]) -> Result<()> {
        let name = checked_name(name)?;
        let upper = self.upper()?;
        let _changing = self.changing_names();
        let directory = self.directory(parent)?;
        let found = self.lookup_entry(&directory, name)?.ok_or(Errno::NOENT)?;
        if found.attr.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        if !self.is_empty(&directory, name, &found)? {
            return Err(Errno::NOTEMPTY);
        }
        let lower_exists = self.lookup_lower(&directory, name)?.is_some();
        self.copy_up_directories(parent)?;
        let handle = upper.open_path(self.directory(parent)?.upper.as_deref().ok_or(Errno::STALE)?)?;
        if upper::stat(&handle, name)?.is_none() {
            upper::make_whiteout(&handle, name)?;
        } else {
            // The directory may still contain whiteouts.
            let old = upper.work_name();
            let flags = if lower_exists { RenameFlags::WHITEOUT } else { RenameFlags::empty() };
            upper::rename(&handle, name, upper.work_directory(), &old, flags)?;
            upper.remove_work(&old);
        }
        self.detach_directory(&found, parent, name);
        Ok(())
    }

    pub(super) fn detach_directory(&self, found: &LookupResult, parent: u64, name: &[u8]) {
        let mut nodes = self.nodes();
        if let Some(inode) = nodes.inode_of(&found.key) {
            nodes.remove_name(inode, parent, name);
            nodes.detach(inode);
        }
    }

    pub(super) fn is_empty(
        &self,
        directory: &MergedDirectory,
        name: &[u8],
        found: &LookupResult,
    ) -> Result<bool> {
        let upper = match (&found.location, &directory.upper) {
            (NodeLocation::Upper, Some(path)) => Some(child_path(path, name)?.into_vec()),
            _ => None,
        };
        let removed_directory = MergedDirectory { upper, lower: found.lower.clone() };
        Ok(self.entries(&removed_directory)?.is_empty())
    }
}
