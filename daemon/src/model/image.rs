use hearth_proto::value::{Digest, Repository, Tag};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a manifest, an index or a layer is pointed to by (OCI image spec, "Descriptor").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
}

/// A tag of the room's registry and what it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaggedImage {
    pub repository: Repository,
    pub tag: Tag,
    pub manifest: Descriptor,
    /// Compressed bytes of config and layers.
    pub size_bytes: u64,
    pub updated_at: Timestamp,
}

/// A manifest in the registry whose config and layers are there too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedImage {
    pub repository: Repository,
    pub manifest: Descriptor,
    pub size_bytes: u64,
}

/// An image of the room's registry, whatever its tags name by now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedImage {
    pub repository: Repository,
    /// Manifest or index.
    pub digest: Digest,
}

/// Operating system, architecture and variant, such as `linux/arm64/v8`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform(String);

impl Platform {
    /// The platform of this daemon.
    pub fn host() -> Self {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self(format!("linux/{arch}"))
    }

    /// `os/arch[/variant]`, lower case.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        (matches!(parts.len(), 2 | 3) && parts.iter().all(word)).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}
