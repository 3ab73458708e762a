//! Production implementation of [`ServiceImages`]: the room's images and the remote registries.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::port::ServiceImages;
use crate::image::{ImageError, ImageStore, RegistryCaller, RemoteRegistries};
use crate::model::Reference;
use crate::model::deploy::ImageFacts;
use crate::model::fault::{Fault, FaultStage};
use crate::model::image::{PinnedImage, Platform};
use crate::model::secret::RegistryCredential;

#[derive(Clone)]
pub struct RoomServiceImages {
    pub images: ImageStore,
    pub remote_registries: RemoteRegistries,
}

#[async_trait]
impl ServiceImages for RoomServiceImages {
    async fn resolve(
        &self,
        reference: &Reference,
        caller: &str,
        credentials: &BTreeMap<String, RegistryCredential>,
    ) -> Result<ImageFacts, Fault> {
        let asker = RegistryCaller { name: caller, credentials, registries: &self.remote_registries };
        let found = self.images.runnable(reference, &Platform::host(), asker).await;
        found.map_err(|error| fault(&error))
    }

    async fn resolve_mounted(
        &self,
        reference: &Reference,
        caller: &str,
        credentials: &BTreeMap<String, RegistryCredential>,
    ) -> Result<PinnedImage, Fault> {
        let asker = RegistryCaller { name: caller, credentials, registries: &self.remote_registries };
        let found = self.images.mountable(reference, &Platform::host(), asker).await;
        found.map_err(|error| fault(&error))
    }
}

fn fault(error: &ImageError) -> Fault {
    let mut fault = Fault::new(FaultStage::Deploy, error.code(), error.to_string()).maybe_hint(error.hint());
    fault.retryable = error.retryable();
    fault
}
