//! Simulated world: revisions of several qualities, time, and all events between two steps of a plan.

use std::time::Duration;

use jiff::Timestamp;

use crate::deploy::plan::{
    ActualInstance, ActualService, DesiredService, InstanceHealth, InstanceStage, RevisionTarget, after, plan,
};
use crate::model::deploy::DeployAction;
use crate::model::id::InstanceId;
use crate::model::service::DeployStrategy;

const SETTLE: Duration = Duration::from_secs(2);
const START_LIMIT: Duration = Duration::from_secs(60);

/// Behaviour of a revision's instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevisionQuality {
    Good,
    NeverHealthy,
    /// Exits on its own before it is healthy.
    Ends,
    CannotStart,
    /// Healthy for a short time only: every instance until the revision is live.
    Wavers,
}

#[derive(Clone, Debug)]
pub enum SimulatedEvent {
    Deploy(RevisionQuality, DeployStrategy),
    Restart,
    /// An external cause kills the n-th instance.
    Kill(usize),
    /// The n-th instance exits on its own.
    End(usize),
    /// The n-th instance has disappeared.
    Vanish(usize),
    Sicken(usize),
    /// Time passes, and operations in progress advance.
    Tick(u16),
    /// The daemon dies; operations in progress are at a random point.
    Daemon(u8),
    /// This many steps of the plan are done before the next event.
    Steps(usize),
    Remove,
}

pub struct SimulatedRevision {
    pub quality: RevisionQuality,
    pub strategy: DeployStrategy,
    pub generation: u32,
    pub outcome: SimulatedOutcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimulatedOutcome {
    Pending,
    Live,
    Failed,
    Superseded,
}

pub struct SimulatedWorld {
    /// Revisions, numbered from 1.
    pub revisions: Vec<SimulatedRevision>,
    pub live: Option<u32>,
    pub removing: bool,
    pub gone: bool,
    pub actual: ActualService,
    pub now: Timestamp,
    pub next_id: u64,
}

fn id(number: u64) -> InstanceId {
    const LETTERS: &[u8] = b"0123456789abcdef";
    let text: String =
        (0..12).rev().map(|at| char::from(LETTERS[(number >> (4 * at)) as usize & 15])).collect();
    text.parse().unwrap()
}

impl SimulatedWorld {
    pub fn new() -> Self {
        Self {
            revisions: Vec::new(),
            live: None,
            removing: false,
            gone: false,
            actual: ActualService::default(),
            now: Timestamp::UNIX_EPOCH,
            next_id: 1,
        }
    }

    pub fn revision(&self, number: u32) -> &SimulatedRevision {
        &self.revisions[number as usize - 1]
    }

    pub fn desired(&self) -> DesiredService {
        let last = u32::try_from(self.revisions.len()).unwrap();
        let wanted = match self.revisions.last().map(|revision| revision.outcome) {
            None => None,
            Some(SimulatedOutcome::Failed) => self.live,
            Some(_) => Some(last),
        };
        let target = |number: u32| RevisionTarget {
            revision: number,
            generation: self.revision(number).generation,
            pending: self.revision(number).outcome == SimulatedOutcome::Pending,
            strategy: self.revision(number).strategy,
            settle: SETTLE,
            start_limit: START_LIMIT,
        };
        DesiredService { removing: self.removing, want: wanted.map(target), serving: self.live.map(target) }
    }

    pub fn instance(&mut self, id: &InstanceId) -> &mut ActualInstance {
        self.actual
            .instances
            .iter_mut()
            .find(|instance| instance.id == *id)
            .expect("a step names no instance")
    }

    fn nth_running(&mut self, n: usize) -> Option<&mut ActualInstance> {
        let mut running: Vec<_> =
            self.actual.instances.iter_mut().filter(|instance| instance.health().is_some()).collect();
        let count = running.len();
        (count > 0).then(|| running.swap_remove(n % count))
    }

