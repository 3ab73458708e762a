//! Completion of names that the room knows: builds, images, services, secrets, domains and paths of storage; and of the
//! rooms that this client knows. The shell runs `hearth` for each completion (`hearth completions` prints how), so a
//! lookup has a short time limit. A lookup that fails offers nothing: there is no place to show an error.

use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::time::Duration;

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use hearth_proto::v1::{FileKind, ListBuildsRequest, StorageArea};

use super::{GlobalArgs, connect};
use crate::client::Client;
use crate::error::Failure;
use crate::progress::state_name;
use crate::rooms::RoomsFile;

/// Time limit of a lookup: a person waits for it at the keyboard.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);
/// Number of builds that are offered, newest first.
const MAX_BUILDS: usize = 50;

/// A name that is offered, and what is shown beside it.
struct Offer {
    name: String,
    help: String,
}

impl Offer {
    fn new(name: &str, help: impl Into<String>) -> Self {
        Self { name: name.to_owned(), help: help.into() }
    }
}

pub(super) fn builds() -> ArgValueCompleter {
    lookup(|client, _| async move {
        let builds = client.list_builds(ListBuildsRequest::default(), MAX_BUILDS).await?;
        let offer = |build: &hearth_proto::v1::Build| {
            let tag = build.tags.first().map_or("", String::as_str);
            Offer::new(&build.build_id, format!("{} {tag}", state_name(build.state)))
        };
        Ok(builds.iter().map(offer).collect())
    })
}

pub(super) fn images() -> ArgValueCompleter {
    lookup(|client, _| async move {
        let images = client.list_images("").await?;
        let offer =
            |image: &hearth_proto::v1::Image| Offer::new(&format!("{}:{}", image.repository, image.tag), "");
        Ok(images.iter().map(offer).collect())
    })
}

pub(super) fn services() -> ArgValueCompleter {
    lookup(|client, _| async move {
        let services = client.list_services().await?;
        Ok(services.iter().map(|service| Offer::new(&service.name, "")).collect())
    })
}

pub(super) fn secrets() -> ArgValueCompleter {
    lookup(|client, _| async move {
        let secrets = client.list_secrets().await?;
        Ok(secrets.iter().map(|secret| Offer::new(&secret.name, "")).collect())
    })
}

pub(super) fn domains() -> ArgValueCompleter {
    lookup(|client, _| async move {
        let routes = client.list_routes().await?;
        Ok(routes.iter().map(|route| Offer::new(&route.domain, route.service.clone())).collect())
    })
}

/// Completes a path of storage, of the project if `--project` is given.
pub(super) fn storage_paths() -> ArgValueCompleter {
    let is_project = std::env::args_os().any(|argument| argument == "--project");
    paths_in(if is_project { StorageArea::Project } else { StorageArea::Room })
}

/// Completes the source of a mount.
pub(super) fn paths_in(area: StorageArea) -> ArgValueCompleter {
    lookup(move |client, typed| async move {
        let (directory, _) = typed.rsplit_once('/').unwrap_or_default();
        let mut entries = client.list_files(area, directory, false).await?;
        let mut offers = Vec::new();
        while let Some(entry) = entries.next().await? {
            let end = if entry.kind() == FileKind::Directory { "/" } else { "" };
            let begin = if typed.starts_with('/') { "/" } else { "" };
            offers.push(Offer::new(&format!("{begin}{}{end}", entry.path), ""));
        }
        Ok(offers)
    })
}

pub(super) fn rooms() -> ArgValueCompleter {
    ArgValueCompleter::new(|typed: &OsStr| {
        let rooms = RoomsFile::path().and_then(|path| RoomsFile::read(&path)).unwrap_or_default();
        let offers = rooms.rooms.iter().map(|(name, room)| Offer::new(name, room.addr.clone()));
        matching(&typed.to_string_lossy(), offers.collect())
    })
}

/// Makes a completer that asks the room. `find` gets the text that was typed so far.
fn lookup<F>(find: impl Fn(Client, String) -> F + Send + Sync + 'static) -> ArgValueCompleter
where
    F: Future<Output = Result<Vec<Offer>, Failure>>,
{
    ArgValueCompleter::new(move |typed: &OsStr| {
        let typed = typed.to_string_lossy().into_owned();
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
            return Vec::new();
        };
        let asking = async {
            let client = Box::pin(connect(&room_options(std::env::args_os()))).await?;
            find(client, typed.clone()).await
        };
        // The timer needs the runtime, so it is made inside of it.
        let looked_up = runtime.block_on(async { tokio::time::timeout(LOOKUP_TIMEOUT, asking).await });
        matching(&typed, looked_up.ok().and_then(Result::ok).unwrap_or_default())
    })
}

fn matching(typed: &str, offers: Vec<Offer>) -> Vec<CompletionCandidate> {
    let matching = offers.into_iter().filter(|offer| offer.name.starts_with(typed));
    let candidate = |Offer { name, help }: Offer| {
        CompletionCandidate::new(name).help(Some(help).filter(|help| !help.is_empty()).map(Into::into))
    };
    matching.map(candidate).collect()
}

/// Reads the options that select the room from the command line that is being completed.
fn room_options(arguments: impl Iterator<Item = OsString>) -> GlobalArgs {
    let mut options = GlobalArgs::default();
    let mut arguments = arguments.filter_map(|argument| argument.into_string().ok());
    while let Some(argument) = arguments.next() {
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        let place = match name.as_str() {
            "--room" => &mut options.room,
            "--addr" => &mut options.addr,
            "--token-file" => {
                options.token_file = value.or_else(|| arguments.next()).map(Into::into);
                continue;
            }
            _ => continue,
        };
        *place = value.or_else(|| arguments.next());
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_of_the_line_is_the_one_that_is_asked() {
        let line = "hearth -- hearth --room=a storage get --addr http://x:1 --token-file t apps/";
        let options = room_options(line.split(' ').map(OsString::from));
        assert_eq!((options.room.as_deref(), options.addr.as_deref()), (Some("a"), Some("http://x:1")));
        assert_eq!(options.token_file, Some("t".into()));
    }

    #[test]
    fn what_does_not_continue_the_typed_text_is_not_offered() {
        let offers = || vec![Offer::new("web", "live"), Offer::new("worker", ""), Offer::new("db", "")];
        let names = |typed| {
            let candidates = matching(typed, offers());
            candidates.iter().map(|one| one.get_value().to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names("w"), ["web", "worker"]);
        assert_eq!(names("").len(), 3);
        assert!(names("x").is_empty());
    }
}
