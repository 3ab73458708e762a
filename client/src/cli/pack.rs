//! `hearth pack`

mod meter;
mod report;
pub(super) mod send;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};
use hearth_pack::cache::PackCache;
use hearth_pack::image::{ConfigFlags, Platform, RunConfig, parse_command};
use hearth_pack::layer::{Compression, LayerOptions};
use hearth_pack::{PackError, PackOptions, PackedImage};
use hearth_proto::v1::begin_pack_request::Destination;
use hearth_proto::value::{Reference, RoomRegistries};

use meter::ProgressMeter;
use report::PackView;
pub(super) use report::print_summary;

use super::registry::RegistryArgs;
use super::{GlobalArgs, base, connect};
use crate::client::{ArchiveDestination, ArchiveSource, Client};
use crate::error::Failure;
use crate::{output, task};

/// Turn a directory into an image: an OCI archive, or an image of the room
///
/// The same tree gives the same digest on any machine, at any time, as any user. Owners and times are
/// not kept; modes, links, empty directories and capabilities are. `.dockerignore` applies. With
/// --output and without --room, the command only writes the file. The cache in ~/.cache/hearth
/// ($XDG_CACHE_HOME/hearth) makes packing an unchanged directory immediate.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth pack ./my-app -o my-app.oci.tar
  hearth pack ./my-app --room studio --tag room.meshagent.com/my-app:dev
  hearth pack ./my-app -o my-app.oci.tar --base python:3.13 --arch arm64
  hearth pack ./rootfs --tag base:1 --cmd '[\"sh\"]' --env PATH=/usr/bin:/bin")]
