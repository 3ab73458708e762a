use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::descend::open_dir;

/// Opens the entries of a tree, component by component and never through a link. Paths may be
/// longer than the system's limit. Quick when asked in the order of the list: the directories on
/// the way stay open.
#[derive(Debug)]
pub struct Opener<'a> {
    root: &'a OwnedFd,
    above: Vec<(Vec<u8>, OwnedFd)>,
}

impl<'a> Opener<'a> {
    pub(super) fn new(root: &'a OwnedFd) -> Self {
        Self { root, above: Vec::new() }
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

    fn parent<'p>(&mut self, path: &'p [u8]) -> std::io::Result<(BorrowedFd<'_>, &'p [u8])> {
        match path.iter().rposition(|&byte| byte == b'/') {
            Some(at) => Ok((self.enter(path[..at].split(|&byte| byte == b'/'))?, &path[at + 1..])),
            None => Ok((self.root.as_fd(), path)),
        }
    }

    fn enter<'p>(&mut self, names: impl Iterator<Item = &'p [u8]>) -> std::io::Result<BorrowedFd<'_>> {
        let mut depth = 0;
        for name in names {
            if self.above.get(depth).is_some_and(|(open, _)| open == name) {
                depth += 1;
                continue;
            }
            self.above.truncate(depth);
            let above = self.above.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd());
            let fd = open_dir(above, name)?;
            self.above.push((name.to_owned(), fd));
            depth += 1;
        }
        self.above.truncate(depth);
        Ok(self.above.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd()))
    }
}
