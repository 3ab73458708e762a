//! Planner: computes the next actions from the desired and the actual state of a service. It uses no locks and no I/O.
//!
//! ```text
//!              .-> Abort (no longer wanted)
//! Start --> Starting --> Running(Unproven) --AwaitHealthy--> Running(Healthy) --Settle, Route, MarkLive--> ready
//!              '------------------'---> Exited, or too late: MarkFailed, or Remove and Backoff
//! an older one: ready --until the new one is routed--> Retire --> gone
//!                  ^--- Start, if it exits or becomes unhealthy meanwhile (rolling updates)
//! ```
//!
//! - A revision that is not live yet fails at the first exit of its own, when it is not healthy in time, or when
//!   it does not stay healthy: it never had traffic, and the revision before it continues to serve. After an
//!   external cause (an unseen exit, or SIGKILL), it is started up to [`MAX_EXTERNAL_EXITS`] times.
//! - A live revision is restarted without limit, with [`RestartBackoff`](super::backoff::RestartBackoff) in between.
//! - Waiting actions ([`Action::AwaitHealthy`], [`Action::Settle`], [`Action::Backoff`]) are the last of a plan, and
//!   the plan is computed again whenever something changes.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::deploy::{DeployAction, FailCause};
use crate::model::id::InstanceId;
use crate::model::service::{DeployStrategy, RevisionOutcome, ServiceRecord, ServiceRevision};

/// Number of instances of a not yet live revision that may be ended by external causes before the revision fails.
pub const MAX_EXTERNAL_EXITS: u32 = 3;

/// Desired state of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredService {
    pub removing: bool,
    /// The wanted revision; `None` while no revision is fit to run.
    pub want: Option<RevisionTarget>,
    /// The live revision, which serves while the wanted one is not ready.
    pub serving: Option<RevisionTarget>,
}

/// A revision that should run or serve, with the settings that the planner needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionTarget {
    pub revision: u32,
    pub generation: u32,
    /// Set if the revision was never live.
    pub pending: bool,
    pub strategy: DeployStrategy,
    pub settle: Duration,
    pub start_limit: Duration,
}

/// Actual state of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ActualService {
    pub instances: Vec<ActualInstance>,
    /// Instance that receives the traffic.
    pub routed: Option<InstanceId>,
    /// Set if the last start of the wanted revision failed and another start would fail in the same way.
    pub start_failed: bool,
    /// Earliest time for the next start of the wanted revision.
    pub not_before: Option<Timestamp>,
    /// Number of instances of the wanted revision that were ended by external causes.
    pub external_exits: u32,
    /// Earliest time for the next start of the live revision, if that is another one than the wanted.
    pub serving_not_before: Option<Timestamp>,
}

/// Actual state of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActualInstance {
    pub id: InstanceId,
    pub revision: u32,
    pub generation: u32,
    pub stage: InstanceStage,
}

/// Stage of an instance in its lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceStage {
    /// A start is in progress.
    Starting,
    /// Parts left by an interrupted start.
    Incomplete,
    Running(InstanceHealth),
    /// The instance is being stopped and removed.
    Stopping,
    Exited {
        /// Set if an external cause ended the instance, as far as can be determined.
        external: bool,
    },
}

/// Health of a running instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceHealth {
    /// Running without a healthy probe so far; `since` is the time at which the process started.
    Unproven {
        since: Timestamp,
    },
    /// The instance served when an earlier run of the daemon stopped.
    Presumed,
    Healthy {
        since: Timestamp,
    },
    Unhealthy,
}

impl InstanceHealth {
    /// Reports whether an instance of this health may receive the traffic.
    pub const fn is_ready(self) -> bool {
        matches!(self, Self::Healthy { .. } | Self::Presumed)
    }
}

impl DesiredService {
    pub fn of(service: &ServiceRecord) -> Self {
        let target = |revision: &ServiceRevision| RevisionTarget {
            revision: revision.number,
            generation: revision.generation,
            pending: !matches!(revision.outcome, RevisionOutcome::Live { .. }),
            strategy: revision.spec.strategy,
            settle: revision.spec.health.settle,
            start_limit: revision.spec.health.start_limit,
        };
        Self {
            removing: service.removing,
            want: service.target_revision().map(target),
            serving: service.live_revision().map(target),
        }
    }
}

