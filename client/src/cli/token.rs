//! `hearth token`

use std::time::Duration;

use clap::Subcommand;
use hearth_proto::v1::{MintTokenRequest, RotateTokenSecretRequest, TokenRevocation};
use serde::Serialize;

use super::{GlobalArgs, connect};
use crate::error::Failure;
use crate::{duration, output};

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a participant token of the room and print it
    ///
    /// Works on the daemon's own machine (through its unix socket), and with a token that has the `admin`
    /// grant.
    #[command(after_help = "\
Examples:
  hearth token mint --ttl 12h > studio.token
  hearth token mint --name ci --scope '{\"containers\": {\"registry\": {\"pull\": [\"*\"]}}}'
  hearth token mint --name ci-7 --scope agentDefault --domain ci")]
    Mint {
        /// Name of the participant
        #[arg(long, default_value = "participant")]
        name: String,
        /// Scope of the token: `userDefault`, `agentDefault`, `full`, or a JSON object with the `api` scope
        #[arg(long, default_value = "userDefault")]
        scope: String,
        /// Lifetime of the token, such as `12h` or `7d`
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration::parse)]
        ttl: Duration,
        /// Trust domain of the participant's builds; all participants of a domain share one builder and cache
        /// [default: its own]
        #[arg(long, value_name = "DOMAIN")]
        domain: Option<String>,
    },
    /// Replace the secret that signs the room's tokens
    ///
    /// Tokens of the previous secret stay valid for the grace time. Services that run with such a token are
    /// restarted, one instance after the other as with `hearth services restart`, so that they receive a
    /// new one.
    #[command(after_help = "\
Examples:
  hearth token rotate
  hearth token rotate --grace 0s      # all existing tokens end at once")]
    Rotate {
        /// Time that existing tokens stay valid, such as `0s` or `7d`, at most 30d
        #[arg(long, value_name = "DURATION", default_value = "1d", value_parser = parse_grace)]
        grace: Duration,
    },
    /// Revoke all tokens of a caller that were made before now
    ///
    /// Calls that use such a token end at once: processes in services, followed logs, uploads and upgraded
    /// connections. The tokens of services that the participant deployed before now, and of services that
    /// these services deployed, are refused as well. Such a service gets a valid token when another
    /// participant, or this one with a new token, deploys it again. Submitted builds continue.
    Revoke {
        /// Name of the caller: the participant name of the token, or `service:ID`
        name: String,
    },
    /// Show the callers whose tokens were revoked
    Revoked,
}

/// Maximum grace time that a daemon accepts.
const MAX_GRACE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Parses a grace time, which in contrast to other durations may be zero.
fn parse_grace(text: &str) -> Result<Duration, duration::DurationError> {
    if matches!(text.trim(), "0" | "0s") {
        Ok(Duration::ZERO)
    } else {
        duration::parse_at_most(text, MAX_GRACE)
    }
}

#[derive(Serialize)]
struct RotationView<'a> {
    accepted_until: Option<String>,
    services: &'a [String],
    not_restarted: &'a [String],
}

#[derive(Serialize)]
struct RevocationView<'a> {
    name: &'a str,
    before: Option<String>,
    revoked_by: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    note: &'a str,
}

impl<'a> RevocationView<'a> {
    fn of(revocation: &'a TokenRevocation) -> Self {
        Self {
            name: &revocation.name,
            before: output::timestamp(revocation.before.as_ref()).map(|time| time.to_string()),
            revoked_by: &revocation.revoked_by,
            note: &revocation.note,
        }
    }
}

#[derive(Serialize)]
struct TokenView {
    token: String,
    expires_at: Option<String>,
}

pub(super) async fn run(command: TokenCommand, globals: &GlobalArgs) -> Result<(), Failure> {
    match command {
        TokenCommand::Mint { name, scope, ttl, domain } => {
            if let Err(error) = check_scope(&scope) {
                return Err(Failure::usage(error));
            }
            let (ttl, domain) = (Some(duration::to_wire(ttl)), domain.unwrap_or_default());
            mint(MintTokenRequest { name, scope, ttl, domain }, globals).await
        }
        TokenCommand::Rotate { grace } => rotate(grace, globals).await,
        TokenCommand::Revoke { name } => {
            let revocation = connect(globals).await?.revoke_tokens(name).await?;
            let view = RevocationView::of(&revocation);
            if globals.json {
                return output::json(&view);
            }
            output::note(&format!(
                "tokens of `{}` that were made before now are refused",
                output::printable(view.name)
            ));
            if !view.note.is_empty() {
                output::note(&format!("warning: {}", output::printable(view.note)));
            }
            Ok(())
        }
        TokenCommand::Revoked => revoked(globals).await,
    }
}

async fn mint(request: MintTokenRequest, globals: &GlobalArgs) -> Result<(), Failure> {
    let minted = connect(globals).await?.mint_token(request).await?;
    let expires_at = output::timestamp(minted.expires_at.as_ref()).map(|time| time.to_string());
    if globals.json {
        return output::json(&TokenView { token: minted.token, expires_at });
    }
    output::line(&minted.token)?;
    if let Some(time) = expires_at {
        output::note(&format!("valid until {time}"));
    }
    Ok(())
}

async fn rotate(grace: Duration, globals: &GlobalArgs) -> Result<(), Failure> {
    let request = RotateTokenSecretRequest { grace: Some(duration::to_wire(grace)) };
    let rotated = connect(globals).await?.rotate_token_secret(request).await?;
    let until = output::timestamp(rotated.accepted_until.as_ref()).map(|time| time.to_string());
    if globals.json {
        return output::json(&RotationView {
            accepted_until: until,
            services: &rotated.services,
            not_restarted: &rotated.not_restarted,
        });
    }
    match until {
        Some(until) if !grace.is_zero() => {
            output::note(&format!(
                "the secret was replaced; tokens of the previous secret are valid until {until}"
            ));
        }
        _ => output::note("the secret was replaced; tokens of the previous secret are refused"),
    }
    for service in &rotated.services {
        let service = output::printable(service);
        output::note(&format!(
            "service `{service}` has a token of the previous secret and is being restarted to receive a new one"
        ));
    }
    for service in &rotated.not_restarted {
        let service = output::printable(service);
        output::note(&format!(
            "service `{service}` could not be restarted; give it a new token with: hearth services restart {service}"
        ));
    }
    Ok(())
}

async fn revoked(globals: &GlobalArgs) -> Result<(), Failure> {
    let revocations = connect(globals).await?.token_revocations().await?;
    let views: Vec<RevocationView<'_>> = revocations.iter().map(RevocationView::of).collect();
    if globals.json {
        return output::json(&views);
    }
    let row = |view: &RevocationView<'_>| {
        vec![
            output::printable(view.name),
            view.before.clone().unwrap_or_default(),
            output::printable(view.revoked_by),
        ]
    };
    let rows: Vec<_> = views.iter().map(row).collect();
    output::table(&["NAME", "MADE BEFORE", "REVOKED BY"], &rows)
}

/// Checks that a scope is one of the names or a JSON object. The daemon validates the content of the object.
pub(super) fn check_scope(scope: &str) -> Result<(), String> {
    let named = matches!(scope, "userDefault" | "agentDefault" | "full");
    let is_object = || serde_json::from_str::<serde_json::Value>(scope).is_ok_and(|value| value.is_object());
    if named || is_object() {
        return Ok(());
    }
    Err(format!("scope `{scope}` is none of `userDefault`, `agentDefault` and `full`, and not a JSON object"))
}
