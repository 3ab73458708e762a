//! Lookup of images that were created here by their origin. A record only says where to look; whether the image is
//! still present and complete is checked each time.

use std::sync::Arc;

use super::contents::{self, OpenLayer};
use super::port::ImageOrigin;
use super::{ImageError, ImageStore};
use crate::model::image::{Platform, VerifiedImage};
use crate::model::{Digest, Repository};
use crate::task;

/// Complete image, as stored.
#[derive(Debug)]
pub struct FoundImage {
    pub image: VerifiedImage,
    pub manifest_json: Vec<u8>,
    pub config_json: Vec<u8>,
    pub layers: Vec<OpenLayer>,
}

impl ImageStore {
    /// Records the origin of an image.
    pub async fn record_origin(
        &self,
        repository: &Repository,
        manifest: Digest,
        origin: ImageOrigin,
    ) -> Result<(), ImageError> {
        Ok(self.shared.catalog.put_origin(repository, &manifest, origin).await?)
    }

    /// Returns an image that was created from this origin.
    pub async fn find_by_origin(&self, origin: ImageOrigin) -> Result<Option<FoundImage>, ImageError> {
        for (repository, digest) in self.shared.catalog.find_by_origin(origin).await? {
            match self.find_whole(&repository, digest).await {
                Ok(found) => return Ok(Some(found)),
                Err(error @ (ImageError::Catalog(_) | ImageError::Ending)) => return Err(error),
                // The image is created again, which repairs what can be repaired.
                Err(error) => {
                    tracing::info!(image.digest = %digest, %repository, %error, "found an incomplete stored image; recreating it");
                }
            }
        }
        Ok(None)
    }

    async fn find_whole(&self, repository: &Repository, digest: Digest) -> Result<FoundImage, ImageError> {
        let image = self.verify(repository, digest).await?;
        let shared = Arc::clone(&self.shared);
        let read = move || {
            let blobs = &*shared.blobs;
            let manifest_json = contents::read_json(blobs, &image.manifest)?;
            let stored = contents::image_for(blobs, &image.manifest, &Platform::host())?;
            let config_json = contents::read_json(blobs, &stored.config)?;
            let layers = contents::open_layers(blobs, &image.manifest)?;
            Ok(FoundImage { image, manifest_json, config_json, layers })
        };
        task::blocking("find image", read).await.map_err(|_| ImageError::Ending)?
    }
}
