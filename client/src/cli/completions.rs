//! `hearth completions`

use clap::Args;
use clap_complete::Shell;
use clap_complete::env::Shells;
use hearth_proto::error_code::ErrorCode;

use super::GlobalArgs;
use crate::error::Failure;
use crate::output;

/// Name of the variable with which a shell asks this program for completions.
pub const COMPLETION_VARIABLE: &str = "COMPLETE";

/// Print a completion script for a shell
///
/// The script asks `hearth` itself, so that builds, images, services, secrets, rooms and paths of storage are
/// completed as well.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  hearth completions bash > /etc/bash_completion.d/hearth")]
pub(super) struct CompletionsArgs {
    /// Shell that reads the script
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs, globals: &GlobalArgs) -> Result<(), Failure> {
    let name = args.shell.to_string();
    let shells = Shells::builtins();
    let mut script = Vec::new();
    let completer = shells.completer(&name).ok_or_else(|| {
        Failure::failed(ErrorCode::Internal, format!("there is no completion script for {name}"))
    })?;
    completer.write_registration(COMPLETION_VARIABLE, "hearth", "hearth", "hearth", &mut script)?;
    let script = String::from_utf8_lossy(&script);
    if globals.json {
        return output::json(&serde_json::json!({"shell": name, "script": script}));
    }
    output::line(script.trim_end())
}
