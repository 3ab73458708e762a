use std::io;

use hearth_model::fault::{ErrorCode, Fault, FaultStage};
use hearth_model::{Digest, MountTarget};
use rustix::io::Errno;

use super::storage::StorageError;

/// Error while the files of a build are prepared. Paths are paths of the build, such as `/context/a`.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    #[error("mount `{target}`: {source}")]
    Source { target: MountTarget, source: StorageError },
    #[error("mount `{target}`: `{subpath}` is not in the image")]
    SubpathNotFound { target: MountTarget, subpath: String },
    #[error("mount `{target}` names an image, and none was opened for it")]
    ImageNotOpened { target: MountTarget },
    #[error("mount target `{target}` is used twice")]
    DuplicateTarget { target: MountTarget },
    #[error("the context path `{path}` is in no mount")]
    ContextPathNotFound { path: MountTarget },
    #[error("the context path `{path}` is not a directory")]
    ContextNotADirectory { path: MountTarget },
    #[error("no Dockerfile: looked for {}", quoted_list(.looked_for))]
    DockerfileNotFound { looked_for: Vec<MountTarget> },
    #[error("`{path}` is a link to `{link}`, which leads out of the mounted files")]
    LinkOutOfTree { path: String, link: String },
    #[error("`{path}` is a link to something that does not exist")]
    DanglingLink { path: String },
    #[error("`{path}` goes through more than {} links", super::tree::MAX_LINKS)]
    LinkLoop { path: String },
    #[error("`{path}` is {what}, not a file")]
    NotAFile { path: String, what: &'static str },
    #[error("`{path}` has {size} bytes; at most {limit} are taken")]
    TooLarge { path: String, size: u64, limit: u64 },
    #[error("`{path}` changed while it was read")]
    Changed { path: String },
    #[error("the daemon has no permission to read `{path}`")]
    Denied { path: String },
    #[error("the path `{path}` is longer than {} bytes", hearth_overlay::beneath::MAX_PATH)]
    PathTooLong { path: String },
    #[error("the context has more than {limit} files")]
    TooManyFiles { limit: usize },
    #[error("layer {digest}: {source}")]
    Layer { digest: Digest, source: super::layers::LayerError },
    #[error("`{path}`: {source}")]
    Io { path: String, source: io::Error },
    #[error("the daemon is ending")]
    ShuttingDown,
    /// The caller is gone: the build was cancelled, or the client closed its connection.
    #[error("the reading of the context was cancelled")]
    Cancelled,
}

fn quoted_list(paths: &[MountTarget]) -> String {
    let quoted: Vec<String> = paths.iter().map(|path| format!("`{path}`")).collect();
    quoted.join(", ")
}

pub(super) fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

impl ContextError {
    pub(super) fn at(path: &[u8], errno: Errno) -> Self {
        let path = text(path);
        match errno {
            Errno::ACCESS | Errno::PERM => Self::Denied { path },
            Errno::NAMETOOLONG => Self::PathTooLong { path },
            // The entry was listed a moment ago, and has been removed or replaced since.
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::ISDIR => Self::Changed { path },
            errno => Self::Io { path, source: errno.into() },
        }
    }

    /// Returns the stable error code.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Source { source: StorageError::NotFound { .. }, .. } => ErrorCode::SourceNotFound,
            Self::Source { source: StorageError::Escapes { .. } | StorageError::LinkLoop { .. }, .. } => {
                ErrorCode::SourceOutsideStorage
            }
            Self::Source { .. } => ErrorCode::SourceUnusable,
            Self::SubpathNotFound { .. } => ErrorCode::SourceNotFound,
            Self::ImageNotOpened { .. } | Self::ShuttingDown => ErrorCode::Internal,
            Self::DuplicateTarget { .. } => ErrorCode::DuplicateMountTarget,
            Self::ContextPathNotFound { .. } => ErrorCode::ContextPathNotFound,
            Self::ContextNotADirectory { .. } => ErrorCode::ContextPathNotADirectory,
            Self::DockerfileNotFound { .. } => ErrorCode::DockerfileNotFound,
            Self::LinkOutOfTree { .. } => ErrorCode::LinkOutOfContext,
            Self::DanglingLink { .. } => ErrorCode::DanglingLink,
            Self::LinkLoop { .. } => ErrorCode::LinkLoop,
            Self::NotAFile { .. } => ErrorCode::NotAFile,
            Self::TooLarge { .. } => ErrorCode::FileTooLarge,
            Self::Changed { .. } => ErrorCode::ContextChanged,
            Self::Cancelled => ErrorCode::Cancelled,
            Self::Denied { .. } => ErrorCode::PermissionDenied,
            Self::PathTooLong { .. } => ErrorCode::PathTooLong,
            Self::TooManyFiles { .. } => ErrorCode::TooManyFiles,
            Self::Layer { source, .. } => source.code(),
            Self::Io { .. } => ErrorCode::ContextUnreadable,
        }
    }

    /// Returns a hint that is more specific than the one of the code.
    const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Source { source: StorageError::NotFound { .. }, .. } => {
                Some("`hearth storage ls` shows what is there")
            }
            Self::Source { source: StorageError::Escapes { .. }, .. } => {
                Some("mount a path inside the storage; links in it must stay inside")
            }
            _ => None,
        }
    }

    /// Returns the error in the form in which a build reports it.
    pub fn fault(&self) -> Fault {
        let fault = Fault::new(FaultStage::Context, self.code(), self.to_string()).maybe_hint(self.hint());
        if matches!(self, Self::ShuttingDown) { fault.retryable() } else { fault }
    }
}
