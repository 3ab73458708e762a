//! Load of an OCI archive as an image of the room: blobs first, each verified on arrival, names last. Nothing stays of
//! a truncated or invalid archive.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_oci::Descriptor;
use hearth_pack::PackedImage;
use hearth_pack::archive::{self, ArchiveError, ArchiveSink};
use jiff::Timestamp;

use super::contents::ImageContents;
use super::port::{ArrivalListener as _, BlobError, BlobStorage, PackContent, PackRecord, StoredBlob};
use super::{ImageError, ImageStore, ImageStoreShared, PlatformSelection};
use crate::model::id::PackId;
use crate::model::image::TaggedImage;
use crate::model::{Digest, Reference, Repository, Tag};
use crate::task;

/// Maximum number of blobs of one archive, each a file; an image has tens of them.
pub(super) const MAX_BLOBS: usize = 10_000;

/// Duration of a load after which its blobs are touched again: the sweep removes untouched ones after an hour.
const RETOUCH_AFTER: Duration = Duration::from_secs(1200);

/// Destination of an archive.
#[derive(Clone, Debug)]
pub enum ImageDestination {
    /// Image of the room with this tag.
    Tag(Reference),
    /// Untagged image of this repository: it stays for an hour, or as long as something pins it.
    Untagged(Repository),
    /// Pack for builds of this participant.
    Pack { owner: String },
}

#[derive(Clone, Debug)]
pub struct LoadedImage {
    pub manifest: Descriptor,
    pub size_bytes: u64,
    /// Bytes of blobs that the room already had.
    pub reused_bytes: u64,
    pub pack: Option<PackId>,
    pub image: Option<TaggedImage>,
}

/// Received archive that has no name yet. It is either named or discarded; the sweep frees one that is dropped.
#[derive(Debug)]
pub struct ReceivedArchive {
    pub(super) manifest: Descriptor,
    pub(super) contents: ImageContents,
    pub(super) stored: Vec<StoredBlob>,
}

impl ImageStore {
    /// Receives an archive and names it.
    pub async fn load(
        &self,
        archive: impl Read + Send + 'static,
        destination: ImageDestination,
        caller: &str,
    ) -> Result<LoadedImage, ImageError> {
        if let ImageDestination::Tag(tag) = &destination {
            self.room_repository(tag)?;
        }
        let received = self.receive(archive).await?;
        self.name_received(received, destination, caller).await
    }

    /// Reads an archive to its end, on a blocking thread.
    pub async fn receive(&self, archive: impl Read + Send + 'static) -> Result<ReceivedArchive, ImageError> {
        let shared = Arc::clone(&self.shared);
        let stored_archive = task::blocking("load archive", move || store_archive(&shared, archive)).await;
        let (manifest, contents, stored) = stored_archive.map_err(|_| ImageError::Ending)??;
        Ok(ReceivedArchive { manifest, contents, stored })
    }

    /// Names a received archive. On an error, it is discarded.
    pub async fn name_received(
        &self,
        received: ReceivedArchive,
        destination: ImageDestination,
        caller: &str,
    ) -> Result<LoadedImage, ImageError> {
        let ReceivedArchive { manifest, contents, stored } = received;
        match self.name_checked(&manifest, contents, destination, caller).await {
            Ok((pack, image, size_bytes)) => {
                if let Some(id) = &pack {
                    self.remember_new_blobs(id, &stored).await;
                }
                let reused = stored.iter().filter(|stored| stored.fresh.is_none());
                let reused_bytes = reused.map(|stored| stored.size).sum();
                Ok(LoadedImage { manifest, size_bytes, reused_bytes, pack, image })
            }
            Err(error) => {
                self.remove_stored(stored).await;
                Err(error)
            }
        }
    }

    /// Discards a received archive completely.
    pub async fn discard(&self, received: ReceivedArchive) {
        self.remove_stored(received.stored).await;
    }

    pub(super) async fn remove_stored(&self, stored: Vec<StoredBlob>) {
        let shared = Arc::clone(&self.shared);
        if task::blocking("take back", move || take_back(&*shared.blobs, &stored)).await.is_err() {
            tracing::warn!("failed to remove the blobs of a discarded image");
        }
    }

    /// Stores an image that was created in this process, and tags it.
    pub async fn store_packed(
        &self,
        packed: Arc<PackedImage>,
        tag: Reference,
    ) -> Result<Option<TaggedImage>, ImageError> {
        self.room_repository(&tag)?;
        let shared = Arc::clone(&self.shared);
        let stored_archive = task::blocking("store image", move || put_packed(&*shared.blobs, &packed)).await;
        let (manifest, contents) = stored_archive.map_err(|_| ImageError::Ending)??;
        // If naming fails, the sweep frees the blobs.
        let image = self.name(&manifest, contents, ImageDestination::Tag(tag)).await?.1;
        self.manifest_arrived(&manifest);
        Ok(image)
    }

    /// Names an image from outside, once its layers were found to match its config.
    pub(super) async fn name_checked(
        &self,
        manifest: &Descriptor,
        contents: ImageContents,
        destination: ImageDestination,
        caller: &str,
    ) -> Result<(Option<PackId>, Option<TaggedImage>, u64), ImageError> {
        self.check_layers(manifest, &PlatformSelection::All, Some(caller)).await?;
        self.name(manifest, contents, destination).await
    }

