//! Rename: copies up what is needed first, and then performs one `renameat2`.
//!
//! A directory is copied up without its content: it records the lower directory that it is merged with, whose
//! content moves along. If the lower tree has the old name, the same system call leaves a whiteout.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::lookup::MergedDirectory;
use super::nodes::{LookupResult, NodeLocation};
use super::upper::{self, MergeTarget, UpperLayer};
use super::{OverlayFs, RenameMode, Result, checked_name};

/// Maximum number of attempts when names change between copy-up and rename.
const ATTEMPTS: usize = 16;

/// Source or destination of a rename: a directory, and a name in it.
#[derive(Clone, Copy)]
struct RenameEnd<'n> {
    parent: u64,
    name: &'n [u8],
}

impl OverlayFs {
    pub fn rename(
        &self,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        let old = RenameEnd { parent, name: checked_name(name)? };
        let new = RenameEnd { parent: new_parent, name: checked_name(new_name)? };
        self.upper()?;
        self.check_before_copy_up(old, new, mode)?;
        for _ in 0..ATTEMPTS {
            let mut looked_up = Vec::new();
            let mut copied_up = self.copy_up_end(old, &mut looked_up);
            if mode == RenameMode::Exchange && copied_up.is_ok() {
                copied_up = self.copy_up_end(new, &mut looked_up);
            }
            let done = copied_up.and_then(|()| {
                let _changing = self.changing_names();
                self.rename_copied_up(old, new, mode)
            });
            looked_up.into_iter().for_each(|inode| self.forget(inode, 1));
            match done {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::STALE)
    }

    /// Checks the rename before anything is copied up in vain.
    fn check_before_copy_up(&self, old: RenameEnd<'_>, new: RenameEnd<'_>, mode: RenameMode) -> Result<()> {
        let _reading = self.reading_names();
        let from = self.lookup_entry(&self.directory(old.parent)?, old.name)?.ok_or(Errno::NOENT)?;
        let to = self.lookup_entry(&self.directory(new.parent)?, new.name)?;
        self.check_rename(old, &from, new, to.as_ref(), mode).map(|_| ())
    }

    fn copy_up_end(&self, end: RenameEnd<'_>, looked_up: &mut Vec<u64>) -> Result<()> {
        let inode = self.lookup(end.parent, end.name)?.inode;
        looked_up.push(inode);
        self.copy_up(inode, None)
    }

    /// Applies the rules of rename(2). Returns true when there is nothing to do.
    fn check_rename(
        &self,
        old: RenameEnd<'_>,
        from: &LookupResult,
        new: RenameEnd<'_>,
        to: Option<&LookupResult>,
        mode: RenameMode,
    ) -> Result<bool> {
        match (mode, to) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        let nodes = self.nodes();
        let is_directory = |found: &LookupResult| found.attr.kind == FileType::Directory;
        let is_above = |found: &LookupResult, directory: u64| {
            is_directory(found)
                && nodes.inode_of(&found.key).is_some_and(|inode| nodes.is_below(directory, inode))
        };
        if is_above(from, new.parent) {
            return Err(Errno::INVAL);
        }
        let Some(to) = to else { return Ok(false) };
        if is_above(to, old.parent) {
            return Err(if mode == RenameMode::Exchange { Errno::INVAL } else { Errno::NOTEMPTY });
        }
        if from.key == to.key {
            return Ok(true);
        }
        match (is_directory(from), is_directory(to), mode) {
            (_, _, RenameMode::Exchange) | (true, true, _) | (false, false, _) => Ok(false),
            (true, false, _) => Err(Errno::NOTDIR),
            (false, true, _) => Err(Errno::ISDIR),
        }
    }

    /// Performs the rename. Returns false when something must be copied up first.
    fn rename_copied_up(&self, old: RenameEnd<'_>, new: RenameEnd<'_>, mode: RenameMode) -> Result<bool> {
        let upper = self.upper()?;
        let (from_directory, to_directory) = (self.directory(old.parent)?, self.directory(new.parent)?);
        let from = self.lookup_entry(&from_directory, old.name)?.ok_or(Errno::NOENT)?;
        let to = self.lookup_entry(&to_directory, new.name)?;
        if self.check_rename(old, &from, new, to.as_ref(), mode)? {
            return Ok(true);
        }
        if from.location == NodeLocation::Lower {
            return Ok(false);
        }
        if let Some(to) = &to {
            if mode == RenameMode::Exchange {
                if to.location == NodeLocation::Lower {
                    return Ok(false);
                }
            } else if to.attr.kind == FileType::Directory && !self.is_empty(&to_directory, new.name, to)? {
                return Err(Errno::NOTEMPTY);
            }
        }
        self.copy_up_directories(old.parent)?;
        self.copy_up_directories(new.parent)?;
        let (from_directory, to_directory) = (self.directory(old.parent)?, self.directory(new.parent)?);
        let source = self.prepare_move(upper, &from_directory, old.name, &from)?;
        match (mode, &to) {
            (RenameMode::Exchange, Some(to)) => {
                let target = self.prepare_move(upper, &to_directory, new.name, to)?;
                upper::rename(&source, old.name, &target, new.name, RenameFlags::EXCHANGE)?;
                let mut nodes = self.nodes();
                let (one, other) = (nodes.inode_of(&from.key), nodes.inode_of(&to.key));
                for (inode, was, is) in [(one, old, new), (other, new, old)] {
                    if let Some(inode) = inode {
                        nodes.remove_name(inode, was.parent, was.name);
                        nodes.add_name(inode, is.parent, is.name);
                    }
                }
            }
            _ => self.move_entry(
                upper,
                &source,
                (old, &from_directory, &from),
                (new, &to_directory, to.as_ref()),
            )?,
        }
        Ok(true)
    }

    fn move_entry(
        &self,
        upper: &UpperLayer,
        source: &OwnedFd,
        (old, from_directory, from): (RenameEnd<'_>, &MergedDirectory, &LookupResult),
        (new, to_directory, to): (RenameEnd<'_>, &MergedDirectory, Option<&LookupResult>),
    ) -> Result<()> {
        let target = upper.open_path(to_directory.upper.as_deref().ok_or(Errno::STALE)?)?;
        let lower_exists = self.lookup_lower(from_directory, old.name)?.is_some();
        let hidden = self.hidden_link_key(to_directory, new.name)?;
        let existing = upper::stat(&target, new.name)?;
        let replaced = to.and_then(|to| self.nodes().inode_of(&to.key).map(|inode| (inode, to)));
        let mut orphan = None;
        match (&existing, to) {
            (Some(_), Some(to)) if to.attr.kind == FileType::Directory => {
                self.replace_with_empty_directory(upper, &target, new.name, to)?;
            }
            (Some(_), Some(_)) => {
                if let Some((inode, to)) = replaced
                    && self.is_last_known_name(inode, to)
                {
                    let name = upper.work_name();
                    rustix::fs::linkat(&target, new.name, upper.work_directory(), &*name, AtFlags::empty())?;
                    orphan = Some(name);
                }
            }
            _ => {}
        }
        let whiteout = existing.as_ref().is_some_and(upper::is_whiteout);
        let moved = if whiteout && from.attr.kind == FileType::Directory {
            // A directory can replace only a directory, so it is exchanged with the whiteout.
            upper::rename(source, old.name, &target, new.name, RenameFlags::EXCHANGE)
                .and_then(|()| if lower_exists { Ok(()) } else { upper::unlink(source, old.name) })
        } else {
            let flags = if lower_exists { RenameFlags::WHITEOUT } else { RenameFlags::empty() };
            upper::rename(source, old.name, &target, new.name, flags)
        };
        if let Err(errno) = moved {
            orphan.iter().for_each(|name| upper.remove_work(name));
            return Err(errno);
        }
        if let Some((inode, to)) = replaced {
            if to.attr.kind == FileType::Directory {
                self.detach_directory(to, new.parent, new.name);
            } else {
                let mut nodes = self.nodes();
                if orphan.is_some() {
                    nodes.get_mut(inode)?.orphan = orphan;
                }
                nodes.remove_name(inode, new.parent, new.name);
            }
        }
        let mut nodes = self.nodes();
        if let Some(inode) = nodes.inode_of(&from.key) {
            nodes.remove_name(inode, old.parent, old.name);
            nodes.add_name(inode, new.parent, new.name);
        }
        drop(nodes);
        self.count_hidden_name(upper, hidden)
    }

    /// Makes an upper entry independent of its current place, and returns a handle to its directory.
    fn prepare_move(
        &self,
        upper: &UpperLayer,
        directory: &MergedDirectory,
        name: &[u8],
        found: &LookupResult,
    ) -> Result<OwnedFd> {
        let handle = upper.open_path(directory.upper.as_deref().ok_or(Errno::STALE)?)?;
        if let NodeLocation::Linked(key) = &found.location
            && upper::stat(&handle, name)?.is_none()
        {
            // Until now only the lower tree had this name.
            let hidden = self.hidden_link_key(directory, name)?;
            rustix::fs::linkat(upper.links_directory(), key.as_bytes(), &handle, name, AtFlags::empty())?;
            self.count_hidden_name(upper, hidden)?;
        }
        if found.attr.kind == FileType::Directory && upper::merge_target(&handle, name)? == MergeTarget::Same
        {
            let merge = found.lower.clone().map_or(MergeTarget::Opaque, MergeTarget::Other);
            upper::set_merge_target(
                upper::open_at(&handle, name, OFlags::RDONLY | OFlags::DIRECTORY)?,
                &merge,
            )?;
        }
        Ok(handle)
    }

    /// Replaces a directory that contains only hidden entries by a really empty one.
    fn replace_with_empty_directory(
        &self,
        upper: &UpperLayer,
        handle: &OwnedFd,
        name: &[u8],
        found: &LookupResult,
    ) -> Result<()> {
        let (work, ()) = upper.make_in_work(|work, work_name| {
            rustix::fs::mkdirat(work, work_name, Mode::from_raw_mode(0o700))?;
            let directory = upper::open_at(work, work_name, OFlags::RDONLY | OFlags::DIRECTORY)?;
            upper.set_attributes(&directory, &found.attr, &[])?;
            upper.set_times(&directory, c".", &found.attr)
        })?;
        let swapped = upper::rename(upper.work_directory(), &work, handle, name, RenameFlags::EXCHANGE);
        upper.remove_work(&work);
        swapped
    }
}
