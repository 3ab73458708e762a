//! `hearth deploy`

pub(super) mod confinement;
mod environment;
mod flags;
pub(super) mod follow;
pub(super) mod network;
pub(super) mod quantity;
mod unset;

use std::time::Duration;

use clap::{Args, ValueEnum};
use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::{DeployRequest, ServicePort};
use hearth_proto::value::Reference;

use super::build::{self, BuildOptions, LocalFiles};
use super::registry::CredentialArgs;
use super::{GlobalArgs, complete, connect};
use crate::client::DEPLOY_TIMEOUT;
use crate::duration;
use crate::error::Failure;
use crate::interrupt::InterruptListener;
use crate::progress::TransferMeter;

/// Run an image as a service of the room
///
/// A service of that name is updated in place: what is not mentioned is kept from the revision that
/// serves, variables are merged by name, and a kind of mount that is given replaces only that kind;
/// --unset-env, --no-mounts and other flags with `no` take settings away. The new revision takes the traffic
/// when it is healthy, and the old one stops; a revision that fails takes none. Progress and the
/// service's log go to standard error; standard output receives name, revision and digest, and the URLs
/// of the domains. Ctrl-C leaves the deploy running.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth deploy --room myroom --tag room.meshagent.com/my-app:dev --env APP_ENV=dev
  hearth deploy --tag my-app:dev --pack ./my-app --domain my-app.example.com --public
      Send and build a directory, and deploy the result
  hearth deploy --tag my-app:dev --room-mount data/my-app:/data,create --env-secret DB_PASSWORD=db --memory 512m
  hearth deploy --tag my-app:dev --port 8000 --liveness /healthz --dry-run")]
pub(super) struct DeployArgs {
    /// Image to run, from the room or any registry; with --pack, the tag of the build
    #[arg(long, short, allow_hyphen_values = true, add = complete::images())]
    tag: String,
    /// Print the steps of the deploy without doing them
    #[arg(long, conflicts_with = "pack", help_heading = "Deploy")]
    dry_run: bool,
    /// A directory of this machine to build first, `<path>[:<mount>]`
    #[arg(long, value_name = "PATH", help_heading = "Build")]
    pack: Option<String>,
    #[command(flatten)]
    settings: DeploySettings,
}

/// Flags that `hearth deploy` and `hearth up` share.
#[derive(Debug, Args)]
pub(super) struct DeploySettings {
    /// Name of the service [default: the repository, with `-` for `/`]
    #[arg(long, value_name = "NAME", value_parser = network::name, add = complete::services())]
    name: Option<String>,

    #[command(flatten)]
    environment: environment::EnvironmentArgs,
    #[command(flatten)]
    mounts: flags::MountArgs,

    /// Port that the service listens on, `N` for http, `N/h2c` for HTTP/2 only (gRPC), or `N/tcp` [default: kept, else the image's EXPOSE]
    #[arg(long, value_name = "PORT", value_parser = network::port, help_heading = "Traffic")]
    port: Vec<ServicePort>,
    /// Host name that routes to the service, such as `www.example.com` or `*.example.com`
    #[arg(long, value_name = "DOMAIN", value_parser = network::domain, help_heading = "Traffic")]
    domain: Vec<String>,
    /// Accept traffic for its domains without a participant token
    #[arg(long, conflicts_with = "private", help_heading = "Traffic")]
    public: bool,
    /// Require a participant token for traffic to its domains (the default)
    #[arg(long, help_heading = "Traffic")]
    private: bool,
    /// Path that answers with a status from 200 to 399 when the service is healthy
    #[arg(long, value_name = "PATH", value_parser = network::liveness, help_heading = "Traffic")]
    liveness: Option<String>,

