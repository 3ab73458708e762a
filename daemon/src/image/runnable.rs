//! Images that are to run here, or to be mounted in what runs: for this machine's platform, whole, and with what they
//! say of themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Destination, Elsewhere, ImageError, Images, Platforms, Pull, Transfer, contents};
use crate::model::deploy::ImageFacts;
use crate::model::image::{PinnedImage, Platform};
use crate::model::manifest::ImageConfig;
use crate::model::secret::Credential;
use crate::model::{Reference, Repository};
use crate::task;

impl Images {
    /// An image of the room as it is, one of another registry once it is here: in a repository that is named after
    /// that registry, such as `docker.io/library/nginx`, without a tag.
    pub async fn runnable(
        &self,
        reference: &Reference,
        platform: &Platform,
        elsewhere: &Elsewhere,
        given: &BTreeMap<String, Credential>,
    ) -> Result<ImageFacts, ImageError> {
        let here = self.brought(reference, platform, elsewhere, given).await?;
        match self.runnable_here(&here, platform).await {
            Err(ImageError::OtherPlatform { found, wanted, .. }) => {
                Err(ImageError::OtherPlatform { reference: reference.to_string(), found, wanted })
            }
            other => other,
        }
    }

    /// The same for one whose files are all that is wanted: what it says of its platform is no hindrance.
    pub async fn mountable(
        &self,
        reference: &Reference,
        platform: &Platform,
        elsewhere: &Elsewhere,
        given: &BTreeMap<String, Credential>,
    ) -> Result<PinnedImage, ImageError> {
        let here = self.brought(reference, platform, elsewhere, given).await?;
        let top = self.resolve(&here).await?;
        // Everything is there, and stays until the service that is to mount it is stored.
        self.verify(&here.repository, top.digest).await?;
        self.check_layers(&top, &Platforms::All).await?;
        // As it is opened for an instance: what cannot be opened is seen now.
        self.open_layers(&top).await?;
        Ok(PinnedImage { repository: here.repository, digest: top.digest })
    }

    /// The reference itself where it is this room's, else where the image lies once it is here.
    async fn brought(
        &self,
        reference: &Reference,
        platform: &Platform,
        elsewhere: &Elsewhere,
        given: &BTreeMap<String, Credential>,
    ) -> Result<Reference, ImageError> {
        if self.shared.rooms.owns_tag(reference) {
            return Ok(reference.clone());
        }
        let repository = repository_of(reference)?;
        let remote = elsewhere.remote(given)?;
        let platforms = Platforms::One(platform.clone());
        let destination = Destination::Untagged(repository.clone());
        let pull = Pull { remote: &remote, reference, platforms, destination };
        let pulled = self.pull(pull, &Transfer::default()).await?;
        let digest = Some(pulled.manifest.digest);
        Ok(Reference { registry: None, repository, tag: None, digest })
    }

    async fn runnable_here(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<ImageFacts, ImageError> {
        let top = self.resolve(reference).await?;
        // Everything is there, and stays until the service that is to run it is stored.
        self.verify(&reference.repository, top.digest).await?;
        self.check_layers(&top, &Platforms::All).await?;
        let (shared, digest, wanted) = (Arc::clone(&self.shared), top.digest, platform.clone());
        let read = task::blocking("read image config", move || {
            let (manifest, image) = contents::manifest_for(&*shared.blobs, &top, &wanted)?;
            let config = contents::read_json(&*shared.blobs, &image.config)?;
            let config = ImageConfig::parse(&config).map_err(|error| ImageError::Config {
                digest: image.config.digest,
                reason: error.to_string(),
            })?;
            Ok::<_, ImageError>((manifest, config))
        });
        let (manifest, config) = read.await.map_err(|_| ImageError::Ending)??;
        // A manifest that is in no index says it in its config only; one that says nothing is taken at its word.
        if let Some(found) = config.platform.filter(|found| !runs(platform, found)) {
            return Err(ImageError::OtherPlatform {
                reference: reference.to_string(),
                found: found.as_str().to_owned(),
                wanted: platform.as_str().to_owned(),
            });
        }
        let repository = reference.repository.clone();
        Ok(ImageFacts { repository, digest, manifest, exposed: config.exposed, volumes: config.volumes })
    }
}

/// Whether a machine of one platform runs images of another: variants are not told apart.
fn runs(machine: &Platform, image: &Platform) -> bool {
    let family = |platform: &Platform| platform.as_str().splitn(3, '/').take(2).collect::<Vec<_>>().join("/");
    family(machine) == family(image)
}

/// Where an image of another registry lies in the room.
fn repository_of(reference: &Reference) -> Result<Repository, ImageError> {
    let registry = reference.registry.as_ref().map_or("docker.io", |registry| registry.as_str());
    // A colon is in no name of a repository, and a run of dashes in no name of a host that has one.
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
    fn variants_of_one_architecture_are_not_told_apart() {
        let platform = |text| Platform::parse(text).unwrap();
        assert!(runs(&platform("linux/arm64"), &platform("linux/arm64/v8")));
        assert!(!runs(&platform("linux/amd64"), &platform("linux/arm64")));
    }
}
