//! Mounted images of an instance, opened as trees. They are pinned and in the room since the deploy.

use super::fault;
use crate::context::{ContextMount, ContextPreparer, ContextTree, LayerBlob, OpenedImage};
use crate::deploy::port::MountFault;
use crate::image::{ImageError, ImageStore, OpenLayer};
use crate::model::access::SymlinkPolicy;
use crate::model::fault::ErrorCode;
use crate::model::image::PinnedImage;
use crate::model::{BuildMount, BuildMountSource, MountTarget, Reference, ServiceMount, ServiceMountSource};

/// Name of the image, or of its file or directory, inside a view: a mounted file needs a directory around it.
pub(super) const SOURCE: &str = "source";

pub struct MountedImages {
    pub images: ImageStore,
    pub contexts: ContextPreparer,
}

impl MountedImages {
    /// Opens the image of a mount as a tree below [`SOURCE`]; `None` for other kinds of mounts.
    pub(super) async fn open(
        &self,
        mount: &ServiceMount,
        pinned: Option<&PinnedImage>,
    ) -> Result<Option<ContextTree>, MountFault> {
        let ServiceMountSource::Image { reference, subpath } = &mount.source else { return Ok(None) };
        let Some(pinned) = pinned else {
            let reason = format!("the deploy did not record the digest of `{reference}`");
            return Err(fault::permanent(&mount.target, ErrorCode::ImageNotPinned, reason));
        };
        let image = self.image(pinned).await;
        let image = image.map_err(|error| fault::of_image(&mount.target, &error))?;
        let target: MountTarget = format!("/{SOURCE}").parse().map_err(|_| {
            fault::permanent(&mount.target, ErrorCode::Internal, "the name of its place is no path")
        })?;
        let source = BuildMountSource::Image { reference: reference.clone(), subpath: subpath.clone() };
        let spec = BuildMount { source, target, mode: mount.mode, create: false };
        let opened = ContextMount { spec, image: Some(image), pack: None, links: SymlinkPolicy::Refused };
        let tree = self.contexts.open_tree(vec![opened]).await;
        tree.map(Some).map_err(|error| fault::of_context(&mount.target, &error))
    }

    async fn image(&self, pinned: &PinnedImage) -> Result<OpenedImage, ImageError> {
        let PinnedImage { repository, digest } = pinned.clone();
        let here = Reference { registry: None, repository, tag: None, digest: Some(digest) };
        let manifest = self.images.resolve(&here).await?;
        let blob = |open: OpenLayer| LayerBlob {
            digest: open.layer.digest,
            diff_id: open.diff_id,
            media_type: open.layer.media_type,
            file: open.file,
        };
        let layers = self.images.open_layers(&manifest).await?.into_iter().map(blob).collect();
        Ok(OpenedImage { manifest: manifest.digest, layers })
    }
}
