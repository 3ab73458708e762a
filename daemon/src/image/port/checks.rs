//! Interfaces of other modules to layer verification: notifications of arrivals, and checks before use.

use async_trait::async_trait;
use hearth_oci::Descriptor;

use crate::model::Digest;
use crate::model::fault::{ErrorCode, RecordedErrorCode};

/// Listener for content that arrives in the room, so that layers are inspected ahead of need. Its methods return at
/// once.
pub trait ArrivalListener: Send + Sync + 'static {
    /// Called for a blob that may be a layer.
    fn blob_arrived(&self, digest: &Digest);
    /// Called for a manifest whose blobs are all present.
    fn manifest_arrived(&self, manifest: &Descriptor);
}

/// Check that precedes the unpacking of an image.
#[async_trait]
pub trait LayerCheck: Send + Sync + 'static {
    /// Checks that the layers of an image match its config.
    async fn check(&self, image: &Descriptor) -> Result<(), RejectedImage>;
}

/// Image that must not be unpacked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct RejectedImage {
    /// Stable error code.
    pub code: ErrorCode,
    pub reason: String,
    /// True if the same image may be found sound later.
    pub transient: bool,
}

/// Mark on a manifest that no build, service or mount may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageMark {
    pub manifest: Digest,
    /// Stable error code.
    pub code: RecordedErrorCode,
    pub reason: String,
}
