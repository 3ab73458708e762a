//! Flags that say what a service may do less than every service, or more.

use clap::Args;
use hearth_proto::v1::Capabilities;

/// Takes back all that was given.
const NONE: &str = "none";
const KNOWN: [&str; 2] = ["NET_RAW", "MKNOD"];

#[derive(Debug, Default, Args)]
pub(super) struct ConfinementArgs {
    /// It reaches no other service of the room, and none reaches it
    #[arg(long, conflicts_with = "not_isolated", help_heading = "Process")]
    isolated: bool,
    /// It reaches other services of the room and they reach it, as by default
    #[arg(long, help_heading = "Process")]
    not_isolated: bool,
    /// A capability beside those that every service has, `NET_RAW` or `MKNOD`, where the room's operator allows it;
    /// `none` takes back what was given
    #[arg(long, value_name = "CAPABILITY", value_parser = capability, help_heading = "Process")]
    cap_add: Vec<String>,
}

impl ConfinementArgs {
    /// None where nothing is said.
    pub(super) fn isolated(&self) -> Option<bool> {
        if self.isolated { Some(true) } else { self.not_isolated.then_some(false) }
    }

    /// None where nothing is said.
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

/// Parses the name of a capability into the daemon's spelling: capitals, without `CAP_`.
pub(in crate::cli) fn capability(text: &str) -> Result<String, String> {
    if text == NONE {
        return Ok(text.to_owned());
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if KNOWN.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(format!(
        "`{text}` is not a capability that a service can be given; there are {}",
        KNOWN.join(" and ")
    ))
}
