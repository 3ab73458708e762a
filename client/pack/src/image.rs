//! JSON documents of an image: config, manifest and index by the OCI image spec 1.1, with the fields that a pack
//! writes or reads. Field order is fixed, so equal values give equal bytes.

mod command;
mod config;
mod platform;

use std::collections::BTreeMap;

use hearth_value::Digest;
use serde::{Deserialize, Deserializer, Serialize};

pub use command::{CommandError, parse_command};
pub use config::{ConfigError, ConfigFlags, HistoryEntry, ImageConfig, RootFs, RunConfig};
pub use platform::{Platform, PlatformError};

pub const OCI_MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
pub const DOCKER_MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_INDEX_TYPE: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Annotation for the tag or the whole reference of a descriptor in an index.
pub const REF_NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";
/// Annotation for the whole reference, as read by containerd and buildctl.
pub const IMAGE_NAME_ANNOTATION: &str = "io.containerd.image.name";

/// OCI content descriptor: a typed reference to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// Image manifest (OCI image spec, "Image Manifest").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    #[serde(default, deserialize_with = "null_as_default")]
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
}

/// Image index (OCI image spec, "Image Index").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OciIndex {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, annotations: BTreeMap::new(), platform: None }
    }

    /// Reports whether the descriptor refers to an index.
    pub fn is_index(&self) -> bool {
        self.media_type == OCI_INDEX_TYPE || self.media_type == DOCKER_INDEX_TYPE
    }

    pub fn is_manifest(&self) -> bool {
        self.media_type == OCI_MANIFEST_TYPE || self.media_type == DOCKER_MANIFEST_TYPE
    }
}

impl Manifest {
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: OCI_MANIFEST_TYPE.to_owned(),
            config,
            layers,
            annotations: BTreeMap::new(),
        }
    }
}

impl OciIndex {
    pub fn new(manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: OCI_INDEX_TYPE.to_owned(),
            manifests,
            annotations: BTreeMap::new(),
        }
    }

    /// Returns the descriptor of the image or nested index for `platform`. If there is only one image without a
    /// declared platform, returns that, because its config has the platform. The error lists the platforms of the
    /// index, or is `none`.
    pub fn for_platform(&self, platform: &Platform) -> Result<&Descriptor, String> {
        // Attestations are manifests for an unknown platform, next to the images.
        let images = || {
            self.manifests.iter().filter(|child| {
                let unknown = child.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
                !unknown && (child.is_manifest() || child.is_index())
            })
        };
        let silent = |child: &&Descriptor| child.platform.as_ref().is_none_or(|p| p.architecture.is_empty());
        let best = platform.best_match(images(), |child| child.platform.as_ref());
        let alone = || {
            let mut silent = images().filter(silent);
            silent.next().filter(|_| silent.next().is_none())
        };
        best.or_else(alone).ok_or_else(|| {
            let mut found: Vec<String> =
                images().filter_map(|child| child.platform.as_ref().map(Platform::to_string)).collect();
            found.sort_unstable();
            found.dedup();
            if found.is_empty() { "none".to_owned() } else { found.join(", ") }
        })
    }
}

/// Deserializes `null` as the default value: Go writes `null` for an empty list or map.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
