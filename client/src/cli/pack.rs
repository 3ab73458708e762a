//! `hearth pack`

mod commands;
mod destination;
mod report;
pub(super) mod send;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, ValueEnum};
use hearth_oci::DeclaredPlatform;
use hearth_pack::cache::PackCache;
use hearth_pack::image::{ConfigFlags, parse_command};
use hearth_pack::layer::{Compression, LayerOptions};
use hearth_pack::{PackError, PackOptions, PackProgress, PackedImage};
use hearth_proto::error_code::ErrorCode;
use hearth_proto::value::{Reference, RoomRegistries, storage_path};

use destination::PackDestination;
pub(super) use report::print_summary;

use super::registry::RegistryArgs;
use super::{GlobalArgs, base, build};
use crate::client::Client;
use crate::error::Failure;
use crate::progress::TransferMeter;
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
  hearth pack ./my-app --tag my-app:dev --base debian:12 --run 'apt-get update' --run 'apt-get install -y curl'
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
    /// Command that runs on the base and the packed files in the room, before the image gets its name; may be repeated
    #[arg(long, value_name = "COMMAND", requires = "tag", conflicts_with_all = ["output", "arch", "room_path", "docker"])]
    run: Vec<String>,
    /// Architecture of the image, such as `arm64` or `arm/v7` [default: amd64]
    #[arg(long)]
    arch: Option<String>,
    /// Also keep the archive as this file of room storage; a path that ends with `/` is its directory
    #[arg(long, value_name = "PATH")]
    room_path: Option<String>,
    /// Compression of the packed layer
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
    /// Label, `KEY=VALUE`
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

impl PackArgs {
    /// Reports whether the room builds the image with commands.
    pub(super) fn runs_commands(&self) -> bool {
        !self.run.is_empty()
    }

    /// Returns the build for an image with commands.
    pub(super) fn into_build(self) -> Result<build::BuildArgs, Failure> {
        commands::build_args(&self)
    }
}

pub(super) async fn run(args: PackArgs, globals: &GlobalArgs) -> Result<(), Failure> {
    let tag = args.tag.as_deref().map(Reference::parse_tag).transpose();
    let tag = tag.map_err(|error| Failure::usage(format!("--tag: {error}")))?;
    let destination = PackDestination::from_args(&args, tag.as_ref(), globals)?;
    let started = Instant::now();
    let plan = PackPlan::from_args(args, tag)?;
    let mut view = match destination {
        PackDestination::File(file) => destination::write_to_file(plan, &file, globals).await,
        PackDestination::RoomContent(room) => destination::send_content(plan, room, globals).await,
        PackDestination::RoomArchive(room) => destination::send_archive(plan, room, globals).await,
    }?;
    view.finish(started.elapsed());
    if globals.json { output::json(&view) } else { output::line(&view.digest) }
}

/// Content of a pack, whatever its destination: a directory and the options of the image.
struct PackPlan {
    path: PathBuf,
    /// Options without the base, which [`PackPlan::open_base`] adds.
    options: PackOptions,
    base: Option<String>,
    registries: RegistryArgs,
}

impl PackPlan {
    /// Checks the arguments and the directory, before any work starts.
    fn from_args(args: PackArgs, tag: Option<Reference>) -> Result<Self, Failure> {
        let options = options(&args, tag)?;
        check_directory(&args.path)?;
        Ok(Self { path: args.path, options, base: args.base, registries: args.registries })
    }

    async fn open_base(&mut self, room: Option<&Client>, globals: &GlobalArgs) -> Result<(), Failure> {
        if let Some(text) = &self.base {
            let opening = base::open(text, &self.options.platform, &self.registries, room, globals);
            self.options.base = Some(Box::pin(opening).await?);
        }
        Ok(())
    }

