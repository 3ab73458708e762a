//! No image is used before its layers were found to be what its config says.
//!
//! BuildKit and containerd take a layer that they have unpacked before by its DiffID, as the image's config states
//! it, and do not look whether the layer's blob has that content. Whoever may push could so read another
//! image's files or plant files under its layers. So the room computes each DiffID itself, from the blob, once:
//!
//! ```text
//! blob arrives --(background)--.
//! image is to be used ---------+--> pass, one per layer at a time --> verdict by digest of the blob, kept
//!                                                                      |
//! manifest + config + verdicts of its layers --------------- rules ----'--> sound, or refused
//! ```

mod parts;
mod passes;
mod rules;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::port::LayerVerdict;
use super::{ImageError, Images, Platforms};
use crate::model::image::Descriptor;
use crate::model::{Digest, LayerLimits};
use crate::task;

use parts::ImageParts;
pub(super) use passes::Passes;

/// Layers of one image that wait for their pass at the same time.
const TOGETHER: usize = 4;
/// Counts up when a look-through may come to another outcome: verdicts of earlier releases are then not believed.
const VERSION: u32 = 1;

/// What verdicts are kept under.
fn limits_key(limits: &LayerLimits) -> String {
    let LayerLimits { layer_bytes, ratio, ratio_floor, entries, .. } = limits;
    format!("{VERSION}:{layer_bytes}:{ratio}:{ratio_floor}:{entries}")
}

impl Images {
    /// Whether the layers of an image are what its config says, and within the limits. Of an index, the image of one
    /// platform, or all that could be used. Waits for passes over layers that nobody has looked through yet; dropping
    /// the future cancels those that nobody else waits for.
    pub async fn check_layers(&self, top: &Descriptor, platforms: &Platforms) -> Result<(), ImageError> {
        let (shared, wanted, manifest) = (Arc::clone(&self.shared), platforms.clone(), top.clone());
        let read = move || parts::images_of(&*shared.blobs, &manifest, &wanted);
        let images = task::blocking("read images", read).await.map_err(|_| ImageError::Ending)??;
        let layers: BTreeSet<Digest> = images.iter().flat_map(ImageParts::tar_layers).collect();
        // What is wrong without looking into a layer is refused at once.
        let limits = *self.shared.passes.limits();
        images.iter().try_for_each(rules::check_shape)?;
        let verdicts = self.verdicts(layers.into_iter().collect()).await?;
        images.iter().try_for_each(|image| rules::check(image, &verdicts, &limits))
    }

    /// What each layer holds, from a pass where it is not known.
    async fn verdicts(&self, layers: Vec<Digest>) -> Result<HashMap<Digest, LayerVerdict>, ImageError> {
        let passes = &self.shared.passes;
        let (mut verdicts, unknown) = passes.recent(layers);
        if unknown.is_empty() {
            return Ok(verdicts);
        }
        let kept = self.shared.catalog.layer_verdicts(unknown.clone(), passes.key()).await?;
        passes.remember(&kept);
        let missing = unknown.into_iter().filter(|layer| !kept.contains_key(layer));
        let found =
            missing.map(|layer| async move { Ok::<_, ImageError>((layer, passes.pass(layer).await?)) });
        let found: Vec<_> = stream::iter(found).buffer_unordered(TOGETHER).try_collect().await?;
        verdicts.extend(kept);
        verdicts.extend(found.iter().cloned());
        if !found.is_empty() {
            self.keep_verdicts(found);
        }
        Ok(verdicts)
    }

    /// Beside the caller: a verdict that is lost costs another pass and nothing else.
    fn keep_verdicts(&self, found: Vec<(Digest, LayerVerdict)>) {
        let shared = Arc::clone(&self.shared);
        drop(task::spawn("keep layer verdicts", async move {
            if let Err(error) = shared.catalog.put_layer_verdicts(found, shared.passes.key()).await {
                tracing::warn!(%error, "what was found in layers was not stored; it is found again after a restart");
            }
        }));
    }
}
