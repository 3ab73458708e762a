//! `hearth build`

mod follow;
mod options;
mod request;

use clap::Args;
use hearth_pack::walk::{IgnoreRules, WalkOptions};
use hearth_proto::v1::begin_pack_request::Destination;
use hearth_proto::v1::{Mount, SubmitBuildRequest, mount::Source};
use hearth_proto::value::Reference;

pub(super) use options::BuildOptions;

use super::pack::{check_directory, check_room_tag};
use super::{GlobalArgs, connect, pack};
use crate::client::Client;
use crate::duration;
use crate::error::Failure;
use crate::interrupt::InterruptListener;
use crate::output;
use crate::progress::ProgressMode;

/// Build an image inside the room
///
/// The files come from the room's storage, its project, images, or a directory that is sent for this
/// build only. The log streams to standard error while the build runs; standard output receives the
/// digest. The build continues when this command is interrupted: `hearth builds logs ID --follow`.
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
    #[command(flatten)]
    options: BuildOptions,
    /// Credentials for base images, `username,password` (Docker Hub) or `registry,username,password`
    #[arg(long, value_name = "CREDENTIAL", help_heading = "Build")]
    pub(super) cred: Vec<String>,
    /// Time limit of the build, such as `90s` or `1h30m`
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, help_heading = "Build")]
    pub(super) timeout: Option<std::time::Duration>,

    /// Display mode of progress
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto, help_heading = "Output")]
    pub(super) progress: ProgressMode,
    /// Print the build's id and do not wait for the build
    #[arg(long, help_heading = "Output")]
    detach: bool,
    /// Key that makes a repeated command return the first build instead of building again
    #[arg(long, value_name = "KEY", help_heading = "Output")]
    idempotency_key: Option<String>,
}

pub(super) async fn run(
    args: BuildArgs,
    globals: &GlobalArgs,
    interrupts: &mut InterruptListener,
) -> Result<(), Failure> {
    let plan = checked_plan(&args)?;
    let (client, build_id) = interrupts.run_interruptible(Box::pin(submit(&args, plan, globals))).await?;
    if args.detach {
        return if globals.json {
            output::json(&serde_json::json!({"build_id": build_id}))
        } else {
            output::line(&build_id)
        };
    }
    let ended = follow(&client, &build_id, &args, interrupts).await?;
    follow::report(&args, &ended, globals.json)
}

/// Builds a directory that is to be deployed. Returns the image's digest and leaves standard output to
/// the deploy.
pub(super) async fn build_for_deploy(
    args: &BuildArgs,
    globals: &GlobalArgs,
    interrupts: &mut InterruptListener,
) -> Result<(Client, String), Failure> {
    let plan = checked_plan(args)?;
    let (client, build_id) = interrupts.run_interruptible(Box::pin(submit(args, plan, globals))).await?;
    let ended = follow(&client, &build_id, args, interrupts).await?;
    let digest = follow::result(args, &ended)?.digest.clone();
    Ok((client, digest))
}

impl BuildArgs {
    /// Arguments of a build whose result is to be deployed.
    pub(super) fn from_pack(tag: &str, pack: &str, options: BuildOptions) -> Self {
        Self {
            path: None,
            tag: tag.to_owned(),
            mount_room_path: Vec::new(),
            mount_project_path: Vec::new(),
            mount_image: Vec::new(),
            pack: Some(pack.to_owned()),
            options,
            cred: Vec::new(),
            timeout: None,
            progress: ProgressMode::Auto,
            detach: false,
            idempotency_key: None,
        }
    }
}

/// Checks the arguments as far as possible without a room, so that mistakes are reported before the
/// client connects.
fn checked_plan(args: &BuildArgs) -> Result<request::BuildPlan, Failure> {
    let plan = request::plan(args)?;
    if let Some(pack) = &plan.pack {
        check_directory(&pack.path)?;
    }
    Ok(plan)
}

async fn follow(
    client: &Client,
    build_id: &str,
    args: &BuildArgs,
    interrupts: &mut InterruptListener,
) -> Result<follow::EndedBuild, Failure> {
    if args.progress != ProgressMode::Json {
        output::note(&format!("build {build_id}"));
    }
    follow::follow_to_end(client, build_id, args.progress, interrupts).await
}

async fn submit(
    args: &BuildArgs,
    mut plan: request::BuildPlan,
    globals: &GlobalArgs,
) -> Result<(Client, String), Failure> {
    let client = connect(globals).await?;
    if let Some(local) = plan.pack.take() {
        for tag in &plan.tags {
            check_room_tag(&client, "--tag", tag).await?;
        }
        let scanned = pack::send::scan(local.path, walk_options(args)).await?;
        pack::print_summary(&scanned.summary);
        let temporary = Destination::Temporary(true);
        let sent =
            pack::send::send(&client, &scanned, temporary, None, args.options.pack_room_path.clone()).await?;
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

/// Walk options that keep the files which the build itself reads, even when the ignore file excludes
/// them.
fn walk_options(args: &BuildArgs) -> WalkOptions {
    let inside = args.options.dockerfile_path.as_deref().filter(|path| !path.starts_with('/'));
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
    let rules = IgnoreRules::IgnoreFile { dockerfile: inside.map(|path| path.as_bytes().to_vec()) };
    WalkOptions { rules, keep, ..WalkOptions::default() }
}

fn tag(flag: &str, text: &str) -> Result<Reference, Failure> {
    Reference::parse_tag(text).map_err(|error| Failure::usage(format!("{flag}: {error}")))
}
