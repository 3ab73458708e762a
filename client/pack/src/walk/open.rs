//! Opens entries of a tree relative to its root.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::directory::open_dir;
use super::xattr::{self, EntryXattrs};

/// Opener for entries of a tree, which resolves paths component by component and never follows a link. Paths may be
/// longer than the system's limit. The parent directories of the last entry stay open, so opening entries in the order
/// of the tree is fastest.
#[derive(Debug)]
pub struct TreeOpener<'a> {
    root: &'a OwnedFd,
    /// Names and handles of the open directories on the path to the last entry.
    open: Vec<(Vec<u8>, OwnedFd)>,
}

impl<'a> TreeOpener<'a> {
    pub(super) fn new(root: &'a OwnedFd) -> Self {
        Self { root, open: Vec::new() }
    }

    /// Opens a regular file for reading.
    pub fn file(&mut self, path: &[u8]) -> std::io::Result<File> {
        // NONBLOCK: the file may have become a fifo since it was listed.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let (dir, name) = self.parent(path)?;
        Ok(File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?))
    }

    /// Opens a directory.
    pub fn dir(&mut self, path: &[u8]) -> std::io::Result<BorrowedFd<'_>> {
        self.enter(path.split(|&byte| byte == b'/'))
    }

    /// Returns the attributes of an entry without opening it, or `None` if the system does not allow that.
    pub(super) fn xattrs(&mut self, path: &[u8]) -> Option<rustix::io::Result<EntryXattrs>> {
        let (dir, name) = self.parent(path).ok()?;
        let mut proc_path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
        proc_path.extend_from_slice(name);
        match xattr::at(Path::new(OsStr::from_bytes(&proc_path))) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::PERM) => None,
            found => Some(found),
        }
    }

    fn parent<'p>(&mut self, path: &'p [u8]) -> std::io::Result<(BorrowedFd<'_>, &'p [u8])> {
        match path.iter().rposition(|&byte| byte == b'/') {
            Some(at) => Ok((self.enter(path[..at].split(|&byte| byte == b'/'))?, &path[at + 1..])),
            None => Ok((self.root.as_fd(), path)),
        }
    }

    fn enter<'p>(&mut self, names: impl Iterator<Item = &'p [u8]>) -> std::io::Result<BorrowedFd<'_>> {
        let mut depth = 0;
        for name in names {
            if self.open.get(depth).is_some_and(|(component, _)| component == name) {
                depth += 1;
                continue;
            }
            self.open.truncate(depth);
            let parent = self.open.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd());
            let fd = open_dir(parent, name)?;
            self.open.push((name.to_owned(), fd));
            depth += 1;
        }
        self.open.truncate(depth);
        Ok(self.open.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd()))
    }
}
