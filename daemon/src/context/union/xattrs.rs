//! Extended attributes: `user.*` and `security.capability`; no others are shown, preserved or accepted.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::nodes::Place;
use super::{Result, Union};
use crate::context::tree::read_xattr;

pub(super) fn is_shown(name: &[u8]) -> bool {
    name.len() > 5 && name.starts_with(b"user.") || name == b"security.capability"
}

impl Union {
    pub fn xattr(&self, inode: u64, name: &[u8]) -> Result<Vec<u8>> {
        if !is_shown(name) {
            return Err(if name.starts_with(b"security.") { Errno::NODATA } else { Errno::OPNOTSUPP });
        }
        let _reading = self.reading_names();
        let node = self.nodes().get(inode)?.clone();
        match node.place {
            Place::Lower => self.lower.xattr(node.lower.as_deref().ok_or(Errno::NOENT)?, name),
            Place::Upper | Place::Linked(_) => {
                let place = self.locate(inode, &node)?;
                read_xattr(|buffer| rustix::fs::lgetxattr(path(&place), name, buffer))
            }
        }
    }

    /// Returns the names, each followed by a NUL.
    pub fn xattr_names(&self, inode: u64) -> Result<Vec<u8>> {
        let _reading = self.reading_names();
        let node = self.nodes().get(inode)?.clone();
        let names = match node.place {
            Place::Lower => self.lower.xattrs(node.lower.as_deref().ok_or(Errno::NOENT)?)?,
            Place::Upper | Place::Linked(_) => {
                let place = self.locate(inode, &node)?;
                read_xattr(|buffer| rustix::fs::llistxattr(path(&place), buffer))?
            }
        };
        let shown = names.split_inclusive(|&byte| byte == 0);
        Ok(shown
            .filter(|name| is_shown(name.strip_suffix(b"\0").unwrap_or(name)))
            .flatten()
            .copied()
            .collect())
    }

    pub fn set_xattr(&self, inode: u64, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        self.with_attributes(inode, name, |path| rustix::fs::lsetxattr(path, name, value, flags))
    }

    pub fn remove_xattr(&self, inode: u64, name: &[u8]) -> Result<()> {
        self.with_attributes(inode, name, |path| rustix::fs::lremovexattr(path, name))
    }

    fn with_attributes(
        &self,
        inode: u64,
        name: &[u8],
        change: impl FnOnce(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.upper()?;
        if !is_shown(name) {
            return Err(Errno::OPNOTSUPP);
        }
        self.lift(inode, None)?;
        let _reading = self.reading_names();
        let node = self.nodes().get(inode)?.clone();
        let place = self.locate(inode, &node)?;
        let changed = change(&path(&place));
        self.version.fetch_add(1, Ordering::Release);
        changed
    }
}

/// Returns a path for the system calls, none of which take a directory and a name. Valid while the directory
/// in `place` is open.
fn path((directory, name): &(OwnedFd, Box<[u8]>)) -> Vec<u8> {
    [format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(), name].concat()
}
