//! Log of a service: that of its serving instance and, with `follow`, of the instances after it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};

use super::entry::{ServiceEntry, ServiceEntryState};
use super::plan::InstanceStage;
use super::port::{LogError, LogLines};
use super::service::{DeployContext, DeployError, Handle};
use super::tracked_instance::TrackedInstance;
use crate::model::deploy::{LogLine, LogSource, ServiceLogQuery};
use crate::model::id::{InstanceId, ServiceId};
use crate::model::service::InstanceLabel;
use crate::task;

/// Polling interval for the instance that follows the one whose log ended.
const NEXT_INSTANCE_POLL: Duration = Duration::from_millis(200);
/// Number of polls without a line after which the log of an exited instance is complete.
const QUIET_POLLS: usize = 3;
/// Number of logs of earlier instances kept per service.
const KEPT_LOGS: usize = 5;

/// Name of the file beside an instance's log that holds the number of its revision.
const REVISION_FILE: &str = "revision";

impl Handle {
    /// Returns the lines of the log, oldest first. With `follow` the stream continues with later instances (of the
    /// named revision, if there is one) for as long as there can be any.
    pub async fn logs(
        &self,
        service: &str,
        source: LogSource,
        query: ServiceLogQuery,
    ) -> Result<LogLines, DeployError> {
        let entry = self.shared.find_entry(service)?;
        let first = self.shared.first_logged_instance(&entry, &source).await?;
        let shared = Arc::clone(&self.shared);
        let lines: LogLines = match &first {
            Some(instance) => {
                let directory = shared.log_directory(&entry.id, instance);
                shared.ports.logs.read(&directory, query.clone()).await?
            }
            None => Box::pin(stream::empty()),
        };
        if !query.follow {
            return Ok(lines);
        }
        let seen = first.iter().cloned().collect();
        let follower = ServiceLogFollower { shared, entry, source, lines, current: first, seen, query };
        Ok(Box::pin(stream::unfold(Some(follower), |follower| async move {
            let mut follower = follower?;
            match follower.next().await {
                Some(Ok(line)) => Some((Ok(line), Some(follower))),
                Some(Err(error)) => Some((Err(error), None)),
                None => None,
            }
        })))
    }
}

/// Stream state for following a service's log across instances.
struct ServiceLogFollower {
    shared: Arc<DeployContext>,
    entry: Arc<ServiceEntry>,
    source: LogSource,
    lines: LogLines,
    current: Option<InstanceId>,
    seen: BTreeSet<InstanceId>,
    query: ServiceLogQuery,
}

impl ServiceLogFollower {
    /// Returns the next line of the current instance; `None` when it is no longer running and its last lines have been
    /// read.
    async fn next_of_current(&mut self) -> Option<Result<LogLine, LogError>> {
        let mut quiet = 0;
        while quiet < QUIET_POLLS {
            tokio::select! {
                line = self.lines.next() => return line,
                () = self.shared.stop.cancelled() => return None,
                () = tokio::time::sleep(NEXT_INSTANCE_POLL) => {}
            }
            let state = self.entry.state();
            let known = self.current.as_ref().and_then(|instance| state.instances.get(instance));
            let writes = known.is_some_and(|known| !matches!(known.stage(), InstanceStage::Exited { .. }));
            quiet = if writes { 0 } else { quiet + 1 };
        }
        None
    }

    /// Returns the instance of the same revision that started after the current one, even if it has exited since: no
    /// instance is skipped when each exits at once.
    async fn next_of_revision(&mut self) -> Option<InstanceId> {
        let current = self.current.clone()?;
        let directory = self.shared.options.log_dir.join(self.entry.id.as_str());
        let later = task::blocking("service logs", move || {
            let revision = logged_revision(&directory, &current);
            let later =
                logged_instances(&directory).into_iter().skip_while(|instance| *instance != current).skip(1);
            later.filter(|instance| logged_revision(&directory, instance) == revision).collect::<Vec<_>>()
        });
        later.await.ok()?.into_iter().find(|instance| !self.seen.contains(instance))
    }

