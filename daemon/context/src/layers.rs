//! Image layers as readable trees.
//!
//! ```text
//! blob (gzip, zstd, plain) -- one pass, verified by DiffID --> index in <state>/context/layers
//!   index: entries -- merge: layer by layer --> ImageTree -- read --> reader: ranges of the tars
//! ```
//!
//! Layers are neither unpacked nor stored decompressed. An [`ImageTree`] holds names, hashes and the
//! positions of content in the tars; [`reader`] decompresses the requested range from the nearest access
//! point. Layers are untrusted: sizes, counts and names are limited, an entry that would leave the image is
//! refused, and links are data.

mod access_points;
mod blob;
mod buffer_pool;
mod cache;
mod content;
mod entries;
mod extract;
mod facts;
mod frames;
mod gzip;
mod index;
mod inspect;
mod merge;
mod pass;
mod pax;
#[cfg(test)]
mod probe;
mod reader;
mod sparse;
mod tar_parser;

mod encoding;

use std::fs::File;
use std::io;

use hearth_model::Digest;
pub use hearth_model::LayerLimits;
use hearth_model::fault::ErrorCode;

pub use cache::LayerCache;
pub use facts::{LayerCompression, LayerFacts, LayerFault, LayerInspector, LayerRefusal, LayerVerdict};
pub use inspect::LayerInspection;
pub use merge::{ImageNodeStat, ImageTree};

/// A layer blob of an image in the registry.
#[derive(Debug)]
pub struct LayerBlob {
    /// Digest of the bytes in `file`.
    pub digest: Digest,
    /// Digest of the uncompressed tar, from the image config.
    pub diff_id: Digest,
    pub media_type: String,
    pub file: File,
}

/// Error while a layer is indexed or read.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("media type `{0}` is not that of a layer")]
    MediaType(String),
    #[error("its content cannot be decompressed: {0}")]
    Decompress(io::Error),
    #[error("its content has DiffID {actual}, and the image config says {expected}")]
    DiffId { expected: Digest, actual: Digest },
    #[error("its content is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error(
        "its content is over {ratio} times as large as the blob, which is refused as a decompression bomb"
    )]
    Bomb { ratio: u64 },
    #[error("a zstd frame asks for a window of {window} bytes; at most {limit} are given")]
    Window { window: u64, limit: u64 },
    #[error("the image's names and attributes take more than {limit} bytes")]
    TooManyNames { limit: u64 },
    #[error("the image has more than {limit} entries")]
    TooManyEntries { limit: usize },
    #[error("the tar is damaged at byte {at}: {what}")]
    Malformed { at: u64, what: &'static str },
    #[error("entry `{entry}`: {what}")]
    Entry { entry: String, what: &'static str },
    #[error("entry `{entry}` leads out of the image")]
    Escapes { entry: String },
    #[error("entry `{entry}` is a hard link to `{target}`, which is no file of the image")]
    LinkTarget { entry: String, target: String },
    #[error("reading it was cancelled")]
    Cancelled,
    #[error("no space is left for it in the daemon's state directory")]
    NoSpace,
    #[error(transparent)]
    Index(#[from] encoding::DamagedIndex),
    #[error(transparent)]
    Io(io::Error),
}

impl LayerError {
    /// Reports whether the error is a violation of the limits.
    pub(super) const fn is_over_limit(&self) -> bool {
        matches!(
            self,
            Self::TooLarge { .. }
                | Self::Bomb { .. }
                | Self::Window { .. }
                | Self::TooManyNames { .. }
                | Self::TooManyEntries { .. }
        )
    }

    /// Returns the stable error code.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::DiffId { .. } => ErrorCode::LayerMismatch,
            Self::NoSpace => ErrorCode::NoSpace,
            error if error.is_over_limit() => ErrorCode::LayerTooLarge,
            _ => ErrorCode::InvalidLayer,
        }
    }
}

impl From<io::Error> for LayerError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Io(error),
        }
    }
}

#[cfg(test)]
mod tests;
