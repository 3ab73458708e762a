use std::collections::BTreeMap;

use hearth_value::Digest;
use serde::{Deserialize, Serialize};

use super::{
    DOCKER_INDEX_TYPE, DOCKER_MANIFEST_TYPE, DeclaredPlatform, OCI_INDEX_TYPE, OCI_MANIFEST_TYPE,
    null_as_default,
};

/// OCI content descriptor: a typed reference to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    /// Other sources of the blob.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub urls: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<DeclaredPlatform>,
}

/// Image manifest (OCI image spec, "Image Manifest").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub config: Descriptor,
    /// Layers, the lowest layer first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub layers: Vec<Descriptor>,
    /// Manifest that this one refers to, such as the signed image of a signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
}

/// Image index (OCI image spec, "Image Index").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OciIndex {
    pub schema_version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
}

/// Fields that manifests and indexes have in common and that distinguish them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DocumentHeader {
    pub schema_version: Option<u64>,
    pub media_type: Option<String>,
}

impl Descriptor {
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
        }
    }

    /// Returns the descriptor with media type, digest and size only.
    pub fn bare(&self) -> Self {
        Self::new(&self.media_type, self.digest, self.size)
    }

    /// Reports whether the descriptor refers to an index.
    pub fn is_index(&self) -> bool {
        is_index_type(&self.media_type)
    }

    pub fn is_manifest(&self) -> bool {
        is_manifest_type(&self.media_type)
    }

    /// Reports whether the blob is a layer that a registry need not store ("non-distributable" or "foreign" layer).
    pub fn is_foreign_layer(&self) -> bool {
        self.media_type.contains("nondistributable") || self.media_type.contains("foreign")
    }
}

/// Reports whether a media type is one of an image manifest.
pub fn is_manifest_type(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST_TYPE | DOCKER_MANIFEST_TYPE)
}

/// Reports whether a media type is one of an index.
pub fn is_index_type(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX_TYPE | DOCKER_INDEX_TYPE)
}

impl Manifest {
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST_TYPE.to_owned()),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }
}

impl OciIndex {
    pub fn new(manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(OCI_INDEX_TYPE.to_owned()),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Returns the descriptor of the image or nested index for `platform`. Without a match, returns the only entry that
    /// declares no platform, if there is exactly one, because the platform is in its config. The error lists the
    /// platforms of the index, or is the text `none`.
    pub fn for_platform(&self, platform: &DeclaredPlatform) -> Result<&Descriptor, String> {
        // Attestations are listed next to the images, as manifests for an unknown platform.
        let images = || {
            self.manifests.iter().filter(|child| {
                let unknown = child.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
                !unknown && (child.is_manifest() || child.is_index())
            })
        };
        let without_platform =
            |child: &&Descriptor| child.platform.as_ref().is_none_or(|p| p.architecture.is_empty());
        let best = platform.best_match(images(), |child| child.platform.as_ref());
        let only_undeclared = || {
            let mut candidates = images().filter(without_platform);
            candidates.next().filter(|_| candidates.next().is_none())
        };
        best.or_else(only_undeclared).ok_or_else(|| {
            let mut found: Vec<String> = images()
                .filter_map(|child| child.platform.as_ref().map(DeclaredPlatform::to_string))
                .collect();
            found.sort_unstable();
            found.dedup();
            if found.is_empty() { "none".to_owned() } else { found.join(", ") }
        })
    }
}
