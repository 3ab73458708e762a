//! `hearth storage`

mod get;
mod put;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::{FileEntry, FileKind, StorageArea};

use super::changes::change_each;
use super::views::FileView;
use super::{GlobalArgs, complete, connect};
use crate::error::Failure;
use crate::output;
use crate::progress::TransferMeter;

#[derive(Debug, Subcommand)]
pub(super) enum StorageCommand {
    /// List a directory of the room
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        area: AreaArgs,
        /// Include everything below the directory
        #[arg(long, short)]
        recursive: bool,
        /// Path relative to the storage's root
        #[arg(default_value = "/", add = complete::storage_paths())]
        path: String,
    },
    /// Copy a file or a directory into the room
    ///
    /// A file appears complete or not at all. The content of a directory is put below PATH; existing files
    /// with the same names are replaced. Symbolic links inside the directory stay links.
    #[command(after_help = "\
Examples:
  hearth storage put ./my-app /apps/my-app
  echo hello | hearth storage put - notes/hello.txt")]
    Put {
        #[command(flatten)]
        area: AreaArgs,
        /// File or directory on this machine, `-` for standard input
        local: PathBuf,
        /// Target path, relative to the storage's root
        #[arg(add = complete::storage_paths())]
        path: String,
    },
    /// Copy a file or a directory out of the room
    ///
    /// Symbolic links inside the directory stay links.
    #[command(after_help = "\
Examples:
  hearth storage get apps/my-app/Dockerfile
  hearth storage get /apps/my-app ./copy")]
    Get {
        #[command(flatten)]
        area: AreaArgs,
        /// Path relative to the storage's root
        #[arg(add = complete::storage_paths())]
        path: String,
        /// Target path on this machine; standard output when it is `-` or left out
        local: Option<PathBuf>,
    },
    /// Remove a file, or a directory with `--recursive`
    Rm {
        #[command(flatten)]
        area: AreaArgs,
        /// Remove a directory with everything below it
        #[arg(long, short)]
        recursive: bool,
        /// Paths relative to the storage's root
        #[arg(required = true, add = complete::storage_paths())]
        paths: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct AreaArgs {
    /// Use project storage instead of room storage
    #[arg(long)]
    project: bool,
}

impl AreaArgs {
    const fn to_wire(&self) -> StorageArea {
        if self.project { StorageArea::Project } else { StorageArea::Room }
    }
}

pub(super) async fn run(command: StorageCommand, globals: &GlobalArgs) -> Result<(), Failure> {
    match command {
        StorageCommand::Ls { area, recursive, path } => list(area.to_wire(), &path, recursive, globals).await,
        StorageCommand::Put { area, local, path } => put::run(area.to_wire(), &local, &path, globals).await,
        StorageCommand::Get { area, path, local } => {
            get::run(area.to_wire(), &path, local.as_deref(), globals).await
        }
        StorageCommand::Rm { area, recursive, paths } => {
            let client = connect(globals).await?;
            change_each("removed", &paths, globals, async |path| {
                let removing = client.remove_file(area.to_wire(), path, recursive);
                let removed = TransferMeter::wait_for(format!("removing {path}"), removing).await;
                removed.map_err(|error| {
                    hint_for_directory(
                        error.into(),
                        "add --recursive to remove a directory with all below it",
                    )
                })?;
                Ok((path.clone(), format!("removed {}", output::printable(path))))
            })
            .await
        }
    }
}

async fn list(area: StorageArea, path: &str, recursive: bool, globals: &GlobalArgs) -> Result<(), Failure> {
    let client = connect(globals).await?;
    let mut listing = client.list_files(area, path, recursive).await?;
    let mut views = Vec::new();
    while let Some(entry) = listing.next().await? {
        if globals.json {
            views.push(FileView::from(&entry));
        } else {
            output::line(&row(&entry))?;
        }
    }
    if globals.json { output::json(&views) } else { Ok(()) }
}

/// Formats one entry. A listing is printed while it arrives, so its columns have fixed widths.
fn row(entry: &FileEntry) -> String {
    let kind = match entry.kind() {
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::File => '-',
        FileKind::Other | FileKind::Unspecified => '?',
    };
    let size = if entry.kind() == FileKind::File { output::size(entry.size_bytes) } else { "-".to_owned() };
    let link =
        if entry.link_target.is_empty() { String::new() } else { format!(" -> {}", entry.link_target) };
    output::printable(&format!("{kind} {:04o} {size:>10}  {}{link}", entry.mode & 0o7777, entry.path))
}

/// Adds the hint of the command to the error that a path is a directory.
fn hint_for_directory(failure: Failure, hint: &str) -> Failure {
    if failure.detail.code == ErrorCode::IsADirectory.as_str() { failure.hint(hint) } else { failure }
}