    pub(super) async fn name(
        &self,
        manifest: &Descriptor,
        contents: ImageContents,
        destination: ImageDestination,
    ) -> Result<(Option<PackId>, Option<TaggedImage>, u64), ImageError> {
        let size_bytes = contents.size_bytes;
        self.check_size(manifest.digest, size_bytes)?;
        let catalog = &self.shared.catalog;
        match destination {
            ImageDestination::Pack { owner } => {
                let (id, created_at) = (PackId::random(), Timestamp::now());
                let content = PackContent::Image(manifest.clone());
                catalog.put_pack(PackRecord { id: id.clone(), content, owner, created_at }).await?;
                Ok((Some(id), None, size_bytes))
            }
            ImageDestination::Untagged(repository) => {
                catalog.put_manifests(&repository, contents.manifests, None).await?;
                Ok((None, None, size_bytes))
            }
            ImageDestination::Tag(reference) => {
                let tag = reference.tag.clone().unwrap_or_else(Tag::latest);
                catalog.put_manifests(&reference.repository, contents.manifests, Some(tag.clone())).await?;
                let image = catalog.tag(&reference.repository, &tag).await?;
                Ok((None, image, size_bytes))
            }
        }
    }
}

fn put_packed(
    blobs: &dyn BlobStorage,
    packed: &PackedImage,
) -> Result<(Descriptor, ImageContents), ImageError> {
    for blob in packed.blobs() {
        let digest = blob.digest;
        let failed = |source| ImageError::Read { digest, source };
        let mut content = packed.open_blob(&digest).map_err(failed)?;
        blobs.put(&digest, &mut content).map_err(|error| ImageError::not_stored(digest, error))?;
    }
    let top = packed.descriptor();
    let manifest = top.bare();
    let contents = ImageContents::read_and_touch(blobs, &manifest)?;
    Ok((manifest, contents))
}

/// Stores the blobs of an archive and finds its one image. On an error, stored blobs are removed again.
fn store_archive(
    shared: &ImageStoreShared,
    archive: impl Read,
) -> Result<(Descriptor, ImageContents, Vec<StoredBlob>), ImageError> {
    let started = Instant::now();
    let blobs = &*shared.blobs;
    // Inspects layers while the rest of the archive arrives.
    let arrived = |blob: &Digest| shared.inspections.inspect_ahead(*blob);
    let mut keep = BlobSink { blobs, arrived: &arrived, stored: Vec::new(), full: false };
    let read = archive::read(archive, &mut keep);
    let BlobSink { stored, full, .. } = keep;
    let found = match read {
        Ok(read) => only_image(blobs, &read.index.manifests, &stored),
        Err(_) if full => Err(ImageError::NoSpace),
        Err(error) => Err(error.into()),
    };
    let found = found.and_then(|(manifest, contents)| {
        if started.elapsed() > RETOUCH_AFTER {
            ImageContents::read_and_touch(blobs, &manifest)?;
        }
        Ok((manifest, contents))
    });
    match found {
        Ok((manifest, contents)) => Ok((manifest, contents, stored)),
        Err(error) => {
            take_back(blobs, &stored);
            Err(error)
        }
    }
}

fn only_image(
    blobs: &dyn BlobStorage,
    images: &[Descriptor],
    stored: &[StoredBlob],
) -> Result<(Descriptor, ImageContents), ImageError> {
    // An image with several names has an entry for each of them.
    let distinct: HashSet<Digest> = images.iter().map(|image| image.digest).collect();
    let (Some(image), 1) = (images.first(), distinct.len()) else {
        return Err(ImageError::ImageCount { count: distinct.len() });
    };
    let manifest = image.bare();
    // Only content of the archive itself is accepted: a digest alone must not open another repository's blob.
    let brought: HashSet<Digest> = stored.iter().map(|stored| stored.digest).collect();
    let missing = |digest| ImageError::Archive(ArchiveError::MissingBlob { digest });
    if !brought.contains(&manifest.digest) {
        return Err(missing(manifest.digest));
    }
    let contents = ImageContents::read_untouched(blobs, &manifest).map_err(|error| match error {
        ImageError::BlobMissing { blob, .. } => missing(blob),
        error => error,
    })?;
    let foreign = contents.digests().find(|digest| !brought.contains(digest));
    match foreign {
        Some(digest) => Err(missing(digest)),
        None => Ok((manifest, contents)),
    }
}

pub(super) fn take_back(blobs: &dyn BlobStorage, stored: &[StoredBlob]) {
    for stored in stored {
        if let Err(error) = blobs.undo_put(stored) {
            tracing::warn!(%error, blob.digest = %stored.digest, "failed to remove a blob; the next sweep removes it");
        }
    }
}

struct BlobSink<'a> {
    blobs: &'a dyn BlobStorage,
    arrived: &'a dyn Fn(&Digest),
    stored: Vec<StoredBlob>,
    full: bool,
}

impl ReceivedArchive {
    /// Returns the content that the room did not have before, with sizes in bytes.
    pub fn new_content(&self) -> Vec<(Digest, u64)> {
        let fresh = self.stored.iter().filter(|stored| stored.fresh.is_some());
        fresh.map(|stored| (stored.digest, stored.size)).collect()
    }
}

impl ArchiveSink for BlobSink<'_> {
    fn blob(&mut self, digest: &Digest, _size: u64, content: &mut dyn Read) -> io::Result<()> {
        if self.stored.len() >= MAX_BLOBS {
            return Err(io::Error::other(format!("the archive has more than {MAX_BLOBS} blobs")));
        }
        match self.blobs.put(digest, content) {
            Ok(stored) => {
                (self.arrived)(digest);
                self.stored.push(stored);
                Ok(())
            }
            Err(BlobError::Io(error)) => Err(error),
            Err(BlobError::DiskFull) => {
                self.full = true;
                Err(io::ErrorKind::StorageFull.into())
            }
            // The archive reader reports this error itself, before the content ends.
            Err(error @ (BlobError::Mismatch { .. } | BlobError::Quota(_))) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
        }
    }
}

#[cfg(test)]
mod tests;
