//! Copy-up: copies a file's mode, owner, times, extended attributes and content from the lower tree to the upper
//! directory, before the file is changed.
//!
//! A copy is created in `work/` and published by one rename, so it is complete or absent. Copy-up has no visible
//! effect: the times of the directory that receives the copy are restored.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;

use super::nodes::{NodeKey, NodeLocation, OverlayNode};
use super::upper::{self, MergeTarget, UpperLayer};
use super::{OverlayFs, ROOT, Result};
use crate::attr::{self, FileAttributes};
use crate::lower::{EntryStat, FileIdentity, LowerFile, user_xattrs};

/// Maximum number of attempts to copy a lower file that changes while it is copied.
const ATTEMPTS: usize = 4;

const BLOCK: usize = 128 * 1024;

impl OverlayFs {
    /// Ensures that the upper directory contains the file of this inode. If `limit` is given, only that many
    /// bytes of the content are copied, for a caller that truncates the file anyway. The caller must not hold
    /// any lock.
    pub(super) fn copy_up(&self, inode: u64, limit: Option<u64>) -> Result<()> {
        let upper = self.upper()?;
        for _ in 0..ATTEMPTS {
            let node = self.nodes().get(inode)?.clone();
            if node.location != NodeLocation::Lower {
                return Ok(());
            }
            if node.kind == FileType::Directory {
                let _changing = self.changing_names();
                return self.copy_up_directories(inode);
            }
            let path = node.lower.as_deref().ok_or(Errno::STALE)?;
            let lower_stat = self.stat_unchanged(&node, path)?;
            let (work, ()) =
                upper.make_in_work(|work, name| self.copy(upper, work, name, path, &lower_stat, limit))?;
            #[cfg(feature = "test-hooks")]
            self.run_after_copy_hook();
            let after = self.stat_unchanged(&node, path);
            if !after.is_ok_and(|after| same_content(&after.attr, &lower_stat.attr)) {
                upper.remove_work(&work);
                continue;
            }
            let _changing = self.changing_names();
            let now = self.nodes().get(inode)?.clone();
            if now.key != node.key || now.lower != node.lower || now.location != NodeLocation::Lower {
                upper.remove_work(&work);
                continue;
            }
            let committed = self.commit(upper, inode, &now, &work, &lower_stat);
            if committed.is_err() {
                upper.remove_work(&work);
            }
            return committed;
        }
        match self.nodes().get(inode)?.location {
            NodeLocation::Lower => Err(Errno::STALE),
            NodeLocation::Upper | NodeLocation::Linked(_) => Ok(()),
        }
    }

    #[cfg(feature = "test-hooks")]
    fn run_after_copy_hook(&self) {
        // The hook is taken out of the mutex while it runs, because the hook itself may copy up a file.
        let hook = self.after_copy.lock().take();
        if let Some(mut hook) = hook {
            hook();
            self.after_copy.lock().get_or_insert(hook);
        }
    }

    /// Returns the stat of the lower file at `path`. Fails with ESTALE if it is not the file of `node` any more.
    pub(super) fn stat_unchanged(&self, node: &OverlayNode, path: &[u8]) -> Result<EntryStat> {
        let lower_stat = self.lower.stat(path)?.ok_or(Errno::STALE)?;
        let same = match (&node.key, &lower_stat.identity) {
            (NodeKey::Synthetic(synthetic_path), FileIdentity::Synthetic) => **synthetic_path == *path,
            (NodeKey::Lower(known), found) => known == found,
            _ => false,
        };
        if same { Ok(lower_stat) } else { Err(Errno::STALE) }
    }

