//! What is known of a layer from its own bytes, never from what an image says of it.

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

use crate::model::{Digest, LayerLimits};

/// Looks through layers. Blocking: call from a blocking thread.
pub trait LayerInspector: Send + Sync + 'static {
    /// What is over these limits is refused.
    fn limits(&self) -> &LayerLimits;
    /// Reads a layer from its start to its end. Setting `cancelled` makes it return soon.
    fn inspect(&self, file: File, cancelled: &AtomicBool) -> Result<LayerFacts, LayerFault>;
}

/// What the bytes of a layer are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFacts {
    /// Digest of the tar in it.
    pub diff_id: Digest,
    /// Of the blob.
    pub stored_bytes: u64,
    /// What it takes on a disk where holes of sparse files are written out.
    pub unpacked_bytes: u64,
    pub entries: u64,
    pub compression: LayerCompression,
}

/// By the first bytes of the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerCompression {
    None,
    Gzip,
    Zstd,
}

/// Why a layer's facts are not there.
#[derive(Debug, thiserror::Error)]
pub enum LayerFault {
    /// The same bytes are refused each time, under the same limits.
    #[error("{reason}")]
    Refused { refusal: LayerRefusal, reason: String },
    #[error(transparent)]
    Unreadable(io::Error),
    #[error("reading it was cancelled")]
    Cancelled,
}

/// What is kept of a layer: a look-through has the same outcome each time, under the same limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerVerdict {
    Sound(LayerFacts),
    Refused { refusal: LayerRefusal, reason: String },
}

/// Why no image with this layer is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerRefusal {
    /// It holds more than the limits allow.
    TooLarge,
    /// It is damaged, or no layer.
    Invalid,
}
