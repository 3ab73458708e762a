use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Error of a storage operation. Paths are from the storage's root.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("`{}` does not exist in this storage", shown(path))]
    NotFound { path: PathBuf },
    #[error("`{}` leads out of this storage, through `..` or a link", shown(path))]
    Escapes { path: PathBuf },
    #[error("`{}` is a link or goes through one; name the directory or file itself", shown(path))]
    IsLink { path: PathBuf },
    #[error("`{}` goes through too many links", shown(path))]
    LinkLoop { path: PathBuf },
    #[error("`{}` is not a directory, or goes through something that is none", shown(path))]
    NotADirectory { path: PathBuf },
    #[error("`{}` is a directory", shown(path))]
    IsADirectory { path: PathBuf },
    #[error("`{}` is the storage itself", shown(path))]
    IsTheRoot { path: PathBuf },
    #[error("`{}` is a socket, fifo or device; only files can be read", shown(path))]
    NotAFile { path: PathBuf },
    #[error("`{}` exists already", shown(path))]
    AlreadyExists { path: PathBuf },
    #[error("the path `{}` is too long or has a NUL byte", shown(path))]
    BadPath { path: PathBuf },
    #[error("the daemon has no permission for `{}`", shown(path))]
    Denied { path: PathBuf },
    #[error("no space is left for `{}`", shown(path))]
    NoSpace { path: PathBuf },
    #[error("`{}` was to have {expected} bytes, and {actual} came", shown(path))]
    SizeMismatch { path: PathBuf, expected: u64, actual: u64 },
    #[error("`{}` changed meanwhile; try again", shown(path))]
    Changed { path: PathBuf },
    #[error(
        "storage `{}` needs the system call openat2: Linux 5.6 or newer, and no filter that denies it",
        shown(path)
    )]
    Unsupported { path: PathBuf },
    #[error("`{}`: {source}", shown(path))]
    Io { path: PathBuf, source: io::Error },
}

fn shown(path: &Path) -> std::borrow::Cow<'_, str> {
    if path.as_os_str().is_empty() { "/".into() } else { path.to_string_lossy() }
}

impl StorageError {
    pub(super) fn at(path: &Path, errno: Errno) -> Self {
        let path = path.to_owned();
        match errno {
            Errno::NOENT => Self::NotFound { path },
            Errno::XDEV => Self::Escapes { path },
            Errno::LOOP => Self::LinkLoop { path },
            Errno::NOTDIR => Self::NotADirectory { path },
            Errno::ISDIR => Self::IsADirectory { path },
            Errno::EXIST => Self::AlreadyExists { path },
            Errno::NAMETOOLONG | Errno::INVAL => Self::BadPath { path },
            Errno::ACCESS | Errno::PERM | Errno::ROFS => Self::Denied { path },
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace { path },
            errno => Self::Io { path, source: errno.into() },
        }
    }

    pub(super) fn io(path: &Path, error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(errno) => Self::at(path, errno),
            None => Self::Io { path: path.to_owned(), source: error },
        }
    }

    /// Returns the path that the error is about, from the storage's root.
    pub fn path(&self) -> &Path {
        match self {
            Self::NotFound { path }
            | Self::Escapes { path }
            | Self::IsLink { path }
            | Self::LinkLoop { path }
            | Self::NotADirectory { path }
            | Self::IsADirectory { path }
            | Self::IsTheRoot { path }
            | Self::NotAFile { path }
            | Self::AlreadyExists { path }
            | Self::BadPath { path }
            | Self::Denied { path }
            | Self::NoSpace { path }
            | Self::SizeMismatch { path, .. }
            | Self::Changed { path }
            | Self::Unsupported { path }
            | Self::Io { path, .. } => path,
        }
    }
}
