//! The image a pack stands on.

use std::path::Path;
use std::sync::Arc;

use crate::archive::{ArchiveError, BlobSource, ImageFile};
use crate::image::{Descriptor, ImageConfig, Platform};

/// A base image: its config, its layers, and where their bytes come from. Any source can make
/// one: an archive, a room, a registry.
#[derive(Debug, Clone)]
pub struct Base {
    pub config: ImageConfig,
    /// Lowest first.
    pub layers: Vec<Descriptor>,
    pub blobs: Arc<dyn BlobSource>,
}

#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("the config of the base is not valid: {0}")]
    Config(#[from] serde_json::Error),
    #[error("the base has {layers} layers, but its config lists {diff_ids}")]
    LayerCount { layers: usize, diff_ids: usize },
    #[error("layer {digest} of the base is of type `{media_type}`, which cannot be packed")]
    MediaType { digest: String, media_type: String },
    #[error("blob {digest} of the base has {actual} bytes, its manifest says {declared}")]
    Size { digest: String, declared: u64, actual: u64 },
}

impl Base {
    /// A base from the bytes of its config and its layer descriptors.
    pub fn new(
        config: &[u8],
        mut layers: Vec<Descriptor>,
        blobs: Arc<dyn BlobSource>,
    ) -> Result<Self, BaseError> {
        let config: ImageConfig = serde_json::from_slice(config)?;
        let diff_ids = config.rootfs.diff_ids.len();
        if layers.len() != diff_ids {
            return Err(BaseError::LayerCount { layers: layers.len(), diff_ids });
        }
        for layer in &mut layers {
            layer.media_type = oci_layer(&layer.media_type).ok_or_else(|| BaseError::MediaType {
                digest: layer.digest.to_string(),
                media_type: layer.media_type.clone(),
            })?;
        }
        Ok(Self { config, layers, blobs })
    }

    /// A base from an OCI archive in a file (`oci-archive:FILE`).
    pub fn from_archive(path: &Path, platform: &Platform) -> Result<Self, BaseError> {
        let file = ImageFile::open(path)?;
        let (_, manifest) = file.manifest(platform)?;
        let config = file.bytes(&manifest.config.digest)?;
        for layer in &manifest.layers {
            let (_, actual) = file.place(&layer.digest)?;
            if actual != layer.size {
                let digest = layer.digest.to_string();
                return Err(BaseError::Size { digest, declared: layer.size, actual });
            }
        }
        Self::new(&config, manifest.layers, Arc::new(file))
    }
}

/// The OCI name of a layer's media type; Docker's mean the same bytes. None for layers that are
/// not distributed or not a plain tar (encrypted, foreign).
fn oci_layer(media_type: &str) -> Option<String> {
    let suffix = media_type
        .strip_prefix("application/vnd.oci.image.layer.v1.tar")
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.diff.tar"))?;
    let suffix = match suffix {
        "" => "",
        "+gzip" | ".gzip" => "+gzip",
        "+zstd" | ".zstd" => "+zstd",
        _ => return None,
    };
    Some(format!("application/vnd.oci.image.layer.v1.tar{suffix}"))
}
