//! `hearth doctor` and `hearth system`

mod usage;

use clap::Subcommand;
use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::{Builder, BuilderState};
use jiff::Timestamp;
use serde::Serialize;

use super::{GlobalArgs, connect};
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
pub(super) async fn run(globals: &GlobalArgs) -> Result<(), Failure> {
    let client = connect(globals).await?;
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
