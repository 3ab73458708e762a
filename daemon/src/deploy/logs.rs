//! Log of a service: those of its instances, one after the other, and, with `follow`, of the instances after them.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use super::entry::{ServiceEntry, ServiceEntryState};
use super::plan::InstanceStage;
use super::port::LogError;
use super::service::{DeployError, Handle};
use super::service_logs::ServiceLogs;
use super::tracked_instance::TrackedInstance;
use crate::model::deploy::{LogSource, ServiceLogLine, ServiceLogQuery};
use crate::model::id::InstanceId;
use crate::model::service::InstanceLabel;

/// Polling interval for the instance that follows the one whose log ended.
const NEXT_INSTANCE_POLL: Duration = Duration::from_millis(200);
/// Number of polls without a line after which the log of an exited instance is complete.
const QUIET_POLLS: usize = 3;

pub type ServiceLogLines = Pin<Box<dyn Stream<Item = Result<ServiceLogLine, LogError>> + Send>>;

impl Handle {
    /// Returns the lines of the log, instance by instance, oldest first. With `follow` the stream continues with later
    /// instances (of the named revision, if there is one) for as long as there can be any.
    pub async fn logs(
        &self,
        service: &str,
        source: LogSource,
        query: ServiceLogQuery,
    ) -> Result<ServiceLogLines, DeployError> {
        let entry = self.find_entry(service)?;
        let logs = Arc::clone(&self.shared.logs);
        let mut instances = logged_instances(&logs, &entry, &source).await?;
        let current = instances.pop();
        let log = LogOfService { logs, entry, query };
        let (earlier, lines) = match &current {
            Some(current) => {
                let tail = log.remaining_tail(current, log.query.tail, &instances).await?;
                let earlier = log.select(instances.clone(), tail).await?;
                (earlier, log.read(current, log.query.clone()).await?)
            }
            None => (Vec::new(), stream::empty().boxed()),
        };
        let earlier = log.read_each(earlier);
        if !log.query.follow {
            return Ok(Box::pin(earlier.chain(lines)));
        }
        let seen = instances.into_iter().chain(current.clone()).collect();
        let stop = self.shared.stop.clone();
        let follower = ServiceLogFollower { log, stop, source, lines, current, seen };
        let followed = stream::unfold(Some(follower), |follower| async move {
            let mut follower = follower?;
            match follower.next().await {
                Some(Ok(line)) => Some((Ok(line), Some(follower))),
                Some(Err(error)) => Some((Err(error), None)),
                None => None,
            }
        });
        Ok(Box::pin(earlier.chain(followed)))
    }
}

/// The logs of one service's instances, and what is read of them.
struct LogOfService {
    logs: Arc<ServiceLogs>,
    entry: Arc<ServiceEntry>,
    query: ServiceLogQuery,
}

impl LogOfService {
    async fn read(&self, instance: &InstanceId, query: ServiceLogQuery) -> Result<ServiceLogLines, LogError> {
        let lines = self.logs.read(&self.entry.id, instance, query).await?;
        let instance = instance.clone();
        Ok(Box::pin(lines.map(move |line| Ok(ServiceLogLine { instance: instance.clone(), line: line? }))))
    }

    /// Returns the number of lines that are still wanted of the instances before this one. `None` means all.
    async fn remaining_tail(
        &self,
        instance: &InstanceId,
        tail: Option<usize>,
        before: &[InstanceId],
    ) -> Result<Option<usize>, LogError> {
        let Some(wanted) = tail.filter(|wanted| *wanted > 0 && !before.is_empty()) else { return Ok(tail) };
        let query = ServiceLogQuery { tail, follow: false, ..self.query.clone() };
        Ok(Some(wanted.saturating_sub(self.read(instance, query).await?.count().await)))
    }

    /// Selects the instances whose last lines belong to a tail, oldest first, each with the number of its lines.
    async fn select(
        &self,
        mut instances: Vec<InstanceId>,
        mut tail: Option<usize>,
    ) -> Result<Vec<(InstanceId, Option<usize>)>, LogError> {
        let mut selected = Vec::new();
        while let Some(instance) = instances.pop().filter(|_| tail != Some(0)) {
            let remaining = self.remaining_tail(&instance, tail, &instances).await?;
            selected.push((instance, std::mem::replace(&mut tail, remaining)));
        }
        selected.reverse();
        Ok(selected)
    }

