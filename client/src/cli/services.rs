//! `hearth services`

mod exec;
mod logs;
mod manifest;
mod views;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::{DeployRequest, Revision, Service};
use jiff::Timestamp;

use super::changes::change_each;
use super::deploy::follow::{self, LimitedWaitArgs};
use super::wait_limit::{ANSWER_MARGIN, wait_within};
use super::{GlobalArgs, complete, connect};
use crate::client::{DEPLOY_TIMEOUT, REMOVE_TIMEOUT};
use crate::error::Failure;
use crate::interrupt::InterruptListener;
use crate::progress::TransferMeter;
use crate::{duration, output};
use manifest::ServiceManifest;
pub(super) use views::ServiceView;

#[derive(Debug, Subcommand)]
pub(super) enum ServicesCommand {
    /// Show the room's services and their status
    #[command(visible_alias = "ls")]
    List,
    /// Show one service: its settings, revisions, instances and health
    ///
    /// With -o the command prints the manifest that `hearth services apply` takes.
    #[command(after_help = "\
Examples:
  hearth services show web
  hearth services show web -o yaml > web.yaml")]
    Show {
        /// Name or id
        #[arg(add = complete::services())]
        service: String,
        /// Print the manifest of the service in this format
        #[arg(long, short, value_enum)]
        output: Option<ManifestFormat>,
        /// Print the manifest of this revision [default: the desired revision]
        #[arg(long, value_name = "N", requires = "output", value_parser = clap::value_parser!(u32).range(1..))]
        revision: Option<u32>,
    },
    Logs(logs::ServiceLogsArgs),
    /// Replace the instance of a service by a new one of the same revision, with new tokens and current secrets
    Restart {
        /// Name or id
        #[arg(add = complete::services())]
        service: String,
        #[command(flatten)]
        waiting: LimitedWaitArgs,
    },
    /// Deploy an earlier revision again, as a new revision
    #[command(after_help = "\
Examples:
  hearth services rollback web
      Return to the revision that was live before
  hearth services rollback web 3")]
    Rollback {
        /// Name or id
        #[arg(add = complete::services())]
        service: String,
        /// Number of the earlier revision [default: the last other revision that was live]
        #[arg(value_name = "REV", value_parser = clap::value_parser!(u32).range(1..))]
        revision: Option<u32>,
        #[command(flatten)]
        waiting: LimitedWaitArgs,
    },
    /// Stop and remove services
    Rm {
        /// Names or ids
        #[arg(required = true, add = complete::services())]
        services: Vec<String>,
        /// Time between the stop signal and SIGKILL, such as `30s` [default: 10s]
        #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
        grace: Option<Duration>,
        /// Kill the processes at once
        #[arg(long, conflicts_with = "grace")]
        now: bool,
        /// Time limit of the wait for the end of each service [default: the grace time and 90s]
        #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
        timeout: Option<Duration>,
    },
    Exec(exec::ExecArgs),
    /// Deploy a manifest; settings that are not in it are not kept
    #[command(after_help = "\
Example:
  hearth services show web -o yaml > web.yaml
  hearth services apply -f web.yaml")]
    Apply {
        /// Manifest, `-` for standard input
        #[arg(long, short, value_name = "FILE")]
        file: PathBuf,
        /// Print the steps of the deploy without doing them
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        waiting: LimitedWaitArgs,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ManifestFormat {
    Yaml,
    Json,
}

/// Time between the stop signal and SIGKILL when none is given.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// Size limit of a manifest in bytes; larger than any real one.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

pub(super) async fn run(
    command: ServicesCommand,
    globals: &GlobalArgs,
    interrupts: &mut InterruptListener,
) -> Result<(), Failure> {
    match command {
        ServicesCommand::List => interrupts.run_interruptible(Box::pin(list(globals))).await,
        ServicesCommand::Show { service, output: format, revision } => {
            interrupts.run_interruptible(Box::pin(show(&service, format, revision, globals))).await
        }
        ServicesCommand::Logs(args) => {
            interrupts.run_until_interrupted(globals.json, Box::pin(logs::run(args, globals))).await
        }
        ServicesCommand::Restart { service, waiting } => {
            let waiting = waiting.into_wait_args();
            waiting.progress.begin();
            let asked = async {
                let client = connect(globals).await?;
                let answer = client.restart_service(&service).await?;
                Ok((client, answer))
            };
            let (client, answer) = interrupts
                .run_interruptible_with_message(follow::INTERRUPTED_BEFORE_ANSWER, Box::pin(asked))
                .await?;
            Box::pin(follow::run(&client, &answer, &waiting, globals.json, interrupts)).await
        }
        ServicesCommand::Rollback { service, revision, waiting } => {
            let waiting = waiting.into_wait_args();
            waiting.progress.begin();
            let asked = async {
                let client = connect(globals).await?;
                let answer = client.roll_back_service(&service, revision.unwrap_or(0)).await?;
                Ok((client, answer))
            };
            let (client, answer) = interrupts
                .run_interruptible_with_message(follow::INTERRUPTED_BEFORE_ANSWER, Box::pin(asked))
                .await?;
            Box::pin(follow::run(&client, &answer, &waiting, globals.json, interrupts)).await
        }
        ServicesCommand::Rm { services, grace, now, timeout } => {
            let grace = if now { Some(Duration::ZERO) } else { grace };
            interrupts
                .run_interruptible_with_message(
                    "interrupted; a removal that has begun goes on",
                    Box::pin(remove(&services, grace, timeout, globals)),
                )
                .await
        }
        ServicesCommand::Exec(args) => Box::pin(exec::run(args, globals, interrupts)).await,
        ServicesCommand::Apply { file, dry_run, waiting } => {
            let waiting = waiting.into_wait_args();
            waiting.progress.begin();
            let spec = Some(read_manifest(&file)?.into_spec()?);
            let asked = async {
                let client = connect(globals).await?;
                let limit = waiting.limit.unwrap_or(DEPLOY_TIMEOUT);
                let deploying =
                    Box::pin(client.deploy(DeployRequest { spec, dry_run }, limit + ANSWER_MARGIN));
                let deploying =
                    wait_within(limit, "the image of the manifest", "see: hearth services list", deploying);
                let answer = TransferMeter::wait_for("preparing the deploy", deploying).await?;
                Ok((client, answer))
            };
            let (client, answer) = interrupts
                .run_interruptible_with_message(follow::INTERRUPTED_BEFORE_ANSWER, Box::pin(asked))
                .await?;
            if dry_run {
                return follow::report_plan(&answer, globals.json);
            }
            Box::pin(follow::run(&client, &answer, &waiting, globals.json, interrupts)).await
        }
    }
}

async fn list(globals: &GlobalArgs) -> Result<(), Failure> {
    let services = connect(globals).await?.list_services().await?;
    if globals.json {
        return output::json(&services.iter().map(ServiceView::from).collect::<Vec<_>>());
    }
    print_table(&services)
}

pub(super) fn print_table(services: &[Service]) -> Result<(), Failure> {
    let now = Timestamp::now();
    output::table(
        &views::TABLE_HEAD,
        &services.iter().map(|service| views::row(service, now)).collect::<Vec<_>>(),
    )
}

async fn show(
    service: &str,
    format: Option<ManifestFormat>,
    revision: Option<u32>,
    globals: &GlobalArgs,
) -> Result<(), Failure> {
    let service = connect(globals).await?.service(service).await?;
    match format {
        None if globals.json => output::json(&ServiceView::from(&service)),
        None => output::line(&views::service_text(&service, Timestamp::now())),
        Some(format) => {
            let spec = find_revision(&service, revision)?.spec.as_ref();
            let spec = spec.ok_or_else(|| {
                Failure::failed(ErrorCode::Protocol, "the daemon sent the revision without its spec")
            })?;
            let manifest = ServiceManifest::from_spec(&service.name, spec);
            match format {
                ManifestFormat::Yaml if globals.json => {
                    Err(Failure::usage("-o yaml and --json exclude one another").hint("use -o json"))
                }
                ManifestFormat::Yaml => output::line(manifest::write(&manifest)?.trim_end()),
                ManifestFormat::Json => output::json(&manifest),
            }
        }
    }
}

/// Returns the revision with this number; without a number, the desired revision.
fn find_revision(service: &Service, revision: Option<u32>) -> Result<&Revision, Failure> {
    let number = revision.unwrap_or(service.desired_revision);
    service.revisions.iter().find(|revision| revision.number == number).ok_or_else(|| {
        let kept: Vec<String> =
            service.revisions.iter().map(|revision| revision.number.to_string()).collect();
        Failure::failed(
            ErrorCode::RevisionNotFound,
            format!("service {} has no revision {number}", service.name),
        )
        .hint(format!("there are {}", kept.join(", ")))
    })
}

async fn remove(
    services: &[String],
    grace: Option<Duration>,
    timeout: Option<Duration>,
    globals: &GlobalArgs,
) -> Result<(), Failure> {
    let limit = timeout.unwrap_or(REMOVE_TIMEOUT + grace.unwrap_or(DEFAULT_GRACE));
    let client = connect(globals).await?;
    change_each("removed", services, globals, async |service| {
        let (what, hint) =
            (format!("the removal of {service}"), format!("see: hearth services show {service}"));
        let removing = client.remove_service(service, grace, limit + ANSWER_MARGIN);
        let removing = wait_within(limit, &what, &hint, removing);
        let removed = TransferMeter::wait_for(format!("stopping {service}"), removing).await?;
        let view = serde_json::json!({"name": removed.name, "service_id": removed.service_id});
        Ok((view, format!("removed {}", removed.name)))
    })
    .await
}

fn read_manifest(path: &Path) -> Result<ServiceManifest, Failure> {
    let (name, mut content) = (path.display().to_string(), String::new());
    let wrong = |error: &std::io::Error| Failure::usage(format!("cannot read `{name}`: {error}"));
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_MANIFEST_BYTES + 1).read_to_string(&mut content)
    } else {
        let file = std::fs::File::open(path).map_err(|error| wrong(&error))?;
        file.take(MAX_MANIFEST_BYTES + 1).read_to_string(&mut content)
    };
    read.map_err(|error| wrong(&error))?;
    if content.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(Failure::usage(format!("`{name}` is larger than {} KiB", MAX_MANIFEST_BYTES >> 10)));
    }
    manifest::read(&name, &content)
}
