//! `hearth images save`: writes the blobs of an image, unchanged, to one archive.
//!
//! Manifests are read twice: first to list the blobs, which gives the length of the archive, and again
//! when they are written. Only manifests and configs are held in memory.

use std::io::{self, Read, Write};
use std::path::Path;

use bytes::Bytes;
use futures::future;
use hearth_oci::{Descriptor, Manifest, OciIndex};
use hearth_pack::archive::ArchiveLayout;
use hearth_proto::error_code::ErrorCode;
use hearth_proto::value::{Digest, Reference};
use hearth_registry::{BlobReader, CHUNK_BUFFER};
use tokio::sync::mpsc;

use super::super::base::read_small_blob;
use super::super::{GlobalArgs, connect};
use crate::client::Client;
use crate::error::Failure;
use crate::progress::TransferMeter;
use crate::{output, task};

/// Requests of the archive writer to the fetching task: one blob at a time, with the channel for its
/// content.
type BlobRequests = mpsc::Receiver<(Digest, mpsc::Sender<Bytes>)>;

pub(super) async fn run(image: &Reference, file: &Path, globals: &GlobalArgs) -> Result<(), Failure> {
    if globals.json && file == Path::new("-") {
        return Err(Failure::usage(
            "`-o -` writes the archive to standard output, where --json has its document",
        )
        .hint("name a file with -o, or leave --json out"));
    }
    if file != Path::new("-") {
        output::check_new_file("--output", file)?;
    }
    let room = connect(globals).await?;
    let (top, blobs) = image_blobs(&room, image).await?;
    let digest = top.digest;
    let tag = image.digest.is_none().then(|| archive_reference(image, &room));
    let tag = match tag {
        Some(tag) => Some(tag.await?),
        None => None,
    };
    // The tag may move in the meantime, so all further reads use the digest.
    let pinned =
        Reference { registry: None, tag: None, digest: Some(digest), repository: image.repository.clone() };
    let layout = ArchiveLayout::of_stored(top, &blobs, tag.as_deref())
        .map_err(|error| Failure::failed(ErrorCode::Internal, error.to_string()))?;
    let size = layout.size();
    let meter = TransferMeter::new("receiving", size);
    let (send, wanted) = mpsc::channel(1);
    let to = file.to_owned();
    let writing = task::blocking("save", move || write(&layout, &to, &send));
    let serving = Box::pin(serve_blobs(&room, &pinned, wanted, &meter));
    let (served, written) = meter.during(future::join(serving, writing)).await;
    let written = written?;
    served?;
    written.map_err(|error| Failure::local("write", file, &error))?;
    if file == Path::new("-") {
        output::note(&format!("saved {image} ({}) {digest}", output::size(size)));
        return Ok(());
    }
    output::note(&format!("saved {image} to {} ({})", file.display(), output::size(size)));
    if globals.json {
        return output::json(&serde_json::json!({"digest": digest.to_string(), "archive_bytes": size}));
    }
    output::line(&digest.to_string())
}

/// Returns the full reference that the archive records: registry, repository and tag.
async fn archive_reference(image: &Reference, room: &Client) -> Result<String, Failure> {
    let registry = match &image.registry {
        Some(registry) => registry.to_string(),
        None => room.info().await?.room_registries.into_iter().next().unwrap_or_default(),
    };
    let tag = image.tag_or_latest().map(|tag| tag.to_string()).unwrap_or_default();
    Ok(format!("{registry}/{}:{tag}", image.repository))
}

/// Returns the descriptor of the image's manifest or index, and the descriptors of everything below it,
/// manifests first.
async fn image_blobs(room: &Client, image: &Reference) -> Result<(Descriptor, Vec<Descriptor>), Failure> {
    let media_type = room.read_blob(&image.to_string(), None).await?.media_type;
    let (digest, json) = read_small_blob(room, image, None).await?;
    let top = Descriptor::new(&media_type, digest, json.len() as u64);
    let (mut manifests, mut blobs) = (Vec::new(), Vec::new());
    if top.is_index() {
        let index: OciIndex = parse(image, &json)?;
        let pinned = Reference { tag: None, digest: Some(digest), ..image.clone() };
        for child in index.manifests {
            if !child.is_manifest() && !child.is_index() {
                blobs.push(child);
                continue;
            }
            let (_, json) = read_small_blob(room, &pinned, Some(child.digest)).await?;
            blobs.extend(stored_blobs(parse(image, &json)?));
            manifests.push(child);
        }
    } else {
        blobs.extend(stored_blobs(parse(image, &json)?));
    }
    manifests.extend(blobs);
    Ok((top, manifests))
}

/// Returns the config and the layers, without foreign layers, which are not stored in the room.
fn stored_blobs(manifest: Manifest) -> impl Iterator<Item = Descriptor> {
    let here = manifest.layers.into_iter().filter(|layer| !layer.is_foreign_layer());
    std::iter::once(manifest.config).chain(here)
}

fn parse<T: for<'de> serde::Deserialize<'de>>(image: &Reference, json: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(json)
        .map_err(|error| Failure::failed(ErrorCode::InvalidManifest, format!("{image}: {error}")))
}

/// Streams the blobs that the writer requests, one after the other.
async fn serve_blobs(
    room: &Client,
    image: &Reference,
    mut wanted: BlobRequests,
    meter: &TransferMeter,
) -> Result<(), Failure> {
    while let Some((digest, to)) = wanted.recv().await {
        let mut content = room.read_blob(&image.to_string(), Some(&digest)).await?;
        while let Some(chunk) = content.next().await? {
            meter.add(chunk.len() as u64);
            if to.send(chunk).await.is_err() {
                break;
            }
        }
    }
    Ok(())
}

/// Writes the archive and verifies each blob. The file appears complete or not at all.
fn write(
    layout: &ArchiveLayout,
    file: &Path,
    wanted: &mpsc::Sender<(Digest, mpsc::Sender<Bytes>)>,
) -> io::Result<()> {
    let open = |digest: &Digest| -> io::Result<Box<dyn Read>> {
        let (send, chunks) = mpsc::channel(CHUNK_BUFFER);
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client stopped reading from the room");
        wanted.blocking_send((*digest, send)).map_err(gone)?;
        Ok(Box::new(BlobReader::new(chunks)))
    };
    if file == Path::new("-") {
        return layout.write(&mut io::stdout().lock(), &open);
    }
    hearth_pack::archive::write_atomically(file, &mut |out: &mut dyn Write| layout.write(out, &open))
}
