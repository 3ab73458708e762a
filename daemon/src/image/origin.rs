//! Images that were made here, found again by what they were made of. A record says where to look; whether the
//! image is still there, and whole, is seen each time.

use std::sync::Arc;

use super::contents::{self, OpenLayer};
use super::port::Origin;
use super::{ImageError, Images};
use crate::model::image::{Platform, VerifiedImage};
use crate::model::{Digest, Repository};
use crate::task;

/// An image that is there whole, as it is stored.
#[derive(Debug)]
pub struct FoundImage {
    pub image: VerifiedImage,
    pub manifest_json: Vec<u8>,
    pub config_json: Vec<u8>,
    pub layers: Vec<OpenLayer>,
}

impl Images {
    /// Notes what an image was made of.
    pub async fn note_origin(
        &self,
        repository: &Repository,
        manifest: Digest,
        origin: Origin,
    ) -> Result<(), ImageError> {
        Ok(self.shared.catalog.put_origin(repository, &manifest, origin).await?)
    }

    /// An image that was made of this before.
    pub async fn made_of(&self, origin: Origin) -> Result<Option<FoundImage>, ImageError> {
        for (repository, digest) in self.shared.catalog.made_of(origin).await? {
            match self.find_whole(&repository, digest).await {
                Ok(found) => return Ok(Some(found)),
                Err(error @ (ImageError::Catalog(_) | ImageError::Ending)) => return Err(error),
                // It is made anew, which puts right what can be.
                Err(error) => {
                    tracing::info!(image.digest = %digest, %repository, %error, "an image that was made here is not whole any more");
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
