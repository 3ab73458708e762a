//! Instructions of an image's history, with the sizes of their layers.

use std::sync::Arc;

use hearth_oci::ImageConfig;

use super::contents::{image_to_show, read_json};
use super::{ImageError, ImageStore};
use crate::model::image::{ImageInstruction, Platform};
use crate::model::{Digest, Repository};
use crate::task;

impl ImageStore {
    /// Returns the instructions in the history of an image; in case of an index, of the image for this machine.
    pub async fn instructions(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<Vec<ImageInstruction>, ImageError> {
        let top = self.manifest_of(repository, &digest).await?;
        let shared = Arc::clone(&self.shared);
        let read = move || {
            let image = image_to_show(&*shared.blobs, &top, &Platform::host())?;
            let config = read_json(&*shared.blobs, &image.config)?;
            let config = ImageConfig::parse_unambiguous(&config).map_err(|error| ImageError::Config {
                digest: image.config.digest,
                reason: error.to_string(),
            })?;
            let mut layers = image.layers.iter();
            let instruction = |entry: hearth_oci::HistoryEntry| ImageInstruction {
                text: entry.created_by.unwrap_or_default(),
                layer_bytes: if entry.empty_layer { None } else { layers.next().map(|layer| layer.size) },
            };
            Ok(config.history.into_iter().map(instruction).collect())
        };
        task::blocking("image history", read).await.map_err(|_| ImageError::Ending)?
    }
}
