//! In-memory state of one service beside its stored record: its instances and the operations in progress.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::backoff::RestartBackoff;
use super::plan::{ActualInstance, ActualService};
use super::port::{ServiceStore, ServiceStoreError};
use super::progress::DeployProgress;
use super::tracked_instance::TrackedInstance;
use crate::model::deploy::DeployAction;
use crate::model::fault::Fault;
use crate::model::id::{InstanceId, ServiceId};
use crate::model::service::{
    InstanceLabel, ProcessExit, RevisionOutcome, ServiceName, ServiceRecord, ServiceRevision,
};

/// Maximum number of recently removed instance ids kept per service.
const KEPT_GONE: usize = 64;
/// Maximum number of revisions whose deploy events are kept for replay.
const KEPT_PROGRESS: usize = 3;

/// In-memory entry of one service.
pub(super) struct ServiceEntry {
    pub(super) id: ServiceId,
    /// Wakes the service's loop.
    pub(super) wake: Notify,
    /// Cancelled when the service has been removed.
    pub(super) removed: CancellationToken,
    /// Held from reading the stored service to writing it back.
    write_lock: tokio::sync::Mutex<()>,
    /// Set once the service's loop has been started.
    pub(super) loop_started: AtomicBool,
    state: Mutex<ServiceEntryState>,
}

/// Number of exits of a service that are kept.
pub(super) const MAX_EXITS: usize = 5;

/// The mutable part of a [`ServiceEntry`], under its lock.
pub(super) struct ServiceEntryState {
    pub(super) service: ServiceRecord,
    pub(super) instances: BTreeMap<InstanceId, TrackedInstance>,
    pub(super) routed: Option<InstanceId>,
    /// Start attempts by revision and generation, for those that should run or serve.
    attempts: BTreeMap<(u32, u32), StartAttempts>,
    /// The last unexpected exits, newest first, at most [`MAX_EXITS`].
    pub(super) last_exits: VecDeque<ProcessExit>,
    /// Reason why the last start or instance failed.
    pub(super) last_fault: Option<Fault>,
    pub(super) progress: BTreeMap<u32, Arc<DeployProgress>>,
    /// Actions of the last non-empty plan, which have been published to watchers.
    pub(super) last_reported: Vec<DeployAction>,
    /// Recently removed instances, which a listing that was requested earlier may still contain.
    pub(super) recently_removed: VecDeque<InstanceId>,
    /// Grace period with which the removal of the service stops its instances.
    pub(super) remove_grace: Duration,
}

/// Start attempts of one revision and generation, and the exits of its instances.
#[derive(Default)]
pub(super) struct StartAttempts {
    pub(super) backoff: RestartBackoff,
    /// Fault of the last start if another attempt would fail in the same way.
    pub(super) start_failed: Option<Fault>,
    /// Number of instances that were ended by an external cause.
    pub(super) external_exits: u32,
}

