use std::io;

use rustix::io::Errno;

use super::storage::StorageError;
use crate::model::fault::{Fault, FaultStage};
use crate::model::{Digest, MountTarget};

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
    #[error("the path `{path}` is longer than {} bytes", super::beneath::MAX_PATH)]
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
    pub fn code(&self) -> &'static str {
        match self {
            Self::Source { source: StorageError::NotFound { .. }, .. } => "source_not_found",
            Self::Source { source: StorageError::Escapes { .. } | StorageError::LinkLoop { .. }, .. } => {
                "source_outside_storage"
            }
            Self::Source { .. } => "source_unusable",
            Self::SubpathNotFound { .. } => "source_not_found",
            Self::ImageNotOpened { .. } | Self::ShuttingDown => "internal",
            Self::DuplicateTarget { .. } => "duplicate_mount_target",
            Self::ContextPathNotFound { .. } => "context_path_not_found",
            Self::ContextNotADirectory { .. } => "context_path_not_a_directory",
            Self::DockerfileNotFound { .. } => "dockerfile_not_found",
            Self::LinkOutOfTree { .. } => "link_out_of_context",
            Self::DanglingLink { .. } => "dangling_link",
            Self::LinkLoop { .. } => "link_loop",
            Self::NotAFile { .. } => "not_a_file",
            Self::TooLarge { .. } => "file_too_large",
            Self::Changed { .. } => "context_changed",
            Self::Cancelled => "cancelled",
            Self::Denied { .. } => "permission_denied",
            Self::PathTooLong { .. } => "path_too_long",
            Self::TooManyFiles { .. } => "too_many_files",
            Self::Layer { source, .. } => source.code(),
            Self::Io { .. } => "context_unreadable",
        }
    }

    fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Source { source: StorageError::NotFound { .. }, .. } => {
                "`hearth storage ls` shows what is there"
            }
            Self::Source { source: StorageError::Escapes { .. }, .. } => {
                "mount a path inside the storage; links in it must stay inside"
            }
            Self::ContextPathNotFound { .. } | Self::ContextNotADirectory { .. } => {
                "give `--context-path` a directory at or below a mount target"
            }
            Self::DockerfileNotFound { .. } => {
                "name it with `--dockerfile-path`, or mount the directory that has it"
            }
            Self::LinkOutOfTree { .. } | Self::DanglingLink { .. } => {
                "put the file itself there, or mount what the link points to"
            }
            Self::Changed { .. } => "build again when nothing writes to these files",
            Self::TooManyFiles { .. } => "mount a smaller directory",
            _ => return None,
        })
    }

    /// Returns the error in the form in which a build reports it.
    pub fn fault(&self) -> Fault {
        let mut fault = Fault::new(FaultStage::Context, self.code(), self.to_string());
        if let Some(hint) = self.hint() {
            fault = fault.hint(hint);
        }
        if matches!(self, Self::Changed { .. } | Self::ShuttingDown) {
            fault = fault.retryable();
        }
        fault
    }
}
