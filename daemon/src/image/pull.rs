//! Pull of an image from another registry: blobs first, each verified on arrival, names last.
//!
//! ```text
//! manifest --(one platform, or all)--> parts --fetch, a few at a time--> blobs --> manifests --> name
//! ```
//!
//! A digest alone opens nothing: a hostile registry may list the blob of another repository in its own manifest.
//! Content that the room already has is therefore fetched again, unless it arrived earlier at the same destination: in
//! the same repository, or with a mount of the same participant.

use std::collections::{BTreeSet, HashSet};
use std::io::Cursor;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use hearth_oci::{Descriptor, OciIndex};
use hearth_registry::{CHUNK_BUFFER, PullSource, RegistryClient, RemoteError, full_name};
use tokio::sync::mpsc;

use super::contents::{ImageContents, MAX_INDEX_ENTRIES};
use super::load::MAX_BLOBS;
use super::port::{IncomingBlob, StoredBlob};
use super::{ImageDestination, ImageError, ImageStore, LoadedImage, TransferProgress};
use crate::model::access::BUILD_MOUNTS_OWNER;
use crate::model::image::Platform;
use crate::model::manifest::{Manifest, ManifestPart, PartKind};
use crate::model::{Digest, Reference};
use crate::task;
use crate::task::sequential::{SequentialError, SequentialWork};

/// Maximum number of concurrent blob transfers.
const MAX_CONCURRENT_PULLS: usize = 3;

/// Selection of images from an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlatformSelection {
    One(Platform),
    /// Index with all its images.
    All,
}

pub struct ImagePull<'a> {
    /// Client, with the credentials to use.
    pub remote: &'a RegistryClient,
    pub reference: &'a Reference,
    /// Caller who requested the image.
    pub caller: &'a str,
    pub platforms: PlatformSelection,
    pub destination: ImageDestination,
}

/// Owner of the fetched content, and name of its image.
#[derive(Clone)]
struct FetchAttribution {
    owner: String,
    name: String,
}

/// Manifests and blobs of an image to pull; the top manifest is the last one.
struct PullPlan {
    source: PullSource,
    manifests: Vec<(Descriptor, Vec<u8>)>,
    blobs: BTreeSet<ManifestPart>,
}

impl ImageStore {
    /// Pulls an image into the room. If the future is dropped midway, the sweep frees the unreferenced blobs.
    pub async fn pull(
        &self,
        pull: ImagePull<'_>,
        transfer: &TransferProgress,
    ) -> Result<LoadedImage, ImageError> {
        let ImagePull { remote, reference, caller, platforms, destination } = pull;
        if let ImageDestination::Tag(tag) = &destination {
            self.room_repository(tag)?;
        }
        let outline = plan_pull(remote, reference, platforms).await?;
        let Some((top, _)) = outline.manifests.last().cloned() else {
            return Err(ImageError::NotFound { reference: reference.to_string() });
        };
        let size = outline.blobs.iter().fold(0, |sum: u64, part| sum.saturating_add(part.size));
        self.check_size(top.digest, size)?;
        transfer.begin(outline.blobs.iter().map(|part| part.size));
        let held = match &destination {
            ImageDestination::Pack { owner } => self.pack_content_of(owner).await?,
            ImageDestination::Tag(_) | ImageDestination::Untagged(_) => HashSet::new(),
        };
        let of = &FetchAttribution { owner: self.owner_of(caller), name: full_name(reference) };
        let (source, held, place) = (&outline.source, &held, &destination);
        let bring = outline.blobs.iter().cloned().map(|part| async move {
            let stored = match self.reusable_blob(&part, place, held).await? {
                Some(stored) => stored,
                None => self.fetch_blob(remote, source, &part, of).await?,
            };
            transfer.done(part.size);
            Ok::<_, ImageError>(stored)
        });
        let mut stored: Vec<StoredBlob> =
            stream::iter(bring).buffer_unordered(MAX_CONCURRENT_PULLS).try_collect().await?;
        let (shared, manifests, manifest) = (Arc::clone(&self.shared), outline.manifests, top.clone());
        let keep = task::blocking("store manifests", move || {
            let mut kept = Vec::with_capacity(manifests.len());
            for (descriptor, bytes) in manifests {
                let digest = descriptor.digest;
                let stored = shared.blobs.put(&digest, &mut Cursor::new(bytes));
                kept.push(stored.map_err(|error| ImageError::not_stored(digest, error))?);
            }
            Ok::<_, ImageError>((kept, ImageContents::read_and_touch(&*shared.blobs, &manifest)?))
        });
        let (kept, contents) = keep.await.map_err(|_| ImageError::Ending)??;
        stored.extend(kept);
        let reused = stored.iter().filter(|stored| stored.fresh.is_none());
        let reused_bytes = reused.map(|stored| stored.size).sum();
        match self.name_checked(&top, contents, destination, caller).await {
            Ok((pack, image, size_bytes)) => {
                Ok(LoadedImage { manifest: top, size_bytes, reused_bytes, pack, image })
            }
            Err(error) => {
                self.remove_stored(stored).await;
                Err(error)
            }
        }
    }