    async fn next(&mut self) -> Option<Result<LogLine, LogError>> {
        loop {
            if let Some(line) = self.next_of_current().await {
                return Some(line);
            }
            let revision = match &self.source {
                LogSource::Newest => None,
                LogSource::Revision(number) => Some(*number),
                LogSource::Instance(_) => return None,
            };
            let instance = loop {
                if let Some(instance) = self.next_of_revision().await {
                    break instance;
                }
                {
                    let state = self.entry.state();
                    let newer = newest_instance(&state, revision);
                    if let Some(instance) = newer.filter(|instance| !self.seen.contains(instance)) {
                        break instance;
                    }
                    if !may_start(&state, &self.source) {
                        return None;
                    }
                }
                tokio::select! {
                    () = self.entry.removed.cancelled() => return None,
                    () = self.shared.stop.cancelled() => return None,
                    () = tokio::time::sleep(NEXT_INSTANCE_POLL) => {}
                }
            };
            self.seen.insert(instance.clone());
            self.current = Some(instance.clone());
            let directory = self.shared.log_directory(&self.entry.id, &instance);
            let query = ServiceLogQuery { tail: None, since: None, ..self.query.clone() };
            match self.shared.ports.logs.read(&directory, query).await {
                Ok(lines) => self.lines = lines,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// Reports whether an instance whose log is wanted may still start.
fn may_start(state: &ServiceEntryState, source: &LogSource) -> bool {
    match source {
        LogSource::Newest => true,
        LogSource::Revision(number) => {
            state.service.target_revision().is_some_and(|revision| revision.number == *number)
        }
        LogSource::Instance(_) => false,
    }
}

/// Returns the most relevant instance: of the newest revision and generation, or of the newest generation of
/// `revision`; the routed one among equals.
fn newest_instance(state: &ServiceEntryState, revision: Option<u32>) -> Option<InstanceId> {
    let rank = |id: &InstanceId, label: &InstanceLabel| {
        (label.revision, label.generation, state.routed.as_ref() == Some(id))
    };
    let wanted = |known: &TrackedInstance| revision.is_none_or(|revision| known.label.revision == revision);
    let newest = state
        .instances
        .iter()
        .filter(|(_, known)| wanted(known))
        .max_by_key(|(id, known)| rank(id, &known.label));
    newest.map(|(id, _)| id.clone())
}

impl DeployContext {
    pub(super) fn log_directory(&self, service: &ServiceId, instance: &InstanceId) -> PathBuf {
        self.options.log_dir.join(service.as_str()).join(instance.as_str())
    }

    /// Returns the instance whose log is read first; `None` while the service, or the revision, has had none.
    async fn first_logged_instance(
        &self,
        entry: &ServiceEntry,
        source: &LogSource,
    ) -> Result<Option<InstanceId>, DeployError> {
        let revision = match source {
            LogSource::Newest => None,
            LogSource::Revision(number) => Some(*number),
            LogSource::Instance(instance) => {
                let kept = self.kept_logs(&entry.id, None).await;
                let state = entry.state();
                let is_known = state.instances.contains_key(instance) || kept.contains(instance);
                return if is_known {
                    Ok(Some(instance.clone()))
                } else {
                    let (name, instance) = (state.service.name.clone(), instance.clone());
                    Err(DeployError::NoInstance { name, instance })
                };
            }
        };
        let running = newest_instance(&entry.state(), revision);
        let first = match running {
            Some(instance) => Some(instance),
            // The instance that started a log file last.
            None => self.kept_logs(&entry.id, revision).await.pop(),
        };
        let state = entry.state();
        match revision {
            Some(revision) if first.is_none() && state.service.revision(revision).is_none() => {
                Err(DeployError::NoRevision {
                    name: state.service.name.clone(),
                    revision,
                    kept: state.service.revisions.iter().map(|revision| revision.number).collect(),
                })
            }
            _ => Ok(first),
        }
    }

    /// Returns the instances that have a log, running or not, ordered by the time at which they last started a log
    /// file.
    async fn kept_logs(&self, service: &ServiceId, revision: Option<u32>) -> Vec<InstanceId> {
        let directory = self.options.log_dir.join(service.as_str());
        let listed = task::blocking("service logs", move || {
            let mut found = logged_instances(&directory);
            if let Some(revision) = revision {
                found.retain(|instance| logged_revision(&directory, instance) == Some(revision));
            }
            found
        });
        listed.await.unwrap_or_default()
    }

    /// Removes the log directories of services that were removed from the store just before the daemon was killed.
    pub(super) async fn remove_orphaned_logs(&self) {
        let known: BTreeSet<String> = self.all_entries().iter().map(|entry| entry.id.to_string()).collect();
        let directory = self.options.log_dir.clone();
        let swept = task::blocking("service logs", move || {
            for entry in std::fs::read_dir(&directory)? {
                let name = entry?.file_name();
                let is_strange = name
                    .to_str()
                    .is_some_and(|name| name.parse::<ServiceId>().is_ok() && !known.contains(name));
                if is_strange {
                    std::fs::remove_dir_all(directory.join(name))?;
                }
            }
            Ok::<_, std::io::Error>(())
        });
        if let Err(error) = swept.await.map_err(std::io::Error::other).flatten() {
            tracing::warn!(%error, "failed to remove logs of removed services");
        }
    }

    /// Removes the logs of all but the last few former instances; with `all`, all logs of the service.
    pub(super) async fn prune_logs(&self, service: &ServiceId, instances: BTreeSet<InstanceId>, all: bool) {
        let directory = self.options.log_dir.join(service.as_str());
        let swept = task::blocking("service logs", move || {
            if all {
                return match std::fs::remove_dir_all(&directory) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                };
            }
            let mut gone = logged_instances(&directory);
            gone.retain(|instance| !instances.contains(instance));
            let excess = gone.len().saturating_sub(KEPT_LOGS);
            for instance in &gone[..excess] {
                std::fs::remove_dir_all(directory.join(instance.as_str()))?;
            }
            Ok(())
        });
        if let Err(error) = swept.await.map_err(std::io::Error::other).flatten() {
            tracing::warn!(%error, service.id = %service, "failed to remove old logs of a service");
        }
    }
}

/// Creates the directory of an instance's log.
pub(super) async fn create_log_directory(directory: &Path, revision: u32) -> std::io::Result<()> {
    let directory = directory.to_owned();
    let made = task::blocking("instance log", move || {
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join(REVISION_FILE), revision.to_string())
    });
    made.await.map_err(std::io::Error::other).flatten()
}

/// Removes the log directory of an instance that was not started, if nothing was written to it.
pub(super) async fn remove_unused_log(directory: &Path) {
    let directory = directory.to_owned();
    let removed = task::blocking("instance log", move || {
        let only_ours =
            std::fs::read_dir(&directory)?.flatten().all(|entry| entry.file_name() == REVISION_FILE);
        if only_ours { std::fs::remove_dir_all(&directory) } else { Ok(()) }
    });
    if let Err(error) = removed.await.map_err(std::io::Error::other).flatten() {
        tracing::warn!(%error, "failed to remove the log directory of a failed start");
    }
}

/// Returns the revision of an instance, from the file beside its log.
fn logged_revision(directory: &Path, instance: &InstanceId) -> Option<u32> {
    let text = std::fs::read_to_string(directory.join(instance.as_str()).join(REVISION_FILE));
    text.ok()?.parse().ok()
}

/// Returns the instances that have a log, ordered by the modification time of its directory.
fn logged_instances(directory: &Path) -> Vec<InstanceId> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let id: InstanceId = entry.file_name().to_str()?.parse().ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, id))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, id)| id).collect()
}
