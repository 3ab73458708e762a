//! Records of images that builds and deploys fetched from other registries.

use async_trait::async_trait;
use hearth_oci::Descriptor;
use hearth_registry::full_name;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::CatalogError;
use crate::model::image::{CACHED_IMAGES_PREFIX, Platform};
use crate::model::{Digest, Reference, Repository};

/// Right by which an image was fetched, which decides who may use the copy without asking the registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageRight {
    /// Fetched without a credential: anyone could fetch it.
    Public,
    /// Fetched with the daemon's own credential.
    Room,
    /// Fetched with a credential of this participant.
    Caller(String),
}

impl ImageRight {
    pub fn to_text(&self) -> String {
        match self {
            Self::Public => "public".to_owned(),
            Self::Room => "room".to_owned(),
            Self::Caller(name) => format!("caller:{name}"),
        }
    }

    pub fn from_text(text: &str) -> Option<Self> {
        match text {
            "public" => Some(Self::Public),
            "room" => Some(Self::Room),
            text => text.strip_prefix("caller:").map(|name| Self::Caller(name.to_owned())),
        }
    }

    /// Returns the repository that holds an image fetched with this right; `None` if its name would be too long.
    pub fn repository_of(&self, reference: &Reference) -> Option<Repository> {
        // A repository name contains no colon, and the host name of a registry no run of dashes.
        self.repository_named(&full_name(reference).replace(':', "---"))
    }

    /// Returns the repository of this name that holds content for this right alone.
    pub fn repository_named(&self, name: &str) -> Option<Repository> {
        let owner = match self {
            Self::Public => "public".to_owned(),
            Self::Room => "room".to_owned(),
            Self::Caller(name) => {
                let sum = Sha256::digest(name.as_bytes());
                let short: String = sum.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
                format!("caller-{short}")
            }
        };
        format!("{CACHED_IMAGES_PREFIX}/{owner}/{name}").parse().ok()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CachedImageKey {
    /// Normalized name such as `docker.io/library/alpine:3`, or with a digest.
    pub name: String,
    pub platform: Platform,
    pub right: ImageRight,
}

impl CachedImageKey {
    /// Returns `registry/repository`, the name that grants use.
    pub fn registry_name(&self) -> &str {
        let name = self.name.split_once('@').map_or(self.name.as_str(), |(name, _)| name);
        match name.rsplit_once(':') {
            // The colon precedes a port if a slash follows.
            Some((name, tag)) if !tag.contains('/') => name,
            _ => name,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedImage {
    pub key: CachedImageKey,
    pub repository: Repository,
    /// Manifest of the image for the platform.
    pub manifest: Descriptor,
    /// Digest to which the registry resolved the name: this image, or an index that contains it.
    pub upstream: Digest,
    pub size_bytes: u64,
    /// Time at which the registry last confirmed `upstream`.
    pub checked_at: Timestamp,
    pub used_at: Timestamp,
}

/// Catalog of fetched images; changes are durable when a call returns. Recorded images stay in the registry.
#[async_trait]
pub trait CachedImageCatalog: Send + Sync + 'static {
    async fn cached(&self, key: &CachedImageKey) -> Result<Option<CachedImage>, CatalogError>;
    /// Records an image, replacing the previous meaning of its name.
    async fn put_cached(&self, image: CachedImage) -> Result<(), CatalogError>;
    /// Records a use of an image, and whether its registry was asked.
    async fn record_use(
        &self,
        key: &CachedImageKey,
        at: Timestamp,
        checked: bool,
    ) -> Result<(), CatalogError>;
    /// Returns all of them, the least recently used first.
    async fn all_cached(&self) -> Result<Vec<CachedImage>, CatalogError>;
    async fn remove_cached(&self, key: &CachedImageKey) -> Result<(), CatalogError>;
}
