//! Symbolic links that a client makes: relative, and only to paths of the same storage.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hearth_overlay::attr;
use hearth_pack::link::link_destination;
use rustix::fs::AtFlags;

use super::write::{c_string, is_unfinished, refuse_directory, unfinished_name};
use super::{StorageEntry, StorageError, StorageRoot, normalized};

impl StorageRoot {
    /// Returns the path to which a link at `path` leads, without regard to other links. A target that is absolute, empty
    /// or leads out of the storage is an error.
    pub fn link_destination(path: &Path, target: &Path) -> Result<PathBuf, StorageError> {
        let path = normalized(path)?;
        if target.as_os_str().is_empty() || target.as_os_str().as_bytes().contains(&0) {
            return Err(StorageError::BadPath { path: target.to_owned() });
        }
        let escapes = || StorageError::Escapes { path: target.to_owned() };
        link_destination(&path, target).ok_or_else(escapes)
    }

    /// Makes a symbolic link and its missing parent directories. A file or link with that name is replaced.
    pub fn make_link(&self, path: &Path, target: &Path) -> Result<StorageEntry, StorageError> {
        Self::link_destination(path, target)?;
        let path = normalized(path)?;
        let fail = |errno| StorageError::at(&path, errno);
        let Some(name) = path.file_name() else { return Err(StorageError::IsTheRoot { path }) };
        if is_unfinished(name.as_bytes()) {
            return Err(StorageError::BadPath { path });
        }
        let name = c_string(name).map_err(fail)?;
        let directory = self.make_directories(path.parent().unwrap_or(Path::new("")))?;
        refuse_directory(&directory, &name, &path)?;
        let hidden = unfinished_name();
        rustix::fs::symlinkat(target, &directory, &hidden).map_err(fail)?;
        if let Err(errno) = rustix::fs::renameat(&directory, &hidden, &directory, &name) {
            if let Err(error) = rustix::fs::unlinkat(&directory, &hidden, AtFlags::empty()) {
                tracing::warn!(path = %path.display(), %error, "failed to remove an unfinished link");
            }
            return Err(fail(errno));
        }
        rustix::fs::fsync(&directory).map_err(fail)?;
        let stat = attr::stat_at(&directory, &name).map_err(fail)?;
        StorageEntry::new(path.clone(), &stat, || Ok(target.as_os_str().as_bytes().into())).map_err(fail)
    }
}
