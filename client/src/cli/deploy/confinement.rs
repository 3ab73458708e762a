//! Flags that restrict a service further than the default, or give it more capabilities.

use clap::Args;
use hearth_proto::v1::Capabilities;

/// Keyword that takes back all added capabilities.
const NONE: &str = "none";
const ALLOWED_CAPABILITIES: [&str; 2] = ["NET_RAW", "MKNOD"];

#[derive(Debug, Default, Args)]
pub(super) struct ConfinementArgs {
    /// Block all connections between this service and other services of the room
    #[arg(long, conflicts_with = "not_isolated", help_heading = "Process")]
    isolated: bool,
    /// Allow connections between this service and other services of the room (the default)
    #[arg(long, help_heading = "Process")]
    not_isolated: bool,
    /// Add a capability to those that every service has, `NET_RAW` or `MKNOD`, if the room's operator allows it;
    /// `none` removes all added capabilities
    #[arg(long, value_name = "CAPABILITY", value_parser = capability, help_heading = "Process")]
    cap_add: Vec<String>,
}

impl ConfinementArgs {
    /// Returns `None` when neither flag is given.
    pub(super) fn isolated(&self) -> Option<bool> {
        if self.isolated { Some(true) } else { self.not_isolated.then_some(false) }
    }

    /// Returns `None` when no capability flag is given.
    pub(super) fn capabilities(&self) -> Result<Option<Capabilities>, String> {
        let given = self.cap_add.iter().filter(|name| *name != NONE);
        let names: Vec<String> = given.cloned().collect();
        match (self.cap_add.is_empty(), names.len() < self.cap_add.len()) {
            (true, _) => Ok(None),
            (false, true) if !names.is_empty() => {
                Err(format!("`{NONE}` takes all capabilities back, and `{}` is given too", names[0]))
            }
            (false, _) => Ok(Some(Capabilities { names })),
        }
    }
}

/// Parses the name of a capability into the daemon's spelling: capital letters, without `CAP_`.
pub(in crate::cli) fn capability(text: &str) -> Result<String, String> {
    if text == NONE {
        return Ok(text.to_owned());
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if ALLOWED_CAPABILITIES.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(format!(
        "`{text}` is not a capability that a service can be given; there are {}",
        ALLOWED_CAPABILITIES.join(" and ")
    ))
}