    /// Command that replaces the image's own: a JSON list, or a text that is split at blanks
    #[arg(long, value_name = "COMMAND", help_heading = "Process")]
    command: Option<String>,
    /// Working directory of the command
    #[arg(long, value_name = "DIR", help_heading = "Process")]
    workdir: Option<String>,
    /// Memory limit, such as `512m`
    #[arg(long, value_name = "SIZE", value_parser = quantity::memory, help_heading = "Process")]
    memory: Option<u64>,
    /// Processor limit, such as `1.5`
    #[arg(long, value_name = "NUMBER", value_parser = quantity::cpus, help_heading = "Process")]
    cpus: Option<u32>,
    #[command(flatten)]
    confinement: confinement::ConfinementArgs,
    #[command(flatten)]
    unset: unset::UnsetArgs,

    /// Strategy that replaces the old revision
    #[arg(long, value_enum, help_heading = "Deploy")]
    strategy: Option<StrategyArg>,
    /// Time limit for the first healthy answer of the new revision, such as `90s` [default: kept, else 60s]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, help_heading = "Deploy")]
    timeout: Option<Duration>,
    #[command(flatten)]
    credentials: CredentialArgs,
    #[command(flatten)]
    pub(super) waiting: follow::WaitArgs,

    /// Time limit of the build
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, help_heading = "Build")]
    build_timeout: Option<Duration>,
    #[command(flatten)]
    pub(super) build_options: BuildOptions,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StrategyArg {
    /// Stop the old instance when the new one is healthy
    Rolling,
    /// Stop the old instance before the new one starts
    Recreate,
}

/// The image to deploy.
#[derive(Debug)]
pub(super) struct DeployedImage {
    pub(super) tag: String,
    /// Files of this machine that are built before, and get the tag.
    pub(super) built_from: Option<LocalFiles>,
}

pub(super) async fn run(
    args: DeployArgs,
    globals: &GlobalArgs,
    interrupts: &mut InterruptListener,
) -> Result<(), Failure> {
    let DeployArgs { tag, dry_run, pack, settings } = args;
    let image = DeployedImage { tag, built_from: pack.map(LocalFiles::Pack) };
    deploy(&image, settings, dry_run, globals, interrupts).await
}

/// Builds the image if it is to be built, and deploys it.
pub(super) async fn deploy(
    image: &DeployedImage,
    mut args: DeploySettings,
    dry_run: bool,
    globals: &GlobalArgs,
    interrupts: &mut InterruptListener,
) -> Result<(), Failure> {
    args.waiting.progress.begin();
    let flags::DeployPlan { mut spec, build } = flags::plan(image, &mut args, |name| std::env::var(name))?;
    let client = match build {
        None => interrupts.run_interruptible(Box::pin(connect(globals))).await?,
        Some(build) => {
            let (client, digest) = Box::pin(build::build_for_deploy(&build, globals, interrupts)).await?;
            // Deploy the digest that was built, even when the tag moves in the meantime.
            spec.image = pinned(&spec.image, &digest)?;
            client
        }
    };
    let request = DeployRequest { spec: Some(spec), dry_run };
    // An image of another registry is copied into the room before the daemon answers.
    let asking = TransferMeter::wait_for("preparing the deploy", client.deploy(request, DEPLOY_TIMEOUT));
    let asking = async { Ok(asking.await?) };
    let answer = interrupts
        .run_interruptible_with_message(follow::INTERRUPTED_BEFORE_ANSWER, Box::pin(asking))
        .await?;
    if dry_run {
        return follow::report_plan(&answer, globals.json);
    }
    Box::pin(follow::run(&client, &answer, &args.waiting, globals.json, interrupts)).await
}

fn pinned(image: &str, digest: &str) -> Result<String, Failure> {
    let not_understood =
        |error: &dyn std::fmt::Display| Failure::failed(ErrorCode::Protocol, error.to_string());
    let mut image: Reference = image.parse().map_err(|error| not_understood(&error))?;
    image.digest = Some(digest.parse().map_err(|error| not_understood(&error))?);
    Ok(image.to_string())
}

#[cfg(test)]
mod tests;