    /// Records the exit of an instance.
    fn count_exit(&mut self, of: (u32, u32), outside: bool) {
        let pause = Some(after(self.now, Duration::from_millis(100)));
        let desired = self.desired();
        let is = |target: &RevisionTarget| (target.revision, target.generation) == of;
        if desired.want.as_ref().is_some_and(is) {
            self.actual.not_before = pause;
            self.actual.external_exits += u32::from(outside);
        }
        if desired.serving.as_ref().is_some_and(is) {
            self.actual.serving_not_before = pause;
        }
    }

    fn forget_attempts(&mut self) {
        let (instances, routed) = (std::mem::take(&mut self.actual.instances), self.actual.routed.take());
        self.actual = ActualService { instances, routed, ..ActualService::default() };
    }

    pub fn happen(&mut self, event: &SimulatedEvent) {
        match *event {
            SimulatedEvent::Deploy(quality, strategy) if !self.removing => {
                if let Some(last) =
                    self.revisions.last_mut().filter(|last| last.outcome == SimulatedOutcome::Pending)
                {
                    last.outcome = SimulatedOutcome::Superseded;
                }
                let outcome = SimulatedOutcome::Pending;
                self.revisions.push(SimulatedRevision { quality, strategy, generation: 0, outcome });
                self.forget_attempts();
            }
            SimulatedEvent::Restart => {
                if let Some(want) = self.desired().want {
                    self.revisions[want.revision as usize - 1].generation += 1;
                    self.forget_attempts();
                }
            }
            SimulatedEvent::Kill(n) | SimulatedEvent::End(n) => {
                let outside = matches!(event, SimulatedEvent::Kill(_));
                let Some(instance) = self.nth_running(n) else { return };
                instance.stage = InstanceStage::Exited { external: outside };
                let of = (instance.revision, instance.generation);
                self.count_exit(of, outside);
            }
            SimulatedEvent::Vanish(n) => {
                let Some(instance) = self.nth_running(n) else { return };
                instance.stage = InstanceStage::Exited { external: true };
                let of = (instance.revision, instance.generation);
                self.count_exit(of, true);
            }
            SimulatedEvent::Sicken(n) => {
                if let Some(instance) = self.nth_running(n).filter(|instance| instance.is_ready()) {
                    instance.stage = InstanceStage::Running(InstanceHealth::Unhealthy);
                }
            }
            SimulatedEvent::Tick(ms) => self.tick(Duration::from_millis(u64::from(ms) * 10)),
            SimulatedEvent::Daemon(chance) => self.restart_daemon(chance),
            SimulatedEvent::Steps(count) => self.steps(count),
            SimulatedEvent::Remove => self.removing = !self.revisions.is_empty(),
            SimulatedEvent::Deploy(..) => {}
        }
    }

    fn tick(&mut self, time: Duration) {
        self.now = after(self.now, time);
        let now = self.now;
        self.actual.instances.retain(|instance| instance.stage != InstanceStage::Stopping);
        let (mut failed, mut ended) = (Vec::new(), Vec::new());
        for instance in &mut self.actual.instances {
            let revision = &self.revisions[instance.revision as usize - 1];
            let live = revision.outcome == SimulatedOutcome::Live;
            match instance.stage {
                InstanceStage::Starting if revision.quality == RevisionQuality::CannotStart => {
                    failed.push((instance.id.clone(), (instance.revision, instance.generation)));
                }
                InstanceStage::Starting => {
                    instance.stage = InstanceStage::Running(InstanceHealth::Unproven { since: now });
                }
                InstanceStage::Running(InstanceHealth::Unproven { .. }) => match revision.quality {
                    RevisionQuality::NeverHealthy | RevisionQuality::CannotStart => {}
                    RevisionQuality::Ends => {
                        instance.stage = InstanceStage::Exited { external: false };
                        ended.push((instance.revision, instance.generation));
                    }
                    RevisionQuality::Good | RevisionQuality::Wavers => {
                        instance.stage = InstanceStage::Running(InstanceHealth::Healthy { since: now });
                    }
                },
                InstanceStage::Running(InstanceHealth::Healthy { .. })
                    if revision.quality == RevisionQuality::Wavers && !live =>
                {
                    instance.stage = InstanceStage::Running(InstanceHealth::Unhealthy);
                }
                InstanceStage::Running(InstanceHealth::Presumed) => {
                    instance.stage = InstanceStage::Running(InstanceHealth::Healthy { since: now });
                }
                _ => {}
            }
        }
        for (id, of) in failed {
            self.actual.instances.retain(|instance| instance.id != id);
            let want = self.desired().want;
            self.actual.start_failed |= want.is_some_and(|want| (want.revision, want.generation) == of);
        }
        for of in ended {
            self.count_exit(of, false);
        }
    }

