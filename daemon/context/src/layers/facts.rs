//! Facts about a layer that are derived from its own bytes, never from the declarations of an image.

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

use hearth_model::{Digest, LayerLimits};

/// Inspector of layers. Blocking: call from a blocking thread.
pub trait LayerInspector: Send + Sync + 'static {
    /// Returns the limits; layers that exceed them are refused.
    fn limits(&self) -> &LayerLimits;
    /// Reads a whole layer. Setting `cancelled` makes it return soon.
    fn inspect(&self, file: File, cancelled: &AtomicBool) -> Result<LayerFacts, LayerFault>;
}

/// Properties of a layer's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFacts {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Size of the blob.
    pub stored_bytes: u64,
    /// Size on disk if the holes of sparse files are written out.
    pub unpacked_bytes: u64,
    pub entries: u64,
    pub compression: LayerCompression,
}

/// Compression, according to the first bytes of the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerCompression {
    None,
    Gzip,
    Zstd,
}

/// Reason why an inspection yields no facts.
#[derive(Debug, thiserror::Error)]
pub enum LayerFault {
    /// Refused, for the same bytes and limits always.
    #[error("{reason}")]
    Refused { refusal: LayerRefusal, reason: String },
    #[error(transparent)]
    Unreadable(io::Error),
    #[error("reading it was cancelled")]
    Cancelled,
}

/// Stored result of an inspection, which is always the same for the same bytes and limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerVerdict {
    Sound(LayerFacts),
    Refused { refusal: LayerRefusal, reason: String },
}

/// Reason why images with this layer are not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerRefusal {
    /// The layer exceeds the limits.
    TooLarge,
    /// The layer is damaged, or not a layer.
    Invalid,
}
