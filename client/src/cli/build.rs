//! `hearth build`

mod follow;
mod request;

use std::path::PathBuf;

use clap::Args;
use hearth_pack::walk::{Rules, WalkOptions};
use hearth_proto::v1::begin_pack_request::Destination;
use hearth_proto::v1::{Mount, SubmitBuildRequest, mount::Source};
use hearth_proto::value::{MountSource, MountSpec, Reference};

use super::pack::{check_directory, check_room_tag};
use super::{Globals, connect, pack};
use crate::client::Client;
use crate::duration;
use crate::error::Failure;
use crate::interrupt::Interrupts;
use crate::output;
use crate::progress::ProgressMode;

/// Build an image inside the room
///
/// The files come from the room's storage, its project, images, or a directory that is sent for
/// this one build. The log streams to standard error while the build runs; standard output gets
/// the digest. The build goes on when this command is cut off: `hearth builds logs ID --follow`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth build --tag my-app:dev ./my-app
  hearth build --room myroom --tag room.meshagent.com/my-app:dev --pack ./my-app
  hearth build --tag my-app:dev --mount-room-path /apps/my-app:/context:ro --context-path /context
  hearth build --tag my-app:dev --mount-room-path apps/my-app --mount-project-path libs:/context/libs \\
      --context-path /context --build-arg VERSION=1.2 --secret id=npm,src=$HOME/.npmrc")]
pub(super) struct BuildArgs {
    /// Directory to send and build, the same as --pack PATH
    #[arg(value_name = "PATH", conflicts_with = "pack")]
    path: Option<String>,
    /// Name of the result, in the room's registry
    #[arg(long, short, allow_hyphen_values = true)]
    tag: String,
    /// One more name for it
    #[arg(long, value_name = "TAG")]
    also_tag: Vec<String>,

    /// Files of room storage, `<source>[:<mount>[:ro|rw]]`
    #[arg(long, visible_alias = "room-mount", value_name = "MOUNT", help_heading = "Files")]
    mount_room_path: Vec<String>,
    /// Files of project storage, in the same form
    #[arg(long, visible_alias = "project-mount", value_name = "MOUNT", help_heading = "Files")]
    mount_project_path: Vec<String>,
    /// Files of an image of the room, `<image>[=<mount>[:ro|rw]][,subpath=<path>]`
    #[arg(long, visible_alias = "image-mount", value_name = "MOUNT", help_heading = "Files")]
    mount_image: Vec<String>,
    /// A directory of this machine, sent for this build, `<path>[:<mount>]`
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    pack: Option<String>,
    /// Keep the pack as this file of room storage
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    pack_room_path: Option<String>,
    /// Directory that COPY reads from; needed with more than one mount
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    context_path: Option<String>,
    /// Dockerfile: absolute inside the mounts, or relative to the context
    /// [default: Containerfile, then Dockerfile]
    #[arg(long, short = 'f', value_name = "PATH", help_heading = "Files")]
    dockerfile_path: Option<String>,

    /// Value of an ARG, `KEY=VALUE`; `KEY` alone takes the value of the environment
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Build")]
    build_arg: Vec<String>,
    /// Secret for `RUN --mount=type=secret`, `id=ID,src=FILE` or `id=ID,env=VARIABLE`
    #[arg(long, value_name = "SECRET", help_heading = "Build")]
    secret: Vec<String>,
    /// Credentials for base images, `username,password` (Docker Hub) or `registry,username,password`
    #[arg(long, value_name = "CREDENTIAL", help_heading = "Build")]
    cred: Vec<String>,
    /// Stage to build
    #[arg(long, value_name = "STAGE", help_heading = "Build")]
    target: Option<String>,
    /// Platform of the image, such as `linux/arm64`
    #[arg(long, conflicts_with = "arch", help_heading = "Build")]
    platform: Option<String>,
    /// Architecture of the image, such as `arm64`
    #[arg(long, help_heading = "Build")]
    arch: Option<String>,
    /// Label of the image, `KEY=VALUE`
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Build")]
    label: Vec<String>,
    /// Run every step again, or only those of one stage
    #[arg(long, value_name = "STAGE", num_args = 0..=1, default_missing_value = "", require_equals = true, help_heading = "Build")]
    no_cache: Vec<String>,
    /// Look base images up again
    #[arg(long, help_heading = "Build")]
    pull: bool,
    /// Network of RUN steps
    #[arg(long, value_parser = ["default", "none"], help_heading = "Build")]
    network: Option<String>,
    /// The build fails when it takes longer, such as `90s` or `1h30m`
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, help_heading = "Build")]
    timeout: Option<std::time::Duration>,

    /// How progress is shown
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto, help_heading = "Output")]
    progress: ProgressMode,
    /// Print the build's id and do not wait for it
    #[arg(long, help_heading = "Output")]
    detach: bool,
    /// Repeating a command with the same key does not build twice
    #[arg(long, value_name = "KEY", help_heading = "Output")]
    idempotency_key: Option<String>,
    /// Write the result to this file as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    metadata_file: Option<PathBuf>,
    /// Write the image's digest to this file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    iidfile: Option<PathBuf>,
}

