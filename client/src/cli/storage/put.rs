//! `hearth storage put`: the whole directory is examined before anything is sent.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use hearth_pack::link::link_destination;
use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::{FileKind, StorageArea, WriteBegin};
use serde::Serialize;

use super::super::views::FileView;
use super::super::{GlobalArgs, connect};
use crate::client::Client;
use crate::error::Failure;
use crate::output;
use crate::progress::TransferMeter;

/// Files and links of a directory, relative to it, in the order in which they are sent.
#[derive(Debug, Default)]
struct PutPlan {
    files: Vec<String>,
    /// Links with their targets; they are made last, when the files are there.
    links: Vec<(String, String)>,
    /// Size of all files.
    bytes: u64,
}

/// Number and size of the files that were put, and number of links.
#[derive(Default, Serialize)]
struct PutTotals {
    files: u64,
    bytes: u64,
    links: u64,
}

pub(super) async fn run(
    area: StorageArea,
    local: &Path,
    path: &str,
    globals: &GlobalArgs,
) -> Result<(), Failure> {
    if local == Path::new("-") {
        let client = connect(globals).await?;
        let begin = WriteBegin { area: area.into(), path: path.to_owned(), ..WriteBegin::default() };
        let meter = TransferMeter::new("sending", 0);
        let sending = client.write_file(begin, meter.metered(tokio::io::stdin()));
        let entry = meter.during(Box::pin(sending)).await?;
        return if globals.json { output::json(&FileView::from(&entry)) } else { Ok(()) };
    }
    let metadata = std::fs::metadata(local).map_err(|error| unreadable(local, &error))?;
    let mut sent = PutTotals::default();
    if metadata.is_dir() {
        let plan = PutPlan::of(local)?;
        let client = connect(globals).await?;
        let meter = TransferMeter::new("sending", plan.bytes);
        let putting = put_all(&client, area, (local, path), &plan, (&meter, &mut sent));
        meter.during(Box::pin(putting)).await?;
    } else {
        let client = connect(globals).await?;
        let meter = TransferMeter::new("sending", metadata.len());
        let putting = put_file(&client, area, (local, path), (&meter, &mut sent));
        meter.during(Box::pin(putting)).await?;
    }
    let linked = match sent.links {
        0 => String::new(),
        links => format!(" and {}", output::count(links, "link")),
    };
    let files = output::count(sent.files, "file");
    output::note(&format!("put {files}{linked} ({})", output::size(sent.bytes)));
    if globals.json { output::json(&sent) } else { Ok(()) }
}

impl PutPlan {
    /// Lists a directory. Whatever cannot be sent is an error that names it.
    fn of(local: &Path) -> Result<Self, Failure> {
        let mut plan = Self::default();
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
                    plan.bytes += kind.len();
                    plan.files.push(utf8(&relative)?);
                } else if kind.is_symlink() {
                    let target = std::fs::read_link(&full).map_err(|error| unreadable(&full, &error))?;
                    if link_destination(&relative, &target).is_none() {
                        return Err(Failure::usage(format!(
                            "`{}` is a link to `{}`, which leads out of `{}`",
                            full.display(),
                            target.display(),
                            local.display()
                        ))
                        .hint(
                            "put a directory that contains both, or replace the link by what it links to",
                        ));
                    }
                    plan.links.push((utf8(&relative)?, utf8(&target)?));
                } else {
                    let message = format!("`{}` is a socket, fifo or device", full.display());
                    return Err(Failure::usage(message).hint("move it out of the directory"));
                }
            }
        }
        Ok(plan)
    }
}

fn utf8(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Failure::usage(format!("the name `{}` is not UTF-8", path.display()))
            .hint("hearth pack keeps such names")
    })
}

async fn put_all(
    client: &Client,
    area: StorageArea,
    (local, path): (&Path, &str),
    plan: &PutPlan,
    (meter, sent): (&TransferMeter, &mut PutTotals),
) -> Result<(), Failure> {
    for name in &plan.files {
        put_file(client, area, (&local.join(name), &format!("{path}/{name}")), (meter, sent)).await?;
    }
    for (name, target) in &plan.links {
        put_link(client, area, &format!("{path}/{name}"), target).await?;
        sent.links += 1;
    }
    Ok(())
}

async fn put_file(
    client: &Client,
    area: StorageArea,
    (local, path): (&Path, &str),
    (meter, sent): (&TransferMeter, &mut PutTotals),
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
        ..WriteBegin::default()
    };
    client.write_file(begin, meter.metered(file)).await?;
    sent.files += 1;
    sent.bytes += metadata.len();
    Ok(())
}

async fn put_link(client: &Client, area: StorageArea, path: &str, target: &str) -> Result<(), Failure> {
    let begin = WriteBegin {
        area: area.into(),
        path: path.to_owned(),
        link_target: target.to_owned(),
        ..WriteBegin::default()
    };
    let made = client.write_file(begin, tokio::io::empty()).await?;
    if made.kind() == FileKind::Symlink {
        return Ok(());
    }
    let message = format!("hearthd made `{path}` a file instead of a link");
    Err(Failure::failed(ErrorCode::Protocol, message).hint("its version is older than that of this client: update hearthd, or put the directory without its links"))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::local("read", path, error);
    if error.kind() == io::ErrorKind::NotFound { Failure::usage(failure.detail.message) } else { failure }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_directory_with_links_is_listed_and_one_that_leads_out_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        std::fs::create_dir_all(at("node_modules/.bin")).unwrap();
        std::fs::write(at("node_modules/lint.js"), "x").unwrap();
        symlink("../lint.js", at("node_modules/.bin/lint")).unwrap();
        symlink("no/such", at("dangling")).unwrap();
        let plan = PutPlan::of(directory.path()).unwrap();
        assert_eq!(plan.files, ["node_modules/lint.js"]);
        let link = |name: &str, target: &str| (name.to_owned(), target.to_owned());
        assert_eq!(plan.links, [link("dangling", "no/such"), link("node_modules/.bin/lint", "../lint.js")]);
        symlink("../../outside", at("node_modules/out")).unwrap();
        let message = PutPlan::of(directory.path()).unwrap_err().detail.message;
        assert!(message.contains("node_modules/out") && message.contains("leads out of"), "{message}");
    }
}
