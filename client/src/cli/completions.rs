//! `hearth completions`

use clap::Args;
use clap_complete::Shell;

use super::GlobalArgs;
use crate::error::Failure;
use crate::output;

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  hearth completions bash > /etc/bash_completion.d/hearth")]
pub(super) struct CompletionsArgs {
    shell: Shell,
}

pub(super) fn run(
    args: &CompletionsArgs,
    globals: &GlobalArgs,
    command: &mut clap::Command,
) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "hearth", &mut script);
    let script = String::from_utf8_lossy(&script);
    if globals.json {
        return output::json(&serde_json::json!({"shell": args.shell.to_string(), "script": script}));
    }
    output::line(script.trim_end())
}
