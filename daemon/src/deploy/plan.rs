//! From what a service shall be and what there is of it to the next steps. No locks, no I/O.
//!
//! ```text
//!              .-> Abort (not wanted any more)
//! Start --> Starting --> Running(Unproven) --AwaitHealthy--> Running(Healthy) --Settle, Route, MarkLive--> serves
//!              '------------------'---> Ended, or too late: MarkFailed, or Remove and Backoff
//! an older one: serves --until the new one is routed--> Retire --> gone
//!                  ^--- Start, where it ends or sickens meanwhile (rolling updates)
//! ```
//!
//! - A revision that is not live yet fails at the first end of its own doing, when it is not healthy in time, or when
//!   it does not stay healthy: it never had traffic, and the one before it serves on. What ends it from outside
//!   (nobody saw the exit, or SIGKILL) is tried [`MAX_OUTSIDE_ENDS`] times.
//! - A live revision is started again for ever, with [`Backoff`](super::backoff::Backoff) in between.
//! - What comes first wins: steps that wait ([`Action::AwaitHealthy`], [`Action::Settle`], [`Action::Backoff`]) are
//!   the last of a plan, and the plan is made anew whenever something changes.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::deploy::{Action, FailCause};
use crate::model::id::InstanceId;
use crate::model::service::{Revision, RevisionOutcome, Service, Strategy};

/// Instances of a revision that is not live yet that something else may end before the revision fails.
pub const MAX_OUTSIDE_ENDS: u32 = 3;

/// What a service shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredService {
    pub removing: bool,
    /// None while no revision is fit to run.
    pub want: Option<Target>,
    /// The live revision: no other serves while the wanted one is not ready.
    pub serving: Option<Target>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub revision: u32,
    pub generation: u32,
    /// It was never live.
    pub pending: bool,
    pub strategy: Strategy,
    pub settle: Duration,
    pub start_limit: Duration,
}

/// What there is of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ActualService {
    pub instances: Vec<ActualInstance>,
    /// Where its traffic goes.
    pub routed: Option<InstanceId>,
    /// The wanted revision's last start failed in a way that another start will not mend.
    pub start_failed: bool,
    /// No start of it before.
    pub not_before: Option<Timestamp>,
    /// Instances of it that something else has ended.
    pub outside_ends: u32,
    /// No start of the live revision before, where that is another.
    pub serving_not_before: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActualInstance {
    pub id: InstanceId,
    pub revision: u32,
    pub generation: u32,
    pub stage: InstanceStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceStage {
    /// A start is under way.
    Starting,
    /// Left by a start that was cut short.
    Incomplete,
    Running(Health),
    /// It is being taken away.
    Going,
    Ended {
        /// Not by its own doing, as far as can be told.
        outside: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// No healthy answer yet, since it began to run.
    Unproven {
        since: Timestamp,
    },
    /// It served when an earlier run of the daemon ended.
    Presumed,
    Healthy {
        since: Timestamp,
    },
    Unhealthy,
}

impl Health {
    const fn serves(self) -> bool {
        matches!(self, Self::Healthy { .. } | Self::Presumed)
    }
}

impl DesiredService {
    pub fn of(service: &Service) -> Self {
        let target = |revision: &Revision| Target {
            revision: revision.number,
            generation: revision.generation,
            pending: !matches!(revision.outcome, RevisionOutcome::Live { .. }),
            strategy: revision.spec.strategy,
            settle: revision.spec.health.settle,
            start_limit: revision.spec.health.start_limit,
        };
        Self {
            removing: service.removing,
            want: service.wanted().map(target),
            serving: service.live_revision().map(target),
        }
    }
}

impl Target {
    fn is_of(&self, instance: &ActualInstance) -> bool {
        (instance.revision, instance.generation) == (self.revision, self.generation)
    }
}

impl ActualInstance {
    const fn health(&self) -> Option<Health> {
        match self.stage {
            InstanceStage::Running(health) => Some(health),
            _ => None,
        }
    }

    fn serves(&self) -> bool {
        self.health().is_some_and(Health::serves)
    }

    fn remove(&self) -> Action {
        Action::Remove { instance: self.id.clone(), revision: self.revision }
    }

    fn retire(&self) -> Action {
        Action::Retire { instance: self.id.clone(), revision: self.revision }
    }
}

/// The next steps. None means that all is as it shall be, or that something under way must end first.
pub fn plan(desired: &DesiredService, actual: &ActualService, now: Timestamp) -> Vec<Action> {
    let want = match &desired.want {
        Some(want) if !desired.removing => want,
        _ => return clear(desired, actual),
    };
    let (mine, others): (Vec<_>, Vec<_>) = actual.instances.iter().partition(|instance| want.is_of(instance));
    if want.pending
        && let Some(cause) = failure(want, actual, &mine, now)
    {
        return vec![Action::MarkFailed { revision: want.revision, cause }];
    }
    Planner { desired, want, actual, mine, others, now, actions: Vec::new() }.run()
}

/// Nothing of it shall run.
fn clear(desired: &DesiredService, actual: &ActualService) -> Vec<Action> {
    let mut actions = Vec::new();
    if actual.routed.is_some() {
        actions.push(Action::Unroute);
    }
    for instance in &actual.instances {
        let (id, revision) = (instance.id.clone(), instance.revision);
        match instance.stage {
            InstanceStage::Going => {}
            InstanceStage::Starting => actions.push(Action::Abort { instance: id, revision }),
            _ => actions.push(instance.remove()),
        }
    }
    if desired.removing && actual.instances.is_empty() {
        actions.push(Action::Forget);
    }
    actions
}

/// Why a revision that was never live will not be.
fn failure(
    want: &Target,
    actual: &ActualService,
    mine: &[&ActualInstance],
    now: Timestamp,
) -> Option<FailCause> {
    // It serves already, and only its mark is missing: an instance of an earlier generation may have the traffic.
    let has_traffic = |instance: &ActualInstance| {
        instance.revision == want.revision
            && instance.serves()
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
            InstanceStage::Ended { outside } => {
                let over = !outside || actual.outside_ends >= MAX_OUTSIDE_ENDS;
                over.then(|| FailCause::Ended { instance: id() })
            }
            InstanceStage::Running(Health::Unproven { since }) => {
                (now >= after(since, want.start_limit)).then(|| FailCause::NeverHealthy { instance: id() })
            }
            InstanceStage::Running(Health::Unhealthy) if !routed => {
                Some(FailCause::Unhealthy { instance: id() })
            }
            _ => None,
        }
    })
}