impl RevisionTarget {
    fn is_of(&self, instance: &ActualInstance) -> bool {
        (instance.revision, instance.generation) == (self.revision, self.generation)
    }
}

impl ActualInstance {
    const fn health(&self) -> Option<InstanceHealth> {
        match self.stage {
            InstanceStage::Running(health) => Some(health),
            _ => None,
        }
    }

    fn is_ready(&self) -> bool {
        self.health().is_some_and(InstanceHealth::is_ready)
    }

    fn remove(&self) -> DeployAction {
        DeployAction::Remove { instance: self.id.clone(), revision: self.revision }
    }

    fn retire(&self) -> DeployAction {
        DeployAction::Retire { instance: self.id.clone(), revision: self.revision }
    }
}

/// Computes the next actions. An empty plan means that the service is as desired, or that an operation in progress must
/// finish first.
pub fn plan(desired: &DesiredService, actual: &ActualService, now: Timestamp) -> Vec<DeployAction> {
    let want = match &desired.want {
        Some(want) if !desired.removing => want,
        _ => return plan_removal(desired, actual),
    };
    let (mine, others): (Vec<_>, Vec<_>) = actual.instances.iter().partition(|instance| want.is_of(instance));
    if want.pending
        && let Some(cause) = pending_failure(want, actual, &mine, now)
    {
        return vec![DeployAction::MarkFailed { revision: want.revision, cause }];
    }
    RolloutPlanner { desired, want, actual, mine, others, now, actions: Vec::new() }.run()
}

/// Plans the removal of all instances.
fn plan_removal(desired: &DesiredService, actual: &ActualService) -> Vec<DeployAction> {
    let mut actions = Vec::new();
    if actual.routed.is_some() {
        actions.push(DeployAction::Unroute);
    }
    for instance in &actual.instances {
        let (id, revision) = (instance.id.clone(), instance.revision);
        match instance.stage {
            InstanceStage::Stopping => {}
            InstanceStage::Starting => actions.push(DeployAction::Abort { instance: id, revision }),
            _ => actions.push(instance.remove()),
        }
    }
    if desired.removing && actual.instances.is_empty() {
        actions.push(DeployAction::Forget);
    }
    actions
}

/// Returns the reason for which a pending revision has failed, if it has.
fn pending_failure(
    want: &RevisionTarget,
    actual: &ActualService,
    mine: &[&ActualInstance],
    now: Timestamp,
) -> Option<FailCause> {
    // The revision serves already and only MarkLive is missing: an instance of an earlier generation may have the
    // traffic.
    let has_traffic = |instance: &ActualInstance| {
        instance.revision == want.revision
            && instance.is_ready()
            && actual.routed.as_ref() == Some(&instance.id)
    };
    if actual.instances.iter().any(has_traffic) {
        return None;
    }
    if actual.start_failed {
        return Some(FailCause::NotStarted);
    }
    mine.iter().find_map(|instance| {
        let id = || instance.id.clone();
        let routed = actual.routed.as_ref() == Some(&instance.id);
        match instance.stage {
            InstanceStage::Exited { external: outside } => {
                let over = !outside || actual.external_exits >= MAX_EXTERNAL_EXITS;
                over.then(|| FailCause::Ended { instance: id() })
            }
            InstanceStage::Running(InstanceHealth::Unproven { since }) => {
                (now >= after(since, want.start_limit)).then(|| FailCause::NeverHealthy { instance: id() })
            }
            InstanceStage::Running(InstanceHealth::Unhealthy) if !routed => {
                Some(FailCause::Unhealthy { instance: id() })
            }
            _ => None,
        }
    })
}

/// Computes the plan of a service that should run. `mine` are the instances of the wanted revision and generation.
struct RolloutPlanner<'a> {
    desired: &'a DesiredService,
    want: &'a RevisionTarget,
    actual: &'a ActualService,
    mine: Vec<&'a ActualInstance>,
    others: Vec<&'a ActualInstance>,
    now: Timestamp,
    actions: Vec<DeployAction>,
}

