//! Log of a service: that of its serving instance and, with `follow`, of the instances after it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use super::entry::{ServiceEntry, ServiceEntryState};
use super::plan::InstanceStage;
use super::port::{LogError, LogLines};
use super::service::{DeployError, Handle};
use super::service_logs::ServiceLogs;
use super::tracked_instance::TrackedInstance;
use crate::model::deploy::{LogLine, LogSource, ServiceLogQuery};
use crate::model::id::InstanceId;
use crate::model::service::InstanceLabel;

/// Polling interval for the instance that follows the one whose log ended.
const NEXT_INSTANCE_POLL: Duration = Duration::from_millis(200);
/// Number of polls without a line after which the log of an exited instance is complete.
const QUIET_POLLS: usize = 3;

impl Handle {
    /// Returns the lines of the log, oldest first. With `follow` the stream continues with later instances (of the
    /// named revision, if there is one) for as long as there can be any.
    pub async fn logs(
        &self,
        service: &str,
        source: LogSource,
        query: ServiceLogQuery,
    ) -> Result<LogLines, DeployError> {
        let entry = self.find_entry(service)?;
        let logs = Arc::clone(&self.shared.logs);
        let first = first_logged_instance(&logs, &entry, &source).await?;
        let lines: LogLines = match &first {
            Some(instance) => logs.read(&entry.id, instance, query.clone()).await?,
            None => Box::pin(stream::empty()),
        };
        if !query.follow {
            return Ok(lines);
        }
        let seen = first.iter().cloned().collect();
        let stop = self.shared.stop.clone();
        let follower = ServiceLogFollower { logs, stop, entry, source, lines, current: first, seen, query };
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
    logs: Arc<ServiceLogs>,
    /// Cancelled when the service loops stop.
    stop: CancellationToken,
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
                () = self.stop.cancelled() => return None,
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
        let later = self.logs.later_of_same_revision(&self.entry.id, self.current.as_ref()?).await;
        later.into_iter().find(|instance| !self.seen.contains(instance))
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
                    () = self.stop.cancelled() => return None,
                    () = tokio::time::sleep(NEXT_INSTANCE_POLL) => {}
                }
            };
            self.seen.insert(instance.clone());
            self.current = Some(instance.clone());
            let query = ServiceLogQuery { tail: None, since: None, ..self.query.clone() };
            match self.logs.read(&self.entry.id, &instance, query).await {
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

/// Returns the instance whose log is read first; `None` while the service, or the revision, has had none.
async fn first_logged_instance(
    logs: &ServiceLogs,
    entry: &ServiceEntry,
    source: &LogSource,
) -> Result<Option<InstanceId>, DeployError> {
    let revision = match source {
        LogSource::Newest => None,
        LogSource::Revision(number) => Some(*number),
        LogSource::Instance(instance) => {
            let kept = logs.kept(&entry.id, None).await;
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
        None => logs.kept(&entry.id, revision).await.pop(),
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
