//! The lower tree of an overlay, as a trait.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use rustix::io::Errno;

use crate::attr::{FileAttributes, Xattr};
use crate::beneath::MAX_PATH;

/// A read-only tree of files. Paths are relative to its root, with `/` between the names; the empty path is the root.
///
/// Each answer reflects the tree at that moment: its files may change while the overlay is mounted. All methods block.
pub trait LowerTree: Send + Sync + 'static {
    /// Returns the stat of an entry, or `None` if there is none. A symbolic link is not followed.
    fn stat(&self, path: &[u8]) -> Result<Option<EntryStat>, Errno>;

    /// Returns the entries of a directory, sorted by their bytes; at most [`MAX_DIRECTORY_ENTRIES`].
    fn list_directory(&self, path: &[u8]) -> Result<BTreeMap<Box<[u8]>, EntryStat>, Errno>;

    /// Returns the target of a symbolic link.
    fn link_target(&self, path: &[u8]) -> Result<Box<[u8]>, Errno>;

    /// Opens a regular file.
    fn open_content(&self, path: &[u8]) -> Result<LowerFile, Errno>;

    /// Returns the value of an extended attribute, or ENODATA.
    fn xattr(&self, path: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno>;

    /// Returns the names of the extended attributes, each with a NUL after it.
    fn xattr_names(&self, path: &[u8]) -> Result<Vec<u8>, Errno>;

    /// Returns a name of a mount that lasts over restarts, unlike its number.
    fn mount_name(&self, mount: u32) -> String;

    /// Reports whether no file of the tree ever changes.
    fn is_immutable(&self) -> bool;
}

/// Attributes and identity of an entry.
#[derive(Clone, Debug)]
pub struct EntryStat {
    pub attr: FileAttributes,
    pub identity: FileIdentity,
}

/// Identity of a file in a lower tree: all names of a file with several hard links have the same identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FileIdentity {
    /// A directory that no mount contains, such as the parent of a mount target. Its path identifies it.
    Synthetic,
    /// File on disk; `mount` is the number of the mount within the tree.
    Disk {
        mount: u32,
        file_system: u64,
        inode: u64,
        /// Creation time in seconds since 1970 and nanoseconds, which distinguishes the file from an earlier one with
        /// the same inode number.
        birth: (i64, u32),
    },
    /// File of an archive.
    Image {
        mount: u32,
        node: u32,
        /// Group of hard links that the file belongs to.
        links: Option<u64>,
    },
}

/// Content of a regular file of a lower tree.
pub enum LowerFile {
    /// File on disk.
    Disk(File),
    /// File that another format contains.
    Archived(Box<dyn ReadAt>),
}

/// Content that is read at any offset.
pub trait ReadAt: Send + Sync {
    /// Reads at most `buffer.len()` bytes; 0 at the end of the content. Blocking.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

/// Maximum number of entries of one directory.
pub const MAX_DIRECTORY_ENTRIES: usize = 2_000_000;

/// Returns the path of a child, or ENAMETOOLONG if it is too long for a system call.
pub fn child_path(directory: &[u8], name: &[u8]) -> Result<Box<[u8]>, Errno> {
    let path = if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() };
    if path.len() > MAX_PATH { Err(Errno::NAMETOOLONG) } else { Ok(path.into()) }
}

/// Returns the extended attributes that a copy-up preserves.
pub fn user_xattrs(tree: &dyn LowerTree, path: &[u8]) -> Result<Vec<Xattr>, Errno> {
    let mut kept = Vec::new();
    for name in tree.xattr_names(path)?.split(|&byte| byte == 0).filter(|name| is_shown(name)) {
        match tree.xattr(path, name) {
            Ok(value) => kept.push((name.to_vec(), value)),
            // Removed since the names were listed.
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(kept)
}

/// Reports whether an extended attribute is shown, preserved and accepted: `user.*` and `security.capability`.
pub(crate) fn is_shown(name: &[u8]) -> bool {
    name.len() > 5 && name.starts_with(b"user.") || name == b"security.capability"
}