    /// Packs the directory on a blocking thread and prints the summary.
    async fn pack(&self) -> Result<Arc<PackedImage>, Failure> {
        let (path, options) = (self.path.clone(), self.options.clone());
        let meter = TransferMeter::new("packing", 0);
        let counted = meter.clone();
        let work = move || {
            let mut total = 0;
            hearth_pack::pack(&path, &options, &mut |at| match at {
                PackProgress::Listed { bytes, .. } => {
                    total = bytes;
                    counted.set(0, total);
                }
                PackProgress::Read { bytes, .. } => counted.set(bytes, total),
                PackProgress::Compressed { .. } => {}
            })
        };
        let packed = meter.during(task::blocking("pack", work)).await?.map_err(|error| failure(&error))?;
        if let Some(trouble) = &packed.cache_trouble {
            tracing::debug!(error = %trouble, "failed to cache the pack");
        }
        print_summary(&packed.summary, false);
        Ok(Arc::new(packed))
    }
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

/// Returns the file of room storage that is to keep the archive of `image`. A path that ends with `/` is a directory,
/// in which the file has the name of the repository.
pub(super) fn room_file(flag: &str, path: &str, image: &Reference) -> Result<String, Failure> {
    let directory = storage_path(path).map_err(|error| Failure::usage(format!("{flag}: {error}")))?;
    if !directory.is_empty() && !path.ends_with('/') {
        return Ok(directory);
    }
    let repository = image.repository.to_string();
    let name = repository.rsplit('/').next().unwrap_or(&repository);
    let slash = if directory.is_empty() { "" } else { "/" };
    Ok(format!("{directory}{slash}{name}.oci.tar"))
}

fn options(args: &PackArgs, tag: Option<Reference>) -> Result<PackOptions, Failure> {
    let platform = platform(args.arch.as_deref())?;
    Ok(PackOptions {
        layer: layer_options(args.compression)?,
        config: config_flags(args)?,
        platform,
        tag,
        docker: args.docker,
        output: args.output.clone(),
        cache: PackCache::user_dir(),
        ..PackOptions::default()
    })
}

fn config_flags(args: &PackArgs) -> Result<ConfigFlags, Failure> {
    let command = |flag: &str, text: &Option<String>| {
        let parsed = text.as_deref().map(parse_command).transpose();
        parsed.map_err(|error| Failure::usage(format!("{flag}: {error}")))
    };
    let config = ConfigFlags {
        entrypoint: command("--entrypoint", &args.entrypoint)?,
        cmd: command("--cmd", &args.cmd)?,
        env: args.env.clone(),
        workdir: args.workdir.clone(),
        user: args.user.clone(),
        labels: args.label.clone(),
        expose: args.expose.clone(),
        volumes: args.volume.clone(),
    };
    config.check().map_err(|error| Failure::usage(error.to_string()))?;
    Ok(config)
}

pub(super) fn platform(arch: Option<&str>) -> Result<DeclaredPlatform, Failure> {
    match arch {
        Some(text) => text.parse().map_err(|error| Failure::usage(format!("--arch: {error}"))),
        None => Ok(DeclaredPlatform::default()),
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
    if matches!(error, PackError::Config(_) | PackError::Time { .. }) {
        return Failure::usage(error.to_string());
    }
    Failure::failed(ErrorCode::PackFailed, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_path_that_names_a_directory_means_a_file_in_it() {
        let image = Reference::parse_tag("room.meshagent.com/team/my-app:dev").unwrap();
        for (path, file) in [
            ("packs/x.tar", "packs/x.tar"),
            ("/packs//x.tar", "packs/x.tar"),
            ("packs/", "packs/my-app.oci.tar"),
            ("/", "my-app.oci.tar"),
            ("./", "my-app.oci.tar"),
            (".", "my-app.oci.tar"),
        ] {
            assert_eq!(room_file("--room-path", path, &image).unwrap(), file, "{path}");
        }
        let failure = room_file("--room-path", "../x", &image).unwrap_err();
        assert_eq!(failure.kind, crate::error::FailureKind::Usage);
    }
}
