//! Images of the room: tags, manifests, and their content.
//!
//! [`ImageStore`] is the handle for everything except the registry's own HTTP API. [`port::BlobStorage`] holds content,
//! [`port::ImageCatalog`] holds names; a name is set only once all its content is present.

mod attestations;
mod base_layers;
mod build_cache;
mod built_image;
mod cache;
mod contents;
mod error;
mod gc;
mod instructions;
mod layers;
mod load;
mod origin;
mod packs;
pub mod port;
mod pull;
mod push;
mod remote_registries;
mod runnable;
mod transfer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::model::image::{Platform, TaggedImage, VerifiedImage};
use crate::model::manifest::Manifest;
use crate::model::share_owner::ShareOwnerResolver;
use crate::model::{Digest, Reference, Repository, RoomRegistries, Tag};
use crate::task;

use cache::CachedImagesInUse;
use contents::ImageContents;
use hearth_oci::Descriptor;
use layers::InspectionQueue;
use packs::HeldPacks;
use port::{BlobStorage, ImageCatalog, LayerInspector, TagQuery};

pub use attestations::ImageStatements;
pub use build_cache::SuppliedCache;
pub use built_image::{BaseImage, BuiltImage, ImageForm, PlatformBase};
pub use cache::{SuppliedImage, SupplyOrigin, SupplyRequest};
pub use contents::OpenLayer;
pub use error::ImageError;
pub use gc::GcReport;
pub use load::{ImageDestination, LoadedImage, ReceivedArchive};
pub use origin::FoundImage;
pub use pull::{ImagePull, PlatformSelection};
pub use push::PushedBytes;
pub use remote_registries::{CredentialsFileError, RemoteRegistries};
pub use runnable::RegistryCaller;
pub use transfer::{TransferProgress, TransferSnapshot};

/// Handle to the room's images; cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    shared: Arc<ImageStoreShared>,
}

struct ImageStoreShared {
    rooms: RoomRegistries,
    blobs: Arc<dyn BlobStorage>,
    catalog: Arc<dyn ImageCatalog>,
    held: HeldPacks,
    inspections: InspectionQueue,
    cached_in_use: CachedImagesInUse,
    /// Maximum size of cached images in bytes.
    cache_limit: AtomicU64,
    /// Maximum compressed size of one image in bytes.
    image_limit: AtomicU64,
    owners: OnceLock<ShareOwnerResolver>,
}

/// Image as shown to users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectedImage {
    pub repository: Repository,
    pub tag: Option<TaggedImage>,
    pub manifest: Descriptor,
    pub size_bytes: u64,
    pub manifest_json: Vec<u8>,
    pub config_json: Vec<u8>,
    pub platform: Option<String>,
    /// Layers, the base's first.
    pub layers: Vec<Descriptor>,
}

/// Open blob, positioned at its start. The media type is set for manifests, and empty for other blobs.
#[derive(Debug)]
pub struct OpenBlob {
    pub blob: Descriptor,
    pub file: std::fs::File,
}

