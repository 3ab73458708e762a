//! `hearth token`

use std::time::Duration;

use clap::Subcommand;
use hearth_proto::v1::MintTokenRequest;
use serde::Serialize;

use super::{Globals, connect};
use crate::error::Failure;
use crate::{duration, output};

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a participant token of the room and print it
    ///
    /// Works on the daemon's own machine (over its unix socket), and with a token that has the
    /// `admin` grant.
    #[command(after_help = "\
Examples:
  hearth token mint --ttl 12h > studio.token
  hearth token mint --name ci --scope '{\"containers\": {\"registry\": {\"pull\": [\"*\"]}}}'
  hearth token mint --name ci-7 --scope agentDefault --domain ci")]
    Mint {
        /// Name of the participant
        #[arg(long, default_value = "participant")]
        name: String,
        /// What it may do: `userDefault`, `agentDefault`, `full`, or a JSON object with the `api` scope
        #[arg(long, default_value = "userDefault")]
        scope: String,
        /// How long it is good, such as `12h` or `7d`
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration::parse)]
        ttl: Duration,
        /// Trust domain that it builds in, with a builder and cache shared by all who have it [default: its own]
        #[arg(long, value_name = "DOMAIN")]
        domain: Option<String>,
    },
}

#[derive(Serialize)]
struct TokenView {
    token: String,
    expires_at: Option<String>,
}

pub(super) async fn run(command: TokenCommand, globals: &Globals) -> Result<(), Failure> {
    let TokenCommand::Mint { name, scope, ttl, domain } = command;
    if let Err(error) = check_scope(&scope) {
        return Err(Failure::usage(error));
    }
    let client = connect(globals).await?;
    let (ttl, domain) = (Some(duration::to_wire(ttl)), domain.unwrap_or_default());
    let minted = client.mint_token(MintTokenRequest { name, scope, ttl, domain }).await?;
    let expires_at = output::timestamp(minted.expires_at.as_ref()).map(|time| time.to_string());
    if globals.json {
        return output::json(&TokenView { token: minted.token, expires_at });
    }
    output::line(&minted.token)?;
    if let Some(time) = expires_at {
        output::note(&format!("good until {time}"));
    }
    Ok(())
}

/// Whether a scope is a named one or JSON; what it may hold is the daemon's to say.
pub(super) fn check_scope(scope: &str) -> Result<(), String> {
    let named = matches!(scope, "userDefault" | "agentDefault" | "full");
    let is_object = || serde_json::from_str::<serde_json::Value>(scope).is_ok_and(|value| value.is_object());
    if named || is_object() {
        return Ok(());
    }
    Err(format!("scope `{scope}` is none of `userDefault`, `agentDefault`, `full`, and no JSON object"))
}
