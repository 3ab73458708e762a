//! What makes an image sound: its config against what was found in its layers. No I/O.

use std::collections::{HashMap, HashSet};

use super::super::error::{ImageError, LayerMismatch};
use super::super::port::{LayerCompression, LayerFacts, LayerVerdict};
use super::parts::{ImageParts, LayerForm, layer_form};
use crate::model::image::Descriptor;
use crate::model::{Digest, LayerLimits};

/// Layers that no file system of layers can take together.
const MAX_LAYERS: usize = 256;

/// What can be said without looking into a layer.
pub(super) fn check_shape(image: &ImageParts) -> Result<(), ImageError> {
    let (layers, diff_ids) = (image.layers.len(), image.diff_ids.len());
    if layers != diff_ids {
        return Err(ImageError::LayerCount { manifest: image.manifest, layers, diff_ids });
    }
    if layers > MAX_LAYERS {
        let reason = format!("it has {layers} layers; {MAX_LAYERS} are taken");
        return Err(ImageError::ImageTooLarge { manifest: image.manifest, reason });
    }
    if let Some(layer) = image.elsewhere {
        return Err(ImageError::LayerElsewhere { manifest: image.manifest, layer });
    }
    match image.layers.iter().find(|layer| layer_form(&layer.media_type) == LayerForm::Unknown) {
        Some(layer) => Err(wrong_form(image, layer)),
        None => Ok(()),
    }
}

/// Whether the config says of each layer what was found in it, and all of them together are within the limits.
pub(super) fn check(
    image: &ImageParts,
    verdicts: &HashMap<Digest, LayerVerdict>,
    limits: &LayerLimits,
) -> Result<(), ImageError> {
    check_shape(image)?;
    let (mut unpacked, mut entries, mut stored) = (0u64, 0u64, 0u64);
    let mut blobs = HashSet::new();
    for (layer, said) in image.layers.iter().zip(&image.diff_ids) {
        let found = match layer_form(&layer.media_type) {
            LayerForm::Unknown => return Err(wrong_form(image, layer)),
            form @ (LayerForm::PlainTar | LayerForm::CompressedTar) => {
                let facts = facts(image, layer, verdicts)?;
                if form == LayerForm::PlainTar && facts.compression != LayerCompression::None {
                    return Err(wrong_form(image, layer));
                }
                unpacked = unpacked.saturating_add(facts.unpacked_bytes);
                entries = entries.saturating_add(facts.entries);
                if blobs.insert(layer.digest) {
                    stored = stored.saturating_add(facts.stored_bytes);
                }
                facts.diff_id
            }
            // Nobody unpacks it: what it holds is the blob itself.
            LayerForm::Content => layer.digest,
        };
        if found != *said {
            let (manifest, layer, said) = (image.manifest, layer.digest, *said);
            return Err(ImageError::LayerMismatch(Box::new(LayerMismatch { manifest, layer, said, found })));
        }
    }
    // Small layers that are each within the limits, or one layer many times over.
    if limits.is_bomb(unpacked, stored) {
        let reason = format!(
            "its layers unpack to {unpacked} bytes, over {} times as much as they have, which is refused as a decompression bomb",
            limits.ratio
        );
        return Err(ImageError::ImageTooLarge { manifest: image.manifest, reason });
    }
    if entries > limits.entries as u64 {
        let reason = format!("its layers have {entries} entries; at most {} are taken", limits.entries);
        return Err(ImageError::ImageTooLarge { manifest: image.manifest, reason });
    }
    Ok(())
}

fn wrong_form(image: &ImageParts, layer: &Descriptor) -> ImageError {
    let media_type = layer.media_type.chars().take(200).collect();
    ImageError::LayerForm { manifest: image.manifest, layer: layer.digest, media_type }
}

fn facts<'v>(
    image: &ImageParts,
    layer: &Descriptor,
    verdicts: &'v HashMap<Digest, LayerVerdict>,
) -> Result<&'v LayerFacts, ImageError> {
    match verdicts.get(&layer.digest) {
        Some(LayerVerdict::Sound(facts)) => Ok(facts),
        Some(LayerVerdict::Refused { refusal, reason }) => {
            Err(ImageError::LayerRefused { layer: layer.digest, refusal: *refusal, reason: reason.clone() })
        }
        // Every layer was asked for.
        None => Err(ImageError::BlobMissing { manifest: image.manifest, blob: layer.digest }),
    }
}
