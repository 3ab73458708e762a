//! `hearth completions`

use clap::Args;
use clap_complete::Shell;

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

pub(super) fn run(args: &CompletionsArgs, command: &mut clap::Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "hearth", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end())
}
