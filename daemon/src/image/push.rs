//! Push of an image to another registry: content first, so that a cancelled push leaves no name, the name last.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use hearth_oci::Descriptor;
use hearth_registry::{OpenContent, PushOutcome, RegistryClient};

use super::contents::{self, ImageContents};
use super::{ImageError, ImageStore, TransferProgress};
use crate::model::image::VerifiedImage;
use crate::model::manifest::{ManifestPart, PartKind};
use crate::model::{Digest, Reference, Tag};
use crate::task;

/// Maximum number of concurrent blob transfers.
const MAX_CONCURRENT_PUSHES: usize = 3;

/// Number of bytes that a push transferred or reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PushedBytes {
    pub sent_bytes: u64,
    /// Bytes that the registry already had.
    pub reused_bytes: u64,
}

impl ImageStore {
    /// Pushes an image of the room, and sets its name in the registry.
    pub async fn push(
        &self,
        remote: &RegistryClient,
        reference: &Reference,
        target: &Reference,
        transfer: &TransferProgress,
    ) -> Result<(Descriptor, PushedBytes), ImageError> {
        let manifest = self.resolve(reference).await?;
        let image = self.verify(&reference.repository, manifest.digest).await?;
        let sent = self.push_content(remote, &image, std::slice::from_ref(target), transfer).await?;
        self.push_names(remote, &image, std::slice::from_ref(target)).await?;
        Ok((manifest, sent))
    }

    /// Pushes everything except the names: blobs, and the manifests below an index.
    pub async fn push_content(
        &self,
        remote: &RegistryClient,
        image: &VerifiedImage,
        targets: &[Reference],
        transfer: &TransferProgress,
    ) -> Result<PushedBytes, ImageError> {
        let contents = self.contents(&image.manifest).await?;
        // What builds attached to the image goes with it.
        let mut attached = Vec::new();
        for manifest in self.build_statements(&image.repository, image.manifest.digest).await? {
            attached.push((self.contents(&manifest).await?, manifest));
        }
        let all = std::iter::once(&contents).chain(attached.iter().map(|(contents, _)| contents));
        let blobs: BTreeSet<ManifestPart> =
            all.flat_map(ImageContents::parts).filter(|part| part.kind == PartKind::Blob).collect();
        let mut sent = PushedBytes::default();
        let mut done = Vec::new();
        for target in targets {
            let target_place = remote.target(target);
            if done.contains(&target_place) {
                continue;
            }
            transfer.begin(blobs.iter().map(|part| part.size));
            // Content that a sibling repository has just received is mounted instead of sent again.
            let beside = done.iter().find(|other| target_place.can_mount_from(other));
            let push = blobs.iter().cloned().map(|part| {
                let target_place = &target_place;
                async move {
                    let blob = Descriptor::new("", part.digest, part.size);
                    let pushed =
                        remote.push_blob(target_place, &blob, beside, &self.content(part.digest)).await?;
                    transfer.done(part.size);
                    Ok::<_, ImageError>((pushed, part.size))
                }
            });
            let pushed: Vec<_> =
                stream::iter(push).buffer_unordered(MAX_CONCURRENT_PUSHES).try_collect().await?;
            for (pushed, size) in pushed {
                match pushed {
                    PushOutcome::Uploaded => sent.sent_bytes += size,
                    PushOutcome::AlreadyPresent | PushOutcome::Mounted => sent.reused_bytes += size,
                }
            }
            for below in children(&contents, &image.manifest) {
                let bytes = self.manifest_bytes(below).await?;
                remote
                    .push_manifest(&target_place, &below.digest.to_string(), &below.media_type, bytes)
                    .await?;
            }
            for (_, manifest) in &attached {
                let bytes = self.manifest_bytes(manifest).await?;
                let name = manifest.digest.to_string();
                let pushed = remote.push_manifest(&target_place, &name, &manifest.media_type, bytes).await;
                if let Err(error) = pushed {
                    // Registries before OCI 1.1 may refuse manifests that are no images.
                    tracing::warn!(%error, image.digest = %image.manifest.digest, "a registry refused a statement about an image");
                }
            }
            done.push(target_place);
        }
        Ok(sent)
    }

    /// Sets the names of an image whose content has been pushed.
    pub async fn push_names(
        &self,
        remote: &RegistryClient,
        image: &VerifiedImage,
        targets: &[Reference],
    ) -> Result<(), ImageError> {
        let bytes = self.manifest_bytes(&image.manifest).await?;
        for target in targets {
            let tag = target.tag.clone().unwrap_or_else(Tag::latest);
            let media_type = &image.manifest.media_type;
            remote.push_manifest(&remote.target(target), tag.as_str(), media_type, bytes.clone()).await?;
        }
        Ok(())
    }

    fn content(&self, digest: Digest) -> OpenContent {
        let shared = Arc::clone(&self.shared);
        OpenContent::new(digest, move || {
            let gone = || io::Error::new(io::ErrorKind::NotFound, "the blob is no longer in the room");
            shared.blobs.open_verified(&digest)?.ok_or_else(gone)
        })
    }

    async fn manifest_bytes(&self, manifest: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let (shared, manifest) = (Arc::clone(&self.shared), manifest.clone());
        let read = move || contents::read_json(&*shared.blobs, &manifest);
        task::blocking("read manifest", read).await.map_err(|_| ImageError::Ending)?
    }
}

/// Returns the manifests below an index.
fn children<'a>(contents: &'a ImageContents, top: &Descriptor) -> impl Iterator<Item = &'a Descriptor> {
    let top = top.digest;
    contents
        .manifests
        .iter()
        .map(|manifest| &manifest.manifest)
        .filter(move |manifest| manifest.digest != top)
}