    /// The in-memory state of the daemon is lost; operations that it had started may have had any result.
    fn restart_daemon(&mut self, chance: u8) {
        let now = self.now;
        for (n, instance) in self.actual.instances.iter_mut().enumerate() {
            let chance = (usize::from(chance) + n) % 3;
            instance.stage = match (instance.stage, chance) {
                (InstanceStage::Starting | InstanceStage::Incomplete, 0 | 1) => InstanceStage::Incomplete,
                (InstanceStage::Stopping, 0) => InstanceStage::Exited { external: true },
                (InstanceStage::Exited { external: outside }, _) => {
                    InstanceStage::Exited { external: outside }
                }
                _ => InstanceStage::Running(InstanceHealth::Unproven { since: now }),
            };
        }
        self.forget_attempts();
        self.actual.routed = None;
        let (live, removing) = (self.live, self.removing);
        let running = self.actual.instances.iter_mut().filter(|instance| instance.health().is_some());
        let live = running.filter(|instance| Some(instance.revision) == live);
        if let Some(serving) = live.min_by_key(|instance| instance.generation).filter(|_| !removing) {
            serving.stage = InstanceStage::Running(InstanceHealth::Presumed);
            self.actual.routed = Some(serving.id.clone());
        }
    }

    /// Executes the first steps of the plan.
    fn steps(&mut self, count: usize) {
        for action in plan(&self.desired(), &self.actual, self.now).into_iter().take(count) {
            self.take(&action);
        }
    }

    fn take(&mut self, action: &DeployAction) {
        let want = self.desired().want;
        let gentle =
            !self.removing && want.as_ref().is_some_and(|want| want.strategy == DeployStrategy::Rolling);
        match action {
            DeployAction::Start { revision, generation } => {
                let recreate = want.as_ref().is_some_and(|want| want.strategy == DeployStrategy::Recreate);
                assert!(
                    !recreate || self.actual.instances.is_empty(),
                    "a second instance of a service that may not run twice: {:?}",
                    self.actual
                );
                let id = id(self.next_id);
                self.next_id += 1;
                let (revision, generation) = (*revision, *generation);
                let mut others = self.actual.instances.iter().filter(|instance| {
                    instance.revision == revision && instance.generation == generation && instance.is_ready()
                });
                assert!(others.next().is_none(), "a start beside one that serves: {:?}", self.actual);
                let stage = InstanceStage::Starting;
                self.actual.instances.push(ActualInstance { id, revision, generation, stage });
            }
            DeployAction::Route { instance, revision } => {
                let found = self.instance(instance).clone();
                assert!(found.is_ready(), "traffic goes to an instance that is not healthy: {found:?}");
                let outcome = self.revision(*revision).outcome;
                assert_ne!(outcome, SimulatedOutcome::Failed, "a failed revision takes traffic");
                self.actual.routed = Some(instance.clone());
            }
            DeployAction::Unroute => {
                let serving = self.live;
                let old =
                    self.actual.instances.iter().find(|old| old.is_ready() && Some(old.revision) == serving);
                assert!(!gentle || old.is_none(), "traffic goes nowhere while {old:?} is healthy");
                self.actual.routed = None;
            }
            DeployAction::Retire { instance, .. }
            | DeployAction::Remove { instance, .. }
            | DeployAction::Abort { instance, .. } => {
                let routed = self.actual.routed.as_ref() == Some(instance);
                let found = self.instance(instance);
                assert!(found.stage != InstanceStage::Stopping, "ended twice: {found:?}");
                assert!(
                    !(gentle && routed && found.health().is_some()),
                    "the instance with the traffic is taken away: {found:?}"
                );
                found.stage = InstanceStage::Stopping;
            }
            DeployAction::MarkLive { revision } => {
                let routed = self.actual.routed.clone().expect("live without traffic");
                assert_eq!(self.instance(&routed).revision, *revision);
                self.revisions[*revision as usize - 1].outcome = SimulatedOutcome::Live;
                self.live = Some(*revision);
            }
            DeployAction::MarkFailed { revision, .. } => {
                let routed = self.actual.routed.clone();
                let found =
                    self.actual.instances.iter().find(|instance| Some(&instance.id) == routed.as_ref());
                assert!(
                    found.is_none_or(|found| found.revision != *revision || !found.is_ready()),
                    "a revision that serves fails"
                );
                let revision = &mut self.revisions[*revision as usize - 1];
                assert_eq!(revision.outcome, SimulatedOutcome::Pending);
                revision.outcome = SimulatedOutcome::Failed;
                let not_before = self.actual.serving_not_before;
                self.forget_attempts();
                (self.actual.not_before, self.actual.serving_not_before) = (not_before, not_before);
            }
            DeployAction::Forget => {
                assert!(self.actual.instances.is_empty() && self.actual.routed.is_none());
                self.gone = true;
            }
            DeployAction::AwaitHealthy { .. }
            | DeployAction::Settle { .. }
            | DeployAction::Backoff { .. } => {}
        }
    }

