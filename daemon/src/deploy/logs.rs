//! The log of a service: that of the instance that serves, and with `follow` of those that come after it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};

use super::entry::{Entry, EntryState};
use super::plan::InstanceStage;
use super::port::{LogError, LogLines};
use super::service::{DeployError, Handle, Shared};
use crate::model::deploy::{LogLine, LogQuery};
use crate::model::id::{InstanceId, ServiceId};
use crate::model::service::InstanceLabel;
use crate::task;

/// Between looks for the instance that comes after the one whose log ended.
const NEXT_INSTANCE: Duration = Duration::from_millis(200);
/// An instance that has ended writes no more after so many of these without a line.
const QUIET_LOOKS: usize = 3;
/// Logs of earlier instances that are kept of one service.
const KEPT_LOGS: usize = 5;

impl Handle {
    /// Lines of the log, oldest first.
    pub async fn logs(&self, service: &str, query: LogQuery) -> Result<LogLines, DeployError> {
        let entry = self.shared.find(service)?;
        let newest = newest(&entry.state());
        let first = match newest {
            Some(instance) => Some(instance),
            None => self.shared.last_logged(&entry.id).await,
        };
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
        let follower = Follower { shared, entry, lines, current: first, seen, query };
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

struct Follower {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
    lines: LogLines,
    current: Option<InstanceId>,
    seen: BTreeSet<InstanceId>,
    query: LogQuery,
}

impl Follower {
    /// None when the instance runs no more and its last lines have been read.
    async fn next_of_current(&mut self) -> Option<Result<LogLine, LogError>> {
        let mut quiet = 0;
        while quiet < QUIET_LOOKS {
            tokio::select! {
                line = self.lines.next() => return line,
                () = tokio::time::sleep(NEXT_INSTANCE) => {}
            }
            let state = self.entry.state();
            let known = self.current.as_ref().and_then(|instance| state.instances.get(instance));
            let writes = known.is_some_and(|known| !matches!(known.stage, InstanceStage::Ended { .. }));
            quiet = if writes { 0 } else { quiet + 1 };
        }
        None
    }

    async fn next(&mut self) -> Option<Result<LogLine, LogError>> {
        loop {
            if let Some(line) = self.next_of_current().await {
                return Some(line);
            }
            let instance = loop {
                let newer = newest(&self.entry.state()).filter(|instance| !self.seen.contains(instance));
                if let Some(instance) = newer {
                    break instance;
                }
                tokio::select! {
                    () = self.entry.gone.cancelled() => return None,
                    () = self.shared.stop.cancelled() => return None,
                    () = tokio::time::sleep(NEXT_INSTANCE) => {}
                }
            };
            self.seen.insert(instance.clone());
            self.current = Some(instance.clone());
            let directory = self.shared.log_directory(&self.entry.id, &instance);
            let query = LogQuery { tail: None, since: None, ..self.query.clone() };
            match self.shared.ports.logs.read(&directory, query).await {
                Ok(lines) => self.lines = lines,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// The instance whose log tells most: of the newest revision and generation; the routed one among equals.
fn newest(state: &EntryState) -> Option<InstanceId> {
    let rank = |id: &InstanceId, label: &InstanceLabel| {
        (label.revision, label.generation, state.routed.as_ref() == Some(id))
    };
    let newest = state.instances.iter().max_by_key(|(id, known)| rank(id, &known.label));
    newest.map(|(id, _)| id.clone())
}

impl Shared {
    pub(super) fn log_directory(&self, service: &ServiceId, instance: &InstanceId) -> PathBuf {
        self.options.log_dir.join(service.as_str()).join(instance.as_str())
    }

    /// The instance that wrote last, of those that are gone.
    async fn last_logged(&self, service: &ServiceId) -> Option<InstanceId> {
        let directory = self.options.log_dir.join(service.as_str());
        let listed = task::blocking("service logs", move || logged(&directory)).await;
        listed.unwrap_or_default().pop()
    }

    /// Removes the logs of all but the last few instances that are gone; of a service that is gone, all.
    pub(super) async fn sweep_logs(&self, service: &ServiceId, instances: BTreeSet<InstanceId>, all: bool) {
        let directory = self.options.log_dir.join(service.as_str());
        let swept = task::blocking("service logs", move || {
            if all {
                return match std::fs::remove_dir_all(&directory) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                };
            }
            let mut gone = logged(&directory);
            gone.retain(|instance| !instances.contains(instance));
            let excess = gone.len().saturating_sub(KEPT_LOGS);
            for instance in &gone[..excess] {
                std::fs::remove_dir_all(directory.join(instance.as_str()))?;
            }
            Ok(())
        });
        if let Err(error) = swept.await.map_err(std::io::Error::other).flatten() {
            tracing::warn!(%error, service.id = %service, "old logs of a service could not be removed");
        }
    }
}

/// Instances that have a log, by when it was begun.
fn logged(directory: &std::path::Path) -> Vec<InstanceId> {
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
