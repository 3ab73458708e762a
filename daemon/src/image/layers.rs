//! Layer verification: an image is used only after its layers were found to match its config.
//!
//! BuildKit and containerd identify a layer that they have unpacked before by the DiffID in the image's config, and do
//! not check that the layer's blob has that content. Anyone who may push could thus read another image's files or plant
//! files under its layers. The room therefore computes each DiffID itself, once, from the blob:
//!
//! ```text
//! blob arrives --(background)--.
//! image is to be used ---------+--> inspection, one per layer at a time --> verdict by digest of the blob, stored
//!                                                                             |
//! manifest + config + verdicts of its layers --------------- soundness -------'--> sound, or refused
//! ```

mod declared;
mod declared_cache;
mod inspections;
mod slots;
mod soundness;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use hearth_oci::Descriptor;

use super::port::{ArrivalListener, ImageMark, LayerCheck, LayerVerdict, RejectedImage};
use super::{ImageError, ImageStore, PlatformSelection};
use crate::model::{Digest, LayerLimits};
use crate::task;

use declared::DeclaredImage;
pub(super) use declared_cache::check_importable_index;
pub(super) use inspections::InspectionQueue;

/// Share owner of the check before an instance starts. The image was already checked for its deploy.
const SERVICES_OWNER: &str = "services of the room";
/// Maximum number of layers of one image that are inspected concurrently.
const MAX_CONCURRENT_LAYERS: usize = 4;
/// Version of the inspection. Increased when its outcome may change, so that verdicts of earlier releases are ignored.
const INSPECTION_VERSION: u32 = 1;

/// Returns the key under which verdicts are stored.
fn limits_key(limits: &LayerLimits) -> String {
    let LayerLimits { layer_bytes, ratio, ratio_floor, entries, .. } = limits;
    format!("{INSPECTION_VERSION}:{layer_bytes}:{ratio}:{ratio_floor}:{entries}")
}

impl ImageStore {
    /// Checks that the layers of an image match its config and are within the limits; for an index, the image of one
    /// platform or all that could be used. Waits for the inspection of layers that have no verdict yet, within the
    /// share of `caller` if there is one; dropping the future cancels inspections that nobody else waits for. An
    /// invalid image is marked.
    pub async fn check_layers(
        &self,
        top: &Descriptor,
        platforms: &PlatformSelection,
        caller: Option<&str>,
    ) -> Result<(), ImageError> {
        let checked = self.compare_layers(top, platforms, caller).await;
        self.store_verdicts();
        if let Err(error) = &checked
            && error.is_unsound()
        {
            self.mark(top.digest, error).await;
        }
        checked
    }

    async fn compare_layers(
        &self,
        top: &Descriptor,
        platforms: &PlatformSelection,
        caller: Option<&str>,
    ) -> Result<(), ImageError> {
        let (shared, wanted, manifest) = (Arc::clone(&self.shared), platforms.clone(), top.clone());
        let read = move || declared::images_of(&*shared.blobs, &manifest, &wanted);
        let images = task::blocking("read images", read).await.map_err(|_| ImageError::Ending)??;
        let layers: BTreeSet<Digest> = images.iter().flat_map(DeclaredImage::tar_layers).collect();
        // Errors that need no inspection are reported at once.
        images.iter().try_for_each(soundness::check_shape)?;
        let verdicts = self.verdicts(layers.into_iter().collect(), caller).await?;
        let limits = self.shared.inspections.limits();
        images.iter().try_for_each(|image| soundness::check(image, &verdicts, limits))
    }

    /// Returns the verdict of each layer, inspecting those without one.
    async fn verdicts(
        &self,
        layers: Vec<Digest>,
        caller: Option<&str>,
    ) -> Result<HashMap<Digest, LayerVerdict>, ImageError> {
        let passes = &self.shared.inspections;
        let (mut verdicts, unknown) = passes.recent(layers);
        if unknown.is_empty() {
            return Ok(verdicts);
        }
        let kept = self.shared.catalog.layer_verdicts(unknown.clone(), passes.limits_key()).await?;
        passes.remember(&kept);
        let missing = unknown.into_iter().filter(|layer| !kept.contains_key(layer));
        let owner = caller.map(|caller| self.owner_of(caller));
        let owner = owner.as_deref();
        let found = missing.map(|layer| async move {
            let verdict = passes.inspect(layer, owner).await?;
            Ok::<_, ImageError>((layer, verdict))
        });
        let found: Vec<_> = stream::iter(found).buffer_unordered(MAX_CONCURRENT_LAYERS).try_collect().await?;
        verdicts.extend(kept);
        verdicts.extend(found);
        Ok(verdicts)
    }

    /// Stores new verdicts in the background: a lost verdict only costs another inspection.
    fn store_verdicts(&self) {
        let found = self.shared.inspections.take_unsaved();
        if found.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        drop(task::spawn("keep layer verdicts", async move {
            if let Err(error) =
                shared.catalog.put_layer_verdicts(found, shared.inspections.limits_key()).await
            {
                tracing::warn!(%error, "failed to store layer verdicts; a restart inspects the layers again");
            }
        }));
    }

    async fn mark(&self, manifest: Digest, error: &ImageError) {
        if !self.shared.inspections.is_first_mark(manifest) {
            return;
        }
        tracing::info!(image.digest = %manifest, %error, "invalid image refused");
        let mark = ImageMark { manifest, code: error.code().into(), reason: error.to_string() };
        if let Err(error) = self.shared.catalog.mark_image(mark, self.shared.inspections.limits_key()).await {
            tracing::warn!(%error, image.digest = %manifest, "failed to mark an invalid image; it is still refused");
        }
    }

    /// Returns the marks of those manifests that were found invalid.
    pub async fn marks(&self, manifests: Vec<Digest>) -> Result<Vec<ImageMark>, ImageError> {
        Ok(self.shared.catalog.image_marks(manifests, self.shared.inspections.limits_key()).await?)
    }

    /// Checks a newly arrived image in the background, so that it is marked before its first use. Returns at once.
    fn check_in_background(&self, manifest: &Descriptor) {
        let (images, manifest) = (self.clone(), manifest.clone());
        drop(task::spawn("check image", async move {
            if let Err(error) = images.check_arrived(&manifest).await {
                tracing::debug!(image.digest = %manifest.digest, %error, "arrived image failed its check");
            }
        }));
    }

    async fn check_arrived(&self, manifest: &Descriptor) -> Result<(), ImageError> {
        let (shared, top) = (Arc::clone(&self.shared), manifest.clone());
        let read = move || declared::is_runnable(&*shared.blobs, &top);
        // An artifact, such as a signature, is not used as an image, and so cannot be an invalid one.
        if task::blocking("read manifest", read).await.map_err(|_| ImageError::Ending)?? {
            self.check_layers(manifest, &PlatformSelection::All, None).await?;
        }
        Ok(())
    }
}

impl ArrivalListener for ImageStore {
    fn blob_arrived(&self, digest: &Digest) {
        self.shared.inspections.inspect_ahead(*digest);
    }

    fn manifest_arrived(&self, manifest: &Descriptor) {
        self.check_in_background(manifest);
    }
}

#[async_trait]
impl LayerCheck for ImageStore {
    async fn check(&self, image: &Descriptor) -> Result<(), RejectedImage> {
        self.check_layers(image, &PlatformSelection::All, Some(SERVICES_OWNER)).await.map_err(|error| {
            RejectedImage { code: error.code(), reason: error.to_string(), transient: !error.is_unsound() }
        })
    }
}
