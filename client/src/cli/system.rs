//! `hearth doctor` and `hearth system`

mod usage;

use clap::Subcommand;
use serde::Serialize;

use super::{Globals, connect};
use crate::error::Failure;
use crate::output;

#[derive(Debug, Subcommand)]
pub(super) enum SystemCommand {
    /// Show what callers hold on the daemon's disk: packs, images, files, logs, unfinished uploads
    ///
    /// Administrators see everybody, others themselves. An upload of which nothing comes ends by itself.
    #[command(after_help = "Examples:\n  hearth system df\n  hearth system df --json")]
    Df,
}

pub(super) async fn run_command(command: SystemCommand, globals: &Globals) -> Result<(), Failure> {
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
}

#[derive(Serialize)]
struct ComponentView<'a> {
    name: &'a str,
    ready: bool,
    detail: &'a str,
}

/// Shows the daemon and its parts; fails when one of them is not ready.
pub(super) async fn run(globals: &Globals) -> Result<(), Failure> {
    let client = connect(globals).await?;
    let info = client.info().await?;
    let component = |c: &hearth_proto::v1::Component| (c.name.clone(), c.ready, c.detail.clone());
    let components: Vec<_> = info.components.iter().map(component).collect();
    if globals.json {
        output::json(&SystemView {
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
        })?;
    } else {
        output::line(&format!("room {} at {}, hearthd {}", info.room, client.address(), info.version))?;
        output::line(&format!("registry {}, platform {}", info.room_registries.join(", "), info.platform))?;
        let row = |(name, ready, detail): &(String, bool, String)| {
            let state = if *ready { "ready" } else { "NOT READY" };
            vec![name.clone(), state.to_owned(), output::printable(detail)]
        };
        output::table(&["COMPONENT", "STATE", "DETAIL"], &components.iter().map(row).collect::<Vec<_>>())?;
    }
    if info.ready {
        return Ok(());
    }
    let missing: Vec<&str> = components.iter().filter(|c| !c.1).map(|c| c.0.as_str()).collect();
    Err(Failure::failed("not_ready", format!("room {} is not ready: {}", info.room, missing.join(", "))))
}