    /// Reads logs one after the other, each when the one before it has ended.
    fn read_each(&self, selected: Vec<(InstanceId, Option<usize>)>) -> ServiceLogLines {
        let log =
            Self { logs: Arc::clone(&self.logs), entry: Arc::clone(&self.entry), query: self.query.clone() };
        let log = Arc::new(log);
        let each = stream::iter(selected).then(move |(instance, tail)| {
            let log = Arc::clone(&log);
            async move {
                let query = ServiceLogQuery { tail, follow: false, ..log.query.clone() };
                let lines = log.read(&instance, query).await;
                lines.unwrap_or_else(|error| stream::once(async { Err(error) }).boxed())
            }
        });
        each.flatten().boxed()
    }
}

/// Stream state for following a service's log across instances.
struct ServiceLogFollower {
    log: LogOfService,
    /// Cancelled when the service loops stop.
    stop: CancellationToken,
    source: LogSource,
    lines: ServiceLogLines,
    current: Option<InstanceId>,
    seen: BTreeSet<InstanceId>,
}

impl ServiceLogFollower {
    /// Returns the next line of the current instance; `None` when it is no longer running and its last lines have been
    /// read.
    async fn next_of_current(&mut self) -> Option<Result<ServiceLogLine, LogError>> {
        let mut quiet = 0;
        while quiet < QUIET_POLLS {
            tokio::select! {
                line = self.lines.next() => return line,
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(NEXT_INSTANCE_POLL) => {}
            }
            let state = self.log.entry.state();
            let known = self.current.as_ref().and_then(|instance| state.instances.get(instance));
            let writes = known.is_some_and(|known| !matches!(known.stage(), InstanceStage::Exited { .. }));
            quiet = if writes { 0 } else { quiet + 1 };
        }
        None
    }

    /// Returns the instance of the same revision that started after the current one, even if it has exited since: no
    /// instance is skipped when each exits at once.
    async fn next_of_revision(&mut self) -> Option<InstanceId> {
        let LogOfService { logs, entry, .. } = &self.log;
        let later = logs.later_of_same_revision(&entry.id, self.current.as_ref()?).await;
        later.into_iter().find(|instance| !self.seen.contains(instance))
    }

    async fn next(&mut self) -> Option<Result<ServiceLogLine, LogError>> {
        loop {
            if let Some(line) = self.next_of_current().await {
                return Some(line);
            }
            let revision = match &self.source {
                LogSource::Service => None,
                LogSource::Revision(number) => Some(*number),
                LogSource::Instance(_) => return None,
            };
            let instance = loop {
                if let Some(instance) = self.next_of_revision().await {
                    break instance;
                }
                {
                    let state = self.log.entry.state();
                    let newer = newest_instance(&state, revision);
                    if let Some(instance) = newer.filter(|instance| !self.seen.contains(instance)) {
                        break instance;
                    }
                    if !may_start(&state, &self.source) {
                        return None;
                    }
                }
                tokio::select! {
                    () = self.log.entry.removed.cancelled() => return None,
                    () = self.stop.cancelled() => return None,
                    () = tokio::time::sleep(NEXT_INSTANCE_POLL) => {}
                }
            };
            self.seen.insert(instance.clone());
            self.current = Some(instance.clone());
            let query = ServiceLogQuery { tail: None, since: None, ..self.log.query.clone() };
            match self.log.read(&instance, query).await {
                Ok(lines) => self.lines = lines,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// Reports whether an instance whose log is wanted may still start.
fn may_start(state: &ServiceEntryState, source: &LogSource) -> bool {
    match source {
        LogSource::Service => true,
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

/// Returns the instances that have a log, oldest first; the last one is the newest that runs, if one runs. The list is
/// empty while the service, or the revision, has had none.
async fn logged_instances(
    logs: &ServiceLogs,
    entry: &ServiceEntry,
    source: &LogSource,
) -> Result<Vec<InstanceId>, DeployError> {
    let revision = match source {
        LogSource::Service => None,
        LogSource::Revision(number) => Some(*number),
        LogSource::Instance(instance) => {
            let kept = logs.kept(&entry.id, None).await;
            let state = entry.state();
            let is_known = state.instances.contains_key(instance) || kept.contains(instance);
            return if is_known {
                Ok(vec![instance.clone()])
            } else {
                let (name, instance) = (state.service.name.clone(), instance.clone());
                Err(DeployError::NoInstance { name, instance })
            };
        }
    };
    let mut found = logs.kept(&entry.id, revision).await;
    let state = entry.state();
    if let Some(newest) = newest_instance(&state, revision) {
        found.retain(|instance| *instance != newest);
        found.push(newest);
    }
    match revision {
        Some(revision) if found.is_empty() && state.service.revision(revision).is_none() => {
            Err(DeployError::NoRevision {
                name: state.service.name.clone(),
                revision,
                kept: state.service.revisions.iter().map(|revision| revision.number).collect(),
            })
        }
        _ => Ok(found),
    }
}
