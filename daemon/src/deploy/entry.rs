//! What the daemon knows of one service beside what is stored: its instances, and what is under way.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::plan::{ActualInstance, ActualService, Health, InstanceStage};
use super::port::{ServiceStore, StoreError};
use super::progress::Progress;
use crate::model::deploy::{Action, ProbeResult};
use crate::model::fault::Fault;
use crate::model::id::{InstanceId, ServiceId};
use crate::model::service::{Exit, InstanceLabel, Revision, RevisionOutcome, Service};

/// Probe results kept of an instance.
const KEPT_PROBES: usize = 10;
/// Instances that are gone and not forgotten.
const KEPT_GONE: usize = 64;
/// Revisions whose events can be told again.
const KEPT_PROGRESS: usize = 3;

pub(super) struct Entry {
    pub(super) id: ServiceId,
    /// Wakes the service's loop.
    pub(super) wake: Notify,
    /// Fires when the service is forgotten.
    pub(super) gone: CancellationToken,
    /// Held from the reading of the stored service to its writing.
    writing: tokio::sync::Mutex<()>,
    /// Its loop has been started.
    pub(super) running: AtomicBool,
    state: Mutex<EntryState>,
}

pub(super) struct EntryState {
    pub(super) service: Service,
    pub(super) instances: BTreeMap<InstanceId, Known>,
    pub(super) routed: Option<InstanceId>,
    /// How it went with the revisions and generations that shall run or serve.
    attempts: BTreeMap<(u32, u32), Attempts>,
    pub(super) last_exit: Option<Exit>,
    /// Why the last start or instance was no success.
    pub(super) last_fault: Option<Fault>,
    pub(super) progress: BTreeMap<u32, Arc<Progress>>,
    /// The steps of the last plan that had any: those who watch were told of them.
    pub(super) last_told: Vec<Action>,
    /// Instances that were taken away lately: a list that was made before may still have them.
    pub(super) gone: VecDeque<InstanceId>,
    /// How a removal stops instances.
    pub(super) remove_grace: Duration,
}

/// The starts of one revision and generation, and the ends of its instances.
#[derive(Default)]
pub(super) struct Attempts {
    pub(super) backoff: Backoff,
    /// The last start failed in a way that another will not mend.
    pub(super) start_failed: Option<Fault>,
    /// Instances that something else has ended.
    pub(super) outside_ends: u32,
}

/// An instance, as far as the daemon knows.
pub(super) struct Known {
    pub(super) label: InstanceLabel,
    pub(super) stage: InstanceStage,
    pub(super) address: Option<Ipv4Addr>,
    pub(super) pid: Option<u32>,
    pub(super) exit: Option<Exit>,
    pub(super) probes: VecDeque<ProbeResult>,
    /// Ends what watches it, or the start that is under way.
    pub(super) stop: CancellationToken,
}

impl Known {
    pub(super) fn new(label: InstanceLabel, stage: InstanceStage) -> Self {
        Self {
            label,
            stage,
            address: None,
            pid: None,
            exit: None,
            probes: VecDeque::new(),
            stop: CancellationToken::new(),
        }
    }

    pub(super) const fn health(&self) -> Option<Health> {
        match self.stage {
            InstanceStage::Running(health) => Some(health),
            _ => None,
        }
    }

    pub(super) const fn healthy_since(&self) -> Option<Timestamp> {
        match self.stage {
            InstanceStage::Running(Health::Healthy { since }) => Some(since),
            _ => None,
        }
    }

    pub(super) fn probed(&mut self, result: ProbeResult) {
        if self.probes.len() == KEPT_PROBES {
            self.probes.pop_front();
        }
        self.probes.push_back(result);
    }
}

