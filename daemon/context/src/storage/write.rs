//! Atomic writes: a reader sees the old content or the complete new content.
//!
//! Content is written to an unnamed file (`O_TMPFILE`), which disappears if the daemon is killed.
//! [`StorageWriter::finish`] syncs the file and links it under its name; an existing name is replaced with a
//! hidden name and a rename. On file systems without `O_TMPFILE` the file has the hidden name from the start.

use std::ffi::{CString, OsStr};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hearth_overlay::attr;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{StorageEntry, StorageError, StorageRoot, normalized};

const UNFINISHED_PREFIX: &[u8] = b".hearth-unfinished-";
const UNFINISHED_DIGITS: usize = 16;

/// Reports whether a name is reserved for a write in progress; listings and contexts omit such names.
pub(crate) fn is_unfinished(name: &[u8]) -> bool {
    name.strip_prefix(UNFINISHED_PREFIX)
        .is_some_and(|rest| rest.len() == UNFINISHED_DIGITS && rest.iter().all(u8::is_ascii_hexdigit))
}

pub(super) fn unfinished_name() -> String {
    format!("{}{:016x}", String::from_utf8_lossy(UNFINISHED_PREFIX), rand::random::<u64>())
}

#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// Permission bits. Other bits are ignored, so that nobody can create a setuid file of the daemon's user.
    pub mode: u32,
    /// Expected size of the content in bytes, if known.
    pub size: Option<u64>,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self { mode: 0o644, size: None }
    }
}

/// A file being written. Dropping it before [`finish`](Self::finish) discards the content.
pub struct StorageWriter {
    path: PathBuf,
    directory: OwnedFd,
    name: CString,
    file: std::fs::File,
    /// Hidden name of the file; `None` while it is unnamed.
    hidden: Option<String>,
    written: u64,
    size: Option<u64>,
}

impl StorageRoot {
    /// Starts to write a file and creates missing parent directories. A symbolic link at `path` is replaced,
    /// not followed; links in the parent directories are followed inside the storage.
    pub fn write(&self, path: &Path, options: WriteOptions) -> Result<StorageWriter, StorageError> {
        let path = normalized(path)?;
        let fail = |errno| StorageError::at(&path, errno);
        let Some(name) = path.file_name() else {
            return Err(StorageError::IsTheRoot { path });
        };
        if is_unfinished(name.as_bytes()) {
            return Err(StorageError::BadPath { path });
        }
        let name = c_string(name).map_err(fail)?;
        let directory = self.make_directories(path.parent().unwrap_or(Path::new("")))?;
        refuse_directory(&directory, &name, &path)?;
        let (file, hidden) = unnamed_file(&directory).map_err(fail)?;
        let writer = StorageWriter {
            path,
            directory,
            name,
            file: file.into(),
            hidden,
            written: 0,
            size: options.size,
        };
        rustix::fs::fchmod(&writer.file, Mode::from_raw_mode(options.mode & 0o777))
            .map_err(|errno| StorageError::at(&writer.path, errno))?;
        Ok(writer)
    }

    pub(super) fn make_directories(&self, path: &Path) -> Result<OwnedFd, StorageError> {
        let missing = match self.open_directory(path) {
            Err(StorageError::NotFound { .. }) => path,
            other => return other,
        };
        let mut parent = self.open_directory(Path::new(""))?;
        let mut prefix = PathBuf::new();
        for name in missing {
            prefix.push(name);
            parent = match self.open_directory(&prefix) {
                Err(StorageError::NotFound { .. }) => {
                    let fail = |errno| StorageError::at(&prefix, errno);
                    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                        Ok(()) => rustix::fs::fsync(&parent).map_err(fail)?,
                        // Another writer created it first, or a dangling symbolic link has the name.
                        Err(Errno::EXIST) => {}
                        Err(errno) => return Err(fail(errno)),
                    }
                    self.open_directory(&prefix)?
                }
                other => other?,
            };
        }
        Ok(parent)
    }
}

pub(super) fn c_string(name: &OsStr) -> Result<CString, Errno> {
    CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)
}

pub(super) fn refuse_directory(directory: &OwnedFd, name: &CString, path: &Path) -> Result<(), StorageError> {
    match attr::stat_at(directory, name) {
        Ok(stat) if stat.attr.kind == FileType::Directory => {
            Err(StorageError::IsADirectory { path: path.to_owned() })
        }
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(StorageError::at(path, errno)),
    }
}

fn unnamed_file(directory: &OwnedFd) -> Result<(OwnedFd, Option<String>), Errno> {
    let mode = Mode::from_raw_mode(0o600);
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::openat(directory, ".", flags | OFlags::TMPFILE, mode) {
        Ok(file) => return Ok((file, None)),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        Err(errno) => return Err(errno),
    }
    let hidden = unfinished_name();
    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(directory, &hidden, flags, mode)?;
    Ok((file, Some(hidden)))
}

impl StorageWriter {
    /// Appends to the content. Fails as soon as the content exceeds the expected size.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        let actual = self.written.saturating_add(bytes.len() as u64);
        if let Some(expected) = self.size
            && actual > expected
        {
            return Err(StorageError::SizeMismatch { path: self.path.clone(), expected, actual });
        }
        self.file.write_all(bytes).map_err(|error| StorageError::io(&self.path, error))?;
        self.written = actual;
        Ok(())
    }

    /// Makes the complete file visible under its name; durable when this returns.
    pub fn finish(mut self) -> Result<StorageEntry, StorageError> {
        if let Some(expected) = self.size
            && self.written != expected
        {
            let actual = self.written;
            return Err(StorageError::SizeMismatch { path: self.path.clone(), expected, actual });
        }
        let path = self.path.clone();
        let fail = |errno| StorageError::at(&path, errno);
        rustix::fs::fsync(&self.file).map_err(fail)?;
        self.publish().map_err(fail)?;
        rustix::fs::fsync(&self.directory).map_err(fail)?;
        let stat = attr::stat(&self.file).map_err(fail)?;
        StorageEntry::new(self.path.clone(), &stat, || Ok(Box::default())).map_err(fail)
    }

    fn publish(&mut self) -> Result<(), Errno> {
        if self.hidden.is_none() {
            match self.link(&self.name) {
                Err(Errno::EXIST) => {}
                other => return other,
            }
            let hidden = unfinished_name();
            self.link(&CString::new(hidden.as_str()).map_err(|_| Errno::INVAL)?)?;
            self.hidden = Some(hidden);
        }
        if let Some(hidden) = &self.hidden {
            rustix::fs::renameat(&self.directory, hidden, &self.directory, &self.name)?;
            self.hidden = None;
        }
        Ok(())
    }

    /// Links the unnamed file under a free name.
    fn link(&self, name: &CString) -> Result<(), Errno> {
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        rustix::fs::linkat(CWD, own, &self.directory, name, AtFlags::SYMLINK_FOLLOW)
    }
}

impl Drop for StorageWriter {
    fn drop(&mut self) {
        if let Some(hidden) = &self.hidden
            && let Err(errno) = rustix::fs::unlinkat(&self.directory, hidden, AtFlags::empty())
        {
            tracing::warn!(path = %self.path.display(), error = %errno, "failed to remove an unfinished file");
        }
    }
}
