//! Base image of a pack.

mod cache;
mod diff_ids;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use hearth_oci::{DeclaredPlatform, Descriptor, ImageConfig};
use hearth_value::Digest;

use crate::archive::{ArchiveError, BlobSource, FileRange, ImageFile};
pub use cache::BlobCache;

/// A base image: its config, its layers, and a source of their bytes, such as an archive, a room or a registry.
#[derive(Debug, Clone)]
pub struct BaseImage {
    pub config: ImageConfig,
    /// Layer descriptors, the lowest layer first.
    pub layers: Vec<Descriptor>,
    pub blobs: Arc<dyn BlobSource>,
}

/// Error of a base image.
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
    #[error("layer {digest} of the base cannot be read: {source}")]
    Layer { digest: Digest, source: io::Error },
    #[error("layer {digest} of the base has DiffID {actual}, its config says {declared}")]
    DiffId { digest: Digest, declared: Digest, actual: Digest },
}

impl BaseImage {
    /// Creates a base image from the bytes of its config and its layer descriptors.
    pub fn new(
        config: &[u8],
        mut layers: Vec<Descriptor>,
        blobs: Arc<dyn BlobSource>,
    ) -> Result<Self, BaseError> {
        let config = ImageConfig::parse(config)?;
        if config.rootfs.kind.is_none() {
            return Err(BaseError::Config(<serde_json::Error as serde::de::Error>::missing_field("rootfs")));
        }
        let diff_ids = config.rootfs.diff_ids.len();
        if layers.len() != diff_ids {
            return Err(BaseError::LayerCount { layers: layers.len(), diff_ids });
        }
        for layer in &mut layers {
            layer.media_type = oci_layer(&layer.media_type).ok_or_else(|| BaseError::MediaType {
                digest: layer.digest.to_string(),
                media_type: layer.media_type.clone(),
            })?;
            // The image that is packed has the layer itself.
            layer.urls.clear();
        }
        Ok(Self { config, layers, blobs })
    }

    /// Creates a base image whose blobs are in files that have been verified. The layers are decompressed to check
    /// that their DiffIDs are those of the config; `known` saves that for layers of earlier runs.
    pub fn from_files(
        config: &[u8],
        layers: Vec<Descriptor>,
        files: HashMap<Digest, File>,
        known: Option<&BlobCache>,
    ) -> Result<Self, BaseError> {
        let base = Self::new(config, layers, Arc::new(BlobFiles(files)))?;
        base.with_checked_diff_ids(known)
    }

    fn with_checked_diff_ids(self, known: Option<&BlobCache>) -> Result<Self, BaseError> {
        diff_ids::check(&self.layers, &self.config.rootfs.diff_ids, &*self.blobs, known)?;
        Ok(self)
    }

    /// Creates a base image from an OCI archive in a file (`oci-archive:FILE`). Its DiffIDs are checked as in
    /// [`from_files`](Self::from_files).
    pub fn from_archive(
        path: &Path,
        platform: &DeclaredPlatform,
        known: Option<&BlobCache>,
    ) -> Result<Self, BaseError> {
        let file = ImageFile::open(path)?;
        let (_, manifest) = file.manifest(platform)?;
        let config = file.read_blob(&manifest.config.digest)?;
        for layer in &manifest.layers {
            let actual = file.blob_size(&layer.digest)?;
            if actual != layer.size {
                let digest = layer.digest.to_string();
                return Err(BaseError::Size { digest, declared: layer.size, actual });
            }
        }
        Self::new(&config, manifest.layers, Arc::new(file))?.with_checked_diff_ids(known)
    }
}

/// Blob source with one open file for each blob.
#[derive(Debug)]
struct BlobFiles(HashMap<Digest, File>);

impl BlobSource for BlobFiles {
    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read + '_>> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no blob {digest} in the base"));
        let file = self.0.get(digest).ok_or_else(missing)?;
        let left = file.metadata()?.len();
        Ok(Box::new(FileRange { file, position: 0, left }))
    }
}

/// Returns the OCI media type of a layer; Docker's media types denote the same bytes. Returns `None` for layers that
/// are not distributed or not a plain tar (foreign, encrypted).
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

#[cfg(test)]
mod tests;
