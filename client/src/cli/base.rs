//! Opens the image of `--base` as verified files: an archive, an image of the room, or an image of
//! another registry.
//!
//! Blobs pass through `~/.cache/hearth/blobs`, one file each, so that no blob is held in memory and the
//! next pack on the same base fetches nothing.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use hearth_oci::{DeclaredPlatform, Descriptor, ImageConfig, Manifest, OciIndex, sha256};
use hearth_pack::{BaseError, BaseImage, BlobCache};
use hearth_proto::error_code::ErrorCode;
use hearth_proto::value::{Digest, Reference, RoomRegistries};
use hearth_registry::{BlobReader, CHUNK_BUFFER};
use tokio::sync::mpsc;

use super::registry::{self, RegistryArgs};
use super::{GlobalArgs, connect};
use crate::client::{Client, ClientError};
use crate::error::Failure;
use crate::progress::TransferMeter;
use crate::{output, task};

/// Maximum number of layers that are fetched at the same time.
const MAX_CONCURRENT_FETCHES: usize = 3;
/// Maximum size of the blob cache in bytes; a pack trims the cache to it.
const MAX_CACHE_BYTES: u64 = 8 << 30;

/// Opens the base that `text` names. `room` is the room that receives the pack, if there is one.
pub(super) async fn open(
    text: &str,
    platform: &DeclaredPlatform,
    registries: &RegistryArgs,
    room: Option<&Client>,
    globals: &GlobalArgs,
) -> Result<BaseImage, Failure> {
    if let Some(file) = text.strip_prefix("oci-archive:") {
        let (path, platform, shown) = (PathBuf::from(file), platform.clone(), format!("--base {file}"));
        let wrong = |reason: &dyn std::fmt::Display| Failure::usage(format!("{shown}: {reason}"));
        match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() => return Err(wrong(&"it is a directory, not an archive")),
            Ok(_) => {}
            Err(error) => return Err(wrong(&error)),
        }
        let open = move || BaseImage::from_archive(&path, &platform, cache().ok().as_ref());
        return task::blocking("base", open).await?.map_err(|error| invalid_base(&shown, &error));
    }
    let reference: Reference = text.parse().map_err(|error| {
        Failure::usage(format!("--base: {error}"))
            .hint("name an image of the room or of a registry, or `oci-archive:FILE`")
    })?;
    let cache = cache().map_err(|(dir, error)| Failure::local("use the cache", &dir, &error))?;
    let base = match room_for_reference(&reference, room, globals).await? {
        Some(room) => from_room(&room, &reference, platform, &cache).await?,
        None => from_registry(&reference, platform, registries, &cache).await?,
    };
    let trimmed = task::blocking("cache", move || cache.evict(MAX_CACHE_BYTES)).await?;
    if let Err(error) = trimmed {
        tracing::debug!(%error, "failed to trim the base image cache");
    }
    Ok(base)
}

/// Opens the blob cache in the XDG cache directory. Without a home directory the cache is in the
/// temporary directory and lasts until the next boot.
fn cache() -> Result<BlobCache, (PathBuf, std::io::Error)> {
    let dir = |name| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let dir = dir("XDG_CACHE_HOME").or_else(|| dir("HOME").map(|home| home.join(".cache")));
    let dir = dir.map_or_else(
        || std::env::temp_dir().join(format!("hearth-{}", rustix::process::geteuid().as_raw())),
        |dir| dir.join("hearth"),
    );
    let dir = dir.join("blobs");
    BlobCache::open(&dir).map_err(|error| (dir, error))
}

/// Returns the room whose registry holds the image, or `None` when the image belongs to another registry.
async fn room_for_reference(
    reference: &Reference,
    room: Option<&Client>,
    globals: &GlobalArgs,
) -> Result<Option<Client>, Failure> {
    let names = |client: Client| async move {
        let names = client.info().await?.room_registries;
        let names = names.iter().filter_map(|name| name.parse().ok()).collect();
        Ok::<_, Failure>(RoomRegistries::new(names).owns_source(reference).then_some(client))
    };
    match room {
        Some(client) if reference.registry.is_some() => names(client.clone()).await,
        // DNS does not resolve this registry name; only a room has its images.
        None if RoomRegistries::default().owns_source(reference) => names(connect(globals).await?).await,
        _ => Ok(None),
    }
}