    fn copy(
        &self,
        upper: &UpperLayer,
        work: &OwnedFd,
        name: &[u8],
        path: &[u8],
        lower_stat: &EntryStat,
        limit: Option<u64>,
    ) -> Result<()> {
        let attr = &lower_stat.attr;
        match attr.kind {
            FileType::RegularFile => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::openat(work, name, flags, Mode::from_raw_mode(0o600))?);
                let bytes = limit.unwrap_or(u64::MAX).min(attr.size);
                copy_content(self.lower.open_content(path)?, &file, bytes).map_err(|error| errno(&error))?;
                upper.set_attributes(&file, attr, &user_xattrs(&*self.lower, path)?)?;
            }
            FileType::Symlink => {
                rustix::fs::symlinkat(&*self.lower.link_target(path)?, work, name)?;
                set_owner(work, name, attr)?;
            }
            kind @ (FileType::Fifo | FileType::Socket) => {
                rustix::fs::mknodat(work, name, kind, Mode::from_raw_mode(0o600), 0)?;
                set_owner(work, name, attr)?;
                rustix::fs::chmodat(work, name, Mode::from_raw_mode(attr.mode), AtFlags::empty())?;
            }
            // Devices are not copied: the copy would be a usable device on the daemon's disk.
            _ => return Err(Errno::PERM),
        }
        if self.link_key(lower_stat).is_some() {
            upper.record_name_count(name, attr.links)?;
        }
        let name = std::ffi::CString::new(name).map_err(|_| Errno::INVAL)?;
        upper.set_times(work, &name, attr)
    }

    fn commit(
        &self,
        upper: &UpperLayer,
        inode: u64,
        node: &OverlayNode,
        work: &[u8],
        lower_stat: &EntryStat,
    ) -> Result<()> {
        let copy = upper::stat(upper.work_directory(), work)?.ok_or(Errno::IO)?;
        let location = if let Some(key) = self.link_key(lower_stat) {
            upper::rename(
                upper.work_directory(),
                work,
                upper.links_directory(),
                key.as_bytes(),
                RenameFlags::NOREPLACE,
            )?;
            let mut linked = upper.linked();
            let entry = linked.entry(key.clone()).or_default();
            (entry.inode, entry.lower_names) = (Some(copy.inode), lower_stat.attr.links);
            NodeLocation::Linked(key)
        } else if let Some((parent, name)) = node.names.last() {
            self.copy_up_directories(*parent)?;
            let path = self.nodes().path(*parent)?;
            self.publish_keeping_times(upper, work, &path, name)?;
            NodeLocation::Upper
        } else {
            self.nodes().get_mut(inode)?.orphan = Some(work.into());
            NodeLocation::Upper
        };
        let mut nodes = self.nodes();
        nodes.rekey(inode, NodeKey::Upper(copy.inode), location);
        nodes.get_mut(inode)?.lower = None;
        Ok(())
    }

    /// Moves an entry from `work/` to `name` in `directory`, and restores the times of the directory.
    fn publish_keeping_times(
        &self,
        upper: &UpperLayer,
        work: &[u8],
        directory: &[u8],
        name: &[u8],
    ) -> Result<()> {
        let directory_handle = upper.open_path(directory)?;
        let before = attr::stat(&directory_handle)?.attr;
        upper::rename(upper.work_directory(), work, &directory_handle, name, RenameFlags::NOREPLACE)?;
        upper.set_times(&directory_handle, c".", &before)
    }

    /// Ensures that the upper directory contains a directory and all its parents. The caller must hold the
    /// names lock.
    pub(super) fn copy_up_directories(&self, inode: u64) -> Result<()> {
        let upper = self.upper()?;
        let mut missing = Vec::new();
        let mut current = inode;
        {
            let nodes = self.nodes();
            loop {
                let node = nodes.get(current)?;
                if node.location != NodeLocation::Lower {
                    break;
                }
                let (parent, name) = node.names.last().ok_or(Errno::NOENT)?;
                missing.push((current, *parent, name.clone(), node.clone()));
                current = *parent;
                if missing.len() > crate::beneath::MAX_PATH || current == ROOT {
                    break;
                }
            }
        }
        while let Some((inode, parent, name, node)) = missing.pop() {
            let path = node.lower.as_deref().ok_or(Errno::STALE)?;
            let lower_stat = self.stat_unchanged(&node, path)?;
            let xattrs = user_xattrs(&*self.lower, path)?;
            let (work, copy) = upper.make_in_work(|work, work_name| {
                rustix::fs::mkdirat(work, work_name, Mode::from_raw_mode(0o700))?;
                let directory = upper::open_at(work, work_name, OFlags::RDONLY | OFlags::DIRECTORY)?;
                upper.set_attributes(&directory, &lower_stat.attr, &xattrs)?;
                upper::set_merge_target(directory.as_fd(), &MergeTarget::Same)?;
                upper.set_times(&directory, c".", &lower_stat.attr)?;
                attr::stat(&directory)
            })?;
            let parent_path = self.nodes().path(parent)?;
            if let Err(errno) = self.publish_keeping_times(upper, &work, &parent_path, &name) {
                upper.remove_work(&work);
                return Err(errno);
            }
            self.nodes().rekey(inode, NodeKey::Upper(copy.inode), NodeLocation::Upper);
        }
        Ok(())
    }
}

fn set_owner(directory: &OwnedFd, name: &[u8], attr: &FileAttributes) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(attr.uid), Gid::from_raw(attr.gid));
    rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

fn same_content(a: &FileAttributes, b: &FileAttributes) -> bool {
    (a.size, a.modified, a.changed) == (b.size, b.modified, b.changed)
}

pub(super) fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Copies the first `bytes` bytes and preserves holes.
fn copy_content(from: LowerFile, to: &File, bytes: u64) -> io::Result<()> {
    match from {
        LowerFile::Disk(from) => {
            let mut at = 0;
            while at < bytes {
                let start = match rustix::fs::seek(&from, rustix::fs::SeekFrom::Data(at)) {
                    Ok(start) if start < bytes => start,
                    Ok(_) | Err(Errno::NXIO) => break,
                    Err(errno) => return Err(errno.into()),
                };
                let end = rustix::fs::seek(&from, rustix::fs::SeekFrom::Hole(start))?.min(bytes);
                (&from).seek(SeekFrom::Start(start))?;
                (&mut &*to).seek(SeekFrom::Start(start))?;
                if io::copy(&mut (&from).take(end - start), &mut &*to)? < end - start {
                    return Err(Errno::STALE.into());
                }
                at = end;
            }
        }
        LowerFile::Archived(from) => {
            let mut buffer = vec![0; BLOCK];
            let mut at = 0;
            while at < bytes {
                let most = buffer.len().min(usize::try_from(bytes - at).unwrap_or(usize::MAX));
                let count = from.read_at(&mut buffer[..most], at)?;
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if buffer[..count].iter().any(|&byte| byte != 0) {
                    to.write_all_at(&buffer[..count], at)?;
                }
                at += count as u64;
            }
        }
    }
    to.set_len(bytes)
}