impl ImageStore {
    pub fn new(
        rooms: RoomRegistries,
        blobs: Arc<dyn BlobStorage>,
        catalog: Arc<dyn ImageCatalog>,
        inspector: Arc<dyn LayerInspector>,
    ) -> Self {
        let passes = InspectionQueue::new(Arc::clone(&blobs), inspector);
        let cache_limit = AtomicU64::new(u64::MAX);
        let (held, used) = (HeldPacks::default(), CachedImagesInUse::default());
        let (image_limit, owners) = (AtomicU64::new(u64::MAX), OnceLock::new());
        let shared = ImageStoreShared {
            rooms,
            blobs,
            catalog,
            held,
            inspections: passes,
            cached_in_use: used,
            cache_limit,
            image_limit,
            owners,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Sets the maximum compressed size of one image, in bytes.
    pub fn limit_images(&self, bytes: u64) {
        self.shared.image_limit.store(bytes, Ordering::Relaxed);
    }

    fn check_size(&self, manifest: Digest, size: u64) -> Result<(), ImageError> {
        let limit = self.shared.image_limit.load(Ordering::Relaxed);
        if size > limit { Err(ImageError::Oversize { manifest, size, limit }) } else { Ok(()) }
    }

    /// Sets the resolver of share owners. Called once, at start; until then each caller is its own owner.
    pub fn set_share_owners(&self, owners: ShareOwnerResolver) {
        if self.shared.owners.set(owners).is_err() {
            tracing::warn!("share owner resolver was already set");
        }
    }

    /// Returns the owner whose share of the room's work and space a caller uses.
    fn owner_of(&self, caller: &str) -> String {
        self.shared.owners.get().map_or_else(|| caller.to_owned(), |owners| owners.owner_of(caller).0)
    }

    pub fn room_registries(&self) -> &RoomRegistries {
        &self.shared.rooms
    }

    /// Returns the manifest that a reference of this room currently names.
    pub async fn resolve(&self, reference: &Reference) -> Result<Descriptor, ImageError> {
        let missing = || ImageError::NotFound { reference: reference.to_string() };
        let repository = self.room_repository(reference)?;
        let found = match (reference.digest, reference.tag_or_latest()) {
            (Some(digest), _) => self.shared.catalog.manifest(repository, &digest).await?,
            (None, Some(tag)) => self.shared.catalog.tag(repository, &tag).await?.map(|image| image.manifest),
            (None, None) => None,
        };
        found.ok_or_else(missing)
    }

    async fn manifest_of(&self, repository: &Repository, digest: &Digest) -> Result<Descriptor, ImageError> {
        let manifest = self.shared.catalog.manifest(repository, digest).await?;
        manifest.ok_or_else(|| ImageError::NotFound { reference: format!("{repository}@{digest}") })
    }

    /// Verifies that a manifest and all its required content are present, and readable in its repository.
    pub async fn verify(&self, repository: &Repository, digest: Digest) -> Result<VerifiedImage, ImageError> {
        let manifest = self.manifest_of(repository, &digest).await?;
        let contents = self.contents(&manifest).await?;
        let parts = contents.parts();
        if let Some(part) = self.shared.catalog.missing(repository, parts).await?.first() {
            return Err(ImageError::BlobMissing { manifest: digest, blob: part.digest });
        }
        Ok(VerifiedImage { repository: repository.clone(), manifest, size_bytes: contents.size_bytes })
    }

    /// Sets all these tags, in any repositories of the room, or none.
    pub async fn publish(
        &self,
        image: &VerifiedImage,
        tags: &[Reference],
    ) -> Result<Vec<TaggedImage>, ImageError> {
        let mut names = Vec::with_capacity(tags.len());
        for tag in tags {
            names.push((self.room_repository(tag)?.clone(), tag.tag.clone().unwrap_or_else(Tag::latest)));
        }
        let digest = image.manifest.digest;
        let published = self.shared.catalog.publish(&image.repository, &digest, names).await?;
        published.ok_or_else(|| ImageError::NotFound { reference: format!("{}@{digest}", image.repository) })
    }

    /// Lists images ordered by repository and tag.
    pub async fn list(&self, query: TagQuery) -> Result<Vec<TaggedImage>, ImageError> {
        Ok(self.shared.catalog.tags(query).await?)
    }

    /// Adds a tag to an image, or moves an existing tag to it.
    pub async fn tag(&self, reference: &Reference, tag: &Reference) -> Result<TaggedImage, ImageError> {
        let manifest = self.resolve(reference).await?;
        let image = self.verify(&reference.repository, manifest.digest).await?;
        let tagged = self.publish(&image, std::slice::from_ref(tag)).await?;
        tagged.into_iter().next().ok_or_else(|| ImageError::NotFound { reference: tag.to_string() })
    }

    /// Removes a tag; the next sweep frees content that is no longer referenced.
    pub async fn remove(&self, reference: &Reference) -> Result<(), ImageError> {
        let repository = self.room_repository(reference)?;
        let removed = match reference.tag_or_latest() {
            Some(tag) if reference.digest.is_none() => {
                self.shared.catalog.remove_tag(repository, &tag).await?
            }
            _ => return Err(ImageError::TagNeeded { reference: reference.to_string() }),
        };
        if removed { Ok(()) } else { Err(ImageError::NotFound { reference: reference.to_string() }) }
    }

    pub async fn inspect(&self, reference: &Reference) -> Result<InspectedImage, ImageError> {
        let manifest = self.resolve(reference).await?;
        let tag = match (reference.digest, reference.tag_or_latest()) {
            (None, Some(tag)) => self.shared.catalog.tag(&reference.repository, &tag).await?,
            _ => None,
        };
        let size_bytes = self.contents(&manifest).await?.size_bytes;
        let (shared, top) = (Arc::clone(&self.shared), manifest.clone());
        let read = task::blocking("inspect image", move || {
            let manifest_json = contents::read_json(&*shared.blobs, &top)?;
            let image = contents::image_to_show(&*shared.blobs, &top, &Platform::host())?;
            let config_json = contents::read_json(&*shared.blobs, &image.config)?;
            Ok::<_, ImageError>((manifest_json, config_json, image.layers))
        });
        let (manifest_json, config_json, layers) = read.await.map_err(|_| ImageError::Ending)??;
        let platform = contents::platform_of(&config_json);
        Ok(InspectedImage {
            repository: reference.repository.clone(),
            tag,
            manifest,
            size_bytes,
            manifest_json,
            config_json,
            platform,
            layers,
        })
    }

    /// Opens the layers of an image for this machine's platform, lowest first.
    pub async fn open_layers(&self, manifest: &Descriptor) -> Result<Vec<OpenLayer>, ImageError> {
        let (shared, top) = (Arc::clone(&self.shared), manifest.clone());
        let opened = task::blocking("open layers", move || contents::open_layers(&*shared.blobs, &top));
        opened.await.map_err(|_| ImageError::Ending)?
    }

    /// Opens a blob or manifest of an image's repository; without a digest, the image's own manifest.
    pub async fn open_blob(
        &self,
        reference: &Reference,
        digest: Option<Digest>,
    ) -> Result<OpenBlob, ImageError> {
        let repository = self.room_repository(reference)?;
        let top = self.resolve(reference).await?;
        let wanted = digest.unwrap_or(top.digest);
        // A digest alone is not sufficient: the repository must contain it.
        let media_type = match self.shared.catalog.manifest(repository, &wanted).await? {
            Some(manifest) => manifest.media_type,
            None if self.shared.catalog.has_blob(repository, &wanted).await? => String::new(),
            None => return Err(ImageError::BlobMissing { manifest: top.digest, blob: wanted }),
        };
        let shared = Arc::clone(&self.shared);
        let open = move || {
            let failed = |source| ImageError::Read { digest: wanted, source };
            let missing = ImageError::BlobMissing { manifest: top.digest, blob: wanted };
            let file = shared.blobs.open_verified(&wanted).map_err(failed)?.ok_or(missing)?;
            let size = file.metadata().map_err(failed)?.len();
            Ok(OpenBlob { blob: Descriptor::new(&media_type, wanted, size), file })
        };
        task::blocking("open blob", open).await.map_err(|_| ImageError::Ending)?
    }

    /// Creates an unnamed file for an archive that is being received. Returns it with the directory on whose file
    /// system it is.
    pub async fn scratch_file(&self) -> Result<(std::fs::File, PathBuf), ImageError> {
        let shared = Arc::clone(&self.shared);
        let made = task::blocking("scratch file", move || shared.blobs.scratch_file()).await;
        made.map_err(|_| ImageError::Ending)?.map_err(ImageError::scratch)
    }

    /// Returns the repository of a reference, which must be in this room.
    fn room_repository<'a>(&self, reference: &'a Reference) -> Result<&'a Repository, ImageError> {
        if self.shared.rooms.owns_tag(reference) {
            Ok(&reference.repository)
        } else {
            Err(ImageError::Foreign { reference: reference.to_string() })
        }
    }

    async fn contents(&self, manifest: &Descriptor) -> Result<ImageContents, ImageError> {
        let (shared, top) = (Arc::clone(&self.shared), manifest.clone());
        let read =
            task::blocking("read manifest", move || ImageContents::read_and_touch(&*shared.blobs, &top));
        read.await.map_err(|_| ImageError::Ending)?
    }
}

/// Parses a stored manifest.
fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Manifest, ImageError> {
    Manifest::parse(&descriptor.media_type, bytes)
        .map_err(|source| ImageError::Manifest { digest: descriptor.digest, source })
}

#[cfg(test)]
mod tests;
