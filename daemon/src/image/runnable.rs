//! Images to be run here, or to be mounted by services: complete, for this machine's platform, with their declared
//! properties.

use std::collections::BTreeMap;
use std::sync::Arc;

use hearth_oci::ImageConfig;

use super::cache::normalized_name;
use super::port::cached::CachedImageKey;
use super::{
    ImageError, ImageStore, PlatformSelection, RemoteRegistries, SupplyRequest, TransferProgress, contents,
};
use crate::model::deploy::ImageFacts;
use crate::model::image::{PinnedImage, Platform, is_cached_name};
use crate::model::secret::RegistryCredential;
use crate::model::{Reference, Repository};
use crate::task;

/// Caller who requests an image from another registry, with credentials.
#[derive(Clone, Copy)]
pub struct RegistryCaller<'a> {
    pub name: &'a str,
    /// Credentials that came with the request, by registry.
    pub credentials: &'a BTreeMap<String, RegistryCredential>,
    pub registries: &'a RemoteRegistries,
}

impl ImageStore {
    /// Returns the facts of an image of the room, or of another registry after caching it. Services know the latter by
    /// a name such as `docker.io/library/nginx`, whoever fetched it.
    pub async fn runnable(
        &self,
        reference: &Reference,
        platform: &Platform,
        caller: RegistryCaller<'_>,
    ) -> Result<ImageFacts, ImageError> {
        let here = self.cached_reference(reference, platform, caller).await?;
        let mut facts =
            self.runnable_here(&here, platform, caller.name).await.map_err(|error| match error {
                ImageError::OtherPlatform { found, wanted, .. } => {
                    ImageError::OtherPlatform { reference: reference.to_string(), found, wanted }
                }
                other => other,
            })?;
        if !self.shared.rooms.owns_tag(reference) {
            facts.kept_in = Some(std::mem::replace(&mut facts.repository, repository_of(reference)?));
        }
        Ok(facts)
    }

    /// Returns an image whose files alone are needed: its platform is not checked.
    pub async fn mountable(
        &self,
        reference: &Reference,
        platform: &Platform,
        caller: RegistryCaller<'_>,
    ) -> Result<PinnedImage, ImageError> {
        let here = self.cached_reference(reference, platform, caller).await?;
        let top = self.resolve(&here).await?;
        // `verify` touches all content, which keeps it until the service that mounts it is stored.
        self.verify(&here.repository, top.digest).await?;
        self.check_layers(&top, &PlatformSelection::All, Some(caller.name)).await?;
        // Opened as for an instance, so that errors appear now.
        self.open_layers(&top).await?;
        Ok(PinnedImage { repository: here.repository, digest: top.digest })
    }

    /// Returns the reference itself if it is this room's, else a reference to the cached copy. The registry resolves
    /// the name each time.
    async fn cached_reference(
        &self,
        reference: &Reference,
        platform: &Platform,
        caller: RegistryCaller<'_>,
    ) -> Result<Reference, ImageError> {
        if self.shared.rooms.owns_tag(reference) {
            if is_cached_name(reference.repository.as_str()) {
                return Err(ImageError::NotFound { reference: reference.to_string() });
            }
            return Ok(reference.clone());
        }
        let RegistryCaller { name, credentials: given, registries: remote_registries } = caller;
        let (remote, right) = remote_registries.client_for(reference, given, name)?;
        let key = CachedImageKey { name: normalized_name(reference), platform: platform.clone(), right };
        let wanted = SupplyRequest {
            reference,
            is_own: false,
            platforms: std::slice::from_ref(platform),
            caller: name,
            credentials: given,
            ask_registry: true,
            transfer: &TransferProgress::default(),
        };
        let (image, _) = self.cached_or_fetched(&wanted, key, &remote).await?;
        let digest = Some(image.manifest.digest);
        Ok(Reference { registry: None, repository: image.repository, tag: None, digest })
    }

    async fn runnable_here(
        &self,
        reference: &Reference,
        platform: &Platform,
        caller: &str,
    ) -> Result<ImageFacts, ImageError> {
        let top = self.resolve(reference).await?;
        // `verify` touches all content, which keeps it until the service that runs it is stored.
        self.verify(&reference.repository, top.digest).await?;
        self.check_layers(&top, &PlatformSelection::All, Some(caller)).await?;
        let (shared, digest, wanted) = (Arc::clone(&self.shared), top.digest, platform.clone());
        let read = task::blocking("read image config", move || {
            let (manifest, image) = contents::platform_manifest(&*shared.blobs, &top, &wanted)?;
            let config = contents::read_json(&*shared.blobs, &image.config)?;
            let config = ImageConfig::parse_unambiguous(&config).map_err(|error| ImageError::Config {
                digest: image.config.digest,
                reason: error.to_string(),
            })?;
            Ok::<_, ImageError>((manifest, config))
        });
        let (manifest, config) = read.await.map_err(|_| ImageError::Ending)??;
        // A manifest outside an index has its platform only in its config; if there is none, the image is accepted.
        if let Some(found) = Platform::declared(&config.platform).filter(|found| !runs(platform, found)) {
            return Err(ImageError::OtherPlatform {
                reference: reference.to_string(),
                found: found.as_str().to_owned(),
                wanted: platform.as_str().to_owned(),
            });
        }
        let repository = reference.repository.clone();
        let (exposed, volumes) = (config.config.exposed_tcp_ports(), config.config.volume_targets());
        Ok(ImageFacts { repository, kept_in: None, digest, manifest, exposed, volumes })
    }
}

/// Reports whether a machine of one platform runs images of another; variants are ignored.
fn runs(machine: &Platform, image: &Platform) -> bool {
    let family = |platform: &Platform| platform.as_str().splitn(3, '/').take(2).collect::<Vec<_>>().join("/");
    family(machine) == family(image)
}

/// Returns the repository name under which services know an image of another registry.
fn repository_of(reference: &Reference) -> Result<Repository, ImageError> {
    let registry = reference.registry.as_ref().map_or("docker.io", |registry| registry.as_str());
    // A repository name contains no colon, and the host name of a registry no run of dashes.
    let name = format!("{}/{}", registry.replace(':', "---"), reference.repository);
    name.parse().map_err(|_| ImageError::Foreign { reference: reference.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_another_registry_has_a_repository_of_its_own() {
        let of = |text: &str| repository_of(&text.parse().unwrap()).map(|name| name.to_string());
        assert_eq!(of("docker.io/library/nginx:1").unwrap(), "docker.io/library/nginx");
        assert_eq!(of("localhost:5000/a:1").unwrap(), "localhost---5000/a");
        assert!(of(&format!("ghcr.io/{}", "a".repeat(250))).is_err());
    }

    #[test]
    fn variants_of_one_architecture_are_not_distinguished() {
        let platform = |text| Platform::parse(text).unwrap();
        assert!(runs(&platform("linux/arm64"), &platform("linux/arm64/v8")));
        assert!(!runs(&platform("linux/amd64"), &platform("linux/arm64")));
    }
}
