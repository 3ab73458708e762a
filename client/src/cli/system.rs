//! `hearth doctor` and `hearth system`

mod usage;

use clap::Subcommand;
use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::{Builder, BuilderState};
use jiff::Timestamp;
use serde::Serialize;

use super::{GlobalArgs, connect};
use crate::client::{Client, ClientError};
use crate::error::Failure;
use crate::output;
pub(super) use usage::UsageView;

#[derive(Debug, Subcommand)]
pub(super) enum SystemCommand {
    /// Show each caller's disk usage: packs, images, files, logs, unfinished uploads
    ///
    /// Administrators see all callers, others see themselves. An idle upload ends by itself.
    #[command(after_help = "Examples:\n  hearth system df\n  hearth system df --json")]
    Df,
}

pub(super) async fn run_command(command: SystemCommand, globals: &GlobalArgs) -> Result<(), Failure> {
    match command {
        SystemCommand::Df => usage::run(globals).await,
    }
}

#[derive(Serialize)]
struct SystemView<'a> {
    address: &'a str,
    room: &'a str,
    version: &'a str,
    platform: &'a str,
    room_registries: &'a [String],
    ready: bool,
    components: Vec<ComponentView<'a>>,
    builders: Vec<BuilderView<'a>>,
    /// Number of damaged blobs that are not served.
    quarantined_blobs: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<VerifiedView>,
}

#[derive(Serialize)]
struct VerifiedView {
    blobs: u64,
    bytes: u64,
    damaged_blobs: u64,
    quarantined: Vec<String>,
}

#[derive(Serialize)]
struct BuilderView<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    domain: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    address: &'a str,
    state: &'static str,
    detail: &'a str,
    disk_bytes: u64,
    last_used_at: Option<String>,
    running_builds: u32,
}

impl<'a> BuilderView<'a> {
    fn new(builder: &'a Builder) -> Self {
        Self {
            domain: &builder.domain,
            address: &builder.address,
            state: match builder.state() {
                BuilderState::Ready => "ready",
                BuilderState::NotReady => "not ready",
                BuilderState::Stopped => "stopped",
                BuilderState::Unspecified => "unknown",
            },
            detail: &builder.detail,
            disk_bytes: builder.disk_bytes,
            last_used_at: output::timestamp(builder.last_used_at.as_ref()).map(|time| time.to_string()),
            running_builds: builder.running_builds,
        }
    }

    fn row(&self, builder: &Builder) -> Vec<String> {
        let name = if self.domain.is_empty() { self.address } else { self.domain };
        vec![
            output::printable(name),
            self.state.to_owned(),
            output::size(self.disk_bytes),
            output::age(builder.last_used_at.as_ref(), Timestamp::now()),
            self.running_builds.to_string(),
            output::printable(self.detail),
        ]
    }
}

#[derive(Serialize)]
struct ComponentView<'a> {
    name: &'a str,
    ready: bool,
    detail: &'a str,
}

/// Shows the daemon and its components; fails when one of them is not ready.
/// With `verify`, all stored content is verified first.
pub(super) async fn run(verify: bool, globals: &GlobalArgs) -> Result<(), Failure> {
    let client = connect(globals).await?;
    let verified = if verify { Some(verify_content(&client).await?) } else { None };
    let info = client.info().await?;
    let builders = client.list_builders().await?;
    let component = |c: &hearth_proto::v1::Component| (c.name.clone(), c.ready, c.detail.clone());
    let components: Vec<_> = info.components.iter().map(component).collect();
    let view = SystemView {
        address: client.address(),
        room: &info.room,
        version: &info.version,
        platform: &info.platform,
        room_registries: &info.room_registries,
        ready: info.ready,
        components: components
            .iter()
            .map(|(name, ready, detail)| ComponentView { name, ready: *ready, detail })
            .collect(),
        builders: builders.iter().map(BuilderView::new).collect(),
        quarantined_blobs: info.quarantined_blobs,
        verified,
    };
    if !globals.json {
        output::line(&format!("room {} at {}, hearthd {}", info.room, client.address(), info.version))?;
        output::line(&format!("registry {}, platform {}", info.room_registries.join(", "), info.platform))?;
        let row = |(name, ready, detail): &(String, bool, String)| {
            let state = if *ready { "ready" } else { "NOT READY" };
            vec![name.clone(), state.to_owned(), output::printable(detail)]
        };
        output::table(&["COMPONENT", "STATE", "DETAIL"], &components.iter().map(row).collect::<Vec<_>>())?;
        if !builders.is_empty() {
            let head = ["BUILDER", "STATE", "CACHE", "LAST USED", "BUILDS", "DETAIL"];
            let row = |builder| BuilderView::new(builder).row(builder);
            output::table(&head, &builders.iter().map(row).collect::<Vec<_>>())?;
        }
        content_lines(&view)?;
    }
    if info.ready && view.verified.as_ref().is_some_and(|verified| !verified.quarantined.is_empty()) {
        let message =
            format!("{} in quarantine", output::count(info.quarantined_blobs.into(), "damaged blob"));
        return Err(Failure::failed(ErrorCode::ContentDamaged, message).partial(&view));
    }
    if info.ready {
        return if globals.json { output::json(&view) } else { Ok(()) };
    }
    let missing: Vec<&str> = components.iter().filter(|c| !c.1).map(|c| c.0.as_str()).collect();
    Err(Failure::failed(
        ErrorCode::NotReady,
        format!("room {} is not ready: {}", info.room, missing.join(", ")),
    )
    .partial(&view))
}

/// Prints the result of the verification, or the number of quarantined blobs.
fn content_lines(view: &SystemView<'_>) -> Result<(), Failure> {
    if let Some(verified) = &view.verified {
        let blobs = output::count(verified.blobs, "blob");
        let damaged = verified.damaged_blobs;
        output::line(&format!("verified {blobs} ({}), {damaged} damaged", output::size(verified.bytes)))?;
        verified.quarantined.iter().try_for_each(|digest| output::line(&format!("quarantined {digest}")))?;
    } else if view.quarantined_blobs > 0 {
        let blobs = output::count(view.quarantined_blobs.into(), "damaged blob");
        output::line(&format!("{blobs} in quarantine; `hearth doctor --verify` names them"))?;
    }
    Ok(())
}

async fn verify_content(client: &Client) -> Result<VerifiedView, Failure> {
    let mut answers = client.verify_content().await?;
    while let Some(answer) = answers.next().await? {
        if answer.done {
            return Ok(VerifiedView {
                blobs: answer.blobs,
                bytes: answer.bytes,
                damaged_blobs: answer.damaged_blobs,
                quarantined: answer.quarantined,
            });
        }
        let done = output::size(answer.bytes);
        output::note(&format!(
            "verified {} of {} ({done})",
            answer.blobs,
            output::count(answer.total_blobs, "blob")
        ));
    }
    Err(ClientError::Protocol("the verification ended without a result".to_owned()).into())
}
