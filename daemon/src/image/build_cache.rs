//! Caches of build steps, as BuildKit writes and reads them: a manifest or index that lists layers, beside a config that
//! says which steps they result from; or an image whose config has that list.
//!
//! BuildKit takes the DiffID of each layer from an annotation, and finds layers that it has by it. A cache is therefore
//! checked like an image before a builder gets it: each DiffID is computed from the layer's bytes.

mod layout;

use std::collections::BTreeMap;
use std::sync::Arc;

use hearth_oci::Descriptor;

use super::cache::{CachedImageGuard, cached_repository};
use super::contents::read_json;
use super::layers::check_importable_index;
use super::port::cached::ImageRight;
use super::{
    ImageDestination, ImageError, ImagePull, ImageStore, PlatformSelection, RemoteRegistries,
    TransferProgress,
};
use crate::context::StorageRoot;
use crate::model::image::{PinnedImage, is_cached_name};
use crate::model::secret::RegistryCredential;
use crate::model::{CacheImport, CacheLocation, Reference, Repository};
use crate::task;

/// Name of the hidden repository that receives the caches which a participant's builds read from storage.
const STORED_CACHES: &str = "storage/build-caches";

/// Cache that a builder may read. It stays in the room as long as this value is held.
#[derive(Debug)]
pub struct SuppliedCache {
    pub manifest: PinnedImage,
    _in_use: Option<CachedImageGuard>,
}

impl SuppliedCache {
    pub const fn new(manifest: PinnedImage) -> Self {
        Self { manifest, _in_use: None }
    }
}

impl ImageStore {
    /// Brings a cache into the room, and checks its layers. `storage` is the room's storage.
    pub async fn supply_cache(
        &self,
        import: &CacheImport,
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
        remote_registries: &RemoteRegistries,
        storage: StorageRoot,
    ) -> Result<SuppliedCache, ImageError> {
        let (repository, top) = match &import.location {
            CacheLocation::Registry(reference) if self.shared.rooms.owns_tag(reference) => {
                if is_cached_name(reference.repository.as_str()) {
                    return Err(ImageError::NotFound { reference: reference.to_string() });
                }
                let top = self.resolve(reference).await?;
                self.check_layers(&top, &PlatformSelection::All, Some(caller)).await?;
                (reference.repository.clone(), top)
            }
            CacheLocation::Registry(reference) => {
                self.pull_cache(reference, caller, given, remote_registries).await?
            }
            CacheLocation::Directory { path, tag } => {
                let (shared, path, tag) = (Arc::clone(&self.shared), path.clone(), tag.clone());
                let digest = import.digest;
                let read = move || layout::store_directory(&*shared.blobs, &storage, &path, &tag, digest);
                let received = task::blocking("read build cache", read).await;
                self.keep_stored(received.map_err(|_| ImageError::Ending)??, caller).await?
            }
            CacheLocation::Archive { path } => {
                let path = path.clone();
                let open = move || layout::open_archive(&storage, &path);
                let archive = task::blocking("open build cache", open).await;
                let archive = archive.map_err(|_| ImageError::Ending)??;
                self.keep_stored(self.receive(archive).await?, caller).await?
            }
        };
        let (shared, manifest) = (Arc::clone(&self.shared), top.clone());
        let check = task::blocking("check build cache", move || {
            check_importable_index(&manifest, &read_json(&*shared.blobs, &manifest)?)
        });
        check.await.map_err(|_| ImageError::Ending)??;
        let in_use = self.in_use(&repository, top.digest);
        let manifest = PinnedImage { repository, digest: top.digest };
        Ok(SuppliedCache { _in_use: Some(in_use), ..SuppliedCache::new(manifest) })
    }

    async fn pull_cache(
        &self,
        reference: &Reference,
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
        remote_registries: &RemoteRegistries,
    ) -> Result<(Repository, Descriptor), ImageError> {
        let (remote, right) = remote_registries.client_for(reference, given, caller)?;
        let repository = cached_repository(reference, &right)?;
        let pull = ImagePull {
            remote: &remote,
            reference,
            caller,
            platforms: PlatformSelection::All,
            destination: ImageDestination::Untagged(repository.clone()),
        };
        let pulled = self.pull(pull, &TransferProgress::default()).await?;
        Ok((repository, pulled.manifest))
    }

    /// Keeps a cache that was read from storage in a repository of the caller's own, which no grant opens.
    async fn keep_stored(
        &self,
        received: super::ReceivedArchive,
        caller: &str,
    ) -> Result<(Repository, Descriptor), ImageError> {
        let Some(repository) = ImageRight::Caller(caller.to_owned()).repository_named(STORED_CACHES) else {
            self.discard(received).await;
            return Err(ImageError::Foreign { reference: STORED_CACHES.to_owned() });
        };
        let destination = ImageDestination::Untagged(repository.clone());
        let kept = self.name_received(received, destination, caller).await?;
        Ok((repository, kept.manifest))
    }

    /// Writes a cache of the room to a file or directory of `storage`.
    pub async fn store_cache(
        &self,
        cache: &Descriptor,
        location: &CacheLocation,
        storage: StorageRoot,
    ) -> Result<(), ImageError> {
        let (shared, cache, location) = (Arc::clone(&self.shared), cache.clone(), location.clone());
        let write = move || match &location {
            CacheLocation::Directory { path, tag } => {
                layout::write_directory(&*shared.blobs, &cache, &storage, path, tag)
            }
            CacheLocation::Archive { path } => layout::write_archive(&*shared.blobs, &cache, &storage, path),
            CacheLocation::Registry(reference) => {
                Err(ImageError::Foreign { reference: reference.to_string() })
            }
        };
        task::blocking("write build cache", write).await.map_err(|_| ImageError::Ending)?
    }
}