    /// Pulls an image that a build of `caller` mounts. It has no name; its content stays for an hour after its last
    /// use, so that the next build fetches nothing.
    pub async fn pull_for_mount(
        &self,
        remote: &RegistryClient,
        reference: &Reference,
        caller: &str,
    ) -> Result<Descriptor, ImageError> {
        // No participant has this name, so that no participant owns such a pack.
        let owner = format!("{BUILD_MOUNTS_OWNER}{caller}");
        let destination = ImageDestination::Pack { owner: owner.clone() };
        let platforms = PlatformSelection::One(Platform::host());
        let pull = ImagePull { remote, reference, caller, platforms, destination };
        let loaded = self.pull(pull, &TransferProgress::default()).await?;
        // The newest pack replaces the older ones of the same image, so that they expire together.
        for pack in self.shared.catalog.packs().await? {
            let image = pack.image().map(|image| image.digest);
            let same = pack.owner == owner && image == Some(loaded.manifest.digest);
            if same && Some(&pack.id) != loaded.pack.as_ref() {
                self.shared.catalog.remove_pack(&pack.id).await?;
            }
        }
        Ok(loaded.manifest)
    }

    /// Returns the content that arrived with earlier packs of `owner`.
    async fn pack_content_of(&self, owner: &str) -> Result<HashSet<Digest>, ImageError> {
        let mut held = HashSet::new();
        for pack in self.shared.catalog.packs().await?.into_iter().filter(|pack| pack.owner == owner) {
            let Some(image) = pack.image() else { continue };
            match self.contents(image).await {
                Ok(contents) => held.extend(contents.digests()),
                Err(error) => tracing::warn!(pack.id = %pack.id, %error, "failed to read a damaged pack"),
            }
        }
        Ok(held)
    }

    /// Returns a blob that need not be fetched.
    async fn reusable_blob(
        &self,
        part: &ManifestPart,
        destination: &ImageDestination,
        held: &HashSet<Digest>,
    ) -> Result<Option<StoredBlob>, ImageError> {
        let known = match destination {
            ImageDestination::Tag(Reference { repository, .. }) | ImageDestination::Untagged(repository) => {
                self.shared.catalog.has_blob(repository, &part.digest).await?
            }
            ImageDestination::Pack { .. } => held.contains(&part.digest),
        };
        if !known {
            return Ok(None);
        }
        let (shared, digest) = (Arc::clone(&self.shared), part.digest);
        let touched = task::blocking("touch blob", move || shared.blobs.touch(&digest)).await;
        let size = touched.map_err(|_| ImageError::Ending)?;
        let size = size.map_err(|source| ImageError::Read { digest, source })?;
        Ok(size.filter(|size| *size == part.size).map(|size| StoredBlob { digest, size, fresh: None }))
    }

    async fn fetch_blob(
        &self,
        remote: &RegistryClient,
        source: &PullSource,
        part: &ManifestPart,
        of: &FetchAttribution,
    ) -> Result<StoredBlob, ImageError> {
        let (send, mut chunks) = mpsc::channel::<Bytes>(CHUNK_BUFFER);
        let digest = part.digest;
        let blob = Descriptor::new("", digest, part.size);
        let fetch = async {
            let fetched = remote.fetch_blob(source, &blob, &send).await;
            drop(send);
            fetched
        };
        let keep = async {
            let kept = self.write_chunks(digest, of, &mut chunks).await;
            // Closing the channel stops the fetch, because nobody receives more.
            chunks.close();
            kept
        };
        let (fetched, kept) = tokio::join!(fetch, keep);
        match (fetched, kept) {
            (Ok(()), Ok(incoming)) => {
                let stored = task::blocking("pull blob", move || incoming.finish(&digest)).await;
                let stored = stored
                    .map_err(|_| ImageError::Ending)?
                    .map_err(|error| ImageError::not_stored(digest, error))?;
                // Inspects the layer while others are still being fetched.
                self.shared.inspections.inspect_ahead(digest);
                Ok(stored)
            }
            // The writer has stopped, and its error is the cause.
            (Ok(()) | Err(RemoteError::ReceiverStopped { .. }), Err(error)) => Err(error),
            (Err(error), _) => Err(error.into()),
        }
    }