pub(super) async fn run(
    args: BuildArgs,
    globals: &Globals,
    interrupts: &mut Interrupts,
) -> Result<(), Failure> {
    // Everything that is wrong whatever the room is like is told before it is spoken to.
    let plan = request::plan(&args)?;
    if let Some(pack) = &plan.pack {
        check_directory(&pack.path)?;
    }
    let (client, build_id) = interrupts.or(Box::pin(submit(&args, plan, globals))).await?;
    if args.detach {
        return if globals.json {
            output::json(&serde_json::json!({"build_id": build_id}))
        } else {
            output::line(&build_id)
        };
    }
    if args.progress != ProgressMode::Json {
        output::note(&format!("build {build_id}"));
    }
    let ended = follow::to_end(&client, &build_id, args.progress, interrupts).await?;
    follow::report(&args, &ended, globals.json)
}

async fn submit(
    args: &BuildArgs,
    mut plan: request::Plan,
    globals: &Globals,
) -> Result<(Client, String), Failure> {
    let client = connect(globals).await?;
    if let Some(local) = plan.pack.take() {
        for tag in &plan.tags {
            check_room_tag(&client, "--tag", tag).await?;
        }
        let scanned = pack::send::scan(local.path, walk_options(args)).await?;
        pack::tell(&scanned.summary);
        let temporary = Destination::Temporary(true);
        let sent = pack::send::send(&client, &scanned, temporary, None, args.pack_room_path.clone()).await?;
        let source = Some(Source::PackId(sent.result.pack_id));
        plan.spec.mounts.push(Mount { source, target: local.target, ..Mount::default() });
    }
    let idempotency_key = args.idempotency_key.clone().unwrap_or_default();
    let submitted =
        client.submit_build(SubmitBuildRequest { spec: Some(plan.spec), idempotency_key }).await?;
    if !submitted.created {
        output::note("an earlier command with this key had started the build");
    }
    Ok((client, submitted.build_id))
}

/// A pack for a build keeps what the build itself reads, whatever the ignore file says.
fn walk_options(args: &BuildArgs) -> WalkOptions {
    let inside = args.dockerfile_path.as_deref().filter(|path| !path.starts_with('/'));
    let mut keep: Vec<Vec<u8>> = [
        ".dockerignore",
        "Dockerfile",
        "Containerfile",
        "Dockerfile.dockerignore",
        "Containerfile.dockerignore",
    ]
    .iter()
    .map(|name| name.as_bytes().to_vec())
    .collect();
    if let Some(path) = inside {
        keep.push(path.as_bytes().to_vec());
        keep.push(format!("{path}.dockerignore").into_bytes());
    }
    let rules = Rules::IgnoreFile { dockerfile: inside.map(|path| path.as_bytes().to_vec()) };
    WalkOptions { rules, keep }
}

/// A mount flag in the form of the wire; packs are sent first and come later.
pub(super) fn mount(spec: MountSpec) -> Mount {
    use hearth_proto::v1::{ImageSource, MountMode};
    use hearth_proto::value::MountMode as Mode;
    let source = match spec.source {
        MountSource::Room(path) => Some(Source::RoomPath(path)),
        MountSource::Project(path) => Some(Source::ProjectPath(path)),
        MountSource::Image { reference, subpath } => {
            Some(Source::Image(ImageSource { reference: reference.to_string(), subpath }))
        }
        MountSource::Pack(id) => Some(Source::PackId(id)),
        MountSource::EmptyDir => None,
    };
    let mode = match spec.mode {
        Mode::ReadOnly => MountMode::ReadOnly,
        Mode::ReadWrite => MountMode::ReadWrite,
    };
    Mount { source, target: spec.target.to_string(), mode: mode.into() }
}

fn tag(flag: &str, text: &str) -> Result<Reference, Failure> {
    Reference::parse_tag(text).map_err(|error| Failure::usage(format!("{flag}: {error}")))
}
