//! Declarations of an image about its layers.

use hearth_oci::{DOCKER_CONFIG_TYPE, Descriptor, ImageConfig, OCI_CONFIG_TYPE};

use super::super::contents::MAX_INDEX_ENTRIES;
use super::super::contents::{platform_manifest, read_json};
use super::super::port::BlobStorage;
use super::super::{ImageError, PlatformSelection, parse};
use super::declared_cache::declared_cache;
use crate::model::Digest;
use crate::model::manifest::{ImageManifest, Manifest};

/// Image of one platform, as its manifest and config declare it.
#[derive(Clone, Debug)]
pub(in super::super) struct DeclaredImage {
    pub manifest: Digest,
    /// Layers, the base's first.
    pub layers: Vec<Descriptor>,
    /// DiffIDs that the config declares for them.
    pub diff_ids: Vec<Digest>,
    /// First layer that is to be fetched from URLs in the manifest.
    pub with_urls: Option<Digest>,
    /// Build cache, whose layers are not mounted together.
    pub is_cache: bool,
}

impl DeclaredImage {
    /// Returns the layers whose content must be inspected.
    pub(super) fn tar_layers(&self) -> impl Iterator<Item = Digest> + '_ {
        let is_tar = |layer: &&Descriptor| {
            matches!(layer_form(&layer.media_type), LayerForm::CompressedTar | LayerForm::PlainTar)
        };
        self.layers.iter().filter(is_tar).map(|layer| layer.digest)
    }
}

/// Interpretation of a layer's bytes by the programs that unpack it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LayerForm {
    /// Decompressed according to the first bytes, whatever the media type says.
    CompressedTar,
    /// Used unchanged, even if it starts like compressed data.
    PlainTar,
    /// Kind of layer that nothing here unpacks.
    Unknown,
    /// Content that is no file system: attestations, artifacts.
    Content,
}

/// Returns the form of a layer, as containerd and BuildKit determine it.
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

/// Returns the image for one platform, or all images of an index that could be run. Blocking.
pub(super) fn images_of(
    blobs: &dyn BlobStorage,
    top: &Descriptor,
    platforms: &PlatformSelection,
) -> Result<Vec<DeclaredImage>, ImageError> {
    if let PlatformSelection::One(platform) = platforms {
        let (digest, image) = platform_manifest(blobs, top, platform)?;
        return Ok(vec![declared_image(blobs, digest, image)?]);
    }
    let too_deep = || ImageError::TooDeep { digest: top.digest, limit: MAX_INDEX_ENTRIES };
    let bytes = read_json(blobs, top)?;
    let manifest = parse(top, &bytes)?;
    if let Some(cache) = declared_cache(top, &bytes)? {
        return Ok(vec![cache]);
    }
    let index = match manifest {
        Manifest::Image(image) => return Ok(vec![declared_image(blobs, top.digest, image)?]),
        Manifest::Index(index) => index,
    };
    if index.entries.len() > MAX_INDEX_ENTRIES {
        return Err(too_deep());
    }
    let mut images = Vec::with_capacity(index.entries.len());
    for child in index.manifests() {
        let Manifest::Image(image) = parse(&child.manifest, &read_json(blobs, &child.manifest)?)? else {
            return Err(too_deep());
        };
        // An artifact beside the images: it has no image config, so it cannot be run.
        let is_artifact = !is_image_config(&image.config.media_type) && !image.layers.is_empty();
        let parts = declared_image(blobs, child.manifest.digest, image)?;
        if !(is_artifact && parts.diff_ids.is_empty()) {
            images.push(parts);
        }
    }
    Ok(images)
}

/// Reports whether a manifest is an index, or declares an image config. Blocking.
pub(super) fn is_runnable(blobs: &dyn BlobStorage, top: &Descriptor) -> Result<bool, ImageError> {
    Ok(match parse(top, &read_json(blobs, top)?)? {
        Manifest::Image(image) => is_image_config(&image.config.media_type),
        Manifest::Index(_) => true,
    })
}

/// Reports whether a config is declared as an image config.
fn is_image_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG_TYPE | DOCKER_CONFIG_TYPE)
}

fn declared_image(
    blobs: &dyn BlobStorage,
    manifest: Digest,
    image: ImageManifest,
) -> Result<DeclaredImage, ImageError> {
    let digest = image.config.digest;
    let config = ImageConfig::parse_unambiguous(&read_json(blobs, &image.config)?)
        .map_err(|error| ImageError::Config { digest, reason: error.to_string() })?;
    let ImageManifest { layers, with_urls, .. } = image;
    Ok(DeclaredImage { manifest, layers, diff_ids: config.rootfs.diff_ids, with_urls, is_cache: false })
}
