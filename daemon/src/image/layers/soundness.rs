//! Soundness of an image: its config compared with the verdicts of its layers. No I/O.

use std::collections::{HashMap, HashSet};

use hearth_oci::Descriptor;

use super::super::error::{ImageError, LayerMismatch};
use super::super::port::{LayerCompression, LayerFacts, LayerVerdict};
use super::declared::{DeclaredImage, LayerForm, layer_form};
use crate::model::{Digest, LayerLimits};

/// Maximum number of layers that a layered file system can mount together.
const MAX_LAYERS: usize = 256;

/// Checks what needs no inspection of a layer.
pub(super) fn check_shape(image: &DeclaredImage) -> Result<(), ImageError> {
    let (layers, diff_ids) = (image.layers.len(), image.diff_ids.len());
    if layers != diff_ids {
        return Err(ImageError::LayerCount { manifest: image.manifest, layers, diff_ids });
    }
    if layers > MAX_LAYERS && !image.is_cache {
        let reason = format!("it has {layers} layers; {MAX_LAYERS} are taken");
        return Err(ImageError::ImageTooLarge { manifest: image.manifest, reason });
    }
    if let Some(layer) = image.with_urls {
        return Err(ImageError::LayerElsewhere { manifest: image.manifest, layer });
    }
    match image.layers.iter().find(|layer| layer_form(&layer.media_type) == LayerForm::Unknown) {
        Some(layer) => Err(wrong_form(image, layer)),
        None => Ok(()),
    }
}

/// Checks that the config matches the content of each layer, and that all layers together are within the limits.
pub(super) fn check(
    image: &DeclaredImage,
    verdicts: &HashMap<Digest, LayerVerdict>,
    limits: &LayerLimits,
) -> Result<(), ImageError> {
    check_shape(image)?;
    let (mut unpacked, mut entries, mut stored) = (0u64, 0u64, 0u64);
    let mut blobs = HashSet::new();
    for (layer, declared) in image.layers.iter().zip(&image.diff_ids) {
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
            // It is never unpacked, so its content is the blob itself.
            LayerForm::Content => layer.digest,
        };
        if found != *declared {
            let (manifest, layer, declared) = (image.manifest, layer.digest, *declared);
            return Err(ImageError::LayerMismatch(Box::new(LayerMismatch {
                manifest,
                layer,
                declared,
                found,
            })));
        }
    }
    // Catches many small layers that are each within the limits, and one layer that is listed many times.
    if limits.is_decompression_bomb(unpacked, stored) {
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

fn wrong_form(image: &DeclaredImage, layer: &Descriptor) -> ImageError {
    let media_type = layer.media_type.chars().take(200).collect();
    ImageError::LayerForm { manifest: image.manifest, layer: layer.digest, media_type }
}

fn facts<'v>(
    image: &DeclaredImage,
    layer: &Descriptor,
    verdicts: &'v HashMap<Digest, LayerVerdict>,
) -> Result<&'v LayerFacts, ImageError> {
    match verdicts.get(&layer.digest) {
        Some(LayerVerdict::Sound(facts)) => Ok(facts),
        Some(LayerVerdict::Refused { refusal, reason }) => {
            Err(ImageError::LayerRefused { layer: layer.digest, refusal: *refusal, reason: reason.clone() })
        }
        // All layers were requested.
        None => Err(ImageError::BlobMissing { manifest: image.manifest, blob: layer.digest }),
    }
}
