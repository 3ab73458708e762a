//! What an upload came to: a tree that is kept, and its image, assembled now or stored before.

use std::fs::File;
use std::io::{self, Seek as _, Write};
use std::sync::Arc;

use hearth_pack::Packed;
use hearth_pack::archive::Layout;
use hearth_pack::identity::TreeDigest;
use hearth_pack::image::Manifest;

use super::Destination;
use crate::image::FoundImage;
use crate::model::id::PackId;
use crate::model::image::{TaggedImage, VerifiedImage};
use crate::model::{Digest, Reference};

/// What an upload became.
#[derive(Debug)]
pub struct Committed {
    /// Of a pack for builds.
    pub pack: Option<PackId>,
    /// Of an image.
    pub image: Option<TaggedImage>,
    /// The image, where one was asked for.
    pub made: Option<Made>,
}

/// An image of a tree.
#[derive(Debug, PartialEq, Eq)]
pub struct Made {
    /// Of its manifest.
    pub digest: Digest,
    /// Of its layer's compressed bytes.
    pub layer: Digest,
    /// Of the tar in it.
    pub diff_id: Digest,
    pub archive_bytes: u64,
}

/// A tree that is kept, and its image where one is wanted. It has no name yet: whoever asked for an
/// archive stores that first.
#[derive(Debug)]
pub struct Ready {
    pub(super) tree: TreeDigest,
    pub(super) destination: Destination,
    pub(super) image: Option<ReadyImage>,
}

#[derive(Clone, Debug)]
pub enum ReadyImage {
    Assembled(Arc<Packed>),
    Stored(Arc<StoredImage>),
}

/// An image of the room that is what a tree becomes.
#[derive(Debug)]
pub struct StoredImage {
    image: VerifiedImage,
    layout: Layout,
    layer: (Digest, File),
    diff_id: Digest,
}

impl Ready {
    /// The image, where its archive is wanted, and the file that it goes to.
    pub fn archive(&self) -> Option<(ReadyImage, &str)> {
        let path = self.destination.archive.as_deref()?;
        self.image.clone().map(|image| (image, path))
    }
}

impl ReadyImage {
    /// Writes the OCI archive.
    pub fn write_archive(&self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Assembled(packed) => packed.write_archive(out),
            Self::Stored(stored) => stored.layout.write(out, &|_| {
                // It has one layer, which is read once.
                let mut file = &stored.layer.1;
                file.rewind()?;
                Ok(Box::new(file))
            }),
        }
    }

    pub(super) fn made(&self) -> Made {
        match self {
            Self::Assembled(packed) => Made {
                digest: packed.digest(),
                layer: packed.layer.digest,
                diff_id: packed.layer.diff_id,
                archive_bytes: packed.archive_size(),
            },
            Self::Stored(stored) => Made {
                digest: stored.image.manifest.digest,
                layer: stored.layer.0,
                diff_id: stored.diff_id,
                archive_bytes: stored.layout.size(),
            },
        }
    }
}

impl StoredImage {
    /// None when it is not what a tree becomes: an image with one layer.
    pub(super) fn of(found: FoundImage, destination: &Destination) -> Option<Self> {
        let FoundImage { image, manifest_json, config_json, layers } = found;
        let layer = <[_; 1]>::try_from(layers).ok().map(|[layer]| layer)?;
        let manifest: Manifest = serde_json::from_slice(&manifest_json).ok()?;
        let (options, tag) = (&destination.image, destination.tag.as_ref().map(Reference::to_string));
        let layout = Layout::new(
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