pub(super) struct PackArgs {
    /// Directory to pack
    path: PathBuf,
    /// Write an OCI archive to this file
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name of the image; needed to send it to a room
    #[arg(long, short, allow_hyphen_values = true)]
    tag: Option<String>,
    /// Base image below the packed layer: from the room, any registry, or `oci-archive:FILE`
    #[arg(long, value_name = "IMAGE")]
    base: Option<String>,
    /// Architecture of the image, such as `arm64` or `arm/v7` [default: amd64]
    #[arg(long)]
    arch: Option<String>,
    /// Also keep the archive as this file of room storage
    #[arg(long, value_name = "PATH")]
    room_path: Option<String>,
    #[arg(long, value_enum, default_value_t = CompressionArg::Zstd)]
    compression: CompressionArg,
    /// Make the archive readable by `docker load` too
    #[arg(long)]
    docker: bool,
    /// Entrypoint of the image: a JSON list, or a command that is split at blanks
    #[arg(long, value_name = "COMMAND", help_heading = "Image config")]
    entrypoint: Option<String>,
    /// Default arguments of the entrypoint, in the same form
    #[arg(long, value_name = "COMMAND", help_heading = "Image config")]
    cmd: Option<String>,
    /// Environment variable, `NAME=value`
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Image config")]
    env: Vec<String>,
    /// Working directory
    #[arg(long, value_name = "DIR", help_heading = "Image config")]
    workdir: Option<String>,
    /// User that the process runs as, `user[:group]`
    #[arg(long, help_heading = "Image config")]
    user: Option<String>,
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Image config")]
    label: Vec<String>,
    /// Port that the process listens on, `port[/tcp|udp]`
    #[arg(long, value_name = "PORT", help_heading = "Image config")]
    expose: Vec<String>,
    /// Directory that holds data (a volume)
    #[arg(long, value_name = "DIR", help_heading = "Image config")]
    volume: Vec<String>,
    #[command(flatten)]
    registries: RegistryArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompressionArg {
    Zstd,
    Gzip,
    None,
}

pub(super) async fn run(args: PackArgs, globals: &GlobalArgs) -> Result<(), Failure> {
    let to_room = args.output.is_none() || globals.room.is_some() || globals.addr.is_some();
    let tag = match &args.tag {
        Some(text) => {
            Some(Reference::parse_tag(text).map_err(|error| Failure::usage(format!("--tag: {error}")))?)
        }
        None if to_room => {
            return Err(Failure::usage("--tag is needed: an image of the room has a name")
                .hint("or write an archive to a file with -o FILE, which needs no room"));
        }
        None => None,
    };
    if args.room_path.is_some() && !to_room {
        return Err(Failure::usage("--room-path needs a room: give --room too"));
    }
    let started = Instant::now();
    let mut options = options(&args, tag.clone())?;
    // Check this before the work starts, not afterwards.
    check_directory(&args.path)?;
    let client = match (&tag, to_room) {
        (Some(tag), true) => {
            let client = connect(globals).await?;
            check_room_tag(&client, "--tag", tag).await?;
            Some(client)
        }
        _ => None,
    };
    if let Some(text) = &args.base {
        let opening = base::open(text, &options.platform, &args.registries, client.as_ref(), globals);
        options.base = Some(Box::pin(opening).await?);
    }
    // The layers of a base are local files, so an image with a base is sent as one archive.
    if let (Some(client), Some(tag)) = (&client, &tag)
        && options.base.is_none()
        && args.output.is_none()
    {
        return pack_in_room(client, tag, args, &options, globals, started).await;
    }
    let by_content = options.base.is_none().then(|| options.clone());
    let packed = pack(args.path.clone(), options).await?;
    print_summary(&packed.summary);
    if let Some(file) = args.output.clone() {
        let (writing, path) = (std::sync::Arc::clone(&packed), file.clone());
        task::blocking("archive", move || writing.write_to_file(&path))
            .await?
            .map_err(|error| failure(&error))?;
        output::note(&format!("wrote {} ({})", file.display(), output::size(packed.archive_size())));
    }
    let mut view = PackView::new(&packed, args.output.as_deref());
    if let (Some(client), Some(tag), Some(options)) = (&client, &tag, by_content) {
        let scanned = send::scan(args.path.clone(), options.walk.clone()).await?;
        let destination = Destination::Tag(tag.to_string());
        let sent = send::send(client, &scanned, destination, Some(&options), args.room_path).await?;
        if sent.result.digest != view.digest {
            return Err(Failure::failed(
                "pack_changed",
                "the directory changed between the file and the room",
            )
            .hint("pack again when nothing writes to it"));
        }
        view.set_upload_result(sent);
    } else if let (Some(client), Some(tag)) = (client, tag) {
        let destination = ArchiveDestination { tag: Some(tag.to_string()), room_path: args.room_path };
        let loaded = send(&client, &packed, destination).await?;
        output::note(&format!(
            "sent {} ({} of it already in the room)",
            output::size(loaded.size_bytes),
            output::size(loaded.reused_bytes)
        ));
        view.set_archive_result(loaded);
    }
    view.finish(started.elapsed());
    if globals.json { output::json(&view) } else { output::line(&view.digest) }
}

/// Sends the content that the room lacks; the room assembles the image.
async fn pack_in_room(
    client: &Client,
    tag: &Reference,
    args: PackArgs,
    options: &PackOptions,
    globals: &GlobalArgs,
    started: Instant,
) -> Result<(), Failure> {
    // Check the config flags before anything is read, as a local pack does.
    options
        .config
        .apply(&mut RunConfig::default())
        .map_err(|error| Failure::failed("pack_failed", error.to_string()))?;
    let scanned = send::scan(args.path, options.walk.clone()).await?;
    print_summary(&scanned.summary);
    let destination = Destination::Tag(tag.to_string());
    let sent = send::send(client, &scanned, destination, Some(options), args.room_path).await?;
    let mut view = PackView::from_room(&scanned.summary, &sent.result);
    view.set_upload_result(sent);
    view.finish(started.elapsed());
    if globals.json { output::json(&view) } else { output::line(&view.digest) }
}

/// Packs a directory on a blocking thread.
async fn pack(path: PathBuf, options: PackOptions) -> Result<std::sync::Arc<PackedImage>, Failure> {
    let work = move || {
        let mut meter = ProgressMeter::new();
        hearth_pack::pack(&path, &options, &mut |at| meter.show(at))
    };
    let packed = task::blocking("pack", work).await?.map_err(|error| failure(&error))?;
    if let Some(trouble) = &packed.cache_trouble {
        tracing::debug!(%trouble, "failed to cache the pack");
    }
    Ok(std::sync::Arc::new(packed))
}

/// Sends a pack to the room as one archive stream.
async fn send(
    client: &Client,
    packed: &std::sync::Arc<PackedImage>,
    destination: ArchiveDestination,
) -> Result<hearth_proto::v1::LoadImageResponse, Failure> {
    let packed = std::sync::Arc::clone(packed);
    let source: ArchiveSource = Box::new(move |mut out| packed.write_archive(&mut out));
    Ok(client.load_image(destination, source).await?)
}

/// Checks that `path` is a directory. A missing or wrong path is a usage error; errors inside the
/// directory are failures.
pub(super) fn check_directory(path: &Path) -> Result<(), Failure> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Failure::usage(format!("`{}` is not a directory", path.display()))
            .hint("give the directory that is to be packed")),
        Err(error) => Err(Failure::usage(format!("cannot read `{}`: {error}", path.display()))),
    }
}

