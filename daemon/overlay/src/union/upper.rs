//! Format of the upper directory on disk.
//!
//! ```text
//! <directory>/tree/    changed files, at the paths where the overlay shows them
//!     character device 0:0                       whiteout: hides the lower entry with this name
//!     directory without `trusted.hearth.lower`   opaque: the lower directory of this name is hidden
//!     ... with the value `.`                     merged with the lower directory of the same name
//!     ... with a path                            renamed directory: merged with the lower directory at that path
//! <directory>/links/   changed files that have several names in the lower tree
//!     <key>       the content of all those names; further names in tree/ are hard links to it
//!     <key>.gone  its length in bytes is the number of removed lower names
//! <directory>/work/    entries under construction, and open files without a name; emptied at start
//! ```
//!
//! No file name is reserved, so users may use all of them: a whiteout is a device that users cannot create
//! ([`mknod`](super::OverlayFs::make_node) refuses devices), and the attribute is in a namespace that is
//! never shown.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::Result;
use crate::attr::read_xattr;
use crate::attr::{FileAttributes, FileTime, InodeStat, stat_at};
use crate::beneath;
use crate::lower::{LowerTree, user_xattrs};

/// Extended attribute of a merged directory.
const LOWER_XATTR: &str = "trusted.hearth.lower";
/// Extended attribute of a file in `links/`: the number of names that the lower tree had for it.
const NAMES_XATTR: &str = "trusted.hearth.names";

/// The upper directory of an overlay, which receives every change.
pub struct UpperLayer {
    directory: PathBuf,
    tree: OwnedFd,
    work: OwnedFd,
    links: OwnedFd,
    next_work_name: AtomicU64,
    linked: Mutex<HashMap<LinkKey, LinkedFile>>,
}

/// Identifies a lower file that has several names.
pub type LinkKey = Box<str>;

/// State of a lower file that has several names.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkedFile {
    /// Inode number of the copy in `links/`; `None` until the file is copied up.
    pub inode: Option<u64>,
    /// Number of names that the file had in the lower tree when it was copied up.
    pub lower_names: u32,
    /// Number of lower names that have been removed.
    pub removed_names: u32,
}

/// The lower directory with which an upper directory is merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MergeTarget {
    Opaque,
    /// The directory with the same name in the lower directory of the parent.
    Same,
    Other(Box<[u8]>),
}

