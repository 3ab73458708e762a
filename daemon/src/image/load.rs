//! Load of an OCI archive as an image of the room: blobs first, each verified on arrival, names last. Nothing stays of
//! a truncated or invalid archive.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_pack::Packed;
use hearth_pack::archive::{self, ArchiveError, ArchiveSink};
use jiff::Timestamp;

use super::contents::Contents;
use super::port::{Arrivals as _, BlobError, Blobs, Pack, PackContent, Stored};
use super::{ImageError, Images, Platforms, Shared};
use crate::model::id::PackId;
use crate::model::image::{Descriptor, TaggedImage};
use crate::model::{Digest, Reference, Repository, Tag};
use crate::task;

/// Maximum number of blobs of one archive, each a file; an image has tens of them.
pub(super) const MAX_BLOBS: usize = 10_000;

/// Duration of a load after which its blobs are touched again: the sweep removes untouched ones after an hour.
const LONG: Duration = Duration::from_secs(1200);

/// Destination of an archive.
#[derive(Clone, Debug)]
pub enum Destination {
    /// Image of the room with this tag.
    Tag(Reference),
    /// Untagged image of this repository: it stays for an hour, or as long as something pins it.
    Untagged(Repository),
    /// Pack for builds of this participant.
    Pack { owner: String },
}

#[derive(Clone, Debug)]
pub struct Loaded {
    pub manifest: Descriptor,
    pub size_bytes: u64,
    /// Bytes of blobs that the room already had.
    pub reused_bytes: u64,
    pub pack: Option<PackId>,
    pub image: Option<TaggedImage>,
}

/// Received archive that has no name yet. It is either named or discarded; the sweep frees one that is dropped.
#[derive(Debug)]
pub struct Received {
    manifest: Descriptor,
    contents: Contents,
    stored: Vec<Stored>,
}

impl Images {
    /// Receives an archive and names it.
    pub async fn load(
        &self,
        archive: impl Read + Send + 'static,
        destination: Destination,
        caller: &str,
    ) -> Result<Loaded, ImageError> {
        if let Destination::Tag(tag) = &destination {
            self.own(tag)?;
        }
        let received = self.receive(archive).await?;
        self.settle(received, destination, caller).await
    }

    /// Reads an archive to its end, on a blocking thread.
    pub async fn receive(&self, archive: impl Read + Send + 'static) -> Result<Received, ImageError> {
        let shared = Arc::clone(&self.shared);
        let taken = task::blocking("load archive", move || take(&shared, archive)).await;
        let (manifest, contents, stored) = taken.map_err(|_| ImageError::Ending)??;
        Ok(Received { manifest, contents, stored })
    }

    /// Names a received archive. On an error, it is discarded.
    pub async fn settle(
        &self,
        received: Received,
        destination: Destination,
        caller: &str,
    ) -> Result<Loaded, ImageError> {
        let Received { manifest, contents, stored } = received;
        match self.name_checked(&manifest, contents, destination, caller).await {
            Ok((pack, image, size_bytes)) => {
                if let Some(id) = &pack {
                    self.remember_brought(id, &stored).await;
                }
                let reused = stored.iter().filter(|stored| stored.fresh.is_none());
                let reused_bytes = reused.map(|stored| stored.size).sum();
                Ok(Loaded { manifest, size_bytes, reused_bytes, pack, image })
            }
            Err(error) => {
                self.take_back(stored).await;
                Err(error)
            }
        }
    }

    /// Discards a received archive completely.
    pub async fn discard(&self, received: Received) {
        self.take_back(received.stored).await;
    }

    pub(super) async fn take_back(&self, stored: Vec<Stored>) {
        let shared = Arc::clone(&self.shared);
        if task::blocking("take back", move || take_back(&*shared.blobs, &stored)).await.is_err() {
            tracing::warn!("failed to remove the blobs of a discarded image");
        }
    }

    /// Stores an image that was created in this process, and tags it.
    pub async fn store(
        &self,
        packed: Arc<Packed>,
        tag: Reference,
    ) -> Result<Option<TaggedImage>, ImageError> {
        self.own(&tag)?;
        let shared = Arc::clone(&self.shared);
        let taken = task::blocking("store image", move || put_packed(&*shared.blobs, &packed)).await;
        let (manifest, contents) = taken.map_err(|_| ImageError::Ending)??;
        // If naming fails, the sweep frees the blobs.
        let image = self.name(&manifest, contents, Destination::Tag(tag)).await?.1;
        self.manifest_arrived(&manifest);
        Ok(image)
    }

    /// Names an image from outside, once its layers were found to match its config.
    pub(super) async fn name_checked(
        &self,
        manifest: &Descriptor,
        contents: Contents,
        destination: Destination,
        caller: &str,
    ) -> Result<(Option<PackId>, Option<TaggedImage>, u64), ImageError> {
        self.check_layers(manifest, &Platforms::All, Some(caller)).await?;
        self.name(manifest, contents, destination).await
    }

