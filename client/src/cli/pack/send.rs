//! Sends a directory to a room: scans it locally, then sends the content that the room lacks.

use std::path::PathBuf;
use std::sync::Arc;

use hearth_oci::DeclaredPlatform;
use hearth_pack::cache::PackCache;
use hearth_pack::identity::hash_tree;
use hearth_pack::image::ConfigFlags;
use hearth_pack::layer::{Compression, LayerOptions};
use hearth_pack::walk::{WalkOptions, WrittenPath, walk};
use hearth_pack::{PackOptions, PackSummary};
use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::{
    BeginPackRequest, DirectoryIdentity, PackCommand, PackConfig, PackImage, begin_pack_request::Destination,
};

use crate::client::{Client, PackOffer, PackUploadError, PackUploadEvent, SentPack};
use crate::error::Failure;
use crate::progress::TransferMeter;
use crate::{lineage, output, task};

/// A scanned directory: names, attributes, and the hash of each file's content.
pub(in crate::cli) struct ScannedDirectory {
    offer: Arc<PackOffer>,
    pub(in crate::cli) summary: PackSummary,
    lineage: String,
}

/// Scans a directory on a blocking thread. The cache of packs is never part of it.
pub(in crate::cli) async fn scan(
    path: PathBuf,
    mut options: WalkOptions,
) -> Result<ScannedDirectory, Failure> {
    options.written.extend(PackCache::user_dir().and_then(|directory| WrittenPath::at(&directory)));
    let meter = TransferMeter::new("reading", 0);
    let counted = meter.clone();
    let scan = move || {
        let failed =
            |error: &dyn std::fmt::Display| Failure::failed(ErrorCode::PackFailed, error.to_string());
        let lineage = lineage::of(&path);
        let tree = walk(&path, &options).map_err(|error| failed(&error))?;
        let summary = PackSummary::of(&tree);
        // Without a usable cache, the scan hashes every file again.
        let cache = PackCache::user_dir().map(|directory| PackCache::open(&directory)).transpose();
        let cache = cache
            .inspect_err(|error| tracing::debug!(%error, "failed to open the scan cache"))
            .unwrap_or_default();
        let mut hashes = cache.as_ref().map(|cache| cache.hashes(tree.id())).unwrap_or_default();
        counted.set(0, tree.content_bytes());
        let hashed = hash_tree(&tree, &mut hashes, None, &|bytes| counted.add(bytes));
        let hashed = hashed.map_err(|error| failed(&error))?;
        if let Some(Err(error)) = cache.map(|cache| cache.save_hashes(tree.id(), hashes)) {
            tracing::debug!(%error, "failed to write the scan cache");
        }
        Ok(ScannedDirectory { offer: Arc::new(PackOffer { tree, hashed }), summary, lineage })
    };
    meter.during(task::blocking("scan", scan)).await?
}

/// Returns the archive that the room keeps as the file `room_path`, if the directory of room storage is on this
/// machine: it is never part of a pack.
pub(in crate::cli) async fn kept_archive(
    client: &Client,
    room_path: Option<&str>,
) -> Result<Option<WrittenPath>, Failure> {
    let Some(room_path) = room_path else { return Ok(None) };
    let Some(DirectoryIdentity { boot_id, device, inode }) = client.info().await?.room_storage else {
        return Ok(None);
    };
    let own = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let is_here = !boot_id.is_empty() && own.trim() == boot_id;
    Ok(is_here.then(|| WrittenPath::below((device, inode), room_path)))
}

/// Sends the content that the room lacks, and prints how much was sent and reused.
pub(in crate::cli) async fn send(
    client: &Client,
    scanned: &ScannedDirectory,
    destination: Destination,
    image: Option<&PackOptions>,
    room_path: Option<String>,
) -> Result<SentPack, Failure> {
    let begin = BeginPackRequest {
        tree: String::new(),
        destination: Some(destination),
        image: image.map(image_to_wire),
        room_path: room_path.unwrap_or_default(),
        lineage: scanned.lineage.clone(),
    };
    let meter = TransferMeter::new("sending", 0);
    let shown = meter.clone();
    let on_event = move |event| match event {
        PackUploadEvent::Begun { bytes } => shown.set(0, bytes),
        PackUploadEvent::Sent { bytes } => shown.add(bytes),
        PackUploadEvent::Lost { reason } => {
            shown.note(&format!("{reason}; sending continues when it answers again"));
        }
    };
    let sending = client.send_pack(begin, Arc::clone(&scanned.offer), Arc::new(on_event));
    let sent = meter.during(Box::pin(sending)).await?;
    let reused = scanned.summary.bytes.saturating_sub(sent.content_bytes);
    output::note(&format!(
        "sent {} for {} of content, {} reused",
        output::size(sent.wire_bytes),
        output::size(sent.content_bytes),
        output::size(reused)
    ));
    Ok(sent)
}

/// Converts the image options to their wire form. From these options the room must make the same bytes as
/// a local pack.
fn image_to_wire(options: &PackOptions) -> PackImage {
    let PackOptions { layer, config, platform, docker, .. } = options;
    let &LayerOptions { compression, mtime, .. } = layer;
    let compression = match compression {
        Compression::Zstd => "zstd",
        Compression::Gzip => "gzip",
        Compression::None => "none",
    };
    PackImage {
        compression: compression.to_owned(),
        mtime,
        arch: arch(platform),
        docker: *docker,
        config: Some(wire_config(config)),
    }
}

/// Formats the platform as the value of `--arch`, such as `arm64` or `arm/v7`.
pub(in crate::cli) fn arch(platform: &DeclaredPlatform) -> String {
    match &platform.variant {
        Some(variant) => format!("{}/{variant}", platform.architecture),
        None => platform.architecture.clone(),
    }
}

pub(super) fn wire_config(flags: &ConfigFlags) -> PackConfig {
    let command = |words: &Option<Vec<String>>| words.clone().map(|words| PackCommand { words });
    PackConfig {
        entrypoint: command(&flags.entrypoint),
        cmd: command(&flags.cmd),
        env: flags.env.clone(),
        workdir: flags.workdir.clone().unwrap_or_default(),
        user: flags.user.clone().unwrap_or_default(),
        labels: flags.labels.clone(),
        expose: flags.expose.clone(),
        volumes: flags.volumes.clone(),
    }
}

impl From<PackUploadError> for Failure {
    fn from(error: PackUploadError) -> Self {
        match error {
            PackUploadError::Client(error) => error.into(),
            PackUploadError::Content(_) | PackUploadError::Work(_) => {
                Self::failed(ErrorCode::PackFailed, error.to_string())
            }
        }
    }
}
