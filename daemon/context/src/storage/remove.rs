use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hearth_overlay::{attr, beneath};
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use super::{StorageError, StorageRoot, normalized, os_path};

impl StorageRoot {
    /// Removes a file or a symbolic link, or with `recursive` a directory and everything below it.
    ///
    /// A symbolic link at `path` or below it is removed itself. The storage's root cannot be removed.
    pub fn remove(&self, path: &Path, recursive: bool) -> Result<(), StorageError> {
        let path = normalized(path)?;
        let fail = |errno| StorageError::at(&path, errno);
        let Some(name) = path.file_name() else {
            return Err(StorageError::IsTheRoot { path });
        };
        let parent = self.open_directory(path.parent().unwrap_or(Path::new("")))?;
        let name = CString::new(name.as_bytes()).map_err(|_| StorageError::at(&path, Errno::INVAL))?;
        let stat = attr::stat_at(&parent, &name).map_err(fail)?;
        if stat.attr.kind == FileType::Directory {
            if !recursive {
                return Err(StorageError::IsADirectory { path });
            }
            remove_below(&parent, name.to_bytes(), path.parent().unwrap_or(Path::new("")))?;
            unlink(&parent, &name, AtFlags::REMOVEDIR).map_err(fail)?;
        } else {
            unlink(&parent, &name, AtFlags::empty()).map_err(fail)?;
        }
        rustix::fs::fsync(&parent).map_err(fail)
    }
}

/// Empties the directory `name` of `parent`. Uses a list of directories instead of recursion, so that depth
/// costs neither stack nor file descriptors.
fn remove_below(parent: &OwnedFd, name: &[u8], directory_path: &Path) -> Result<(), StorageError> {
    let mut waiting: Vec<(PathBuf, bool)> = vec![(os_path(name).to_owned(), false)];
    while let Some((path, emptied)) = waiting.pop() {
        let fail = |errno| StorageError::at(&directory_path.join(&path), errno);
        if emptied {
            let (parent_directory, last) = (path.parent().unwrap_or(Path::new("")), path.file_name());
            let parent_directory =
                beneath::open_directory(parent, parent_directory.as_os_str().as_bytes()).map_err(fail)?;
            unlink(&parent_directory, last.unwrap_or(OsStr::new("")), AtFlags::REMOVEDIR).map_err(fail)?;
            continue;
        }
        let directory = match beneath::open_directory(parent, path.as_os_str().as_bytes()) {
            Err(Errno::NOENT) => continue,
            // The directory was replaced by something else, which the caller's own removal then refuses.
            Err(Errno::LOOP | Errno::NOTDIR) => {
                return Err(StorageError::Changed { path: directory_path.join(&path) });
            }
            other => other.map_err(fail)?,
        };
        if path.as_os_str().as_bytes() != name {
            waiting.push((path.clone(), true));
        }
        let mut names: Vec<CString> = Vec::new();
        beneath::for_each_name(&directory, |name| {
            names.push(name.to_owned());
            true
        })
        .map_err(fail)?;
        for name in names {
            match unlink(&directory, &*name, AtFlags::empty()) {
                Err(Errno::ISDIR) => waiting.push((path.join(os_path(name.to_bytes())), false)),
                other => other.map_err(fail)?,
            }
        }
    }
    Ok(())
}

/// Unlinks a name. A name that is already gone counts as removed.
fn unlink(directory: &OwnedFd, name: impl rustix::path::Arg, flags: AtFlags) -> Result<(), Errno> {
    match rustix::fs::unlinkat(directory, name, flags) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}
