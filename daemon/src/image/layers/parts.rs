//! What an image says of its layers.

use super::super::contents::{manifest_for, read_json};
use super::super::port::Blobs;
use super::super::{ImageError, Platforms, parse};
use crate::model::Digest;
use crate::model::image::Descriptor;
use crate::model::manifest::{ImageConfig, ImageManifest, Manifest};

/// Manifests below one index.
const MAX_CHILDREN: usize = 256;

/// An image of one platform, as it says of itself.
#[derive(Clone, Debug)]
pub(in super::super) struct ImageParts {
    pub manifest: Digest,
    /// The base's first.
    pub layers: Vec<Descriptor>,
    /// What the config says of them.
    pub diff_ids: Vec<Digest>,
    /// Layers that are to be fetched from URLs that the manifest gives.
    pub elsewhere: Option<Digest>,
}

impl ImageParts {
    /// Layers whose content has to be known.
    pub(super) fn tar_layers(&self) -> impl Iterator<Item = Digest> + '_ {
        let is_tar = |layer: &&Descriptor| {
            matches!(layer_form(&layer.media_type), LayerForm::CompressedTar | LayerForm::PlainTar)
        };
        self.layers.iter().filter(is_tar).map(|layer| layer.digest)
    }
}

/// What those who unpack a layer take its bytes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LayerForm {
    /// They decompress it as its first bytes tell, whatever the media type says.
    CompressedTar,
    /// They take it as it is, even when it begins as something compressed.
    PlainTar,
    /// A layer of a kind that nothing here unpacks.
    Unknown,
    /// No file system: attestations, artifacts.
    Content,
}

/// As containerd and BuildKit tell it.
pub(super) fn layer_form(media_type: &str) -> LayerForm {
    const OCI: &str = "application/vnd.oci.image.layer.";
    const DOCKER: &str = "application/vnd.docker.image.rootfs.";
    if let Some(rest) = media_type.strip_prefix(OCI) {
        return match rest {
            "v1.tar" | "nondistributable.v1.tar" => LayerForm::PlainTar,
            "v1.tar+gzip" | "v1.tar+zstd" => LayerForm::CompressedTar,
            "nondistributable.v1.tar+gzip" | "nondistributable.v1.tar+zstd" => LayerForm::CompressedTar,
            _ => LayerForm::Unknown,
        };
    }
    match media_type.strip_prefix(DOCKER) {
        Some(
            "diff.tar" | "diff.tar.gzip" | "diff.tar.zstd" | "foreign.diff.tar" | "foreign.diff.tar.gzip",
        ) => LayerForm::CompressedTar,
        Some(_) => LayerForm::Unknown,
        None => LayerForm::Content,
    }
}

/// The image for one platform, or all images of an index that somebody could run. Blocking.
pub(super) fn images_of(
    blobs: &dyn Blobs,
    top: &Descriptor,
    platforms: &Platforms,
) -> Result<Vec<ImageParts>, ImageError> {
    if let Platforms::One(platform) = platforms {
        let (digest, image) = manifest_for(blobs, top, platform)?;
        return Ok(vec![parts(blobs, digest, image)?]);
    }
    let too_deep = || ImageError::TooDeep { digest: top.digest, limit: MAX_CHILDREN };
    let index = match parse(top, &read_json(blobs, top)?)? {
        Manifest::Image(image) => return Ok(vec![parts(blobs, top.digest, image)?]),
        Manifest::Index(index) => index,
    };
    if index.manifests.len() > MAX_CHILDREN {
        return Err(too_deep());
    }
    let mut images = Vec::with_capacity(index.manifests.len());
    for child in index.manifests {
        let Manifest::Image(image) = parse(&child.manifest, &read_json(blobs, &child.manifest)?)? else {
            return Err(too_deep());
        };
        // An artifact beside the images: it has no config of one, so nobody can run it.
        let is_artifact = !is_image_config(&image.config.media_type) && !image.layers.is_empty();
        let parts = parts(blobs, child.manifest.digest, image)?;
        if !(is_artifact && parts.diff_ids.is_empty()) {
            images.push(parts);
        }
    }
    Ok(images)
}

/// Whether a manifest is an index, or declares a config of an image. Blocking.
pub(super) fn is_runnable(blobs: &dyn Blobs, top: &Descriptor) -> Result<bool, ImageError> {
    Ok(match parse(top, &read_json(blobs, top)?)? {
        Manifest::Image(image) => is_image_config(&image.config.media_type),
        Manifest::Index(_) => true,
    })
}

/// Whether a config is declared to be that of an image.
fn is_image_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    )
}

fn parts(blobs: &dyn Blobs, manifest: Digest, image: ImageManifest) -> Result<ImageParts, ImageError> {
    let digest = image.config.digest;
    let config = ImageConfig::parse(&read_json(blobs, &image.config)?)
        .map_err(|error| ImageError::Config { digest, reason: error.to_string() })?;
    let ImageManifest { layers, with_urls, .. } = image;
    Ok(ImageParts { manifest, layers, diff_ids: config.diff_ids, elsewhere: with_urls })
}
