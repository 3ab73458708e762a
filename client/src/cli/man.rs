//! `hearth man`

use std::path::PathBuf;

use clap::Args;

use super::GlobalArgs;
use crate::error::Failure;
use crate::output;

/// Write the manual pages of all commands to a directory
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  hearth man /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// Directory for the pages; it is made if it is missing
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(super) fn run(args: &ManArgs, globals: &GlobalArgs, command: clap::Command) -> Result<(), Failure> {
    let directory = &args.directory;
    std::fs::create_dir_all(directory).map_err(|error| Failure::local("make", directory, &error))?;
    clap_mangen::generate_to(command, directory)
        .map_err(|error| Failure::local("write the manual pages to", directory, &error))?;
    if globals.json {
        return output::json(&serde_json::json!({"directory": directory.display().to_string()}));
    }
    output::note(&format!("wrote the manual pages to {}", directory.display()));
    Ok(())
}
