use std::io;
use std::path::PathBuf;

use crate::context::ContextError;

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
    Ending,
}

impl MountError {
    /// Returns the stable error code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Relative { .. } => "invalid_directory",
            Self::NotFound { .. } => "directory_not_found",
            Self::NotADirectory { .. } => "not_a_directory",
            Self::NotEmpty { .. } => "directory_not_empty",
            Self::Reserved { .. } => "directory_reserved",
            Self::AlreadyMounted { .. } => "already_mounted",
            Self::NotMounted { .. } => "not_mounted",
            Self::Busy { .. } | Self::StillUsed { .. } => "mount_busy",
            Self::OtherImages { .. } => "changes_of_other_images",
            Self::Context(error) => error.code(),
            Self::Io { .. } => "mount_failed",
            Self::Ending => "draining",
        }
    }

    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Relative { .. } | Self::NotFound { .. } | Self::NotADirectory { .. } => {
                "name an empty directory of the daemon's machine, such as /mnt/my-app"
            }
            Self::NotEmpty { .. } | Self::Reserved { .. } => "make a new directory for it elsewhere",
            Self::AlreadyMounted { .. } => "`hearth context mounts` lists them; unmount it first",
            Self::NotMounted { kept: true, .. } => {
                "changes are kept for it: `hearth context unmount --discard` throws them away"
            }
            Self::NotMounted { .. } => "`hearth context mounts` lists what is mounted",
            Self::Busy { .. } => "close the files and shells that are in it, or add --lazy",
            Self::StillUsed { .. } => "try `hearth context unmount --discard` again later",
            Self::OtherImages { .. } => "`hearth context unmount --discard` throws the changes away",
            Self::Context(_) | Self::Io { .. } | Self::Ending => return None,
        })
    }
}
