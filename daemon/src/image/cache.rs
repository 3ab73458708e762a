//! Image supply for builds and services: images of the room directly, those of other registries through a cache.
//!
//! ```text
//! name --> in this room:         use it
//!      '-> in another registry:  cached and checked recently? -----------------> use it
//!                                resolve the name at the registry (HEAD)
//!                                  same digest as cached ----------------------> use it
//!                                  other digest, or not cached ----------------> fetch it, cache it, use it
//!                                  no answer, but cached ----------------------> use it, with a warning
//! ```
//!
//! A registry decides who reads its images, so an image that was fetched with a participant's credential is cached for
//! that participant alone ([`ImageRight`]): the builds and deploys of others ask the registry with their own. An image
//! that was fetched without a credential, or with the daemon's, is available to everybody whose grants name it. A name
//! with a digest never changes its meaning, so only a participant's own right to it is checked again.
//!
//! Repositories below [`CACHED_IMAGES_PREFIX`](crate::model::image::CACHED_IMAGES_PREFIX) hold the content. No grant of
//! a participant opens them; the token of a build opens those that the build uses, and a service keeps those that its
//! revisions run and mount.

mod in_use;
mod limit;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hearth_oci::{Descriptor, ImageConfig, OCI_INDEX_TYPE};
use hearth_registry::{RegistryClient, RetryPolicy};
use jiff::Timestamp;

use super::contents::{ImageContents, store_document};
use super::port::cached::{CachedImage, CachedImageKey, ImageRight};
use super::{
    ImageDestination, ImageError, ImagePull, ImageStore, PlatformSelection, RemoteRegistries,
    TransferProgress, contents,
};
use crate::model::image::{ImageDefaults, Platform, is_cached_name};
use crate::model::secret::RegistryCredential;
use crate::model::{Digest, Reference, Repository};
use crate::task;

pub use in_use::CachedImageGuard;
pub(super) use in_use::CachedImagesInUse;

/// Time after which a cached name is resolved at its registry again.
const REVALIDATE_AFTER: Duration = Duration::from_secs(60);
/// Retry limits for a registry if there is a cached image to fall back on.
const REVALIDATE_RETRY: RetryPolicy = RetryPolicy {
    attempts: 2,
    first_pause: Duration::from_millis(250),
    longest_pause: Duration::from_secs(1),
    stall: Duration::from_secs(10),
};

/// Request of a build or a deploy for an image.
pub struct SupplyRequest<'a> {
    pub reference: &'a Reference,
    /// True if the reference is in this room's registry, whatever its registry name.
    pub is_own: bool,
    /// Requested platforms; at least one.
    pub platforms: &'a [Platform],
    pub caller: &'a str,
    /// Credentials that came with the request, by registry.
    pub credentials: &'a BTreeMap<String, RegistryCredential>,
    /// True to resolve the name at the registry even if it was checked recently.
    pub ask_registry: bool,
    pub transfer: &'a TransferProgress,
}

/// Image that is present in the room, and stays there as long as this value is held.
#[derive(Debug)]
pub struct SuppliedImage {
    pub repository: Repository,
    /// Digest of an image, or of an index of the requested images.
    pub digest: Digest,
    /// Defaults in the order of the requested platforms.
    pub defaults: Vec<ImageDefaults>,
    pub origin: SupplyOrigin,
    _in_use: Vec<CachedImageGuard>,
}

impl SuppliedImage {
    pub fn new(
        repository: Repository,
        digest: Digest,
        defaults: Vec<ImageDefaults>,
        origin: SupplyOrigin,
    ) -> Self {
        Self { repository, digest, defaults, origin, _in_use: Vec::new() }
    }
}

/// Source from which an image was supplied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SupplyOrigin {
    Room,
    /// Cached, and still what the registry has.
    Cached,
    Fetched {
        bytes: u64,
    },
    /// Cached; the registry could not be asked.
    Unchecked {
        reason: String,
    },
}

