use hearth_pack::listing::ListingError;

use super::store::AppendError;
use crate::image::ImageError;
use crate::model::fault::ErrorCode;

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
    Io(#[source] std::io::Error),
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
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoUpload { .. } => ErrorCode::UploadNotFound,
            Self::TooManyUploads { .. } => ErrorCode::TooManyUploads,
            Self::Busy => ErrorCode::Busy,
            Self::SecondList | Self::NoList => ErrorCode::WrongOrder,
            Self::List(ListingError::TooMany { .. } | ListingError::TooLarge { .. }) => {
                ErrorCode::ListTooLarge
            }
            Self::List(_) => ErrorCode::InvalidList,
            Self::TreeMismatch { .. } => ErrorCode::TreeMismatch,
            Self::NotAskedFor { .. } => ErrorCode::NotAskedFor,
            Self::Chunks { .. } => ErrorCode::InvalidChunks,
            Self::Piece { .. } | Self::Data(_) => ErrorCode::InvalidPiece,
            Self::ContentMismatch { .. } => ErrorCode::ContentMismatch,
            Self::Incomplete { .. } => ErrorCode::UploadIncomplete,
            Self::Proof => ErrorCode::ProofFailed,
            Self::ContentGone { .. } => ErrorCode::ContentGone,
            Self::TreeGone { .. } => ErrorCode::PackNotFound,
            Self::Assemble(_) => ErrorCode::PackFailed,
            Self::Store(AppendError::Quota { .. } | AppendError::OwnerQuota { .. }) => {
                ErrorCode::QuotaExceeded
            }
            Self::Store(AppendError::NoSpace) => ErrorCode::NoSpace,
            Self::Image(error) => error.code(),
            Self::Store(AppendError::Io(_)) | Self::Io(_) | Self::Ending => ErrorCode::Internal,
        }
    }

    /// Returns a hint that is more specific than the one of the code.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Busy => Some("try again when other uploads have ended"),
            Self::Store(AppendError::Quota { .. } | AppendError::OwnerQuota { .. }) => {
                Some("leave files out with .dockerignore, or raise [packs] in the daemon's configuration")
            }
            Self::Image(error) => error.hint(),
            _ => None,
        }
    }

    /// Reports whether the same upload may succeed later.
    pub fn retryable(&self) -> bool {
        self.code().is_retryable() || matches!(self, Self::Ending)
    }
}