    /// Runs the plan without further events until it is empty.
    pub fn come_to_rest(&mut self) {
        for _ in 0..400 {
            let actions = plan(&self.desired(), &self.actual, self.now);
            if self.gone {
                return;
            }
            let rests = actions.is_empty()
                && !self.actual.instances.iter().any(|instance| {
                    matches!(instance.stage, InstanceStage::Stopping | InstanceStage::Starting)
                });
            if rests {
                return;
            }
            for action in actions {
                self.take(&action);
            }
            self.tick(Duration::from_secs(1));
        }
        panic!("the plan does not come to rest: {:?} {:?}", self.desired(), self.actual);
    }

    /// Checks that during an update the live revision has a ready instance, or one that is starting, or is in its
    /// backoff pause: an executed plan leaves no gap without a remedy.
    pub fn check_cover(&mut self) {
        let desired = self.desired();
        let (Some(want), Some(serving)) = (&desired.want, &desired.serving) else { return };
        if self.removing || want.strategy == DeployStrategy::Recreate || want.revision == serving.revision {
            return;
        }
        self.steps(usize::MAX);
        // The plan may have moved on to another target.
        if self.desired() != desired {
            return;
        }
        let lives = |instance: &&ActualInstance| match instance.stage {
            InstanceStage::Running(InstanceHealth::Unproven { since }) => {
                self.now < after(since, START_LIMIT)
            }
            InstanceStage::Running(health) => health.is_ready(),
            InstanceStage::Starting => true,
            _ => false,
        };
        let pauses = self.actual.serving_not_before.is_some_and(|until| self.now < until);
        let covers = |instance: &ActualInstance| instance.revision == serving.revision;
        let routed = self
            .actual
            .instances
            .iter()
            .any(|instance| self.actual.routed.as_ref() == Some(&instance.id) && instance.is_ready());
        let count = self.actual.instances.iter().filter(lives).filter(|instance| covers(instance)).count();
        assert!(routed || count > 0 || pauses, "nobody serves, nor will: {desired:?} {:?}", self.actual);
        assert!(count <= 3, "they pile up: {:?}", self.actual);
    }

    pub fn check_rest(&self) {
        if self.removing {
            assert!(self.gone && self.actual.instances.is_empty());
            return;
        }
        let Some(want) = self.desired().want else {
            assert!(self.actual.instances.is_empty(), "{:?}", self.actual);
            assert_eq!(self.actual.routed, None);
            return;
        };
        let [only] = self.actual.instances.as_slice() else {
            panic!("not one instance: {:?}", self.actual);
        };
        assert_eq!((only.revision, only.generation), (want.revision, want.generation));
        assert!(only.is_ready() && !want.pending, "{only:?}");
        assert_eq!(self.actual.routed.as_ref(), Some(&only.id));
    }
}