impl Entry {
    pub(super) fn new(service: Service) -> Self {
        let progress = service.wanted().and_then(|revision| {
            let progress = match revision.outcome {
                RevisionOutcome::Pending => Progress::new(revision.created_at),
                // It may be in the middle of a restart: that ends when the traffic is led to it.
                RevisionOutcome::Live { .. } if revision.generation > 0 => Progress::of_earlier_restart(),
                _ => return None,
            };
            Some((revision.number, Arc::new(progress)))
        });
        let state = EntryState {
            instances: BTreeMap::new(),
            routed: None,
            attempts: BTreeMap::new(),
            last_exit: None,
            last_fault: None,
            progress: progress.into_iter().collect(),
            last_told: Vec::new(),
            gone: VecDeque::new(),
            remove_grace: Duration::ZERO,
            service,
        };
        Self {
            id: state.service.id.clone(),
            wake: Notify::new(),
            gone: CancellationToken::new(),
            writing: tokio::sync::Mutex::default(),
            running: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, EntryState> {
        // Nothing under this lock leaves the state half changed.
        self.state.lock()
    }

    /// Changes the stored service: durable when this returns, and unchanged after an error. `change` says whether
    /// there is something to change.
    pub(super) async fn change<T>(
        &self,
        store: &dyn ServiceStore,
        change: impl FnOnce(&mut Service) -> Option<T>,
    ) -> Result<Option<T>, StoreError> {
        let _writing = self.writing.lock().await;
        let mut service = self.state().service.clone();
        let Some(value) = change(&mut service) else { return Ok(None) };
        store.put(&service).await?;
        self.state().service = service;
        Ok(Some(value))
    }
}

impl EntryState {
    pub(super) fn actual(&self) -> ActualService {
        let instance = |(id, known): (&InstanceId, &Known)| ActualInstance {
            id: id.clone(),
            revision: known.label.revision,
            generation: known.label.generation,
            stage: known.stage,
        };
        let wanted = self.attempts_of(self.service.wanted());
        let serving = self.attempts_of(self.service.live_revision());
        ActualService {
            instances: self.instances.iter().map(instance).collect(),
            routed: self.routed.clone(),
            start_failed: wanted.is_some_and(|attempts| attempts.start_failed.is_some()),
            not_before: wanted.and_then(|attempts| attempts.backoff.not_before),
            outside_ends: wanted.map_or(0, |attempts| attempts.outside_ends),
            serving_not_before: serving.and_then(|attempts| attempts.backoff.not_before),
        }
    }

    fn attempts_of(&self, revision: Option<&Revision>) -> Option<&Attempts> {
        self.attempts.get(&key(revision?))
    }

    /// How it went with the revision that shall run.
    pub(super) fn attempts(&self) -> Option<&Attempts> {
        self.attempts_of(self.service.wanted())
    }

    /// Where it is noted how it goes with an instance's revision and generation.
    pub(super) fn attempts_mut(&mut self, label: &InstanceLabel) -> &mut Attempts {
        let of = (label.revision, label.generation);
        let kept = [self.service.wanted(), self.service.live_revision()].map(|revision| revision.map(key));
        self.attempts.retain(|other, _| *other == of || kept.contains(&Some(*other)));
        self.attempts.entry(of).or_default()
    }

    /// Whoever changes something wants to see it now.
    pub(super) fn forget_attempts(&mut self) {
        self.attempts.clear();
    }

    /// An instance is no more.
    pub(super) fn drop_instance(&mut self, id: &InstanceId) {
        self.instances.remove(id);
        if self.routed.as_ref() == Some(id) {
            self.routed = None;
        }
        if self.gone.len() == KEPT_GONE {
            self.gone.pop_front();
        }
        self.gone.push_back(id.clone());
    }

    /// Whether an instance is of the revision and generation that shall run.
    pub(super) fn is_wanted(&self, label: &InstanceLabel) -> bool {
        self.service.wanted().is_some_and(|revision| key(revision) == (label.revision, label.generation))
    }

    /// The same, or of the live revision, which serves until another that is wanted does.
    pub(super) fn shall_run(&self, label: &InstanceLabel) -> bool {
        let live = self.service.live_revision();
        self.is_wanted(label)
            || live.is_some_and(|revision| key(revision) == (label.revision, label.generation))
    }

    /// An instance ended that should run, or a start failed.
    pub(super) fn count_end(
        &mut self,
        label: &InstanceLabel,
        healthy_since: Option<Timestamp>,
        outside: bool,
    ) {
        let attempts = self.attempts_mut(label);
        attempts.backoff.failed(healthy_since, Timestamp::now());
        attempts.outside_ends += u32::from(outside);
    }

    /// What is told of a revision from now on; whoever watched it before is told that it was superseded.
    pub(super) fn begin_progress(&mut self, revision: u32) -> Arc<Progress> {
        let progress = Arc::new(Progress::new(Timestamp::now()));
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

    pub(super) fn progress(&self, revision: u32) -> Option<Arc<Progress>> {
        self.progress.get(&revision).cloned()
    }
}

const fn key(revision: &Revision) -> (u32, u32) {
    (revision.number, revision.generation)
}
