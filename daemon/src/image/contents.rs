//! Contents of a manifest, read from the blobs. Reads are bounded, because any client may have pushed them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};

use hearth_oci::{Descriptor, ImageConfig, MAX_DOCUMENT_BYTES};
use sha2::{Digest as _, Sha256};

use super::port::{BlobStorage, NewManifest};
use super::{ImageError, parse};
use crate::model::Digest;
use crate::model::image::Platform;
use crate::model::manifest::{ImageIndex, ImageManifest, IndexEntry, Manifest, ManifestPart, PartKind};

pub(super) use hearth_oci::MAX_INDEX_ENTRIES;

/// Manifest, the manifests below it, and the blobs that they require; all of them were present when read.
#[derive(Debug)]
pub(super) struct ImageContents {
    /// Manifests, each after those that it requires.
    pub(super) manifests: Vec<NewManifest>,
    /// Compressed bytes of configs and layers, each counted once.
    pub(super) size_bytes: u64,
}

/// Stores a document under its digest. Blocking.
pub(super) fn store_document(
    blobs: &dyn BlobStorage,
    media_type: &str,
    mut bytes: &[u8],
) -> Result<Descriptor, ImageError> {
    let digest = Digest::from_sha256(Sha256::digest(bytes).into());
    let stored = Descriptor::new(media_type, digest, bytes.len() as u64);
    blobs.put(&digest, &mut bytes).map_err(|error| ImageError::not_stored(digest, error))?;
    Ok(stored)
}

impl ImageContents {
    /// Reads a manifest that is about to be used, and touches its blobs so that the sweep keeps them.
    pub(super) fn read_and_touch(blobs: &dyn BlobStorage, top: &Descriptor) -> Result<Self, ImageError> {
        Self::read(blobs, top, &|digest| blobs.touch(digest))
    }

    /// Reads a manifest without touching anything.
    pub(super) fn read_untouched(blobs: &dyn BlobStorage, top: &Descriptor) -> Result<Self, ImageError> {
        Self::read(blobs, top, &|digest| blobs.size(digest))
    }

    fn read(
        blobs: &dyn BlobStorage,
        top: &Descriptor,
        size: &BlobSizeLookup<'_>,
    ) -> Result<Self, ImageError> {
        let mut manifests = Vec::new();
        let mut sizes = BTreeMap::new();
        match read_one(blobs, top, size, &mut manifests, &mut sizes)? {
            Manifest::Image(_) => {}
            Manifest::Index(index) => {
                let limit = MAX_INDEX_ENTRIES;
                let too_deep = || ImageError::TooDeep { digest: top.digest, limit };
                if index.entries.len() > MAX_INDEX_ENTRIES {
                    return Err(too_deep());
                }
                for child in index.manifests() {
                    if let Manifest::Index(_) =
                        read_one(blobs, &child.manifest, size, &mut manifests, &mut sizes)?
                    {
                        return Err(too_deep());
                    }
                }
                // The index was read first, but requires the others.
                manifests.rotate_left(1);
            }
        }
        Ok(Self { manifests, size_bytes: sizes.values().sum() })
    }

    /// Returns all required content, including manifests below an index, each once.
    pub(super) fn parts(&self) -> Vec<ManifestPart> {
        let parts: BTreeSet<ManifestPart> =
            self.manifests.iter().flat_map(|manifest| manifest.parts.clone()).collect();
        parts.into_iter().collect()
    }

    /// Returns the digests of all files of the image.
    pub(super) fn digests(&self) -> impl Iterator<Item = Digest> {
        let manifests = self.manifests.iter().map(|manifest| manifest.manifest.digest);
        manifests
            .chain(self.manifests.iter().flat_map(|manifest| manifest.parts.iter().map(|part| part.digest)))
    }
}

type BlobSizeLookup<'a> = dyn Fn(&Digest) -> io::Result<Option<u64>> + 'a;

/// Reads one manifest, and checks that its blobs are present.
fn read_one(
    blobs: &dyn BlobStorage,
    descriptor: &Descriptor,
    size: &BlobSizeLookup<'_>,
    manifests: &mut Vec<NewManifest>,
    sizes: &mut BTreeMap<Digest, u64>,
) -> Result<Manifest, ImageError> {
    let manifest = parse(descriptor, &read_json(blobs, descriptor)?)?;
    let parts = manifest.parts();
    for part in &parts {
        let size = size(&part.digest)
            .map_err(|source| ImageError::Read { digest: part.digest, source })?
            .ok_or(ImageError::BlobMissing { manifest: descriptor.digest, blob: part.digest })?;
        if part.kind == PartKind::Blob {
            sizes.insert(part.digest, size);
        }
    }
    let about = manifest.metadata().clone();
    manifests.push(NewManifest {
        manifest: descriptor.clone(),
        parts,
        subject: about.subject,
        artifact_type: about.artifact_type,
    });
    Ok(manifest)
}