async fn from_registry(
    reference: &Reference,
    platform: &DeclaredPlatform,
    registries: &RegistryArgs,
    cache: &BlobCache,
) -> Result<BaseImage, Failure> {
    let remote = registries.remote(reference).await?;
    let what = format!("--base {reference}");
    let failed = |error| registry::remote_failure(&what, &error);
    let image = Box::pin(remote.resolve_image(reference, platform)).await.map_err(failed)?;
    output::note(&format!("base {} ({})", image.source.name(), image.descriptor.digest));
    let fetch = |layer: Descriptor, send: mpsc::Sender<Bytes>| {
        let (remote, source, what) = (&remote, &image.source, &what);
        async move {
            let fetched = remote.fetch_blob(source, &layer, &send).await;
            fetched.map_err(|error| registry::remote_failure(what, &error))
        }
    };
    let files = layer_files(&image.manifest.layers, cache, fetch).await?;
    assemble(&what, image.config, image.manifest.layers, files, cache).await
}

async fn from_room(
    room: &Client,
    reference: &Reference,
    platform: &DeclaredPlatform,
    cache: &BlobCache,
) -> Result<BaseImage, Failure> {
    let what = format!("--base {reference}");
    let (mut digest, mut json) = read_small_blob(room, reference, None).await?;
    let kind: IndexProbe = parse(&what, &json)?;
    if kind.manifests.is_some() {
        let index: OciIndex = parse(&what, &json)?;
        let child = index.for_platform(platform).map_err(|found| {
            Failure::failed(
                ErrorCode::PlatformMismatch,
                format!("{what}: it has no image for {platform}; it has {found}"),
            )
            .hint("choose a platform that the base has")
        })?;
        (digest, json) = read_small_blob(room, reference, Some(child.digest)).await?;
    }
    let manifest: Manifest = parse(&what, &json)?;
    let (_, config) = read_small_blob(room, reference, Some(manifest.config.digest)).await?;
    let declared = ImageConfig::parse_platform(&config)
        .map_err(|error| Failure::failed(ErrorCode::InvalidBase, format!("{what}: {error}")))?;
    if !declared.satisfies(platform) {
        let message = format!("{what}: it is for {declared}, not for {platform}");
        return Err(Failure::failed(ErrorCode::PlatformMismatch, message)
            .hint(format!("add --arch {}", super::pack::send::arch(&declared))));
    }
    output::note(&format!("base {reference} ({digest})"));
    let fetch = |layer: Descriptor, send: mpsc::Sender<Bytes>| async move {
        let mut content = room.read_blob(&reference.to_string(), Some(&layer.digest)).await?;
        while let Some(chunk) = content.next().await? {
            if send.send(chunk).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let files = layer_files(&manifest.layers, cache, fetch).await?;
    assemble(&what, config, manifest.layers, files, cache).await
}

/// The part of a manifest that tells an index from an image manifest.
#[derive(serde::Deserialize)]
struct IndexProbe {
    manifests: Option<serde::de::IgnoredAny>,
}

/// Reads and verifies a manifest or image config of the room. `digest` defaults to the one that the
/// reference names.
pub(super) async fn read_small_blob(
    room: &Client,
    reference: &Reference,
    digest: Option<Digest>,
) -> Result<(Digest, Vec<u8>), Failure> {
    let mut content = room.read_blob(&reference.to_string(), digest.as_ref()).await?;
    let declared = digest.unwrap_or(content.digest);
    let mut bytes = Vec::new();
    while let Some(chunk) = content.next().await? {
        if bytes.len() + chunk.len() > hearth_oci::MAX_DOCUMENT_BYTES {
            return Err(
                ClientError::Protocol(format!("{declared} is too large for a manifest or config")).into()
            );
        }
        bytes.extend_from_slice(&chunk);
    }
    if sha256(&bytes) != declared {
        return Err(ClientError::Protocol(format!("content of {declared} has another digest")).into());
    }
    Ok((declared, bytes))
}

/// Returns every layer as a file, taken from the cache or fetched into it.
async fn layer_files<'a, F>(
    layers: &[Descriptor],
    cache: &BlobCache,
    fetch: impl Fn(Descriptor, mpsc::Sender<Bytes>) -> F,
) -> Result<HashMap<Digest, File>, Failure>
where
    F: Future<Output = Result<(), Failure>> + 'a,
{
    let mut layers = layers.to_vec();
    layers.sort_by_key(|layer| layer.digest);
    layers.dedup_by_key(|layer| layer.digest);
    let meter = TransferMeter::new("fetching the base image", layers.iter().map(|layer| layer.size).sum());
    let (fetch, counted) = (&fetch, &meter);
    let files = layers.into_iter().map(|layer| async move {
        let digest = layer.digest;
        let file = match cached_layer(cache, &layer).await? {
            Some(file) => {
                counted.add(layer.size);
                file
            }
            None => fetch_layer(cache, layer, counted, fetch).await?,
        };
        Ok((digest, file))
    });
    let all = stream::iter(files).buffer_unordered(MAX_CONCURRENT_FETCHES).try_collect();
    meter.during(Box::pin(all)).await
}

async fn cached_layer(cache: &BlobCache, layer: &Descriptor) -> Result<Option<File>, Failure> {
    let (cache, layer) = (cache.clone(), layer.clone());
    let known = task::blocking("cache", move || cache.get(&layer)).await?;
    known.map_err(|error| {
        Failure::failed(ErrorCode::LocalIo, format!("cannot read the cache of base images: {error}"))
    })
}

async fn fetch_layer<F: Future<Output = Result<(), Failure>>>(
    cache: &BlobCache,
    layer: Descriptor,
    meter: &TransferMeter,
    fetch: &impl Fn(Descriptor, mpsc::Sender<Bytes>) -> F,
) -> Result<File, Failure> {
    let (send, chunks) = mpsc::channel(CHUNK_BUFFER);
    let (keep, blob) = (cache.clone(), layer.clone());
    let mut content = meter.metered(BlobReader::new(chunks));
    let write = task::blocking("cache", move || keep.put(&blob, &mut content));
    let (fetched, written) = tokio::join!(fetch(layer, send), write);
    let written = written?;
    // A failed write ends the fetch, and an incomplete fetch cannot be cached: report the cause.
    match (fetched, written) {
        (Ok(()), Ok(file)) => Ok(file),
        (Err(failure), _) if failure.detail.code.parse() != Ok(ErrorCode::Internal) => Err(failure),
        (_, Err(error)) => {
            Err(Failure::failed(ErrorCode::LocalIo, format!("cannot keep a base image's layer: {error}")))
        }
        (Err(failure), Ok(_)) => Err(failure),
    }
}

async fn assemble(
    what: &str,
    config: Vec<u8>,
    layers: Vec<Descriptor>,
    files: HashMap<Digest, File>,
    cache: &BlobCache,
) -> Result<BaseImage, Failure> {
    let cache = cache.clone();
    let assemble = move || BaseImage::from_files(&config, layers, files, Some(&cache));
    task::blocking("base", assemble).await?.map_err(|error| invalid_base(what, &error))
}

fn parse<T: for<'de> serde::Deserialize<'de>>(what: &str, json: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(json)
        .map_err(|error| Failure::failed(ErrorCode::InvalidBase, format!("{what}: {error}")))
}

fn invalid_base(what: &str, error: &BaseError) -> Failure {
    Failure::failed(ErrorCode::InvalidBase, format!("{what}: {error}"))
}