impl UpperLayer {
    /// Opens an upper directory, or creates an empty one, and removes unfinished entries of an earlier run.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let create_subdirectory = |name: &str| {
            let path = directory.join(name);
            match DirBuilder::new().mode(0o700).recursive(true).create(&path) {
                Ok(()) => open_directory(&path),
                Err(error) => Err(error),
            }
        };
        let work = directory.join("work");
        match fs::remove_dir_all(&work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (work, links) = (create_subdirectory("work")?, create_subdirectory("links")?);
        let tree = match open_directory(&directory.join("tree")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // `prepare_root` copies the attributes of the lower root before it moves this directory to `tree`.
                DirBuilder::new().mode(0o700).create(directory.join("work/tree"))?;
                open_directory(&directory.join("work/tree"))?
            }
            other => other?,
        };
        let upper = Self {
            directory: directory.to_owned(),
            tree,
            work,
            links,
            next_work_name: AtomicU64::new(0),
            linked: Mutex::default(),
        };
        upper.read_links()?;
        Ok(upper)
    }

    fn read_links(&self) -> io::Result<()> {
        let mut linked = self.linked();
        for entry in fs::read_dir(self.directory.join("links"))? {
            let entry = entry?;
            let name = entry.file_name().into_string().map_err(|_| io::ErrorKind::InvalidData)?;
            match name.strip_suffix(".gone") {
                Some(key) => {
                    let removed_names = u32::try_from(entry.metadata()?.len()).unwrap_or(u32::MAX);
                    linked.entry(key.into()).or_default().removed_names = removed_names;
                }
                None => {
                    let names =
                        read_xattr(|buffer| rustix::fs::lgetxattr(entry.path(), NAMES_XATTR, buffer))?;
                    let names = String::from_utf8_lossy(&names).parse().unwrap_or(2);
                    let inode = stat(&self.links, name.as_bytes())?.map(|stat| stat.inode);
                    let entry = linked.entry(name.into()).or_default();
                    (entry.inode, entry.lower_names) = (inode, names);
                }
            }
        }
        Ok(())
    }

    /// Copies the attributes of the lower root to the root of a new upper directory, and moves it from `work/` to
    /// `tree`. Does nothing for an existing upper directory.
    pub(super) fn prepare_root(
        &self,
        lower: &dyn LowerTree,
        top: &[u8],
        attr: &FileAttributes,
    ) -> Result<()> {
        let published = self.directory.join("tree");
        if published.exists() {
            return Ok(());
        }
        self.set_attributes(&self.tree, attr, &user_xattrs(lower, top)?)?;
        set_merge_target(&self.tree, &MergeTarget::Same)?;
        self.set_times(&self.work, c"tree", attr)?;
        let parent = open_directory(&self.directory).map_err(|error| super::copy_up::errno(&error))?;
        rename(&self.work, b"tree", parent, b"tree", RenameFlags::NOREPLACE)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) const fn work_directory(&self) -> &OwnedFd {
        &self.work
    }

    pub(super) const fn links_directory(&self) -> &OwnedFd {
        &self.links
    }

    pub(super) fn linked(&self) -> MutexGuard<'_, HashMap<LinkKey, LinkedFile>> {
        self.linked.lock()
    }

    /// Returns an unused name in `work/`.
    pub(super) fn work_name(&self) -> Box<[u8]> {
        format!("{}", self.next_work_name.fetch_add(1, Ordering::Relaxed)).into_bytes().into()
    }

    /// Opens a handle (`O_PATH`) to a directory of the upper tree.
    pub(super) fn open_path(&self, path: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        beneath::open(&self.tree, path, flags, Mode::empty(), beneath::NO_LINKS)
    }

    /// Opens a directory of the upper tree, to list or sync it.
    pub(super) fn open_tree_directory(&self, path: &[u8]) -> Result<OwnedFd> {
        beneath::open_directory(&self.tree, path)
    }

    /// Creates an entry in `work/` with `make`, and removes it again if that fails.
    pub(super) fn make_in_work<T>(
        &self,
        make: impl FnOnce(&OwnedFd, &[u8]) -> Result<T>,
    ) -> Result<(Box<[u8]>, T)> {
        let name = self.work_name();
        match make(&self.work, &name) {
            Ok(made) => Ok((name, made)),
            Err(errno) => {
                self.remove_work(&name);
                Err(errno)
            }
        }
    }

    /// Removes an entry of `work/` with everything below it. If that fails, the next start of the overlay removes
    /// the entry.
    pub(super) fn remove_work(&self, name: &[u8]) {
        let Ok(text) = std::str::from_utf8(name) else { return };
        let path = self.directory.join("work").join(text);
        let removed = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(
                    %error,
                    path = %path.display(),
                    "failed to remove an entry of work/; the next start removes it",
                );
            }
            _ => {}
        }
    }

    /// Creates a whiteout in `work/`.
    pub(super) fn make_work_whiteout(&self) -> Result<Box<[u8]>> {
        self.make_in_work(|work, name| make_whiteout(work, name)).map(|(name, ())| name)
    }

    /// Sets owner, extended attributes and mode of an open file or directory, in this order: a change of the owner
    /// clears file capabilities and set-user-ID bits.
    pub(super) fn set_attributes(
        &self,
        fd: impl AsFd,
        attr: &FileAttributes,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<()> {
        rustix::fs::fchown(&fd, Some(Uid::from_raw(attr.uid)), Some(Gid::from_raw(attr.gid)))?;
        for (name, value) in xattrs {
            rustix::fs::fsetxattr(&fd, name.as_slice(), value, XattrFlags::empty())?;
        }
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(attr.mode))
    }

    pub(super) fn set_times(
        &self,
        directory: impl AsFd,
        name: &std::ffi::CStr,
        attr: &FileAttributes,
    ) -> Result<()> {
        let times =
            Timestamps { last_access: timespec(attr.accessed), last_modification: timespec(attr.modified) };
        rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Increments the number of removed lower names of a file that has several names in the lower tree.
    pub(super) fn count_removed_name(&self, key: &LinkKey) -> Result<()> {
        let mut linked = self.linked();
        let entry = linked.entry(key.clone()).or_default();
        let name = format!("{key}.gone");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.links, name, flags, Mode::from_raw_mode(0o600))?;
        rustix::fs::ftruncate(&file, u64::from(entry.removed_names) + 1)?;
        entry.removed_names += 1;
        Ok(())
    }

    /// Stores the number of lower names of a file as an extended attribute of its copy `name` in `work/`.
    pub(super) fn record_name_count(&self, name: &[u8], names: u32) -> Result<()> {
        let path = [format!("/proc/self/fd/{}/", self.work.as_raw_fd()).as_bytes(), name].concat();
        rustix::fs::lsetxattr(path, NAMES_XATTR, names.to_string().as_bytes(), XattrFlags::empty())
    }

    /// Returns the key and state of the file in `links/` with this inode number.
    pub(super) fn key_of(&self, inode: u64) -> Option<(LinkKey, LinkedFile)> {
        let linked = self.linked();
        let entry = linked.iter().find(|(_, linked)| linked.inode == Some(inode))?;
        Some((entry.0.clone(), *entry.1))
    }

    pub(super) fn stat_fs(&self) -> Result<rustix::fs::StatVfs> {
        rustix::fs::fstatvfs(&self.tree)
    }
}

