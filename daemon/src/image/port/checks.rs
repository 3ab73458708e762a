//! What the neighbours of the images tell them and ask them about layers.

use async_trait::async_trait;

use crate::model::Digest;
use crate::model::image::Descriptor;

/// Told what arrives in the room, so that layers are looked through before somebody waits for it. Returns at once.
pub trait Arrivals: Send + Sync + 'static {
    /// A blob that may be a layer.
    fn blob_arrived(&self, digest: &Digest);
    /// A manifest whose blobs are all there.
    fn manifest_arrived(&self, manifest: &Descriptor);
}

/// Asked before an image is unpacked.
#[async_trait]
pub trait LayerCheck: Send + Sync + 'static {
    /// Whether the layers of an image are what its config says.
    async fn check(&self, image: &Descriptor) -> Result<(), UncheckedImage>;
}

/// An image that must not be unpacked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct UncheckedImage {
    /// Stable word for the cause.
    pub code: &'static str,
    pub reason: String,
    /// Whether the same image may be found sound later.
    pub passing: bool,
}

/// What a manifest was found to be that no build, service or mount uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageMark {
    pub manifest: Digest,
    /// Stable word for the cause.
    pub code: String,
    pub reason: String,
}