struct Planner<'a> {
    desired: &'a DesiredService,
    want: &'a Target,
    actual: &'a ActualService,
    mine: Vec<&'a ActualInstance>,
    others: Vec<&'a ActualInstance>,
    now: Timestamp,
    actions: Vec<Action>,
}

impl<'a> Planner<'a> {
    fn run(mut self) -> Vec<Action> {
        self.clean();
        let best = self.best(&self.mine);
        if let Some((best, health)) = best.filter(|(_, health)| health.serves()) {
            self.serve(best, health);
            return self.actions;
        }
        let next = self.towards(self.want, best, &self.mine, self.actual.not_before);
        let starts = matches!(next, Some(Action::Start { .. }));
        if starts && self.want.strategy == Strategy::Recreate && !self.actual.instances.is_empty() {
            self.make_room(best.map(|(instance, _)| instance));
            return self.actions;
        }
        self.route_meanwhile();
        self.cover();
        self.actions.extend(next);
        self.actions
    }

    /// What serves nobody goes: remains, and instances of revisions that shall not be.
    fn clean(&mut self) {
        for instance in self.mine.iter().chain(&self.others) {
            if matches!(instance.stage, InstanceStage::Incomplete | InstanceStage::Ended { .. }) {
                self.actions.push(instance.remove());
            }
        }
        for instance in &self.others {
            let (id, revision) = (instance.id.clone(), instance.revision);
            match instance.stage {
                InstanceStage::Starting
                    if !self.uncovered().is_some_and(|serving| serving.is_of(instance)) =>
                {
                    self.actions.push(Action::Abort { instance: id, revision });
                }
                InstanceStage::Running(_) if self.is_routed(instance) => {}
                InstanceStage::Running(_) if !self.is_of_serving(instance) => {
                    self.actions.push(instance.remove());
                }
                // It was to be in another's place, or another is in its.
                InstanceStage::Running(_) if !instance.serves() && self.stand_in().is_some() => {
                    self.actions.push(instance.retire());
                }
                _ => {}
            }
        }
    }

    fn is_of_serving(&self, instance: &ActualInstance) -> bool {
        self.desired.serving.as_ref().is_some_and(|serving| serving.revision == instance.revision)
    }

