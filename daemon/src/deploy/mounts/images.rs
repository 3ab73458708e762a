//! Images among an instance's mounts: found, brought where they are of another registry, and opened as trees.

use std::collections::BTreeMap;

use super::fault;
use crate::context::layers::LayerBlob;
use crate::context::tree::Tree;
use crate::context::{ContextMount, Contexts, OpenedImage};
use crate::deploy::port::MountFault;
use crate::image::{Elsewhere, ImageError, Images, OpenLayer};
use crate::model::image::Descriptor;
use crate::model::service::ServiceName;
use crate::model::{MountSource, MountSpec, MountTarget, Reference};

/// Where a view has its image, or the file or directory of it: a mount of a file needs a directory around it.
pub(super) const SOURCE: &str = "source";

pub struct MountedImages {
    pub images: Images,
    pub elsewhere: Elsewhere,
    pub contexts: Contexts,
}

impl MountedImages {
    /// The image that a mount names now, below [`SOURCE`]. None for mounts of something else.
    pub(super) async fn open(
        &self,
        mount: &MountSpec,
        service: &ServiceName,
    ) -> Result<Option<Tree>, MountFault> {
        let MountSource::Image { reference, .. } = &mount.source else { return Ok(None) };
        let image = self.image(reference, service).await;
        let image = image.map_err(|error| fault::of_image(&mount.target, &error))?;
        let target: MountTarget = format!("/{SOURCE}")
            .parse()
            .map_err(|_| fault::new(&mount.target, "internal", "the name of its place is no path"))?;
        let spec = MountSpec { target, ..mount.clone() };
        let opened = ContextMount { spec, image: Some(image), pack: None };
        let tree = self.contexts.open_tree(vec![opened]).await;
        tree.map(Some).map_err(|error| fault::of_context(&mount.target, &error))
    }

    async fn image(&self, reference: &Reference, service: &ServiceName) -> Result<OpenedImage, ImageError> {
        let manifest = self.manifest(reference, service).await?;
        let blob = |open: OpenLayer| LayerBlob {
            digest: open.layer.digest,
            diff_id: open.diff_id,
            media_type: open.layer.media_type,
            file: open.file,
        };
        let layers = self.images.open_layers(&manifest).await?.into_iter().map(blob).collect();
        Ok(OpenedImage { manifest: manifest.digest, layers })
    }

    async fn manifest(&self, reference: &Reference, service: &ServiceName) -> Result<Descriptor, ImageError> {
        if self.images.room_registries().owns_tag(reference) {
            return self.images.resolve(reference).await;
        }
        let remote = self.elsewhere.remote(&BTreeMap::new())?;
        self.images.pull_for_mount(&remote, reference, &format!("service {service}")).await
    }
}