impl<'a> RolloutPlanner<'a> {
    fn run(mut self) -> Vec<DeployAction> {
        self.remove_leftovers();
        let best = self.best_instance(&self.mine);
        if let Some((best, health)) = best.filter(|(_, health)| health.is_ready()) {
            self.plan_ready(best, health);
            return self.actions;
        }
        let next = self.next_step(self.want, best, &self.mine, self.actual.not_before);
        let starts = matches!(next, Some(DeployAction::Start { .. }));
        if starts && self.want.strategy == DeployStrategy::Recreate && !self.actual.instances.is_empty() {
            self.stop_all_first(best.map(|(instance, _)| instance));
            return self.actions;
        }
        self.route_interim();
        self.keep_live_serving();
        self.actions.extend(next);
        self.actions
    }

    /// Removes leftovers and instances of revisions that should not run.
    fn remove_leftovers(&mut self) {
        for instance in self.mine.iter().chain(&self.others) {
            if matches!(instance.stage, InstanceStage::Incomplete | InstanceStage::Exited { .. }) {
                self.actions.push(instance.remove());
            }
        }
        for instance in &self.others {
            let (id, revision) = (instance.id.clone(), instance.revision);
            match instance.stage {
                InstanceStage::Starting
                    if !self.unserved_live_target().is_some_and(|serving| serving.is_of(instance)) =>
                {
                    self.actions.push(DeployAction::Abort { instance: id, revision });
                }
                InstanceStage::Running(_) if self.is_routed(instance) => {}
                InstanceStage::Running(_) if !self.is_of_serving(instance) => {
                    self.actions.push(instance.remove());
                }
                // It was meant to stand in for another instance, or another instance stands in for it.
                InstanceStage::Running(_) if !instance.is_ready() && self.interim_instance().is_some() => {
                    self.actions.push(instance.retire());
                }
                _ => {}
            }
        }
    }

    fn is_of_serving(&self, instance: &ActualInstance) -> bool {
        self.desired.serving.as_ref().is_some_and(|serving| serving.revision == instance.revision)
    }

