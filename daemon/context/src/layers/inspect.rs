//! Inspection of a layer blob before another program, such as containerd, unpacks it.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::access_points::BlobFormat;
use super::blob::{BlobFile, SharedBlob};
use super::facts::{LayerCompression, LayerFacts, LayerFault, LayerInspector, LayerRefusal};
use super::pass::inspect_layer;
use super::{LayerError, LayerLimits};

/// Parses a layer like [`LayerCache`](super::LayerCache) and with the same limits, but stores nothing.
#[derive(Clone, Copy, Debug)]
pub struct LayerInspection {
    limits: LayerLimits,
}

impl LayerInspection {
    pub const fn new(limits: LayerLimits) -> Self {
        Self { limits }
    }
}

impl LayerInspector for LayerInspection {
    fn limits(&self) -> &LayerLimits {
        &self.limits
    }

    fn inspect(&self, file: File, cancelled: &AtomicBool) -> Result<LayerFacts, LayerFault> {
        let blob: SharedBlob = Arc::new(BlobFile::new(file).map_err(LayerFault::Unreadable)?);
        inspect(&blob, &self.limits, cancelled).map_err(fault)
    }
}

pub(super) fn inspect(
    blob: &SharedBlob,
    limits: &LayerLimits,
    cancelled: &AtomicBool,
) -> Result<LayerFacts, LayerError> {
    let format = BlobFormat::of_blob(&**blob)?;
    let passed = inspect_layer(blob, format, limits, cancelled)?;
    Ok(LayerFacts {
        diff_id: passed.diff_id,
        stored_bytes: blob.length(),
        unpacked_bytes: passed.length.saturating_add(passed.holes),
        entries: passed.entry_count as u64,
        compression: match format {
            BlobFormat::Plain => LayerCompression::None,
            BlobFormat::Gzip => LayerCompression::Gzip,
            BlobFormat::Zstd => LayerCompression::Zstd,
        },
    })
}

fn fault(error: LayerError) -> LayerFault {
    match error {
        LayerError::Cancelled => LayerFault::Cancelled,
        LayerError::Io(source) => LayerFault::Unreadable(source),
        error => {
            let refusal = if error.is_over_limit() { LayerRefusal::TooLarge } else { LayerRefusal::Invalid };
            LayerFault::Refused { refusal, reason: error.to_string() }
        }
    }
}
