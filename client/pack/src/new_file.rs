//! A file that has no name until it is complete, so that an interrupted writer leaves no partial file. On file
//! systems without unnamed files it has a hidden name, which is locked while its writer lives; a hidden file of a
//! dead writer is removed by the next writer in that directory.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Seek as _};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

const PREFIX: &str = ".hearth-new-";

/// A file that is being written and gets its name when it is complete.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    dir: PathBuf,
    /// Hidden name, on file systems that need one.
    hidden: Mutex<Option<PathBuf>>,
}

/// An additional name of a file, removed on drop.
pub(crate) type TemporaryLink = tempfile::TempPath;

impl NewFile {
    /// Creates a file for reading and writing in `dir` with `mode`, reduced by the umask.
    pub(crate) fn create(dir: &Path, mode: u32) -> io::Result<Self> {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        remove_abandoned_files(dir);
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        match rustix::fs::open(dir, flags, Mode::from_raw_mode(mode)) {
            Ok(fd) => Ok(Self { file: File::from(fd), dir: dir.to_owned(), hidden: Mutex::new(None) }),
            // These are the errors of file systems and kernels without unnamed files.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => Self::hidden(dir, mode),
            Err(errno) => Err(errno.into()),
        }
    }

    fn hidden(dir: &Path, mode: u32) -> io::Result<Self> {
        // The error about a missing directory must not name the hidden file.
        fs::metadata(dir)?;
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        let named = tempfile::Builder::new().prefix(PREFIX).permissions(permissions).tempfile_in(dir)?;
        let (file, path) = named.keep().map_err(|error| error.error)?;
        let new = Self { file, dir: dir.to_owned(), hidden: Mutex::new(Some(path)) };
        rustix::fs::flock(&new.file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(new)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Gives the file its name and replaces an existing file. If a device, a pipe or a socket has that name, the
    /// content is written to it.
    pub(crate) fn persist(&self, path: &Path) -> io::Result<()> {
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
            let mut content = self.file.try_clone()?;
            content.rewind()?;
            return io::copy(&mut content, &mut File::options().write(true).open(path)?).map(drop);
        }
        let hidden = match self.hidden.lock().take() {
            Some(hidden) => hidden,
            None => match self.link(path) {
                // A link never replaces a file, but renaming a second name does.
                Err(Errno::EXIST) => self.temporary_link(&self.dir)?.keep().map_err(|error| error.error)?,
                linked => return Ok(linked?),
            },
        };
        fs::rename(&hidden, path).inspect_err(|_| *self.hidden.lock() = Some(hidden.clone()))
    }

    /// Gives the file an additional name and replaces an existing file. The file keeps its other names.
    pub(crate) fn add_name(&self, path: &Path) -> io::Result<()> {
        match self.link(path) {
            Err(Errno::EXIST) => {
                self.temporary_link(parent(path))?.persist(path).map_err(|error| error.error)
            }
            linked => Ok(linked?),
        }
    }

    /// Creates a hidden name in `dir`. An unnamed file that has got a name must not lose its last one before
    /// [`persist`](Self::persist): the kernel does not allow it to be linked again.
    pub(crate) fn temporary_link(&self, dir: &Path) -> io::Result<TemporaryLink> {
        let unused = tempfile::Builder::new().prefix(PREFIX).make_in(dir, |path| {
            rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive)?;
            Ok(self.link(path)?)
        })?;
        Ok(unused.into_temp_path())
    }

    fn link(&self, path: &Path) -> rustix::io::Result<()> {
        let from = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        rustix::fs::linkat(CWD, from, CWD, path, AtFlags::SYMLINK_FOLLOW)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(hidden) = self.hidden.lock().take() {
            // An error cannot be reported here; the next writer in the directory tries again.
            let _ = fs::remove_file(hidden);
        }
    }
}

/// Removes hidden files that no writer has locked. Errors are ignored, because they do not affect the new file.
fn remove_abandoned_files(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !is_hidden(entry.file_name().as_bytes()) {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::open(entry.path(), flags, Mode::empty()) else { continue };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Reports whether a file name is a hidden name of an incomplete file.
pub(crate) fn is_hidden(name: &[u8]) -> bool {
    name.starts_with(PREFIX.as_bytes())
}

/// Returns the directory of a file, `.` for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| *dir != OsStr::new("")).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests;
