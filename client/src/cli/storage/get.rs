//! `hearth storage get`: the whole directory is examined before anything is written.

use std::io::{self, Write as _};
use std::path::{Component, Path, PathBuf};

use hearth_pack::link::link_destination;
use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::{FileKind, StorageArea};

use super::super::content::ContentOutput;
use super::super::{GlobalArgs, connect};
use super::hint_for_directory;
use crate::client::{Client, FileContent};
use crate::error::Failure;
use crate::output::{self, AtomicFile};
use crate::progress::TransferMeter;

/// Maximum number of entries of a directory that is copied.
const MAX_ENTRIES: usize = 1_000_000;

/// What a directory of the room contains.
#[derive(Default)]
struct GetPlan {
    directories: Vec<PathBuf>,
    /// Paths in the room, with those in the target.
    files: Vec<(String, PathBuf)>,
    /// Size of all files.
    bytes: u64,
    /// Links with their targets; they are made last, since nothing is written through a link.
    links: Vec<(PathBuf, String)>,
    /// True if the path is a file and not a directory.
    is_file: bool,
}

pub(super) async fn run(
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
    let plan = TransferMeter::wait_for("listing", GetPlan::of(&client, area, path)).await?;
    let meter = TransferMeter::new("receiving", plan.bytes);
    if plan.is_file {
        let content = client.read_file(area, path).await?;
        meter.during(save(content, local, &meter)).await?;
    } else {
        meter.during(plan.copy(&client, area, local, &meter)).await?;
    }
    if globals.json {
        output::json(&serde_json::json!({"path": path, "local": local.display().to_string()}))
    } else {
        Ok(())
    }
}

impl GetPlan {
    /// Lists a path of the room. Whatever cannot be copied is an error that names it.
    async fn of(client: &Client, area: StorageArea, path: &str) -> Result<Self, Failure> {
        let mut plan = Self::default();
        let mut listing = client.list_files(area, path, true).await?;
        let root = path.trim_matches('/');
        let mut count = 0;
        while let Some(entry) = listing.next().await? {
            if entry.path == root && entry.kind() != FileKind::Directory {
                plan.bytes = entry.size_bytes;
                plan.is_file = true;
                continue;
            }
            count += 1;
            if count > MAX_ENTRIES {
                let message = format!("`{path}` has more than {MAX_ENTRIES} entries");
                return Err(
                    Failure::failed(ErrorCode::NotAFile, message).hint("get its directories one by one")
                );
            }
            let relative = path_below(root, &entry.path)?;
            match entry.kind() {
                FileKind::Directory => plan.directories.push(relative),
                FileKind::File => {
                    plan.bytes += entry.size_bytes;
                    plan.files.push((entry.path, relative));
                }
                FileKind::Symlink if link_destination(&relative, Path::new(&entry.link_target)).is_some() => {
                    plan.links.push((relative, entry.link_target));
                }
                FileKind::Symlink => {
                    let (link, target) = (&entry.path, &entry.link_target);
                    let message = format!("`{link}` is a link to `{target}`, which leads out of `{path}`");
                    return Err(Failure::failed(ErrorCode::NotAFile, message)
                        .hint("get a directory that contains both, or the files beside it one by one"));
                }
                FileKind::Other | FileKind::Unspecified => {
                    let message = format!("`{}` is a socket, fifo or device", entry.path);
                    return Err(Failure::failed(ErrorCode::NotAFile, message)
                        .hint("get the files beside it one by one"));
                }
            }
        }
        Ok(plan)
    }
}

impl GetPlan {
    async fn copy(
        &self,
        client: &Client,
        area: StorageArea,
        local: &Path,
        meter: &TransferMeter,
    ) -> Result<(), Failure> {
        // Create an empty directory, which has no entries, as well.
        std::fs::create_dir_all(local).map_err(|error| Failure::local("make", local, &error))?;
        for directory in &self.directories {
            make_directory(local, directory)?;
        }
        for (path, target) in &self.files {
            make_directory(local, target.parent().unwrap_or(Path::new("")))?;
            save(client.read_file(area, path).await?, &local.join(target), meter).await?;
        }
        for (link, target) in &self.links {
            make_directory(local, link.parent().unwrap_or(Path::new("")))?;
            let link = local.join(link);
            make_link(&link, target).map_err(|error| Failure::local("make the link", &link, &error))?;
        }
        Ok(())
    }
}

/// Makes a link, and replaces a file or link with that name.
fn make_link(link: &Path, target: &str) -> io::Result<()> {
    let directory = link.parent().filter(|directory| !directory.as_os_str().is_empty());
    let made = tempfile::Builder::new()
        .prefix(".hearth-")
        .make_in(directory.unwrap_or(Path::new(".")), |path| std::os::unix::fs::symlink(target, path))?;
    made.into_temp_path().persist(link).map_err(|error| error.error)
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

async fn save(mut content: FileContent, target: &Path, meter: &TransferMeter) -> Result<(), Failure> {
    let mode = if content.entry.mode == 0 { 0o644 } else { content.entry.mode & 0o777 };
    let mut file = AtomicFile::create(target, mode)?;
    let mut left = content.entry.size_bytes;
    while let Some(chunk) = content.next().await? {
        file.file_mut().write_all(&chunk).map_err(|error| Failure::local("write", target, &error))?;
        left = left.saturating_sub(chunk.len() as u64);
        meter.add(chunk.len() as u64);
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

/// Makes a directory below `local`. A link on the way is refused: an earlier copy may have made it, and together with
/// other links it may lead out of `local`.
fn make_directory(local: &Path, path: &Path) -> Result<(), Failure> {
    let mut directory = local.to_owned();
    for name in path.components() {
        directory.push(name);
        match std::fs::symlink_metadata(&directory) {
            Ok(found) if found.is_symlink() => {
                let message =
                    format!("`{}` is a link here, and a directory in the room", directory.display());
                return Err(Failure::failed(ErrorCode::NotADirectory, message)
                    .hint("remove the link, or name another target"));
            }
            Ok(found) if found.is_dir() => {}
            Ok(_) | Err(_) => {
                std::fs::create_dir(&directory)
                    .map_err(|error| Failure::local("make", &directory, &error))?;
            }
        }
    }
    Ok(())
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

    #[test]
    fn nothing_is_made_through_a_link_of_an_earlier_copy() {
        let (target, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make_directory(target.path(), Path::new("a/b")).unwrap();
        make_directory(target.path(), Path::new("a/b/c")).unwrap();
        make_link(&target.path().join("a/out"), outside.path().to_str().unwrap()).unwrap();
        for path in ["a/out", "a/out/new"] {
            let failure = make_directory(target.path(), Path::new(path)).unwrap_err();
            assert!(failure.detail.message.contains("is a link here"), "{}", failure.detail.message);
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(target.path().join("a/b/c").is_dir());
    }
}