/// Reads a whole manifest or config, which is small.
pub(super) fn read_json(blobs: &dyn BlobStorage, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
    let digest = descriptor.digest;
    let failed = |source| ImageError::Read { digest, source };
    let file = blobs
        .open(&digest)
        .map_err(failed)?
        .ok_or(ImageError::BlobMissing { manifest: digest, blob: digest })?;
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(ImageError::TooLarge { digest, limit: MAX_DOCUMENT_BYTES });
    }
    Ok(bytes)
}

/// Returns the image itself, whatever its platform; in case of an index, the image for `platform`, or the only one.
pub(super) fn image_to_show(
    blobs: &dyn BlobStorage,
    top: &Descriptor,
    platform: &Platform,
) -> Result<ImageManifest, ImageError> {
    let index = match parse(top, &read_json(blobs, top)?)? {
        Manifest::Image(image) => return Ok(image),
        Manifest::Index(index) => index,
    };
    let entry = index.only_image().map_or_else(|| entry_for(&index, top, platform), Ok)?;
    image_below(blobs, top, entry)
}

/// Returns the image itself, whatever its platform; in case of an index, the image for `platform`.
pub(super) fn image_for(
    blobs: &dyn BlobStorage,
    top: &Descriptor,
    platform: &Platform,
) -> Result<ImageManifest, ImageError> {
    platform_manifest(blobs, top, platform).map(|(_, image)| image)
}

/// Returns the image for `platform` with the digest of its manifest.
pub(super) fn platform_manifest(
    blobs: &dyn BlobStorage,
    top: &Descriptor,
    platform: &Platform,
) -> Result<(Digest, ImageManifest), ImageError> {
    let index = match parse(top, &read_json(blobs, top)?)? {
        Manifest::Image(image) => return Ok((top.digest, image)),
        Manifest::Index(index) => index,
    };
    let entry = entry_for(&index, top, platform)?;
    Ok((entry.manifest.digest, image_below(blobs, top, entry)?))
}

fn entry_for<'i>(
    index: &'i ImageIndex,
    top: &Descriptor,
    platform: &Platform,
) -> Result<&'i IndexEntry, ImageError> {
    index.for_platform(platform).ok_or_else(|| ImageError::NoPlatform {
        digest: top.digest,
        wanted: platform.as_str().to_owned(),
        found: index.offered_platforms(),
    })
}

/// Reads the image of an entry of the index `top`.
fn image_below(
    blobs: &dyn BlobStorage,
    top: &Descriptor,
    entry: &IndexEntry,
) -> Result<ImageManifest, ImageError> {
    match parse(&entry.manifest, &read_json(blobs, &entry.manifest)?)? {
        Manifest::Image(image) => Ok(image),
        Manifest::Index(_) => Err(ImageError::TooDeep { digest: top.digest, limit: MAX_INDEX_ENTRIES }),
    }
}

/// Open layer of an image, positioned at its start.
#[derive(Debug)]
pub struct OpenLayer {
    pub layer: Descriptor,
    /// Digest of the uncompressed tar, from the image config.
    pub diff_id: Digest,
    pub file: File,
}

pub(super) fn open_layers(blobs: &dyn BlobStorage, top: &Descriptor) -> Result<Vec<OpenLayer>, ImageError> {
    let image = image_for(blobs, top, &Platform::host())?;
    // A layer with URLs need not be in its repository, so its digest may be that of another repository's layer.
    if let Some(layer) = image.with_urls {
        return Err(ImageError::LayerElsewhere { manifest: top.digest, layer });
    }
    let digest = image.config.digest;
    let config = ImageConfig::parse_unambiguous(&read_json(blobs, &image.config)?)
        .map_err(|error| ImageError::Config { digest, reason: error.to_string() })?;
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() != image.layers.len() {
        let (layers, diff_ids) = (image.layers.len(), diff_ids.len());
        return Err(ImageError::LayerCount { manifest: top.digest, layers, diff_ids });
    }
    let open = |(layer, diff_id): (Descriptor, Digest)| {
        let file =
            blobs.open(&layer.digest).map_err(|source| ImageError::Read { digest: layer.digest, source })?;
        let missing = ImageError::BlobMissing { manifest: top.digest, blob: layer.digest };
        Ok(OpenLayer { file: file.ok_or(missing)?, layer, diff_id })
    };
    image.layers.into_iter().zip(diff_ids).map(open).collect()
}

/// Returns `os/architecture[/variant]` of an image config, if present.
pub(super) fn platform_of(config: &[u8]) -> Option<String> {
    let config = ImageConfig::parse_unambiguous(config).ok()?;
    Some(Platform::declared(&config.platform)?.as_str().to_owned())
}
