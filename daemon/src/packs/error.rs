use hearth_pack::listing::ListingError;

use super::store::AppendError;
use crate::image::ImageError;

/// Error of an upload or of a pack.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("there is no upload `{id}`: it has ended, expired, or was never begun")]
    NoUpload { id: String },
    #[error("this participant already has {limit} uploads in progress, the maximum")]
    TooManyUploads { limit: usize },
    #[error("the file lists of all uploads have reached their memory limit")]
    Busy,
    #[error("the upload already has a file list")]
    SecondList,
    #[error("the upload has no file list yet")]
    NoList,
    #[error("invalid file list: {0}")]
    List(#[from] ListingError),
    #[error("the file list has tree digest {actual}, not {claimed}")]
    TreeMismatch { claimed: String, actual: String },
    #[error("entry {entry} was not asked for")]
    NotAskedFor { entry: u32 },
    #[error("invalid chunks of `{path}`: {reason}")]
    Chunks { path: String, reason: &'static str },
    #[error("invalid piece of `{path}`: {reason}")]
    Piece { path: String, reason: &'static str },
    #[error("the content of `{path}` is not what the list says")]
    ContentMismatch { path: String },
    #[error("invalid data of the pieces: {0}")]
    Data(&'static str),
    #[error("the content of {count} entries is still missing, `{path}` first")]
    Incomplete { count: usize, path: String },
    #[error("the proof is wrong: the room has other content for the entries to prove")]
    Proof,
    #[error("content of `{path}` was removed from the room meanwhile")]
    ContentGone { path: String },
    #[error("tree {tree} of a pack is not in the room any more; send it again")]
    TreeGone { tree: String },
    #[error("the image cannot be made: {0}")]
    Assemble(hearth_pack::PackError),
    #[error(transparent)]
    Store(#[from] AppendError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("packs: {0}")]
    Io(std::io::Error),
    #[error("the daemon is ending")]
    Ending,
}

impl From<std::io::Error> for PackError {
    fn from(error: std::io::Error) -> Self {
        match AppendError::from(error) {
            AppendError::Io(error) => Self::Io(error),
            full => Self::Store(full),
        }
    }
}

impl PackError {
    pub(crate) fn no_upload(id: &str) -> Self {
        Self::NoUpload { id: id.chars().take(64).collect() }
    }

    /// Returns the stable error code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoUpload { .. } => "upload_not_found",
            Self::TooManyUploads { .. } => "too_many_uploads",
            Self::Busy => "busy",
            Self::SecondList | Self::NoList => "wrong_order",
            Self::List(ListingError::TooMany { .. } | ListingError::TooLarge { .. }) => "list_too_large",
            Self::List(_) => "invalid_list",
            Self::TreeMismatch { .. } => "tree_mismatch",
            Self::NotAskedFor { .. } => "not_asked_for",
            Self::Chunks { .. } => "invalid_chunks",
            Self::Piece { .. } | Self::Data(_) => "invalid_piece",
            Self::ContentMismatch { .. } => "content_mismatch",
            Self::Incomplete { .. } => "upload_incomplete",
            Self::Proof => "proof_failed",
            Self::ContentGone { .. } => "content_gone",
            Self::TreeGone { .. } => "pack_not_found",
            Self::Assemble(_) => "pack_failed",
            Self::Store(AppendError::Quota { .. } | AppendError::OwnerQuota { .. }) => "quota_exceeded",
            Self::Store(AppendError::NoSpace) => "no_space",
            Self::Image(error) => error.code(),
            Self::Store(AppendError::Io(_)) | Self::Io(_) | Self::Ending => "internal",
        }
    }

    /// Returns a hint for the caller's next step.
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoUpload { .. } | Self::ContentGone { .. } | Self::Incomplete { .. } => {
                Some("begin again; what has arrived need not be sent again")
            }
            Self::TooManyUploads { .. } | Self::Busy => Some("try again when other uploads have ended"),
            Self::Store(AppendError::Quota { .. } | AppendError::OwnerQuota { .. }) => {
                Some("leave files out with .dockerignore, or raise [packs] in the daemon's configuration")
            }
            Self::Store(AppendError::NoSpace) => {
                Some("remove images that are not needed, or give the state directory more space")
            }
            Self::ContentMismatch { .. } => Some("send again when nothing writes to the files"),
            Self::Image(error) => error.hint(),
            _ => None,
        }
    }

    /// Reports whether the same upload may succeed later.
    pub const fn retryable(&self) -> bool {
        matches!(
            self,
            Self::NoUpload { .. }
                | Self::TooManyUploads { .. }
                | Self::Busy
                | Self::ContentGone { .. }
                | Self::Ending
        )
    }
}