/// Checks that a tag belongs to the registry of the connected room.
pub(super) async fn check_room_tag(client: &Client, what: &str, tag: &Reference) -> Result<(), Failure> {
    let Some(registry) = &tag.registry else { return Ok(()) };
    let rooms = client.info().await?.room_registries;
    if rooms.iter().any(|room| room == registry.as_str()) {
        return Ok(());
    }
    let room = rooms.first().map_or(RoomRegistries::DEFAULT, String::as_str);
    Err(Failure::usage(format!("{what} `{tag}` is not in the room's registry"))
        .hint(format!("a pack is sent to the room: use {room}/{}", tag.repository)))
}

fn options(args: &PackArgs, tag: Option<Reference>) -> Result<PackOptions, Failure> {
    let platform = platform(args.arch.as_deref())?;
    let command = |flag: &str, text: &Option<String>| {
        let parsed = text.as_deref().map(parse_command).transpose();
        parsed.map_err(|error| Failure::usage(format!("{flag}: {error}")))
    };
    Ok(PackOptions {
        layer: layer_options(args.compression)?,
        config: ConfigFlags {
            entrypoint: command("--entrypoint", &args.entrypoint)?,
            cmd: command("--cmd", &args.cmd)?,
            env: args.env.clone(),
            workdir: args.workdir.clone(),
            user: args.user.clone(),
            labels: args.label.clone(),
            expose: args.expose.clone(),
            volumes: args.volume.clone(),
        },
        platform,
        tag,
        docker: args.docker,
        output: args.output.clone(),
        cache: PackCache::user_dir(),
        ..PackOptions::default()
    })
}

pub(super) fn platform(arch: Option<&str>) -> Result<Platform, Failure> {
    match arch {
        Some(text) => text.parse().map_err(|error| Failure::usage(format!("--arch: {error}"))),
        None => Ok(Platform::default()),
    }
}

fn layer_options(compression: CompressionArg) -> Result<LayerOptions, Failure> {
    let mtime = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text
            .parse()
            .map_err(|_| Failure::usage(format!("SOURCE_DATE_EPOCH `{text}` is not a number of seconds")))?,
        Err(_) => 0,
    };
    let compression = match compression {
        CompressionArg::Zstd => Compression::Zstd,
        CompressionArg::Gzip => Compression::Gzip,
        CompressionArg::None => Compression::None,
    };
    Ok(LayerOptions { compression, mtime, workers: None })
}

fn failure(error: &PackError) -> Failure {
    Failure::failed("pack_failed", error.to_string())
}
