//! Remote sources of ADD: the daemon fetches the files itself, and lets the builder fetch repositories from hosts that
//! builds may reach. The source policy of the solve denies every other URL.

use std::collections::BTreeSet;
use std::time::Instant;

use super::super::dockerfile::{DockerfileExcerpt, NamedDownload, NamedRepository};
use super::super::port::{DownloadRequest, OfferedDownload, PinnedDownload};
use super::super::publisher::EventPublisher;
use super::super::service::{ActiveBuild, BuildRuntime};
use super::faults::{logged_log_fault, stopped_fault};
use super::images::with_excerpt;
use crate::model::MountTarget;
use crate::model::build::{BuildEventKind, BuildSource, LogStream};
use crate::model::fault::{ErrorCode, Fault, FaultStage};

/// Maximum number of files and repositories of one build; no real Dockerfile has more.
const MAX_DOWNLOADS: usize = 256;

/// Downloads of a build. The builder can fetch them while this value exists.
#[derive(Default)]
pub(super) struct BuildDownloads {
    pub(super) files: Vec<PinnedDownload>,
    /// The repositories, each as `host/path`.
    pub(super) repositories: Vec<String>,
    /// Dockerfile excerpt that names each source, by its URL as written.
    excerpts: Vec<(String, DockerfileExcerpt)>,
    _offers: Vec<OfferedDownload>,
}

impl BuildDownloads {
    /// Returns the sources for the record of the build. Query strings are removed because they may contain signatures.
    pub(super) fn recorded_sources(&self) -> impl Iterator<Item = BuildSource> {
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
        let about = |(url, _): &&(String, DockerfileExcerpt)| {
            fault.step.as_ref().is_some_and(|step| step.contains(url))
        };
        match self.excerpts.iter().find(about) {
            Some((_, place)) if fault.dockerfile.is_none() => with_excerpt(fault, place, path),
            _ => fault,
        }
    }
}

impl BuildRuntime {
    pub(super) async fn fetch_downloads(
        &self,
        active: &ActiveBuild,
        files: Vec<NamedDownload>,
        repositories: Vec<NamedRepository>,
        path: &MountTarget,
        publisher: &mut EventPublisher,
    ) -> Result<BuildDownloads, Fault> {
        let mut found = BuildDownloads::default();
        if files.is_empty() && repositories.is_empty() {
            return Ok(found);
        }
        if files.len() + repositories.len() > MAX_DOWNLOADS {
            let message = "the Dockerfile fetches more files and repositories than a build may use";
            return Err(Fault::new(FaultStage::Context, ErrorCode::TooManyDownloads, message));
        }
        for repository in repositories {
            let Some((host, name)) = repository_location(&repository.url) else {
                return Err(with_excerpt(transport_fault(&repository), &repository.excerpt, path));
            };
            if let Err(fault) = self.ports.downloads.allows_repository(&host).await {
                return Err(with_excerpt(fault, &repository.excerpt, path));
            }
            found.repositories.push(name);
            found.excerpts.push((repository.url, repository.excerpt));
        }
        publisher.begin_attempt().await.map_err(|error| logged_log_fault(&error))?;
        let mut step = 0;
        let mut known = BTreeSet::new();
        for file in files {
            if !known.insert(file.url.clone()) {
                continue;
            }
            step += 1;
            let shown_url = file.url.split(['?', '#']).next().unwrap_or_default();
            let tell = async |publisher: &mut EventPublisher, kind| {
                publisher.publish(kind).await.map_err(|error| logged_log_fault(&error))
            };
            tell(publisher, BuildEventKind::StepStarted { step, name: format!("[download] {shown_url}") })
                .await?;
            let started = Instant::now();
            let request = DownloadRequest { url: file.url.clone(), checksum: file.checksum.clone() };
            let fetched = tokio::select! {
                fetched = self.ports.downloads.download(request) => fetched,
                () = active.stop.cancelled() => return Err(stopped_fault()),
            };
            let finished = |cached, error| BuildEventKind::StepFinished {
                step,
                cached,
                duration: started.elapsed(),
                error,
            };
            match fetched {
                Ok(fetched) => {
                    let data = format!("{}, {} bytes\n", fetched.digest, fetched.size).into();
                    let log =
                        BuildEventKind::StepLog { step, stream: LogStream::Stdout, data, dropped_bytes: 0 };
                    tell(publisher, log).await?;
                    tell(publisher, finished(fetched.cached, None)).await?;
                    found.files.push(PinnedDownload {
                        url: file.url,
                        offer_url: fetched.url.clone(),
                        digest: fetched.digest,
                    });
                    found._offers.push(fetched);
                }
                Err(mut fault) => {
                    tell(publisher, finished(false, Some(fault.message.clone()))).await?;
                    fault.message = format!("line {}: {}", file.excerpt.start_line, fault.message);
                    return Err(with_excerpt(fault, &file.excerpt, path));
                }
            }
        }
        Ok(found)
    }
}

/// Fault for a transport other than http and https. Such a transport bypasses the inspecting proxy, and builds have no
/// key for ssh.
fn transport_fault(repository: &NamedRepository) -> Fault {
    let line = repository.excerpt.start_line;
    // A password before the host is not repeated in the message.
    let url = repository.url.rsplit_once('@').map_or(repository.url.as_str(), |(_, rest)| rest);
    let url: String = url.chars().filter(|c| !c.is_control()).take(200).collect();
    let message =
        format!("line {line}: repository `{url}`: builds fetch repositories by https and http only");
    Fault::new(FaultStage::Context, ErrorCode::GitTransportRefused, message)
}

/// Returns the host of a repository, and `host[:port]/path` as BuildKit names it. `None` for transports other than
/// http and https.
fn repository_location(url: &str) -> Option<(String, String)> {
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
            assert_eq!(repository_location(url), expected, "{url}");
        }
    }
}