pub(super) fn make_whiteout(directory: impl AsFd, name: &[u8]) -> Result<()> {
    rustix::fs::mknodat(directory, name, FileType::CharacterDevice, Mode::empty(), 0)
}

pub(super) fn is_whiteout(stat: &InodeStat) -> bool {
    stat.attr.kind == FileType::CharacterDevice && stat.attr.device == (0, 0)
}

pub(super) fn rename(
    from: impl AsFd,
    old: &[u8],
    to: impl AsFd,
    new: &[u8],
    flags: RenameFlags,
) -> Result<()> {
    rustix::fs::renameat_with(from, old, to, new, flags)
}

pub(super) fn unlink(directory: impl AsFd, name: &[u8]) -> Result<()> {
    rustix::fs::unlinkat(directory, name, AtFlags::empty())
}

/// Returns the upper entry with a name, including whiteouts.
pub(super) fn stat(directory: impl AsFd, name: &[u8]) -> Result<Option<InodeStat>> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    match stat_at(directory, &name) {
        Err(Errno::NOENT) => Ok(None),
        other => other.map(Some),
    }
}

pub(super) fn open_at(directory: impl AsFd, name: &[u8], flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::openat(directory, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

pub(super) fn set_merge_target(directory: impl AsFd, merge: &MergeTarget) -> Result<()> {
    match merge {
        MergeTarget::Opaque => match rustix::fs::fremovexattr(directory, LOWER_XATTR) {
            Err(Errno::NODATA) => Ok(()),
            other => other,
        },
        MergeTarget::Same => rustix::fs::fsetxattr(directory, LOWER_XATTR, b".", XattrFlags::empty()),
        MergeTarget::Other(path) => {
            rustix::fs::fsetxattr(directory, LOWER_XATTR, &[b"/", &path[..]].concat(), XattrFlags::empty())
        }
    }
}

/// Returns the merge target of the directory `name`.
pub(super) fn merge_target(directory: &OwnedFd, name: &[u8]) -> Result<MergeTarget> {
    let handle = open_at(directory, name, OFlags::PATH | OFlags::DIRECTORY)?;
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    match read_xattr(|buffer| rustix::fs::getxattr(path.as_str(), LOWER_XATTR, buffer)) {
        Err(Errno::NODATA) => Ok(MergeTarget::Opaque),
        Err(errno) => Err(errno),
        Ok(value) if value == b"." => Ok(MergeTarget::Same),
        Ok(value) => match value.strip_prefix(b"/") {
            Some(path) => Ok(MergeTarget::Other(path.into())),
            None => Err(Errno::IO),
        },
    }
}

pub(super) fn timespec(time: FileTime) -> Timespec {
    Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanos) }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
