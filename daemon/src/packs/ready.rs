//! Results of an upload: the stored tree, and its image, assembled now or found in the image store.

use std::fs::File;
use std::io::{self, Seek as _, Write};
use std::sync::Arc;

use hearth_oci::Manifest;
use hearth_pack::PackedImage;
use hearth_pack::archive::ArchiveLayout;
use hearth_pack::identity::TreeDigest;

use super::PackDestination;
use crate::image::FoundImage;
use crate::model::id::PackId;
use crate::model::image::{TaggedImage, VerifiedImage};
use crate::model::{Digest, Reference};

/// Result of a committed upload.
#[derive(Debug)]
pub struct CommittedPack {
    /// Id of the pack, if the tree became a pack for builds.
    pub pack: Option<PackId>,
    /// The tagged image, if a tag was given.
    pub image: Option<TaggedImage>,
    /// Digests and size of the image, if an image or an archive was wanted.
    pub made: Option<PackImageDigests>,
}

/// Digests and size of the image built from a tree.
#[derive(Debug, PartialEq, Eq)]
pub struct PackImageDigests {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Digest of the compressed layer.
    pub layer: Digest,
    /// Digest of the uncompressed layer tar.
    pub diff_id: Digest,
    pub archive_bytes: u64,
}

/// A stored tree, and its image if one is wanted. It has no tag or pack id yet: the caller stores a requested archive
/// first.
#[derive(Debug)]
pub struct PreparedPack {
    pub(super) tree: TreeDigest,
    pub(super) destination: PackDestination,
    pub(super) image: Option<PreparedImage>,
}

/// Image of a tree, assembled now or found in the image store.
#[derive(Clone, Debug)]
pub enum PreparedImage {
    Assembled(Arc<PackedImage>),
    Stored(Arc<StoredImage>),
}

/// An image that was built earlier from the same tree in the same way, read from the image store.
#[derive(Debug)]
pub struct StoredImage {
    image: VerifiedImage,
    layout: ArchiveLayout,
    layer: (Digest, File),
    diff_id: Digest,
}

impl PreparedPack {
    /// Returns the image and the path of its archive in room storage, if an archive is wanted.
    pub fn archive(&self) -> Option<(PreparedImage, &str)> {
        let path = self.destination.archive.as_deref()?;
        self.image.clone().map(|image| (image, path))
    }
}

impl PreparedImage {
    /// Writes the OCI archive.
    pub fn write_archive(&self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Assembled(packed) => packed.write_archive(out),
            Self::Stored(stored) => stored.layout.write(out, &|_| {
                // The image has one layer, which is read once.
                let mut file = &stored.layer.1;
                file.rewind()?;
                Ok(Box::new(file))
            }),
        }
    }

    pub(super) fn digests(&self) -> PackImageDigests {
        match self {
            Self::Assembled(packed) => PackImageDigests {
                digest: packed.digest(),
                layer: packed.layer.digest,
                diff_id: packed.layer.diff_id,
                archive_bytes: packed.archive_size(),
            },
            Self::Stored(stored) => PackImageDigests {
                digest: stored.image.manifest.digest,
                layer: stored.layer.0,
                diff_id: stored.diff_id,
                archive_bytes: stored.layout.size(),
            },
        }
    }
}

impl StoredImage {
    /// Returns `None` unless the image has exactly one layer, as every image built from a tree does.
    pub(super) fn from_found(found: FoundImage, destination: &PackDestination) -> Option<Self> {
        let FoundImage { image, manifest_json, config_json, layers } = found;
        let layer = <[_; 1]>::try_from(layers).ok().map(|[layer]| layer)?;
        let manifest: Manifest = serde_json::from_slice(&manifest_json).ok()?;
        let (options, tag) = (&destination.image, destination.tag.as_ref().map(Reference::to_string));
        let layout = ArchiveLayout::new(
            &config_json,
            &manifest_json,
            &manifest,
            &options.platform,
            tag.as_deref(),
            options.docker,
        );
        let (diff_id, layer) = (layer.diff_id, (layer.layer.digest, layer.file));
        Some(Self { image, layout: layout.ok()?, layer, diff_id })
    }

    pub(super) const fn image(&self) -> &VerifiedImage {
        &self.image
    }
}
