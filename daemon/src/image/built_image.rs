//! Final form of the images of a build: the builder pushes a manifest, or an index with one manifest for each platform,
//! and the room writes those documents again that need another content.
//!
//! ```text
//! pushed manifest ------------- base layers restored, annotated -------------> manifest
//! pushed index, each manifest - base layers restored, annotated -- composed -> index
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use hearth_oci as oci;
use hearth_oci::Descriptor;

use super::base_layers::{self, invalid, parse, to_go_json};
use super::contents::{ImageContents, read_json, store_document};
use super::port::BlobStorage;
use super::{ImageError, ImageStore};
use crate::model::image::{ImageAnnotation, PinnedImage, Platform};
use crate::model::{AnnotationScope, BuildCompression, Digest};
use crate::task;

/// Image with which a build began, and the platform for which it was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseImage {
    pub image: PinnedImage,
    pub platform: Platform,
}

/// Platform of a built image, and the image with which it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformBase {
    pub platform: Platform,
    pub base: Option<BaseImage>,
}

/// Form that a build asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageForm {
    /// One for each platform of the build.
    pub bases: Vec<PlatformBase>,
    /// Compression of the layers above the base.
    pub compression: BuildCompression,
    /// The images begin with layers that were converted from those of the base.
    pub converted: bool,
    pub annotations: Vec<ImageAnnotation>,
}

/// A built image in its final form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltImage {
    /// Digest of the manifest or index.
    pub digest: Digest,
    /// Bases with whose layers the images begin.
    pub bases: Vec<PlatformBase>,
    /// Some new layer has another compression than the build asks for: BuildKit had it from an earlier build.
    pub has_other_compression: bool,
}

impl ImageStore {
    /// Gives a pushed image, or each image of a pushed index, the form that the build asks for.
    pub async fn finish_built_image(
        &self,
        built: &PinnedImage,
        form: ImageForm,
    ) -> Result<BuiltImage, ImageError> {
        let top = self.manifest_of(&built.repository, &built.digest).await?;
        let mut bases = Vec::with_capacity(form.bases.len());
        for of in &form.bases {
            let manifest = match &of.base {
                Some(base) => Some(self.manifest_of(&base.image.repository, &base.image.digest).await?),
                None => None,
            };
            bases.push(FoundBase { of: of.clone(), manifest });
        }
        let shared = Arc::clone(&self.shared);
        let finished = task::blocking("finish image", move || {
            let blobs = &*shared.blobs;
            let (image, finished) = finish(blobs, &top, &bases, &form)?;
            let is_new = finished.digest != top.digest;
            let contents = is_new.then(|| ImageContents::read_and_touch(blobs, &finished)).transpose()?;
            Ok::<_, ImageError>((image, contents))
        });
        let (image, contents) = finished.await.map_err(|_| ImageError::Ending)??;
        if let Some(contents) = contents {
            tracing::info!(image.digest = %image.digest, "rewrote the manifests of a built image");
            self.shared.catalog.put_manifests(&built.repository, contents.manifests, None).await?;
        }
        Ok(image)
    }
}

/// A [`PlatformBase`] with the manifest or index of its base.
struct FoundBase {
    of: PlatformBase,
    manifest: Option<Descriptor>,
}

/// Returns the image in its final form with its manifest or index, which is stored. Blocking.
fn finish(
    blobs: &dyn BlobStorage,
    top: &Descriptor,
    bases: &[FoundBase],
    form: &ImageForm,
) -> Result<(BuiltImage, Descriptor), ImageError> {
    let mut image = BuiltImage { digest: top.digest, bases: Vec::new(), has_other_compression: false };
    let mut finish_manifest = |manifest: &Descriptor, base: Option<&FoundBase>| {
        let below = base.and_then(|base| Some((base.manifest.as_ref()?, &base.of.base.as_ref()?.platform)));
        let platform = base.map(|base| &base.of.platform);
        let annotations = |scope| ImageAnnotation::of_place(&form.annotations, scope, platform);
        let restored =
            base_layers::restore(blobs, manifest, below, form, annotations(AnnotationScope::Manifest))?;
        image.bases.extend(base.filter(|_| restored.begins_with_base).map(|base| base.of.clone()));
        image.has_other_compression |= restored.has_other_compression;
        let mut manifest = restored.manifest;
        manifest.annotations.extend(annotations(AnnotationScope::ManifestDescriptor));
        Ok::<_, ImageError>(manifest)
    };
    let finished = if top.is_index() {
        let index: oci::OciIndex = parse(top, &read_json(blobs, top)?)?;
        let mut manifests = Vec::with_capacity(index.manifests.len());
        for child in &index.manifests {
            let platform = child.platform.as_ref().and_then(Platform::declared);
            let base = bases
                .iter()
                .find(|base| platform.as_ref().is_some_and(|platform| base.of.platform.is_same(platform)));
            manifests.push(if child.is_manifest() { finish_manifest(child, base)? } else { child.clone() });
        }
        let mut annotations = index.annotations.clone();
        annotations.extend(ImageAnnotation::of_place(&form.annotations, AnnotationScope::Index, None));
        match manifests == index.manifests && annotations == index.annotations {
            true => top.clone(),
            false => compose_index(blobs, top, manifests, annotations)?,
        }
    } else {
        finish_manifest(top, bases.first())?
    };
    image.digest = finished.digest;
    Ok((image, finished))
}

/// Stores the index of these manifests, which are listed in this order, in the place of what the builder pushed.
/// Returns its descriptor. Blocking.
pub(super) fn compose_index(
    blobs: &dyn BlobStorage,
    pushed: &Descriptor,
    manifests: Vec<Descriptor>,
    annotations: BTreeMap<String, String>,
) -> Result<Descriptor, ImageError> {
    let index = oci::OciIndex { annotations, ..oci::OciIndex::new(manifests) };
    let bytes = to_go_json(&index).map_err(|error| invalid(pushed, error))?;
    store_document(blobs, oci::OCI_INDEX_TYPE, &bytes)
}

#[cfg(test)]
mod tests;
