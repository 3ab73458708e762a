//! Logs of the instances on disk: one directory per service with one subdirectory per instance, which outlives the
//! instance. A file in it holds the number of the instance's revision.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::port::{InstanceLogs, LogError, LogLines};
use crate::model::deploy::ServiceLogQuery;
use crate::model::id::{InstanceId, ServiceId};
use crate::task;

/// Number of logs of earlier instances kept per service.
const KEPT_LOGS: usize = 5;

/// Name of the file beside an instance's log that holds the number of its revision.
const REVISION_FILE: &str = "revision";

/// The logs of all instances.
pub(super) struct ServiceLogs {
    /// Parent of the directories of the services.
    directory: PathBuf,
    reader: Arc<dyn InstanceLogs>,
}

impl ServiceLogs {
    pub(super) fn new(directory: PathBuf, reader: Arc<dyn InstanceLogs>) -> Self {
        Self { directory, reader }
    }

    fn service_directory(&self, service: &ServiceId) -> PathBuf {
        self.directory.join(service.as_str())
    }

    pub(super) fn instance_directory(&self, service: &ServiceId, instance: &InstanceId) -> PathBuf {
        self.service_directory(service).join(instance.as_str())
    }

    /// Reads the log of an instance.
    pub(super) async fn read(
        &self,
        service: &ServiceId,
        instance: &InstanceId,
        query: ServiceLogQuery,
    ) -> Result<LogLines, LogError> {
        self.reader.read(&self.instance_directory(service, instance), query).await
    }

    /// Returns the instances that have a log, running or not, in the order of their starts.
    pub(super) async fn kept(&self, service: &ServiceId, revision: Option<u32>) -> Vec<InstanceId> {
        let directory = self.service_directory(service);
        let listed = task::blocking("service logs", move || {
            let mut found = logged_instances(&directory);
            if let Some(revision) = revision {
                found.retain(|instance| logged_revision(&directory, instance) == Some(revision));
            }
            found
        });
        listed.await.unwrap_or_default()
    }

    /// Returns the instances of the same revision that started after this one, even if they have exited since.
    pub(super) async fn later_of_same_revision(
        &self,
        service: &ServiceId,
        instance: &InstanceId,
    ) -> Vec<InstanceId> {
        let (directory, instance) = (self.service_directory(service), instance.clone());
        let later = task::blocking("service logs", move || {
            let revision = logged_revision(&directory, &instance);
            let later =
                logged_instances(&directory).into_iter().skip_while(|other| *other != instance).skip(1);
            later.filter(|other| logged_revision(&directory, other) == revision).collect()
        });
        later.await.unwrap_or_default()
    }

    /// Removes the log directories of services that are not among the `known` ones: they were removed from the store
    /// just before the daemon was killed.
    pub(super) async fn remove_orphaned(&self, known: BTreeSet<String>) {
        let directory = self.directory.clone();
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
    pub(super) async fn prune(&self, service: &ServiceId, instances: BTreeSet<InstanceId>, all: bool) {
        let directory = self.service_directory(service);
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

/// Returns the instances that have a log, in the order of their starts: the file with the revision is written once,
/// before the start.
fn logged_instances(directory: &Path) -> Vec<InstanceId> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let id: InstanceId = entry.file_name().to_str()?.parse().ok()?;
            let written = std::fs::metadata(entry.path().join(REVISION_FILE)).or_else(|_| entry.metadata());
            Some((written.ok()?.modified().ok()?, id))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, id)| id).collect()
}