    /// Returns the live revision if it has to serve until the wanted one does and none of its instances can.
    fn unserved_live_target(&self) -> Option<&'a RevisionTarget> {
        let serving = self.desired.serving.as_ref();
        serving.filter(|serving| {
            serving.revision != self.want.revision
                && self.want.strategy == DeployStrategy::Rolling
                && self.interim_instance().is_none()
        })
    }

    fn is_routed(&self, instance: &ActualInstance) -> bool {
        self.actual.routed.as_ref() == Some(&instance.id)
    }

    /// Returns the running instance that is closest to serving.
    fn best_instance(&self, among: &[&'a ActualInstance]) -> Option<(&'a ActualInstance, InstanceHealth)> {
        let rank = |(instance, health): &(&ActualInstance, InstanceHealth)| match health {
            InstanceHealth::Healthy { .. } | InstanceHealth::Presumed if self.is_routed(instance) => 4,
            InstanceHealth::Healthy { .. } => 3,
            InstanceHealth::Presumed => 2,
            InstanceHealth::Unproven { .. } => 1,
            InstanceHealth::Unhealthy => 0,
        };
        let running = among.iter().filter_map(|instance| Some((*instance, instance.health()?)));
        running.max_by_key(rank)
    }

    /// Returns another instance that may receive the traffic in the meantime: a ready one of the live revision, the
    /// routed one first.
    fn interim_instance(&self) -> Option<&'a ActualInstance> {
        let may = |instance: &&&ActualInstance| {
            instance.is_ready() && (self.is_routed(instance) || self.is_of_serving(instance))
        };
        self.others.iter().filter(may).max_by_key(|instance| self.is_routed(instance)).copied()
    }

    fn route(&mut self, to: &ActualInstance) {
        if !self.is_routed(to) {
            self.actions.push(DeployAction::Route { instance: to.id.clone(), revision: to.revision });
        }
    }

    /// Routes traffic while no instance of the wanted revision is ready: to the interim instance, or unchanged if the
    /// routed one is still running.
    fn route_interim(&mut self) {
        if let Some(other) = self.interim_instance() {
            return self.route(other);
        }
        let routed_runs =
            |instance: &&ActualInstance| self.is_routed(instance) && instance.health().is_some();
        if self.actual.routed.is_some()
            && !self.actual.instances.iter().any(|instance| routed_runs(&instance))
        {
            self.actions.push(DeployAction::Unroute);
        }
    }

    fn plan_ready(&mut self, best: &'a ActualInstance, health: InstanceHealth) {
        if let (InstanceHealth::Healthy { since }, Some(other)) = (health, self.interim_instance())
            && !self.is_routed(best)
        {
            let until = after(since, self.want.settle);
            if self.now < until {
                self.route(other);
                let (instance, revision) = (best.id.clone(), best.revision);
                return self.actions.push(DeployAction::Settle { instance, revision, until });
            }
        }
        self.route(best);
        if self.want.pending {
            self.actions.push(DeployAction::MarkLive { revision: self.want.revision });
        }
        let rest = self.mine.iter().chain(&self.others).filter(|instance| instance.id != best.id);
        for instance in rest {
            let gone = self.actions.iter().any(|action| stops_instance(action, &instance.id));
            match instance.stage {
                InstanceStage::Running(_) if !gone => self.actions.push(instance.retire()),
                InstanceStage::Starting if !gone => {
                    let (instance, revision) = (instance.id.clone(), instance.revision);
                    self.actions.push(DeployAction::Abort { instance, revision });
                }
                _ => {}
            }
        }
    }

    /// Returns the next action towards a ready instance if `best` is not ready; `None` while one is being started.
    fn next_step(
        &self,
        target: &RevisionTarget,
        best: Option<(&ActualInstance, InstanceHealth)>,
        instances: &[&ActualInstance],
        not_before: Option<Timestamp>,
    ) -> Option<DeployAction> {
        if let Some((best, InstanceHealth::Unproven { since })) = best {
            let (instance, revision) = (best.id.clone(), best.revision);
            let late = self.now >= after(since, target.start_limit);
            return Some(if late {
                best.remove()
            } else {
                DeployAction::AwaitHealthy { instance, revision }
            });
        }
        if instances.iter().any(|instance| instance.stage == InstanceStage::Starting) {
            return None;
        }
        if let Some(until) = not_before.filter(|until| self.now < *until) {
            return Some(DeployAction::Backoff { until });
        }
        Some(DeployAction::Start { revision: target.revision, generation: target.generation })
    }

    /// Starts another instance of the live revision if its instance exited or became unhealthy before the wanted
    /// revision is ready.
    fn keep_live_serving(&mut self) {
        let Some(serving) = self.unserved_live_target() else { return };
        let instances: Vec<_> =
            self.others.iter().copied().filter(|instance| serving.is_of(instance)).collect();
        let best = self.best_instance(&instances);
        let next = self.next_step(serving, best, &instances, self.actual.serving_not_before);
        self.actions.extend(next);
    }

    /// Stops every instance of a service that must not run twice, before the next one starts.
    fn stop_all_first(&mut self, unhealthy: Option<&ActualInstance>) {
        if self.actual.routed.is_some() {
            self.actions.insert(0, DeployAction::Unroute);
        }
        let running = self.others.iter().copied().filter(|instance| instance.health().is_some());
        for instance in running.chain(unhealthy) {
            if !self.actions.iter().any(|action| stops_instance(action, &instance.id)) {
                self.actions.push(instance.retire());
            }
        }
    }
}

fn stops_instance(action: &DeployAction, id: &InstanceId) -> bool {
    match action {
        DeployAction::Remove { instance, .. }
        | DeployAction::Retire { instance, .. }
        | DeployAction::Abort { instance, .. } => instance == id,
        _ => false,
    }
}

pub(super) fn after(since: Timestamp, time: Duration) -> Timestamp {
    // An overflow means never.
    since.checked_add(time).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