    /// The live revision, where it has to serve until another wanted one does, and no instance may.
    fn uncovered(&self) -> Option<&'a Target> {
        let serving = self.desired.serving.as_ref();
        serving.filter(|serving| {
            serving.revision != self.want.revision
                && self.want.strategy == Strategy::Rolling
                && self.stand_in().is_none()
        })
    }

    fn is_routed(&self, instance: &ActualInstance) -> bool {
        self.actual.routed.as_ref() == Some(&instance.id)
    }

    /// The instance that is nearest to serving.
    fn best(&self, among: &[&'a ActualInstance]) -> Option<(&'a ActualInstance, Health)> {
        let rank = |(instance, health): &(&ActualInstance, Health)| match health {
            Health::Healthy { .. } | Health::Presumed if self.is_routed(instance) => 4,
            Health::Healthy { .. } => 3,
            Health::Presumed => 2,
            Health::Unproven { .. } => 1,
            Health::Unhealthy => 0,
        };
        let running = among.iter().filter_map(|instance| Some((*instance, instance.health()?)));
        running.max_by_key(rank)
    }

    /// Another instance that may have the traffic meanwhile: of the live revision, and healthy; the routed one first.
    fn stand_in(&self) -> Option<&'a ActualInstance> {
        let may = |instance: &&&ActualInstance| {
            instance.serves() && (self.is_routed(instance) || self.is_of_serving(instance))
        };
        self.others.iter().filter(may).max_by_key(|instance| self.is_routed(instance)).copied()
    }

    fn route(&mut self, to: &ActualInstance) {
        if !self.is_routed(to) {
            self.actions.push(Action::Route { instance: to.id.clone(), revision: to.revision });
        }
    }

    /// Nothing of the wanted revision serves yet: traffic goes to the one that stands in, or where it went if that runs.
    fn route_meanwhile(&mut self) {
        if let Some(other) = self.stand_in() {
            return self.route(other);
        }
        let routed_runs =
            |instance: &&ActualInstance| self.is_routed(instance) && instance.health().is_some();
        if self.actual.routed.is_some()
            && !self.actual.instances.iter().any(|instance| routed_runs(&instance))
        {
            self.actions.push(Action::Unroute);
        }
    }

    fn serve(&mut self, best: &'a ActualInstance, health: Health) {
        if let (Health::Healthy { since }, Some(other)) = (health, self.stand_in())
            && !self.is_routed(best)
        {
            let until = after(since, self.want.settle);
            if self.now < until {
                self.route(other);
                let (instance, revision) = (best.id.clone(), best.revision);
                return self.actions.push(Action::Settle { instance, revision, until });
            }
        }
        self.route(best);
        if self.want.pending {
            self.actions.push(Action::MarkLive { revision: self.want.revision });
        }
        let rest = self.mine.iter().chain(&self.others).filter(|instance| instance.id != best.id);
        for instance in rest {
            let gone = self.actions.iter().any(|action| is_end_of(action, &instance.id));
            match instance.stage {
                InstanceStage::Running(_) if !gone => self.actions.push(instance.retire()),
                InstanceStage::Starting if !gone => {
                    let (instance, revision) = (instance.id.clone(), instance.revision);
                    self.actions.push(Action::Abort { instance, revision });
                }
                _ => {}
            }
        }
    }

    /// The next step towards an instance that serves, where `best` does not. None while one is being started.
    fn towards(
        &self,
        target: &Target,
        best: Option<(&ActualInstance, Health)>,
        instances: &[&ActualInstance],
        not_before: Option<Timestamp>,
    ) -> Option<Action> {
        if let Some((best, Health::Unproven { since })) = best {
            let (instance, revision) = (best.id.clone(), best.revision);
            let late = self.now >= after(since, target.start_limit);
            return Some(if late { best.remove() } else { Action::AwaitHealthy { instance, revision } });
        }
        if instances.iter().any(|instance| instance.stage == InstanceStage::Starting) {
            return None;
        }
        if let Some(until) = not_before.filter(|until| self.now < *until) {
            return Some(Action::Backoff { until });
        }
        Some(Action::Start { revision: target.revision, generation: target.generation })
    }

    /// The one that served ended, or is unhealthy, before the wanted revision is ready: another of it is started.
    fn cover(&mut self) {
        let Some(serving) = self.uncovered() else { return };
        let instances: Vec<_> =
            self.others.iter().copied().filter(|instance| serving.is_of(instance)).collect();
        let best = self.best(&instances);
        let next = self.towards(serving, best, &instances, self.actual.serving_not_before);
        self.actions.extend(next);
    }

    /// A service that may not run twice: everything of it goes before the next one starts.
    fn make_room(&mut self, unhealthy: Option<&ActualInstance>) {
        if self.actual.routed.is_some() {
            self.actions.insert(0, Action::Unroute);
        }
        let running = self.others.iter().copied().filter(|instance| instance.health().is_some());
        for instance in running.chain(unhealthy) {
            if !self.actions.iter().any(|action| is_end_of(action, &instance.id)) {
                self.actions.push(instance.retire());
            }
        }
    }
}

fn is_end_of(action: &Action, id: &InstanceId) -> bool {
    match action {
        Action::Remove { instance, .. }
        | Action::Retire { instance, .. }
        | Action::Abort { instance, .. } => instance == id,
        _ => false,
    }
}

pub(super) fn after(since: Timestamp, time: Duration) -> Timestamp {
    // An overflow is as good as never.
    since.checked_add(time).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
