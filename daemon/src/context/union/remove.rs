//! Removal of names.

use rustix::fs::{FileType, RenameFlags};
use rustix::io::Errno;

use super::look::Directory;
use super::nodes::{Place, Sight};
use super::upper::{self, LinkKey, Upper};
use super::{Result, Union, checked};
use crate::context::tree::Tree;

impl Union {
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        let name = checked(name)?;
        let upper = self.upper()?;
        let _changing = self.changing_names();
        let directory = self.directory(parent)?;
        let sight = self.sight(&directory, name)?.ok_or(Errno::NOENT)?;
        if sight.attr.kind == FileType::Directory {
            return Err(Errno::ISDIR);
        }
        let covers = self.lower_sight(&directory, name)?.is_some();
        let hidden = self.hides(&directory, name)?;
        self.lift_directories(parent)?;
        let held = upper.hold(self.directory(parent)?.upper.as_deref().ok_or(Errno::STALE)?)?;
        let known = self.nodes().known(&sight.key);
        if upper::stat(&held, name)?.is_none() {
            upper::make_whiteout(&held, name)?;
        } else if let Some(inode) = known.filter(|inode| self.loses_all(*inode, &sight)) {
            let orphan = upper.work_name();
            let flags = if covers { RenameFlags::WHITEOUT } else { RenameFlags::empty() };
            upper::rename(&held, name, upper.work(), &orphan, flags)?;
            self.nodes().get_mut(inode)?.orphan = Some(orphan);
        } else if covers {
            let whiteout = upper.whiteout()?;
            upper::rename(upper.work(), &whiteout, &held, name, RenameFlags::empty())?;
        } else {
            upper::unlink(&held, name)?;
        }
        if let Some(inode) = known {
            self.nodes().lose_name(inode, parent, name);
        }
        self.count_hidden(upper, hidden)
    }

    /// Reports whether removing one name of an upper file would make it unreachable.
    pub(super) fn loses_all(&self, inode: u64, sight: &Sight) -> bool {
        let nodes = self.nodes();
        let node = nodes.get(inode);
        sight.place == Place::Upper && node.is_ok_and(|node| node.orphan.is_none() && node.names.len() <= 1)
    }

    /// Returns the key of the lower file whose name the first upper entry with this name would hide.
    pub(super) fn hides(&self, directory: &Directory, name: &[u8]) -> Result<Option<LinkKey>> {
        if let Some(path) = &directory.upper
            && upper::stat(self.upper()?.hold(path)?, name)?.is_some()
        {
            return Ok(None);
        }
        let Some(lower) = &directory.lower else { return Ok(None) };
        let seen = self.lower.look(&Tree::child_path(lower, name)?)?;
        Ok(seen.and_then(|seen| self.link_key(&seen)))
    }

    #[expect(clippy::unused_self, reason = "reads as a step of the others")]
    pub(super) fn count_hidden(&self, upper: &Upper, hidden: Option<LinkKey>) -> Result<()> {
        hidden.map_or(Ok(()), |key| upper.count_gone(&key))
    }

    pub fn remove_directory(&self, parent: u64, name: &[u8]) -> Result<()> {
        let name = checked(name)?;
        let upper = self.upper()?;
        let _changing = self.changing_names();
        let directory = self.directory(parent)?;
        let sight = self.sight(&directory, name)?.ok_or(Errno::NOENT)?;
        if sight.attr.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        if !self.is_empty(&directory, name, &sight)? {
            return Err(Errno::NOTEMPTY);
        }
        let covers = self.lower_sight(&directory, name)?.is_some();
        self.lift_directories(parent)?;
        let held = upper.hold(self.directory(parent)?.upper.as_deref().ok_or(Errno::STALE)?)?;
        if upper::stat(&held, name)?.is_none() {
            upper::make_whiteout(&held, name)?;
        } else {
            // The directory may still contain whiteouts.
            let old = upper.work_name();
            let flags = if covers { RenameFlags::WHITEOUT } else { RenameFlags::empty() };
            upper::rename(&held, name, upper.work(), &old, flags)?;
            upper.drop_work(&old);
        }
        self.lose_directory(&sight, parent, name);
        Ok(())
    }

    pub(super) fn lose_directory(&self, sight: &Sight, parent: u64, name: &[u8]) {
        let mut nodes = self.nodes();
        if let Some(inode) = nodes.known(&sight.key) {
            nodes.lose_name(inode, parent, name);
            nodes.detach(inode);
        }
    }

    pub(super) fn is_empty(&self, directory: &Directory, name: &[u8], sight: &Sight) -> Result<bool> {
        let upper = match (&sight.place, &directory.upper) {
            (Place::Upper, Some(path)) => Some(Tree::child_path(path, name)?.into_vec()),
            _ => None,
        };
        let inside = Directory { upper, lower: sight.lower.clone() };
        Ok(self.entries(&inside)?.is_empty())
    }
}
