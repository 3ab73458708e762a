//! Creation of files, directories and links.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;

use super::lookup::MergedDirectory;
use super::nodes::NodeLocation;
use super::upper::{self, UpperLayer};
use super::{CreateAttr, InodeEntry, OverlayFs, Result, checked_name};
use crate::lower::child_path;

const SET_GROUP: u32 = 0o2000;

impl OverlayFs {
    pub fn make_directory(&self, parent: u64, name: &[u8], maker: &CreateAttr) -> Result<InodeEntry> {
        self.make(parent, name, maker, FileType::Directory, |work, work_name| {
            rustix::fs::mkdirat(work, work_name, Mode::from_raw_mode(0o700))
        })
    }

    /// Creates a regular file, a FIFO or a socket; devices are refused.
    pub fn make_node(
        &self,
        parent: u64,
        name: &[u8],
        kind: FileType,
        maker: &CreateAttr,
    ) -> Result<InodeEntry> {
        self.upper()?;
        match kind {
            FileType::RegularFile => self.make(parent, name, maker, kind, |work, work_name| {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                rustix::fs::openat(work, work_name, flags, Mode::from_raw_mode(0o600)).map(|_| ())
            }),
            FileType::Fifo | FileType::Socket => self.make(parent, name, maker, kind, |work, work_name| {
                rustix::fs::mknodat(work, work_name, kind, Mode::from_raw_mode(0o600), 0)
            }),
            _ => Err(Errno::PERM),
        }
    }

    pub fn make_symlink(
        &self,
        parent: u64,
        name: &[u8],
        target: &[u8],
        maker: &CreateAttr,
    ) -> Result<InodeEntry> {
        self.make(parent, name, maker, FileType::Symlink, |work, work_name| {
            rustix::fs::symlinkat(target, work, work_name)
        })
    }

    fn make(
        &self,
        parent: u64,
        name: &[u8],
        maker: &CreateAttr,
        kind: FileType,
        make: impl FnOnce(&OwnedFd, &[u8]) -> Result<()>,
    ) -> Result<InodeEntry> {
        let name = checked_name(name)?;
        let upper = self.upper()?;
        let _changing = self.changing_names();
        if self.lookup_entry(&self.directory(parent)?, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        self.copy_up_directories(parent)?;
        let directory = self.directory(parent)?;
        let parent_attr = self.attr_of(parent)?;
        let (mut gid, mut mode) = (maker.gid, maker.mode & 0o7777);
        if parent_attr.mode & SET_GROUP != 0 {
            gid = parent_attr.gid;
            if kind == FileType::Directory {
                mode |= SET_GROUP;
            }
        }
        let (work, ()) = upper.make_in_work(|work, work_name| {
            make(work, work_name)?;
            let (uid, gid) = (Uid::from_raw(maker.uid), Gid::from_raw(gid));
            rustix::fs::chownat(work, work_name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            if kind == FileType::Symlink {
                return Ok(());
            }
            rustix::fs::chmodat(work, work_name, Mode::from_raw_mode(mode), AtFlags::empty())
        })?;
        if let Err(errno) = publish(upper, &directory, name, &work, kind == FileType::Directory) {
            upper.remove_work(&work);
            return Err(errno);
        }
        let found = self.lookup_entry(&directory, name)?.ok_or(Errno::IO)?;
        self.register_lookup(&found, parent, name)
    }

    /// Creates another name for a file.
    pub fn make_hard_link(&self, inode: u64, parent: u64, name: &[u8]) -> Result<InodeEntry> {
        let name = checked_name(name)?;
        let upper = self.upper()?;
        {
            let _reading = self.reading_names();
            if self.lookup_entry(&self.directory(parent)?, name)?.is_some() {
                return Err(Errno::EXIST);
            }
        }
        if self.nodes().get(inode)?.kind == FileType::Directory {
            return Err(Errno::PERM);
        }
        self.copy_up(inode, None)?;
        let _changing = self.changing_names();
        if self.lookup_entry(&self.directory(parent)?, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        let node = self.nodes().get(inode)?.clone();
        // Its last name is gone: a new name must not bring it back.
        if node.orphan.is_some() || node.names.is_empty() && !matches!(node.location, NodeLocation::Linked(_))
        {
            return Err(Errno::NOENT);
        }
        self.copy_up_directories(parent)?;
        let directory = self.directory(parent)?;
        let (from, old) = self.locate(inode, &node)?;
        let (work, ()) = upper.make_in_work(|work, work_name| {
            rustix::fs::linkat(&from, &*old, work, work_name, AtFlags::empty())
        })?;
        if let Err(errno) = publish(upper, &directory, name, &work, false) {
            upper.remove_work(&work);
            return Err(errno);
        }
        let found = self.lookup_entry(&directory, name)?.ok_or(Errno::IO)?;
        self.register_lookup(&found, parent, name)
    }
}

/// Moves a new entry from `work/` to a name that shows nothing: there is no entry, or a whiteout.
pub(super) fn publish(
    upper: &UpperLayer,
    directory: &MergedDirectory,
    name: &[u8],
    work: &[u8],
    is_directory: bool,
) -> Result<()> {
    let path = directory.upper.as_deref().ok_or(Errno::STALE)?;
    // An entry with a longer path could not be accessed later.
    child_path(path, name)?;
    let handle = upper.open_path(path)?;
    match upper::stat(&handle, name)? {
        None => upper::rename(upper.work_directory(), work, &handle, name, RenameFlags::NOREPLACE),
        Some(stat) if !upper::is_whiteout(&stat) => Err(Errno::EXIST),
        // A directory can replace only a directory, so they are exchanged.
        Some(_) if is_directory => {
            upper::rename(upper.work_directory(), work, &handle, name, RenameFlags::EXCHANGE)?;
            upper.remove_work(work);
            Ok(())
        }
        Some(_) => upper::rename(upper.work_directory(), work, &handle, name, RenameFlags::empty()),
    }
}