impl ImageStore {
    pub async fn supply(
        &self,
        wanted: SupplyRequest<'_>,
        remote_registries: &RemoteRegistries,
    ) -> Result<SuppliedImage, ImageError> {
        let not_found = || ImageError::NotFound { reference: wanted.reference.to_string() };
        if wanted.is_own {
            if is_cached_name(wanted.reference.repository.as_str()) {
                return Err(not_found());
            }
            let own = Reference { registry: None, ..wanted.reference.clone() };
            let top = self.resolve(&own).await.map_err(|error| match error {
                ImageError::NotFound { .. } => not_found(),
                error => error,
            })?;
            return self.check_and_supply(own.repository, top, &wanted, SupplyOrigin::Room, Vec::new()).await;
        }
        let (remote, right) =
            remote_registries.client_for(wanted.reference, wanted.credentials, wanted.caller)?;
        let mut images = Vec::with_capacity(wanted.platforms.len());
        for platform in wanted.platforms {
            let key = CachedImageKey {
                name: normalized_name(wanted.reference),
                platform: platform.clone(),
                right: right.clone(),
            };
            images.push(self.cached_or_fetched(&wanted, key, &remote).await?);
        }
        let in_use =
            images.iter().map(|(image, _)| self.in_use(&image.repository, image.manifest.digest)).collect();
        let origin = images.iter().map(|(_, origin)| origin.clone()).max_by_key(|origin| match origin {
            SupplyOrigin::Room | SupplyOrigin::Cached => 0,
            SupplyOrigin::Fetched { .. } => 1,
            SupplyOrigin::Unchecked { .. } => 2,
        });
        let origin = origin.unwrap_or(SupplyOrigin::Cached);
        let Some((first, _)) = images.first() else { return Err(not_found()) };
        let repository = first.repository.clone();
        let top = match images.as_slice() {
            [(only, _)] => only.manifest.clone(),
            all => self.index_of(&repository, all.iter().map(|(image, _)| image)).await?,
        };
        self.check_and_supply(repository, top, &wanted, origin, in_use).await
    }

    /// Checks the layers of an image and reads its defaults before a builder gets it.
    async fn check_and_supply(
        &self,
        repository: Repository,
        top: Descriptor,
        wanted: &SupplyRequest<'_>,
        origin: SupplyOrigin,
        in_use: Vec<CachedImageGuard>,
    ) -> Result<SuppliedImage, ImageError> {
        let SupplyRequest { platforms, caller, .. } = *wanted;
        // All platforms are checked, because the builder chooses the platform of each stage itself.
        self.check_layers(&top, &PlatformSelection::All, Some(caller)).await?;
        let (shared, digest, platforms) = (Arc::clone(&self.shared), top.digest, platforms.to_vec());
        let read = task::blocking("read image config", move || {
            let defaults = |platform: &Platform| {
                let image = contents::image_for(&*shared.blobs, &top, platform)?;
                let invalid = |reason: String| ImageError::Config { digest: image.config.digest, reason };
                let config = contents::read_json(&*shared.blobs, &image.config)?;
                let config =
                    ImageConfig::parse_unambiguous(&config).map_err(|error| invalid(error.to_string()))?;
                // An image outside an index has its platform only in its config.
                if !platform.accepts(&config.platform) {
                    return Err(ImageError::NoPlatform {
                        digest: top.digest,
                        wanted: platform.as_str().to_owned(),
                        found: config.platform.to_string(),
                    });
                }
                ImageDefaults::from_config(&config.config).map_err(|error| invalid(error.to_string()))
            };
            platforms.iter().map(defaults).collect::<Result<Vec<_>, ImageError>>()
        });
        let defaults = read.await.map_err(|_| ImageError::Ending)??;
        Ok(SuppliedImage { _in_use: in_use, ..SuppliedImage::new(repository, digest, defaults, origin) })
    }

