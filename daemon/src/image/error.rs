//! Errors of image operations, with their stable codes and hints.

use hearth_pack::archive::ArchiveError;
use hearth_registry::RemoteError;

use super::remote_registries::CredentialsFileError;

use super::port::{BlobError, CatalogError, LayerRefusal};
use crate::disk::is_disk_full;
use crate::model::Digest;
use crate::model::fault::ErrorCode;
use crate::model::id::PackId;
use crate::model::manifest::ManifestError;

/// Reason why an image cannot be fetched, created or tagged.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("there is no image `{reference}` in this room")]
    NotFound { reference: String },
    #[error("`{reference}` is not in this room's registry")]
    Foreign { reference: String },
    #[error("`{reference}`: name a tag to remove, not a digest")]
    TagNeeded { reference: String },
    #[error("manifest {manifest} needs {blob}, which is not in the room")]
    BlobMissing { manifest: Digest, blob: Digest },
    #[error("{digest}: {source}")]
    Manifest { digest: Digest, source: ManifestError },
    #[error("{digest} has more than {limit} bytes, too many for a manifest or config")]
    TooLarge { digest: Digest, limit: usize },
    #[error("index {digest} has more than {limit} images, or indexes in indexes")]
    TooDeep { digest: Digest, limit: usize },
    #[error("image {digest} is not for {wanted}; it has: {found}")]
    NoPlatform { digest: Digest, wanted: String, found: String },
    #[error("image `{reference}` is for {found}, and this machine runs {wanted}")]
    OtherPlatform { reference: String, found: String, wanted: String },
    #[error("config {digest} of the image is not valid: {reason}")]
    Config { digest: Digest, reason: String },
    #[error(transparent)]
    LayerMismatch(Box<LayerMismatch>),
    #[error("image {manifest} has {layers} layers, and its config lists {diff_ids}")]
    LayerCount { manifest: Digest, layers: usize, diff_ids: usize },
    #[error(
        "image {manifest}: layer {layer} is not what its media type `{media_type}` says, or of a type that is not known"
    )]
    LayerForm { manifest: Digest, layer: Digest, media_type: String },
    #[error(
        "image {manifest}: layer {layer} is to be fetched from URLs that the manifest names, which is not done"
    )]
    LayerElsewhere { manifest: Digest, layer: Digest },
    #[error("layer {layer}: {reason}")]
    LayerRefused { layer: Digest, refusal: LayerRefusal, reason: String },
    #[error("image {manifest}: {reason}")]
    ImageTooLarge { manifest: Digest, reason: String },
    #[error("the archive has {count} images; an archive with one is taken")]
    ImageCount { count: usize },
    #[error("there is no build cache at `{path}` in room storage")]
    CacheNotFound { path: String },
    #[error("build cache: `{path}` in room storage: {reason}")]
    CacheFile { path: String, reason: String },
    #[error("build cache {manifest}: {reason}")]
    InvalidCache { manifest: Digest, reason: String },
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("there is no pack `{id}`: it was dropped, or was never sent; send it again")]
    PackNotFound { id: PackId },
    #[error("no space is left for the image")]
    NoSpace,
    /// The caller already holds as much as one caller may.
    #[error("{0}")]
    Quota(String),
    #[error("image {manifest} has {size} bytes, and one image may have {limit} in this room")]
    Oversize { manifest: Digest, size: u64, limit: u64 },
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Credentials(#[from] CredentialsFileError),
    #[error("image {digest} has {count} blobs; {limit} are taken")]
    TooManyBlobs { digest: Digest, count: usize, limit: usize },
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("{digest}: {source}")]
    Read { digest: Digest, source: std::io::Error },
    #[error("content that is not needed cannot be removed: {0}")]
    Sweep(#[source] std::io::Error),
    #[error("cannot store a received archive: {0}")]
    Scratch(#[source] std::io::Error),
    #[error("the daemon is ending")]
    Ending,
}

/// Image config that does not match the image's layers.
#[derive(Debug, thiserror::Error)]
#[error("image {manifest}: layer {layer} holds {found}, and the image's config says {declared}")]
pub struct LayerMismatch {
    pub manifest: Digest,
    pub layer: Digest,
    /// DiffID in the config.
    pub declared: Digest,
    /// DiffID of the layer's bytes.
    pub found: Digest,
}

impl ImageError {
    /// Converts an error of writing a received archive.
    pub fn scratch(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Scratch(error),
        }
    }

    /// Converts an error of storing the blob `digest`.
    pub(super) fn not_stored(digest: Digest, error: BlobError) -> Self {
        match error {
            BlobError::DiskFull => Self::NoSpace,
            BlobError::Quota(message) => Self::Quota(message),
            BlobError::Io(source) => Self::Read { digest, source },
            error @ BlobError::Mismatch { .. } => {
                Self::Read { digest, source: std::io::Error::new(std::io::ErrorKind::InvalidData, error) }
            }
        }
    }

    /// Returns the stable error code.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::ImageNotFound,
            Self::Foreign { .. } => ErrorCode::ForeignRegistry,
            Self::TagNeeded { .. } => ErrorCode::TagNeeded,
            Self::BlobMissing { .. } => ErrorCode::BlobMissing,
            Self::Manifest { .. } | Self::TooLarge { .. } | Self::TooDeep { .. } => {
                ErrorCode::InvalidManifest
            }
            Self::NoPlatform { .. } | Self::OtherPlatform { .. } => ErrorCode::PlatformMismatch,
            Self::Config { .. } => ErrorCode::InvalidConfig,
            Self::LayerMismatch(_) | Self::LayerCount { .. } | Self::LayerForm { .. } => {
                ErrorCode::LayerMismatch
            }
            Self::LayerRefused { refusal: LayerRefusal::TooLarge, .. } | Self::ImageTooLarge { .. } => {
                ErrorCode::LayerTooLarge
            }
            Self::LayerElsewhere { .. } | Self::LayerRefused { refusal: LayerRefusal::Invalid, .. } => {
                ErrorCode::InvalidLayer
            }
            Self::ImageCount { .. } | Self::CacheFile { .. } => ErrorCode::InvalidArchive,
            Self::CacheNotFound { .. } => ErrorCode::NotFound,
            Self::InvalidCache { .. } => ErrorCode::InvalidManifest,
            Self::Archive(ArchiveError::Truncated) => ErrorCode::ArchiveTruncated,
            Self::Archive(ArchiveError::Mismatch { .. }) => ErrorCode::BlobMismatch,
            Self::Archive(_) => ErrorCode::InvalidArchive,
            Self::PackNotFound { .. } => ErrorCode::PackNotFound,
            Self::NoSpace => ErrorCode::NoSpace,
            Self::Catalog(CatalogError(error))
            | Self::Read { source: error, .. }
            | Self::Sweep(error)
            | Self::Scratch(error)
                if is_disk_full(error) =>
            {
                ErrorCode::NoSpace
            }
            Self::Quota(_) => ErrorCode::QuotaExceeded,
            Self::Oversize { .. } => ErrorCode::ImageTooLarge,
            Self::Remote(error) => error.code(),
            Self::Credentials(_) => ErrorCode::RegistryCredentials,
            Self::TooManyBlobs { .. } => ErrorCode::InvalidManifest,
            Self::Catalog(_) | Self::Read { .. } | Self::Sweep(_) | Self::Scratch(_) | Self::Ending => {
                ErrorCode::Internal
            }
        }
    }

    /// Reports whether the image itself is invalid, so that it is never used for any caller.
    pub const fn is_unsound(&self) -> bool {
        matches!(
            self,
            Self::LayerMismatch(_)
                | Self::LayerCount { .. }
                | Self::LayerForm { .. }
                | Self::LayerElsewhere { .. }
                | Self::LayerRefused { .. }
                | Self::ImageTooLarge { .. }
                | Self::InvalidCache { .. }
                | Self::Config { .. }
                | Self::Manifest { .. }
        )
    }

    /// Reports whether the same request may succeed later.
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Remote(error) => error.retryable(),
            _ => false,
        }
    }

    /// Returns a hint that is more specific than the one of the code.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotFound { .. } => Some("see `hearth images list`, or build or load the image first"),
            Self::Remote(error) => error.hint(),
            _ => None,
        }
    }
}
