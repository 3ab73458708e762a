//! `hearth storage`

use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use clap::{Args, Subcommand};
use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::{FileEntry, FileKind, StorageArea, WriteBegin};
use serde::Serialize;

use super::changes::change_each;
use super::content::ContentOutput;
use super::views::FileView;
use super::{GlobalArgs, complete, connect};
use crate::client::{Client, FileContent};
use crate::error::Failure;
use crate::output::{self, AtomicFile};

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
    /// with the same names are replaced.
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
        StorageCommand::Put { area, local, path } => put(area.to_wire(), &local, &path, globals).await,
        StorageCommand::Get { area, path, local } => {
            get(area.to_wire(), &path, local.as_deref(), globals).await
        }
        StorageCommand::Rm { area, recursive, paths } => {
            let client = connect(globals).await?;
            change_each("removed", &paths, globals, async |path| {
                let removed = client.remove_file(area.to_wire(), path, recursive).await;
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

async fn put(area: StorageArea, local: &Path, path: &str, globals: &GlobalArgs) -> Result<(), Failure> {
    if local == Path::new("-") {
        let client = connect(globals).await?;
        let begin = WriteBegin { area: area.into(), path: path.to_owned(), mode: 0, size_bytes: None };
        let entry = client.write_file(begin, tokio::io::stdin()).await?;
        return if globals.json { output::json(&FileView::from(&entry)) } else { Ok(()) };
    }
    let metadata = std::fs::metadata(local).map_err(|error| unreadable(local, &error))?;
    let client = connect(globals).await?;
    let mut sent = PutTotals::default();
    if metadata.is_dir() {
        let mut directories = vec![PathBuf::new()];
        while let Some(directory) = directories.pop() {
            let here = local.join(&directory);
            let mut names = Vec::new();
            for entry in std::fs::read_dir(&here).map_err(|error| unreadable(&here, &error))? {
                names.push(entry.map_err(|error| unreadable(&here, &error))?.file_name());
            }
            names.sort();
            for name in names {
                let relative = directory.join(name);
                let full = local.join(&relative);
                let kind = std::fs::symlink_metadata(&full).map_err(|error| unreadable(&full, &error))?;
                if kind.is_dir() {
                    directories.push(relative);
                } else if kind.is_file() {
                    let Some(name) = relative.to_str() else {
                        return Err(Failure::usage(format!(
                            "the name `{}` is not UTF-8",
                            relative.display()
                        ))
                        .hint("hearth pack keeps such names"));
                    };
                    put_file(&client, area, &full, &format!("{path}/{name}"), &mut sent).await?;
                } else {
                    return Err(Failure::usage(format!(
                        "`{}` is neither a file nor a directory",
                        full.display()
                    ))
                    .hint(
                        "links and special files are kept by `hearth pack`; leave it out or put its target",
                    ));
                }
            }
        }
    } else {
        put_file(&client, area, local, path, &mut sent).await?;
    }
    output::note(&format!("put {} ({})", output::count(sent.files, "file"), output::size(sent.bytes)));
    if globals.json { output::json(&sent) } else { Ok(()) }
}

/// Number and size of the files that were put.
#[derive(Default, Serialize)]
struct PutTotals {
    files: u64,
    bytes: u64,
}

async fn put_file(
    client: &Client,
    area: StorageArea,
    local: &Path,
    path: &str,
    sent: &mut PutTotals,
) -> Result<(), Failure> {
    let file = tokio::fs::File::open(local).await.map_err(|error| unreadable(local, &error))?;
    let metadata = file.metadata().await.map_err(|error| unreadable(local, &error))?;
    if !metadata.is_file() {
        return Err(Failure::usage(format!("`{}` is neither a file nor a directory", local.display())));
    }
    let begin = WriteBegin {
        area: area.into(),
        path: path.to_owned(),
        mode: metadata.permissions().mode() & 0o777,
        size_bytes: Some(metadata.len()),
    };
    client.write_file(begin, file).await?;
    sent.files += 1;
    sent.bytes += metadata.len();
    Ok(())
}

async fn get(
    area: StorageArea,
    path: &str,
    local: Option<&Path>,
    globals: &GlobalArgs,
) -> Result<(), Failure> {
    let client = connect(globals).await?;
    let Some(local) = local.filter(|local| *local != Path::new("-")) else {
        let content = client.read_file(area, path).await;
        let mut content = content.map_err(|error| {
            let hint = "name a local directory as well, to which it is copied: hearth storage get PATH LOCAL";
            hint_for_directory(error.into(), hint)
        })?;
        let mut left = content.entry.size_bytes;
        let mut shown = ContentOutput::new(globals);
        while let Some(chunk) = content.next().await? {
            shown.write(&chunk)?;
            left = left.saturating_sub(chunk.len() as u64);
        }
        complete(path, left)?;
        return shown.finish();
    };
    let mut listing = client.list_files(area, path, true).await?;
    let root = path.trim_matches('/');
    let mut directory = true;
    while let Some(entry) = listing.next().await? {
        if entry.path == root && entry.kind() != FileKind::Directory {
            directory = false;
            save(client.read_file(area, path).await?, local).await?;
            continue;
        }
        let target = local.join(path_below(root, &entry.path)?);
        match entry.kind() {
            FileKind::Directory => make_directory(&target)?,
            FileKind::File => {
                make_directory(target.parent().unwrap_or(local))?;
                save(client.read_file(area, &entry.path).await?, &target).await?;
            }
            FileKind::Symlink | FileKind::Other | FileKind::Unspecified => {
                return Err(Failure::failed(
                    ErrorCode::NotAFile,
                    format!("`{}` is a link or a special file", entry.path),
                )
                .hint("get the files beside it one by one"));
            }
        }
    }
    // Create an empty directory, which has no entries, as well.
    if directory {
        make_directory(local)?;
    }
    if globals.json { output::json(&serde_json::json!({"path": path, "local": local})) } else { Ok(()) }
}

/// Adds the hint of the command to the error that a path is a directory.
fn hint_for_directory(failure: Failure, hint: &str) -> Failure {
    if failure.detail.code == ErrorCode::IsADirectory.as_str() { failure.hint(hint) } else { failure }
}

/// Returns the path relative to `root`. Guards against a daemon that lists paths outside of the target.
fn path_below(root: &str, path: &str) -> Result<PathBuf, Failure> {
    let relative =
        if root.is_empty() { Some(path) } else { path.strip_prefix(root).and_then(|p| p.strip_prefix('/')) };
    let relative = relative
        .map(Path::new)
        .filter(|relative| relative.components().all(|component| matches!(component, Component::Normal(_))));
    let wrong = || {
        Failure::failed(
            ErrorCode::Protocol,
            format!("the daemon listed `{path}`, which is not below `{root}`"),
        )
    };
    Ok(relative.ok_or_else(wrong)?.to_owned())
}

async fn save(mut content: FileContent, target: &Path) -> Result<(), Failure> {
    let mode = if content.entry.mode == 0 { 0o644 } else { content.entry.mode & 0o777 };
    let mut file = AtomicFile::create(target, mode)?;
    let mut left = content.entry.size_bytes;
    while let Some(chunk) = content.next().await? {
        file.file_mut().write_all(&chunk).map_err(|error| Failure::local("write", target, &error))?;
        left = left.saturating_sub(chunk.len() as u64);
    }
    complete(&content.entry.path, left)?;
    file.commit()
}

fn complete(path: &str, left: u64) -> Result<(), Failure> {
    if left == 0 {
        return Ok(());
    }
    Err(Failure::failed(
        ErrorCode::CutOff,
        format!("`{path}` became shorter while it was read; {left} bytes are missing"),
    ))
}

fn make_directory(path: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(path).map_err(|error| Failure::local("make", path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::local("read", path, error);
    if error.kind() == io::ErrorKind::NotFound { Failure::usage(failure.detail.message) } else { failure }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_never_leads_out_of_the_target() {
        assert_eq!(path_below("a/b", "a/b/c/d").unwrap(), Path::new("c/d"));
        assert_eq!(path_below("", "c").unwrap(), Path::new("c"));
        for (root, path) in [("a", "b/c"), ("a", "ab"), ("a", "a/../../x"), ("", "/etc/passwd"), ("", "../x")]
        {
            assert!(path_below(root, path).is_err(), "{root} {path}");
        }
    }
}
