//! Remote sources of ADD: the daemon fetches the files itself, and lets the builder fetch repositories from hosts that
//! builds may reach. The source policy of the solve denies every other URL.

use std::collections::BTreeMap;
use std::time::Instant;

use super::super::dockerfile::{Download, NamedRepository, Place};
use super::super::port::{DownloadRequest, Downloaded, PinnedDownload};
use super::super::publisher::Publisher;
use super::super::service::{Active, Shared};
use super::faults::{log_fault_of, stopped};
use super::images::at;
use crate::model::MountTarget;
use crate::model::build::{BuildSource, EventKind, LogStream};
use crate::model::fault::{Fault, Stage};

/// Maximum number of files and repositories of one build; no real Dockerfile has more.
const MOST: usize = 256;

/// Downloads of a build. The builder can fetch them while this value exists.
#[derive(Default)]
pub(super) struct BuildDownloads {
    pub(super) files: Vec<PinnedDownload>,
    /// The repositories, each as `host/path`.
    pub(super) repositories: Vec<String>,
    /// Dockerfile excerpt that names each source, by its URL as written.
    places: Vec<(String, Place)>,
    _offers: Vec<Downloaded>,
}

impl BuildDownloads {
    /// Returns the sources for the record of the build. Query strings are removed because they may contain signatures.
    pub(super) fn named(&self) -> impl Iterator<Item = BuildSource> {
        let files = self.files.iter().map(|file| {
            let name = file.url.split(['?', '#']).next().unwrap_or_default().to_owned();
            BuildSource { name, digest: Some(file.digest) }
        });
        let repositories =
            self.repositories.iter().map(|name| BuildSource { name: format!("git://{name}"), digest: None });
        files.chain(repositories)
    }
}

impl BuildDownloads {
    /// Adds the line of the repository that a fault of the builder is about: BuildKit does not report it.
    pub(super) fn with_line(&self, fault: Fault, path: &MountTarget) -> Fault {
        let about = |(url, _): &&(String, Place)| fault.step.as_ref().is_some_and(|step| step.contains(url));
        match self.places.iter().find(about) {
            Some((_, place)) if fault.dockerfile.is_none() => at(fault, place, path),
            _ => fault,
        }
    }
}

impl Shared {
    pub(super) async fn downloads(
        &self,
        active: &Active,
        files: Vec<Download>,
        repositories: Vec<NamedRepository>,
        path: &MountTarget,
        publisher: &mut Publisher,
    ) -> Result<BuildDownloads, Fault> {
        let mut found = BuildDownloads::default();
        if files.is_empty() && repositories.is_empty() {
            return Ok(found);
        }
        if files.len() + repositories.len() > MOST {
            let message = "the Dockerfile fetches more files and repositories than a build may use";
            return Err(Fault::new(Stage::Context, "too_many_downloads", message));
        }
        for repository in repositories {
            let Some((host, name)) = place_of(&repository.url) else {
                return Err(at(other_transport(&repository), &repository.place, path));
            };
            if let Err(fault) = self.ports.downloads.allows_repository(&host).await {
                return Err(at(fault, &repository.place, path));
            }
            found.repositories.push(name);
            found.places.push((repository.url, repository.place));
        }
        publisher.begin_attempt().await.map_err(|error| log_fault_of(&error))?;
        let mut step = 0;
        let mut known: BTreeMap<String, ()> = BTreeMap::new();
        for file in files {
            if known.insert(file.url.clone(), ()).is_some() {
                continue;
            }
            step += 1;
            let shown = file.url.split(['?', '#']).next().unwrap_or_default();
            let tell = async |publisher: &mut Publisher, kind| {
                publisher.publish(kind).await.map_err(|error| log_fault_of(&error))
            };
            tell(publisher, EventKind::StepStarted { step, name: format!("[download] {shown}") }).await?;
            let begun = Instant::now();
            let request = DownloadRequest { url: file.url.clone(), checksum: file.checksum.clone() };
            let fetched = tokio::select! {
                fetched = self.ports.downloads.download(request) => fetched,
                () = active.stop.cancelled() => return Err(stopped()),
            };
            let finished =
                |cached, error| EventKind::StepFinished { step, cached, duration: begun.elapsed(), error };
            match fetched {
                Ok(fetched) => {
                    let data = format!("{}, {} bytes\n", fetched.digest, fetched.size).into();
                    let log = EventKind::StepLog { step, stream: LogStream::Stdout, data, dropped_bytes: 0 };
                    tell(publisher, log).await?;
                    tell(publisher, finished(fetched.cached, None)).await?;
                    found.files.push(PinnedDownload {
                        url: file.url,
                        place: fetched.url.clone(),
                        digest: fetched.digest,
                    });
                    found._offers.push(fetched);
                }
                Err(mut fault) => {
                    tell(publisher, finished(false, Some(fault.message.clone()))).await?;
                    fault.message = format!("line {}: {}", file.place.start_line, fault.message);
                    return Err(at(fault, &file.place, path));
                }
            }
        }
        Ok(found)
    }
}

/// Fault for a transport other than http and https. Such a transport bypasses the inspecting proxy, and builds have no
/// key for ssh.
fn other_transport(repository: &NamedRepository) -> Fault {
    let line = repository.place.start_line;
    // A password before the host is not repeated in the message.
    let url = repository.url.rsplit_once('@').map_or(repository.url.as_str(), |(_, rest)| rest);
    let url: String = url.chars().filter(|c| !c.is_control()).take(200).collect();
    let message =
        format!("line {line}: repository `{url}`: builds fetch repositories by https and http only");
    Fault::new(Stage::Context, "git_transport_refused", message)
        .hint("write https://HOST/PATH.git, or put the files into the context")
}

/// Returns the host of a repository, and `host[:port]/path` as BuildKit names it. `None` for transports other than
/// http and https.
fn place_of(url: &str) -> Option<(String, String)> {
    let rest = ["https://", "http://"].iter().find_map(|scheme| url.strip_prefix(scheme))?;
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_once('/')?;
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let path = hearth_pack::ignore::clean(&format!("/{path}"));
    (!host.is_empty()).then(|| (host.to_owned(), format!("{authority}{path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_named_as_the_builder_names_them() {
        for (url, expected) in [
            ("https://github.com/a/b.git#main:sub", Some(("github.com", "github.com/a/b.git"))),
            ("http://u:p@e.example:8080/a//b.git?x=1", Some(("e.example", "e.example:8080/a/b.git"))),
            ("git://e.example/a", None),
            ("git@github.com:a/b.git", None),
            ("ssh://git@github.com/a/b.git", None),
        ] {
            let expected = expected.map(|(host, name)| (host.to_owned(), name.to_owned()));
            assert_eq!(place_of(url), expected, "{url}");
        }
    }
}