    pub(super) async fn name(
        &self,
        manifest: &Descriptor,
        contents: Contents,
        destination: Destination,
    ) -> Result<(Option<PackId>, Option<TaggedImage>, u64), ImageError> {
        let size_bytes = contents.size_bytes;
        self.check_size(manifest.digest, size_bytes)?;
        let catalog = &self.shared.catalog;
        match destination {
            Destination::Pack { owner } => {
                let (id, created_at) = (PackId::random(), Timestamp::now());
                let content = PackContent::Image(manifest.clone());
                catalog.put_pack(Pack { id: id.clone(), content, owner, created_at }).await?;
                Ok((Some(id), None, size_bytes))
            }
            Destination::Untagged(repository) => {
                catalog.put_manifests(&repository, contents.manifests, None).await?;
                Ok((None, None, size_bytes))
            }
            Destination::Tag(reference) => {
                let tag = reference.tag.clone().unwrap_or_else(Tag::latest);
                catalog.put_manifests(&reference.repository, contents.manifests, Some(tag.clone())).await?;
                let image = catalog.tag(&reference.repository, &tag).await?;
                Ok((None, image, size_bytes))
            }
        }
    }
}

fn put_packed(blobs: &dyn Blobs, packed: &Packed) -> Result<(Descriptor, Contents), ImageError> {
    for blob in packed.blobs() {
        let digest = blob.digest;
        let failed = |source| ImageError::Read { digest, source };
        let mut content = packed.open_blob(&digest).map_err(failed)?;
        blobs.put(&digest, &mut content).map_err(|error| match error {
            BlobError::DiskFull => ImageError::NoSpace,
            BlobError::Io(source) => failed(source),
            BlobError::Quota(message) => ImageError::Quota(message),
            error @ BlobError::Mismatch { .. } => failed(io::Error::new(io::ErrorKind::InvalidData, error)),
        })?;
    }
    let top = packed.descriptor();
    let manifest = Descriptor { media_type: top.media_type.clone(), digest: top.digest, size: top.size };
    let contents = Contents::keep(blobs, &manifest)?;
    Ok((manifest, contents))
}

/// Stores the blobs of an archive and finds its one image. On an error, stored blobs are removed again.
fn take(shared: &Shared, archive: impl Read) -> Result<(Descriptor, Contents, Vec<Stored>), ImageError> {
    let begun = Instant::now();
    let blobs = &*shared.blobs;
    // Inspects layers while the rest of the archive arrives.
    let arrived = |blob: &Digest| shared.passes.pass_ahead(*blob);
    let mut keep = Keep { blobs, arrived: &arrived, stored: Vec::new(), full: false };
    let read = archive::read(archive, &mut keep);
    let Keep { stored, full, .. } = keep;
    let found = match read {
        Ok(read) => only_image(blobs, &read.index.manifests, &stored),
        Err(_) if full => Err(ImageError::NoSpace),
        Err(error) => Err(error.into()),
    };
    let found = found.and_then(|(manifest, contents)| {
        if begun.elapsed() > LONG {
            Contents::keep(blobs, &manifest)?;
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
    blobs: &dyn Blobs,
    images: &[hearth_pack::image::Descriptor],
    stored: &[Stored],
) -> Result<(Descriptor, Contents), ImageError> {
    let [image] = images else { return Err(ImageError::ImageCount { count: images.len() }) };
    let manifest =
        Descriptor { media_type: image.media_type.clone(), digest: image.digest, size: image.size };
    // Only content of the archive itself is accepted: a digest alone must not open another repository's blob.
    let brought: HashSet<Digest> = stored.iter().map(|stored| stored.digest).collect();
    let missing = |digest| ImageError::Archive(ArchiveError::MissingBlob { digest });
    if !brought.contains(&manifest.digest) {
        return Err(missing(manifest.digest));
    }
    let contents = Contents::look(blobs, &manifest).map_err(|error| match error {
        ImageError::BlobMissing { blob, .. } => missing(blob),
        error => error,
    })?;
    let foreign = contents.digests().find(|digest| !brought.contains(digest));
    match foreign {
        Some(digest) => Err(missing(digest)),
        None => Ok((manifest, contents)),
    }
}

fn take_back(blobs: &dyn Blobs, stored: &[Stored]) {
    for stored in stored {
        if let Err(error) = blobs.take_back(stored) {
            tracing::warn!(%error, blob.digest = %stored.digest, "failed to remove a blob; the next sweep removes it");
        }
    }
}

struct Keep<'a> {
    blobs: &'a dyn Blobs,
    arrived: &'a dyn Fn(&Digest),
    stored: Vec<Stored>,
    full: bool,
}

impl Received {
    /// Returns the content that the room did not have before, with sizes in bytes.
    pub fn brought(&self) -> Vec<(Digest, u64)> {
        let fresh = self.stored.iter().filter(|stored| stored.fresh.is_some());
        fresh.map(|stored| (stored.digest, stored.size)).collect()
    }
}

impl ArchiveSink for Keep<'_> {
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