    /// Returns an image of another registry, from the cache or from the registry.
    pub(super) async fn cached_or_fetched(
        &self,
        wanted: &SupplyRequest<'_>,
        key: CachedImageKey,
        remote: &RegistryClient,
    ) -> Result<(CachedImage, SupplyOrigin), ImageError> {
        // A concurrent request for the same image waits and then finds it in the cache.
        let _turn = self.shared.cached_in_use.lock_fetch(&key).await;
        let known = match self.shared.catalog.cached(&key).await? {
            Some(known) if self.is_complete(&known).await? => Some(known),
            _ => None,
        };
        let now = Timestamp::now();
        let reference = wanted.reference;
        if let Some(known) = &known
            && !wanted.ask_registry
            && (is_fresh(known, now)
                || (reference.digest.is_some() && !matches!(key.right, ImageRight::Caller(_))))
        {
            self.shared.catalog.record_use(&key, now, false).await?;
            return Ok((known.clone(), SupplyOrigin::Cached));
        }
        let asked = match known.is_some() && !wanted.ask_registry {
            true => remote.with_retry_policy(REVALIDATE_RETRY).resolve_digest(reference).await,
            false => remote.resolve_digest(reference).await,
        };
        let upstream = match (asked, known) {
            (Ok(upstream), Some(known)) if known.upstream == upstream => {
                self.shared.catalog.record_use(&key, now, true).await?;
                return Ok((known, SupplyOrigin::Cached));
            }
            (Ok(upstream), _) => upstream,
            (Err(error), Some(known)) if error.retryable() && !wanted.ask_registry => {
                self.shared.catalog.record_use(&key, now, false).await?;
                return Ok((known, SupplyOrigin::Unchecked { reason: error.to_string() }));
            }
            (Err(error), _) => return Err(error.into()),
        };
        // Pulled by digest, so that the content is what was resolved even if the name moves now.
        let pinned = Reference { digest: Some(upstream), ..reference.clone() };
        let repository = cached_repository(reference, &key.right)?;
        let pull = ImagePull {
            remote,
            reference: &pinned,
            caller: wanted.caller,
            platforms: PlatformSelection::One(key.platform.clone()),
            destination: ImageDestination::Untagged(repository.clone()),
        };
        let loaded = self.pull(pull, wanted.transfer).await?;
        let image = CachedImage {
            key,
            repository,
            manifest: loaded.manifest,
            upstream,
            size_bytes: loaded.size_bytes,
            checked_at: now,
            used_at: now,
        };
        self.shared.catalog.put_cached(image.clone()).await?;
        tracing::info!(
            image.name = image.key.name, image.digest = %image.manifest.digest, right = image.key.right.to_text(),
            "image of another registry fetched"
        );
        let bytes = loaded.size_bytes.saturating_sub(loaded.reused_bytes);
        Ok((image, SupplyOrigin::Fetched { bytes }))
    }

    /// Reports whether all content of a cached image is still present.
    async fn is_complete(&self, image: &CachedImage) -> Result<bool, ImageError> {
        match self.verify(&image.repository, image.manifest.digest).await {
            Ok(_) => Ok(true),
            Err(error @ (ImageError::Catalog(_) | ImageError::Ending)) => Err(error),
            Err(error) => {
                tracing::warn!(image.name = image.key.name, %error, "found an incomplete cached image; fetching it again");
                Ok(false)
            }
        }
    }

    /// Stores an index of images that are already in the repository, one for each platform.
    async fn index_of<'i>(
        &self,
        repository: &Repository,
        images: impl Iterator<Item = &'i CachedImage>,
    ) -> Result<Descriptor, ImageError> {
        let children = images.map(|image| {
            let mut parts = image.key.platform.as_str().splitn(3, '/');
            let mut platform = serde_json::json!({"os": parts.next(), "architecture": parts.next()});
            if let Some(variant) = parts.next() {
                platform["variant"] = variant.into();
            }
            serde_json::json!({
                "mediaType": image.manifest.media_type,
                "digest": image.manifest.digest,
                "size": image.manifest.size,
                "platform": platform,
            })
        });
        let children: Vec<_> = children.collect();
        let index =
            serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX_TYPE, "manifests": children});
        let bytes = index.to_string().into_bytes();
        let shared = Arc::clone(&self.shared);
        let keep = task::blocking("store index", move || {
            let top = store_document(&*shared.blobs, OCI_INDEX_TYPE, &bytes)?;
            let contents = ImageContents::read_and_touch(&*shared.blobs, &top)?;
            Ok::<_, ImageError>((top, contents))
        });
        let (top, contents) = keep.await.map_err(|_| ImageError::Ending)??;
        self.name(&top, contents, ImageDestination::Untagged(repository.clone())).await?;
        Ok(top)
    }
}

fn is_fresh(image: &CachedImage, now: Timestamp) -> bool {
    let age = now.duration_since(image.checked_at);
    !age.is_negative() && age.unsigned_abs() < REVALIDATE_AFTER
}

/// Returns the normalized name, such as `docker.io/library/alpine:3`.
pub(super) fn normalized_name(reference: &Reference) -> String {
    let name = hearth_registry::full_name(reference);
    match (&reference.digest, reference.tag_or_latest()) {
        (Some(digest), _) => format!("{name}@{digest}"),
        (None, Some(tag)) => format!("{name}:{tag}"),
        (None, None) => name,
    }
}

/// Returns the repository that holds an image fetched with this right.
pub(super) fn cached_repository(reference: &Reference, right: &ImageRight) -> Result<Repository, ImageError> {
    right.repository_of(reference).ok_or_else(|| ImageError::Foreign { reference: reference.to_string() })
}
