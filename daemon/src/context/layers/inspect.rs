//! Inspection of a layer before another program unpacks it.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::access::Format;
use super::blob::{Blob, BlobFile};
use super::pass::look_through;
use super::{LayerError, LayerLimits};
use crate::image::port::{LayerCompression, LayerFacts, LayerFault, LayerInspector, LayerRefusal};

/// Parses layers as [`LayerCache`](super::LayerCache) does, within the same limits, and stores nothing.
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
        let blob: Blob = Arc::new(BlobFile::new(file).map_err(LayerFault::Unreadable)?);
        inspect(&blob, &self.limits, cancelled).map_err(fault)
    }
}

pub(super) fn inspect(
    blob: &Blob,
    limits: &LayerLimits,
    cancelled: &AtomicBool,
) -> Result<LayerFacts, LayerError> {
    let format = Format::of_blob(&**blob)?;
    let passed = look_through(blob, format, limits, cancelled)?;
    Ok(LayerFacts {
        diff_id: passed.diff_id,
        stored_bytes: blob.length(),
        unpacked_bytes: passed.length.saturating_add(passed.holes),
        entries: passed.entry_count as u64,
        compression: match format {
            Format::Plain => LayerCompression::None,
            Format::Gzip => LayerCompression::Gzip,
            Format::Zstd => LayerCompression::Zstd,
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
