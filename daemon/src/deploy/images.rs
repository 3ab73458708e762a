//! Production implementation of [`ServiceImages`]: the room's images and the remote registries.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::port::ServiceImages;
use crate::image::{Elsewhere, ImageError, Images, RegistryCaller};
use crate::model::Reference;
use crate::model::deploy::ImageFacts;
use crate::model::fault::{Fault, Stage};
use crate::model::image::{PinnedImage, Platform};
use crate::model::secret::Credential;

#[derive(Clone)]
pub struct RoomServiceImages {
    pub images: Images,
    pub elsewhere: Elsewhere,
}

#[async_trait]
impl ServiceImages for RoomServiceImages {
    async fn resolve(
        &self,
        reference: &Reference,
        caller: &str,
        given: &BTreeMap<String, Credential>,
    ) -> Result<ImageFacts, Fault> {
        let asker = RegistryCaller { name: caller, given, elsewhere: &self.elsewhere };
        let found = self.images.runnable(reference, &Platform::host(), asker).await;
        found.map_err(|error| fault(&error))
    }

    async fn resolve_mounted(
        &self,
        reference: &Reference,
        caller: &str,
        given: &BTreeMap<String, Credential>,
    ) -> Result<PinnedImage, Fault> {
        let asker = RegistryCaller { name: caller, given, elsewhere: &self.elsewhere };
        let found = self.images.mountable(reference, &Platform::host(), asker).await;
        found.map_err(|error| fault(&error))
    }
}

fn fault(error: &ImageError) -> Fault {
    let mut fault = Fault::new(Stage::Deploy, error.code(), error.to_string());
    fault.retryable = error.retryable();
    fault.hint = error.hint().map(str::to_owned);
    fault
}
