//! Extended attributes. Only `user.*` and `security.capability` can be read and set; all others are hidden, are not
//! copied up, and are refused.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::nodes::NodeLocation;
use super::{OverlayFs, Result};
use crate::attr::read_xattr;
use crate::lower::is_shown;

impl OverlayFs {
    pub fn xattr(&self, inode: u64, name: &[u8]) -> Result<Vec<u8>> {
        if !is_shown(name) {
            return Err(if name.starts_with(b"security.") { Errno::NODATA } else { Errno::OPNOTSUPP });
        }
        let _reading = self.reading_names();
        let node = self.nodes().get(inode)?.clone();
        match node.location {
            NodeLocation::Lower => self.lower.xattr(node.lower.as_deref().ok_or(Errno::NOENT)?, name),
            NodeLocation::Upper | NodeLocation::Linked(_) => {
                let location = self.locate(inode, &node)?;
                read_xattr(|buffer| rustix::fs::lgetxattr(path(&location), name, buffer))
            }
        }
    }

    /// Returns the attribute names, each terminated by a NUL byte.
    pub fn xattr_names(&self, inode: u64) -> Result<Vec<u8>> {
        let _reading = self.reading_names();
        let node = self.nodes().get(inode)?.clone();
        let names = match node.location {
            NodeLocation::Lower => self.lower.xattr_names(node.lower.as_deref().ok_or(Errno::NOENT)?)?,
            NodeLocation::Upper | NodeLocation::Linked(_) => {
                let location = self.locate(inode, &node)?;
                read_xattr(|buffer| rustix::fs::llistxattr(path(&location), buffer))?
            }
        };
        let visible = names.split_inclusive(|&byte| byte == 0);
        Ok(visible
            .filter(|name| is_shown(name.strip_suffix(b"\0").unwrap_or(name)))
            .flatten()
            .copied()
            .collect())
    }

    pub fn set_xattr(&self, inode: u64, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        self.change_xattrs(inode, name, |path| rustix::fs::lsetxattr(path, name, value, flags))
    }

    pub fn remove_xattr(&self, inode: u64, name: &[u8]) -> Result<()> {
        self.change_xattrs(inode, name, |path| rustix::fs::lremovexattr(path, name))
    }

    fn change_xattrs(&self, inode: u64, name: &[u8], change: impl FnOnce(&[u8]) -> Result<()>) -> Result<()> {
        self.upper()?;
        if !is_shown(name) {
            return Err(Errno::OPNOTSUPP);
        }
        self.copy_up(inode, None)?;
        let _reading = self.reading_names();
        let node = self.nodes().get(inode)?.clone();
        let location = self.locate(inode, &node)?;
        let changed = change(&path(&location));
        self.version.fetch_add(1, Ordering::Release);
        changed
    }
}

/// Returns a path to a name in an open directory, for the extended attribute system calls, which have no variant
/// with a directory handle. The path is valid while the handle is open.
fn path((directory, name): &(OwnedFd, Box<[u8]>)) -> Vec<u8> {
    [format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(), name].concat()
}
