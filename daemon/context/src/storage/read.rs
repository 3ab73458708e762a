use std::fs::File;
use std::path::Path;

use hearth_overlay::{attr, beneath};
use rustix::fs::FileType;

use super::{StorageEntry, StorageError, StorageRoot, normalized};

impl StorageRoot {
    /// Opens a regular file at its start. Symbolic links are followed inside the storage. A FIFO, socket or
    /// device is never opened.
    pub fn read(&self, path: &Path) -> Result<(StorageEntry, File), StorageError> {
        let path = normalized(path)?;
        let fail = |errno| StorageError::at(&path, errno);
        let (handle, stat) = self.open_path(&path)?;
        match stat.attr.kind {
            FileType::RegularFile => {}
            FileType::Directory => return Err(StorageError::IsADirectory { path }),
            _ => return Err(StorageError::NotAFile { path }),
        }
        let file = beneath::reopen(&handle).map_err(fail)?;
        let stat = StorageEntry::new(path.clone(), &stat, || Ok(Box::default())).map_err(fail)?;
        Ok((stat, file))
    }

    /// Returns the stat of a path. A symbolic link at its end is not followed.
    pub fn stat(&self, path: &Path) -> Result<StorageEntry, StorageError> {
        let path = normalized(path)?;
        let fail = |errno| StorageError::at(&path, errno);
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW;
        let handle = self.open_inside(&path, flags, rustix::fs::Mode::empty())?;
        let stat = attr::stat(&handle).map_err(fail)?;
        StorageEntry::new(path.clone(), &stat, || beneath::link_target(&handle, c"")).map_err(fail)
    }
}
