use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hearth_overlay::{attr, beneath};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::write::is_unfinished;
use super::{StorageEntry, StorageError, StorageRoot, normalized, os_path};

/// Iterator over the entries of a directory, depth first, names sorted by their bytes. Directories are read
/// on demand.
///
/// Symbolic links below the directory are listed and not followed. Entries that vanish during the listing are
/// omitted.
pub struct StorageListing {
    anchor: OwnedFd,
    /// Path of the anchor from the root; prefix of all returned paths.
    prefix: PathBuf,
    recursive: bool,
    /// Directories from the anchor down to the current one, each with its remaining names in reverse order.
    levels: Vec<ListingLevel>,
    /// The only entry, when the path is a file.
    single: Option<StorageEntry>,
}

struct ListingLevel {
    /// Path from the anchor.
    path: PathBuf,
    /// Open only while this is the deepest level, so that depth costs memory and not file descriptors.
    directory: Option<OwnedFd>,
    names: Vec<CString>,
}

impl StorageRoot {
    /// Lists what is below a directory, or the one file at `path`. Symbolic links in `path` itself are
    /// followed inside the storage.
    pub fn list(&self, path: &Path, recursive: bool) -> Result<StorageListing, StorageError> {
        let path = normalized(path)?;
        let fail = |errno| StorageError::at(&path, errno);
        let (anchor, stat) = self.open_path(&path)?;
        let mut listing =
            StorageListing { anchor, prefix: path.clone(), recursive, levels: Vec::new(), single: None };
        if stat.attr.kind == FileType::Directory {
            listing.enter(PathBuf::new()).map_err(fail)?;
        } else {
            listing.single =
                Some(StorageEntry::new(path.clone(), &stat, || Ok(Box::default())).map_err(fail)?);
        }
        Ok(listing)
    }

    pub(super) fn open_directory(&self, path: &Path) -> Result<OwnedFd, StorageError> {
        self.open_inside(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
    }
}

impl StorageListing {
    fn enter(&mut self, path: PathBuf) -> Result<(), Errno> {
        let directory = beneath::open_directory(&self.anchor, path.as_os_str().as_bytes())?;
        let mut names: Vec<CString> = Vec::new();
        beneath::for_each_name(&directory, |name| {
            if !is_unfinished(name.to_bytes()) {
                names.push(name.to_owned());
            }
            true
        })?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        if let Some(parent) = self.levels.last_mut() {
            parent.directory = None;
        }
        self.levels.push(ListingLevel { path, directory: Some(directory), names });
        Ok(())
    }

    fn describe(&mut self, name: &CStr) -> Result<StorageEntry, Errno> {
        let Some(level) = self.levels.last_mut() else { return Err(Errno::NOENT) };
        let directory = match level.directory.take() {
            Some(directory) => directory,
            None => beneath::open_directory(&self.anchor, level.path.as_os_str().as_bytes())?,
        };
        let directory = level.directory.insert(directory);
        let stat = attr::stat_at(&*directory, name)?;
        let path = self.prefix.join(&level.path).join(os_path(name.to_bytes()));
        StorageEntry::new(path, &stat, || beneath::link_target(&*directory, name))
    }
}

impl Iterator for StorageListing {
    type Item = Result<StorageEntry, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(single) = self.single.take() {
            return Some(Ok(single));
        }
        loop {
            let level = self.levels.last_mut()?;
            let Some(name) = level.names.pop() else {
                self.levels.pop();
                continue;
            };
            let below = level.path.join(os_path(name.to_bytes()));
            let stat = match self.describe(&name) {
                Ok(stat) => stat,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => return Some(Err(StorageError::at(&self.prefix.join(below), errno))),
            };
            if self.recursive && stat.kind == super::FileKind::Directory {
                match self.enter(below) {
                    Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(errno) => return Some(Err(StorageError::at(&stat.path, errno))),
                }
            }
            return Some(Ok(stat));
        }
    }
}
