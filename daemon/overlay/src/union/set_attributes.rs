//! Changes of attributes, and sync.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::nodes::NodeLocation;
use super::upper;
use super::{OverlayFs, ROOT, Result, SetAttr, SetTime};
use crate::attr::FileAttributes;

impl OverlayFs {
    /// Changes attributes, and the size of a regular file. Returns the new attributes.
    pub fn set_attr(&self, inode: u64, change: &SetAttr) -> Result<FileAttributes> {
        self.upper()?;
        let kind = self.nodes().get(inode)?.kind;
        match (change.size, kind) {
            (None, _) | (_, FileType::RegularFile) => {}
            (_, FileType::Directory) => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        if change.mode.is_some() && kind == FileType::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        self.copy_up(inode, change.size)?;
        let _reading = self.reading_names();
        let node = self.nodes().get(inode)?.clone();
        let (directory, name) = self.locate(inode, &node)?;
        if let Some(size) = change.size {
            rustix::fs::ftruncate(upper::open_at(&directory, &name, OFlags::WRONLY)?, size)?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
            rustix::fs::chownat(&directory, &*name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if let Some(mode) = change.mode {
            rustix::fs::chmodat(&directory, &*name, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())?;
        }
        if change.accessed.is_some() || change.modified.is_some() {
            let times = Timestamps {
                last_access: timespec(change.accessed),
                last_modification: timespec(change.modified),
            };
            rustix::fs::utimensat(&directory, &*name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        self.version.fetch_add(1, Ordering::Release);
        self.attr_of(inode)
    }

    /// Makes content, attributes and all names of a file durable.
    pub fn sync(&self, inode: u64, data_only: bool) -> Result<()> {
        let Some(upper) = &self.upper else { return Ok(()) };
        let mut directories: Vec<OwnedFd> = Vec::new();
        let file = {
            let _reading = self.reading_names();
            let node = self.nodes().get(inode)?.clone();
            if node.location == NodeLocation::Lower {
                return Ok(());
            }
            let file = match node.kind {
                FileType::RegularFile | FileType::Directory => {
                    let (directory, name) = self.locate(inode, &node)?;
                    Some(upper::open_at(&directory, &name, OFlags::RDONLY)?)
                }
                _ => None,
            };
            if matches!(node.location, NodeLocation::Linked(_)) {
                directories.push(upper::open_at(
                    upper.links_directory(),
                    b".",
                    OFlags::RDONLY | OFlags::DIRECTORY,
                )?);
            }
            // The names are in directories of the upper tree, each of which may be as new as the file.
            if node.orphan.is_none() && inode != ROOT {
                for (parent, _) in &node.names {
                    let path = match self.nodes().path(*parent) {
                        Ok(path) => path,
                        Err(_) => continue,
                    };
                    let mut path = &path[..];
                    loop {
                        match upper.open_tree_directory(path) {
                            Ok(directory) => directories.push(directory),
                            // A file in `links/` may be visible by a name that only the lower tree has.
                            Err(Errno::NOENT) => {}
                            Err(errno) => return Err(errno),
                        }
                        match path.iter().rposition(|&byte| byte == b'/') {
                            Some(slash) => path = &path[..slash],
                            None if path.is_empty() => break,
                            None => path = b"",
                        }
                    }
                }
            }
            file
        };
        if let Some(file) = file {
            if data_only { rustix::fs::fdatasync(&file)? } else { rustix::fs::fsync(&file)? }
        }
        directories.iter().try_for_each(rustix::fs::fsync)
    }

    /// Returns the statistics of the file system that receives changes; `None` without an upper directory.
    pub(crate) fn stat_fs(&self) -> Result<Option<rustix::fs::StatVfs>> {
        self.upper.as_ref().map(upper::UpperLayer::stat_fs).transpose()
    }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::At(time)) => upper::timespec(time),
    }
}
