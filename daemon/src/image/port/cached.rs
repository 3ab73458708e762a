//! What is kept of images that builds and deploys fetched from other registries.

use async_trait::async_trait;
use hearth_pack::remote::full_name;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::CatalogError;
use crate::model::image::{CACHED_IMAGES, Descriptor, Platform};
use crate::model::{Digest, Reference, Repository};

/// By which right an image was brought, which says who may have it again without asking its registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageRight {
    /// No credential was at hand: anyone gets it from there.
    Public,
    /// The daemon's own credential.
    Room,
    /// A credential of this participant.
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

    /// Where an image of another registry lies that was fetched by this right. None where its name is too long.
    pub fn repository_of(&self, reference: &Reference) -> Option<Repository> {
        let owner = match self {
            Self::Public => "public".to_owned(),
            Self::Room => "room".to_owned(),
            Self::Caller(name) => {
                let sum = Sha256::digest(name.as_bytes());
                let short: String = sum.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
                format!("caller-{short}")
            }
        };
        // A colon is in no name of a repository, and a run of dashes in no name of a host that has one.
        let name = full_name(reference).replace(':', "---");
        format!("{CACHED_IMAGES}/{owner}/{name}").parse().ok()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CachedKey {
    /// `docker.io/library/alpine:3`, or with a digest; one spelling for each.
    pub name: String,
    pub platform: Platform,
    pub right: ImageRight,
}

impl CachedKey {
    /// `registry/repository`, by which grants name it.
    pub fn registry_name(&self) -> &str {
        let name = self.name.split_once('@').map_or(self.name.as_str(), |(name, _)| name);
        match name.rsplit_once(':') {
            // A port is followed by the repository.
            Some((name, tag)) if !tag.contains('/') => name,
            _ => name,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedImage {
    pub key: CachedKey,
    pub repository: Repository,
    /// The image of that platform.
    pub manifest: Descriptor,
    /// What the registry said the name means: this image, or an index that it is in.
    pub upstream: Digest,
    pub size_bytes: u64,
    /// When the registry last said so.
    pub checked_at: Timestamp,
    pub used_at: Timestamp,
}

/// Images that builds and deploys fetched, durable when a call returns. What is noted here stays in the registry.
#[async_trait]
pub trait CachedImages: Send + Sync + 'static {
    async fn cached(&self, key: &CachedKey) -> Result<Option<CachedImage>, CatalogError>;
    /// Notes an image, in place of what its name meant before.
    async fn put_cached(&self, image: CachedImage) -> Result<(), CatalogError>;
    /// Notes that an image was used, and whether its registry was asked.
    async fn use_cached(&self, key: &CachedKey, at: Timestamp, checked: bool) -> Result<(), CatalogError>;
    /// All of them, the least recently used first.
    async fn all_cached(&self) -> Result<Vec<CachedImage>, CatalogError>;
    async fn remove_cached(&self, key: &CachedKey) -> Result<(), CatalogError>;
}
