//! Rename: copies up what is needed first, and then performs one `renameat2`.
//!
//! A directory is copied up without its content: it records the lower directory that it is merged with, whose
//! content moves along. If the lower tree has the old name, the same system call leaves a whiteout.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::look::Directory;
use super::nodes::{Place, Sight};
use super::upper::{self, Merge, Upper};
use super::{RenameMode, Result, Union, checked};

/// Maximum number of attempts when names change between copy-up and rename.
const ATTEMPTS: usize = 16;

/// Source or destination of a rename: a directory, and a name in it.
#[derive(Clone, Copy)]
struct End<'n> {
    parent: u64,
    name: &'n [u8],
}

impl Union {
    pub fn rename(
        &self,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        let old = End { parent, name: checked(name)? };
        let new = End { parent: new_parent, name: checked(new_name)? };
        self.upper()?;
        self.may_rename(old, new, mode)?;
        for _ in 0..ATTEMPTS {
            let mut held = Vec::new();
            let mut lifted = self.lift_end(old, &mut held);
            if mode == RenameMode::Exchange && lifted.is_ok() {
                lifted = self.lift_end(new, &mut held);
            }
            let done = lifted.and_then(|()| {
                let _changing = self.changing_names();
                self.rename_lifted(old, new, mode)
            });
            held.into_iter().for_each(|inode| self.forget(inode, 1));
            match done {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::STALE)
    }

    /// Checks the rename before anything is copied up in vain.
    fn may_rename(&self, old: End<'_>, new: End<'_>, mode: RenameMode) -> Result<()> {
        let _reading = self.reading_names();
        let from = self.sight(&self.directory(old.parent)?, old.name)?.ok_or(Errno::NOENT)?;
        let to = self.sight(&self.directory(new.parent)?, new.name)?;
        self.check(old, &from, new, to.as_ref(), mode).map(|_| ())
    }

    fn lift_end(&self, end: End<'_>, held: &mut Vec<u64>) -> Result<()> {
        let inode = self.look_up(end.parent, end.name)?.inode;
        held.push(inode);
        self.lift(inode, None)
    }

    /// Applies the rules of rename(2). Returns true when there is nothing to do.
    fn check(
        &self,
        old: End<'_>,
        from: &Sight,
        new: End<'_>,
        to: Option<&Sight>,
        mode: RenameMode,
    ) -> Result<bool> {
        match (mode, to) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        let nodes = self.nodes();
        let is_directory = |sight: &Sight| sight.attr.kind == FileType::Directory;
        let above = |sight: &Sight, place: u64| {
            is_directory(sight) && nodes.known(&sight.key).is_some_and(|inode| nodes.is_below(place, inode))
        };
        if above(from, new.parent) {
            return Err(Errno::INVAL);
        }
        let Some(to) = to else { return Ok(false) };
        if above(to, old.parent) {
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
    fn rename_lifted(&self, old: End<'_>, new: End<'_>, mode: RenameMode) -> Result<bool> {
        let upper = self.upper()?;
        let (from_directory, to_directory) = (self.directory(old.parent)?, self.directory(new.parent)?);
        let from = self.sight(&from_directory, old.name)?.ok_or(Errno::NOENT)?;
        let to = self.sight(&to_directory, new.name)?;
        if self.check(old, &from, new, to.as_ref(), mode)? {
            return Ok(true);
        }
        if from.place == Place::Lower {
            return Ok(false);
        }
        if let Some(to) = &to {
            if mode == RenameMode::Exchange {
                if to.place == Place::Lower {
                    return Ok(false);
                }
            } else if to.attr.kind == FileType::Directory && !self.is_empty(&to_directory, new.name, to)? {
                return Err(Errno::NOTEMPTY);
            }
        }
        self.lift_directories(old.parent)?;
        self.lift_directories(new.parent)?;
        let (from_directory, to_directory) = (self.directory(old.parent)?, self.directory(new.parent)?);
        let source = self.ready_to_move(upper, &from_directory, old.name, &from)?;
        match (mode, &to) {
            (RenameMode::Exchange, Some(to)) => {
                let target = self.ready_to_move(upper, &to_directory, new.name, to)?;
                upper::rename(&source, old.name, &target, new.name, RenameFlags::EXCHANGE)?;
                let mut nodes = self.nodes();
                let (one, other) = (nodes.known(&from.key), nodes.known(&to.key));
                for (inode, was, is) in [(one, old, new), (other, new, old)] {
                    if let Some(inode) = inode {
                        nodes.lose_name(inode, was.parent, was.name);
                        nodes.gain_name(inode, is.parent, is.name);
                    }
                }
            }
            _ => self.move_over(
                upper,
                &source,
                (old, &from_directory, &from),
                (new, &to_directory, to.as_ref()),
            )?,
        }
        Ok(true)
    }

    fn move_over(
        &self,
        upper: &Upper,
        source: &OwnedFd,
        (old, from_directory, from): (End<'_>, &Directory, &Sight),
        (new, to_directory, to): (End<'_>, &Directory, Option<&Sight>),
    ) -> Result<()> {
        let target = upper.hold(to_directory.upper.as_deref().ok_or(Errno::STALE)?)?;
        let covers = self.lower_sight(from_directory, old.name)?.is_some();
        let hidden = self.hides(to_directory, new.name)?;
        let there = upper::stat(&target, new.name)?;
        let replaced = to.and_then(|to| self.nodes().known(&to.key).map(|inode| (inode, to)));
        let mut orphan = None;
        match (&there, to) {
            (Some(_), Some(to)) if to.attr.kind == FileType::Directory => {
                self.empty_for_good(upper, &target, new.name, to)?;
            }
            (Some(_), Some(_)) => {
                if let Some((inode, to)) = replaced
                    && self.loses_all(inode, to)
                {
                    let name = upper.work_name();
                    rustix::fs::linkat(&target, new.name, upper.work(), &*name, AtFlags::empty())?;
                    orphan = Some(name);
                }
            }
            _ => {}
        }
        let whiteout = there.as_ref().is_some_and(upper::is_whiteout);
        let moved = if whiteout && from.attr.kind == FileType::Directory {
            // A directory can replace only a directory, so it is exchanged with the whiteout.
            upper::rename(source, old.name, &target, new.name, RenameFlags::EXCHANGE)
                .and_then(|()| if covers { Ok(()) } else { upper::unlink(source, old.name) })
        } else {
            let flags = if covers { RenameFlags::WHITEOUT } else { RenameFlags::empty() };
            upper::rename(source, old.name, &target, new.name, flags)
        };
        if let Err(errno) = moved {
            orphan.iter().for_each(|name| upper.drop_work(name));
            return Err(errno);
        }
        if let Some((inode, to)) = replaced {
            if to.attr.kind == FileType::Directory {
                self.lose_directory(to, new.parent, new.name);
            } else {
                let mut nodes = self.nodes();
                if orphan.is_some() {
                    nodes.get_mut(inode)?.orphan = orphan;
                }
                nodes.lose_name(inode, new.parent, new.name);
            }
        }
        let mut nodes = self.nodes();
        if let Some(inode) = nodes.known(&from.key) {
            nodes.lose_name(inode, old.parent, old.name);
            nodes.gain_name(inode, new.parent, new.name);
        }
        drop(nodes);
        self.count_hidden(upper, hidden)
    }

    /// Makes an upper entry independent of its current place, and returns a handle to its directory.
    fn ready_to_move(
        &self,
        upper: &Upper,
        directory: &Directory,
        name: &[u8],
        sight: &Sight,
    ) -> Result<OwnedFd> {
        let held = upper.hold(directory.upper.as_deref().ok_or(Errno::STALE)?)?;
        if let Place::Linked(key) = &sight.place
            && upper::stat(&held, name)?.is_none()
        {
            // Until now only the lower tree had this name.
            let hidden = self.hides(directory, name)?;
            rustix::fs::linkat(upper.links(), key.as_bytes(), &held, name, AtFlags::empty())?;
            self.count_hidden(upper, hidden)?;
        }
        if sight.attr.kind == FileType::Directory && upper::merge_of(&held, name)? == Merge::Same {
            let merge = sight.lower.clone().map_or(Merge::Opaque, Merge::Other);
            upper::set_merge(upper::open_at(&held, name, OFlags::RDONLY | OFlags::DIRECTORY)?, &merge)?;
        }
        Ok(held)
    }

    /// Replaces a directory that contains only hidden entries by a really empty one.
    fn empty_for_good(&self, upper: &Upper, held: &OwnedFd, name: &[u8], sight: &Sight) -> Result<()> {
        let (work, ()) = upper.make(|work, made| {
            rustix::fs::mkdirat(work, made, Mode::from_raw_mode(0o700))?;
            let directory = upper::open_at(work, made, OFlags::RDONLY | OFlags::DIRECTORY)?;
            upper.dress(&directory, &sight.attr, &[])?;
            upper.stamp(&directory, c".", &sight.attr)
        })?;
        let swapped = upper::rename(upper.work(), &work, held, name, RenameFlags::EXCHANGE);
        upper.drop_work(&work);
        swapped
    }
}