impl ServiceEntry {
    pub(super) fn new(service: ServiceRecord) -> Self {
        let progress = service.target_revision().and_then(|revision| {
            let progress = match revision.outcome {
                RevisionOutcome::Pending => DeployProgress::new(revision.created_at),
                // The service may be in the middle of a restart, which completes when traffic is routed to the new
                // instance.
                RevisionOutcome::Live { .. } if revision.generation > 0 => {
                    DeployProgress::for_earlier_restart()
                }
                _ => return None,
            };
            Some((revision.number, Arc::new(progress)))
        });
        let state = ServiceEntryState {
            instances: BTreeMap::new(),
            routed: None,
            attempts: BTreeMap::new(),
            last_exits: VecDeque::new(),
            last_fault: None,
            progress: progress.into_iter().collect(),
            last_reported: Vec::new(),
            recently_removed: VecDeque::new(),
            remove_grace: Duration::ZERO,
            service,
        };
        Self {
            id: state.service.id.clone(),
            wake: Notify::new(),
            removed: CancellationToken::new(),
            write_lock: tokio::sync::Mutex::default(),
            loop_started: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    pub(super) fn name(&self) -> ServiceName {
        self.state().service.name.clone()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, ServiceEntryState> {
        // No code under this lock leaves the state half changed.
        self.state.lock()
    }

    /// Changes the stored service: durable on return, and unchanged after an error. `change` returns `None` if there is
    /// nothing to change.
    pub(super) async fn change<T>(
        &self,
        store: &dyn ServiceStore,
        change: impl FnOnce(&mut ServiceRecord) -> Option<T>,
    ) -> Result<Option<T>, ServiceStoreError> {
        let _writing = self.write_lock.lock().await;
        let mut service = self.state().service.clone();
        let Some(value) = change(&mut service) else { return Ok(None) };
        store.put(&service).await?;
        self.state().service = service;
        Ok(Some(value))
    }
}

impl ServiceEntryState {
    pub(super) fn actual(&self) -> ActualService {
        let instance = |(id, known): (&InstanceId, &TrackedInstance)| ActualInstance {
            id: id.clone(),
            revision: known.label.revision,
            generation: known.label.generation,
            stage: known.stage(),
        };
        let wanted = self.attempts_of(self.service.target_revision());
        let serving = self.attempts_of(self.service.live_revision());
        ActualService {
            instances: self.instances.iter().map(instance).collect(),
            routed: self.routed.clone(),
            start_failed: wanted.is_some_and(|attempts| attempts.start_failed.is_some()),
            not_before: wanted.and_then(|attempts| attempts.backoff.not_before),
            external_exits: wanted.map_or(0, |attempts| attempts.external_exits),
            serving_not_before: serving.and_then(|attempts| attempts.backoff.not_before),
        }
    }

    fn attempts_of(&self, revision: Option<&ServiceRevision>) -> Option<&StartAttempts> {
        self.attempts.get(&key(revision?))
    }

    /// Returns the start attempts of the wanted revision.
    pub(super) fn attempts(&self) -> Option<&StartAttempts> {
        self.attempts_of(self.service.target_revision())
    }

    /// Returns the start attempts of an instance's revision and generation, and drops those that no longer matter.
    pub(super) fn attempts_mut(&mut self, label: &InstanceLabel) -> &mut StartAttempts {
        let of = (label.revision, label.generation);
        let kept =
            [self.service.target_revision(), self.service.live_revision()].map(|revision| revision.map(key));
        self.attempts.retain(|other, _| *other == of || kept.contains(&Some(*other)));
        self.attempts.entry(of).or_default()
    }

    /// Clears backoff and failed starts, so that a change by the user takes effect at once.
    pub(super) fn forget_attempts(&mut self) {
        self.attempts.clear();
    }

    /// Forgets an instance that has been removed.
    pub(super) fn forget_instance(&mut self, id: &InstanceId) {
        self.instances.remove(id);
        if self.routed.as_ref() == Some(id) {
            self.routed = None;
        }
        if self.recently_removed.len() == KEPT_GONE {
            self.recently_removed.pop_front();
        }
        self.recently_removed.push_back(id.clone());
    }

    /// Reports whether an instance belongs to the wanted revision and generation.
    pub(super) fn is_wanted(&self, label: &InstanceLabel) -> bool {
        self.service
            .target_revision()
            .is_some_and(|revision| key(revision) == (label.revision, label.generation))
    }

    /// Reports whether an instance belongs to the wanted or the live revision. The live revision serves until a newer
    /// wanted one does.
    pub(super) fn shall_run(&self, label: &InstanceLabel) -> bool {
        let live = self.service.live_revision();
        self.is_wanted(label)
            || live.is_some_and(|revision| key(revision) == (label.revision, label.generation))
    }

    /// Counts the exit of an instance that should run, or a failed start.
    pub(super) fn count_exit(
        &mut self,
        label: &InstanceLabel,
        healthy_since: Option<Timestamp>,
        outside: bool,
    ) {
        let attempts = self.attempts_mut(label);
        attempts.backoff.failed(healthy_since, Timestamp::now());
        attempts.external_exits += u32::from(outside);
    }

    /// Starts a new event stream for a revision and ends the earlier ones as superseded.
    pub(super) fn begin_progress(&mut self, revision: u32) -> Arc<DeployProgress> {
        let progress = Arc::new(DeployProgress::new(Timestamp::now()));
        for (number, earlier) in &self.progress {
            if *number != revision {
                earlier.supersede(revision);
            }
        }
        if let Some(earlier) = self.progress.insert(revision, Arc::clone(&progress)) {
            earlier.supersede(revision);
        }
        while self.progress.len() > KEPT_PROGRESS {
            self.progress.pop_first();
        }
        progress
    }

    pub(super) fn progress(&self, revision: u32) -> Option<Arc<DeployProgress>> {
        self.progress.get(&revision).cloned()
    }
}

const fn key(revision: &ServiceRevision) -> (u32, u32) {
    (revision.number, revision.generation)
}
