use std::io;
use std::path::PathBuf;

use hearth_model::fault::ErrorCode;

use crate::ContextError;

/// Error of mounting or unmounting a context.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("`{}` is not an absolute path", .directory.display())]
    Relative { directory: PathBuf },
    #[error("there is no directory `{}`", .directory.display())]
    NotFound { directory: PathBuf },
    #[error("`{}` is not a directory; a link at its end is not followed", .directory.display())]
    NotADirectory { directory: PathBuf },
    #[error("the directory `{}` is not empty", .directory.display())]
    NotEmpty { directory: PathBuf },
    #[error("`{}` lies in the daemon's own files or in the room's", .directory.display())]
    Reserved { directory: PathBuf },
    #[error("a context is mounted on `{}` already", .directory.display())]
    AlreadyMounted { directory: PathBuf },
    #[error("no context is mounted on `{}`", .directory.display())]
    NotMounted { directory: PathBuf, kept: bool },
    #[error("`{}` is in use", .directory.display())]
    Busy { directory: PathBuf },
    #[error("`{}` was unmounted, and files in it are still open: its changes were not thrown away", .directory.display())]
    StillUsed { directory: PathBuf },
    #[error("the changes kept for `{}` were made over other images than these names mean now", .directory.display())]
    OtherImages { directory: PathBuf },
    #[error(transparent)]
    Context(ContextError),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
    #[error("the daemon is ending")]
    ShuttingDown,
}

impl MountError {
    /// Returns the stable error code.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Relative { .. } => ErrorCode::InvalidDirectory,
            Self::NotFound { .. } => ErrorCode::DirectoryNotFound,
            Self::NotADirectory { .. } => ErrorCode::NotADirectory,
            Self::NotEmpty { .. } => ErrorCode::DirectoryNotEmpty,
            Self::Reserved { .. } => ErrorCode::DirectoryReserved,
            Self::AlreadyMounted { .. } => ErrorCode::AlreadyMounted,
            Self::NotMounted { .. } => ErrorCode::NotMounted,
            Self::Busy { .. } | Self::StillUsed { .. } => ErrorCode::MountBusy,
            Self::OtherImages { .. } => ErrorCode::ChangesOfOtherImages,
            Self::Context(error) => error.code(),
            Self::Io { .. } => ErrorCode::MountFailed,
            Self::ShuttingDown => ErrorCode::Draining,
        }
    }

    /// Returns a hint that is more specific than the one of the code.
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotADirectory { .. } => {
                Some("name an empty directory of the daemon's machine, such as /mnt/my-app")
            }
            Self::NotMounted { kept: true, .. } => {
                Some("changes are kept for it: `hearth context unmount --discard` throws them away")
            }
            Self::StillUsed { .. } => Some("try `hearth context unmount --discard` again later"),
            _ => None,
        }
    }
}