    /// Writes chunks as they arrive. No thread waits for the registry: one is used only for data that has arrived.
    async fn write_chunks(
        &self,
        digest: Digest,
        of: &FetchAttribution,
        chunks: &mut mpsc::Receiver<Bytes>,
    ) -> Result<Box<dyn IncomingBlob>, ImageError> {
        let (shared, of) = (Arc::clone(&self.shared), of.clone());
        let incoming_blob = move || shared.blobs.receive(&digest, &of.owner, &of.name);
        let incoming_blob = task::blocking("pull blob", incoming_blob).await;
        let incoming_blob = incoming_blob.map_err(|_| ImageError::Ending)?;
        let incoming_blob = incoming_blob.map_err(|error| ImageError::not_stored(digest, error))?;
        let mut incoming = SequentialWork::new("pull blob", incoming_blob);
        let stopped = |stopped| match stopped {
            SequentialError::Failed(error) => ImageError::not_stored(digest, error),
            SequentialError::Ended => ImageError::Ending,
        };
        let mut batch = Vec::new();
        while chunks.recv_many(&mut batch, CHUNK_BUFFER).await > 0 {
            let batch = std::mem::take(&mut batch);
            let write = move |incoming: &mut Box<dyn IncomingBlob>| {
                batch.iter().try_for_each(|chunk| incoming.write(chunk))
            };
            incoming.next(write).await.map_err(stopped)?;
        }
        incoming.finish().await.map_err(stopped)
    }
}

async fn plan_pull(
    remote: &RegistryClient,
    reference: &Reference,
    platforms: PlatformSelection,
) -> Result<PullPlan, ImageError> {
    let found = remote.resolve_manifest(reference).await?;
    let mut outline = PullPlan { source: found.source, manifests: Vec::new(), blobs: BTreeSet::new() };
    match platforms {
        PlatformSelection::One(platform) => {
            let platform = platform.to_declared();
            let source = outline.source.clone();
            let image = remote.select_image(source, found.descriptor, found.bytes, &platform).await?;
            outline.add(&image.descriptor, image.manifest_bytes)?;
        }
        PlatformSelection::All => {
            if found.descriptor.is_index() {
                let index: OciIndex = serde_json::from_slice(&found.bytes).map_err(|error| {
                    ImageError::Remote(RemoteError::Answer {
                        url: reference.to_string(),
                        reason: error.to_string(),
                    })
                })?;
                if index.manifests.len() > MAX_INDEX_ENTRIES {
                    return Err(ImageError::TooDeep {
                        digest: found.descriptor.digest,
                        limit: MAX_INDEX_ENTRIES,
                    });
                }
                // The other entries are blobs, which are fetched as parts of the index.
                for child in index.manifests.iter().filter(|child| child.is_manifest() || child.is_index()) {
                    let bytes = remote.fetch_child_manifest(&outline.source, child).await?;
                    outline.add(child, bytes)?;
                }
            }
            outline.add(&found.descriptor, found.bytes)?;
        }
    }
    Ok(outline)
}

impl PullPlan {
    fn add(&mut self, descriptor: &Descriptor, bytes: Vec<u8>) -> Result<(), ImageError> {
        let manifest = Descriptor::new(&descriptor.media_type, descriptor.digest, bytes.len() as u64);
        let parsed = Manifest::parse(&manifest.media_type, &bytes)
            .map_err(|source| ImageError::Manifest { digest: manifest.digest, source })?;
        self.blobs.extend(parsed.parts().into_iter().filter(|part| part.kind == PartKind::Blob));
        if self.blobs.len() > MAX_BLOBS {
            let (digest, count) = (manifest.digest, self.blobs.len());
            return Err(ImageError::TooManyBlobs { digest, count, limit: MAX_BLOBS });
        }
        self.manifests.push((manifest, bytes));
        Ok(())
    }
}
