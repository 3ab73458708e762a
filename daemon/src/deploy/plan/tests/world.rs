//! Simulated world: revisions of several qualities, time, and all events between two steps of a plan.

use std::time::Duration;

use jiff::Timestamp;

use crate::deploy::plan::{
    ActualInstance, ActualService, DesiredService, Health, InstanceStage, Target, after, plan,
};
use crate::model::deploy::Action;
use crate::model::id::InstanceId;
use crate::model::service::Strategy;

const SETTLE: Duration = Duration::from_secs(2);
const START_LIMIT: Duration = Duration::from_secs(60);

/// Behaviour of a revision's instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    Good,
    NeverHealthy,
    /// Exits on its own before it is healthy.
    Ends,
    CannotStart,
    /// Healthy for a short time only: every instance until the revision is live.
    Wavers,
}

#[derive(Clone, Debug)]
pub enum Event {
    Deploy(Quality, Strategy),
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

pub struct Revision {
    pub quality: Quality,
    pub strategy: Strategy,
    pub generation: u32,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Pending,
    Live,
    Failed,
    Superseded,
}

pub struct World {
    /// Revisions, numbered from 1.
    pub revisions: Vec<Revision>,
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

impl World {
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

    pub fn revision(&self, number: u32) -> &Revision {
        &self.revisions[number as usize - 1]
    }

    pub fn desired(&self) -> DesiredService {
        let last = u32::try_from(self.revisions.len()).unwrap();
        let wanted = match self.revisions.last().map(|revision| revision.outcome) {
            None => None,
            Some(Outcome::Failed) => self.live,
            Some(_) => Some(last),
        };
        let target = |number: u32| Target {
            revision: number,
            generation: self.revision(number).generation,
            pending: self.revision(number).outcome == Outcome::Pending,
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
    fn count_end(&mut self, of: (u32, u32), outside: bool) {
        let pause = Some(after(self.now, Duration::from_millis(100)));
        let desired = self.desired();
        let is = |target: &Target| (target.revision, target.generation) == of;
        if desired.want.as_ref().is_some_and(is) {
            self.actual.not_before = pause;
            self.actual.outside_ends += u32::from(outside);
        }
        if desired.serving.as_ref().is_some_and(is) {
            self.actual.serving_not_before = pause;
        }
    }

    fn forget_attempts(&mut self) {
        let (instances, routed) = (std::mem::take(&mut self.actual.instances), self.actual.routed.take());
        self.actual = ActualService { instances, routed, ..ActualService::default() };
    }

    pub fn happen(&mut self, event: &Event) {
        match *event {
            Event::Deploy(quality, strategy) if !self.removing => {
                if let Some(last) = self.revisions.last_mut().filter(|last| last.outcome == Outcome::Pending)
                {
                    last.outcome = Outcome::Superseded;
                }
                let outcome = Outcome::Pending;
                self.revisions.push(Revision { quality, strategy, generation: 0, outcome });
                self.forget_attempts();
            }
            Event::Restart => {
                if let Some(want) = self.desired().want {
                    self.revisions[want.revision as usize - 1].generation += 1;
                    self.forget_attempts();
                }
            }
            Event::Kill(n) | Event::End(n) => {
                let outside = matches!(event, Event::Kill(_));
                let Some(instance) = self.nth_running(n) else { return };
                instance.stage = InstanceStage::Ended { outside };
                let of = (instance.revision, instance.generation);
                self.count_end(of, outside);
            }
            Event::Vanish(n) => {
                let Some(instance) = self.nth_running(n) else { return };
                instance.stage = InstanceStage::Ended { outside: true };
                let of = (instance.revision, instance.generation);
                self.count_end(of, true);
            }
            Event::Sicken(n) => {
                if let Some(instance) = self.nth_running(n).filter(|instance| instance.serves()) {
                    instance.stage = InstanceStage::Running(Health::Unhealthy);
                }
            }
            Event::Tick(ms) => self.tick(Duration::from_millis(u64::from(ms) * 10)),
            Event::Daemon(chance) => self.restart_daemon(chance),
            Event::Steps(count) => self.steps(count),
            Event::Remove => self.removing = !self.revisions.is_empty(),
            Event::Deploy(..) => {}
        }
    }

    fn tick(&mut self, time: Duration) {
        self.now = after(self.now, time);
        let now = self.now;
        self.actual.instances.retain(|instance| instance.stage != InstanceStage::Going);
        let (mut failed, mut ended) = (Vec::new(), Vec::new());
        for instance in &mut self.actual.instances {
            let revision = &self.revisions[instance.revision as usize - 1];
            let live = revision.outcome == Outcome::Live;
            match instance.stage {
                InstanceStage::Starting if revision.quality == Quality::CannotStart => {
                    failed.push((instance.id.clone(), (instance.revision, instance.generation)));
                }
                InstanceStage::Starting => {
                    instance.stage = InstanceStage::Running(Health::Unproven { since: now });
                }
                InstanceStage::Running(Health::Unproven { .. }) => match revision.quality {
                    Quality::NeverHealthy | Quality::CannotStart => {}
                    Quality::Ends => {
                        instance.stage = InstanceStage::Ended { outside: false };
                        ended.push((instance.revision, instance.generation));
                    }
                    Quality::Good | Quality::Wavers => {
                        instance.stage = InstanceStage::Running(Health::Healthy { since: now });
                    }
                },
                InstanceStage::Running(Health::Healthy { .. })
                    if revision.quality == Quality::Wavers && !live =>
                {
                    instance.stage = InstanceStage::Running(Health::Unhealthy);
                }
                InstanceStage::Running(Health::Presumed) => {
                    instance.stage = InstanceStage::Running(Health::Healthy { since: now });
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
            self.count_end(of, false);
        }
    }

    /// The in-memory state of the daemon is lost; operations that it had started may have had any result.
    fn restart_daemon(&mut self, chance: u8) {
        let now = self.now;
        for (n, instance) in self.actual.instances.iter_mut().enumerate() {
            let chance = (usize::from(chance) + n) % 3;
            instance.stage = match (instance.stage, chance) {
                (InstanceStage::Starting | InstanceStage::Incomplete, 0 | 1) => InstanceStage::Incomplete,
                (InstanceStage::Going, 0) => InstanceStage::Ended { outside: true },
                (InstanceStage::Ended { outside }, _) => InstanceStage::Ended { outside },
                _ => InstanceStage::Running(Health::Unproven { since: now }),
            };
        }
        self.forget_attempts();
        self.actual.routed = None;
        let (live, removing) = (self.live, self.removing);
        let running = self.actual.instances.iter_mut().filter(|instance| instance.health().is_some());
        let live = running.filter(|instance| Some(instance.revision) == live);
        if let Some(serving) = live.min_by_key(|instance| instance.generation).filter(|_| !removing) {
            serving.stage = InstanceStage::Running(Health::Presumed);
            self.actual.routed = Some(serving.id.clone());
        }
    }

    /// Executes the first steps of the plan.
    fn steps(&mut self, count: usize) {
        for action in plan(&self.desired(), &self.actual, self.now).into_iter().take(count) {
            self.take(&action);
        }
    }

    fn take(&mut self, action: &Action) {
        let want = self.desired().want;
        let gentle = !self.removing && want.as_ref().is_some_and(|want| want.strategy == Strategy::Rolling);
        match action {
            Action::Start { revision, generation } => {
                let recreate = want.as_ref().is_some_and(|want| want.strategy == Strategy::Recreate);
                assert!(
                    !recreate || self.actual.instances.is_empty(),
                    "a second instance of a service that may not run twice: {:?}",
                    self.actual
                );
                let id = id(self.next_id);
                self.next_id += 1;
                let (revision, generation) = (*revision, *generation);
                let mut others = self.actual.instances.iter().filter(|instance| {
                    instance.revision == revision && instance.generation == generation && instance.serves()
                });
                assert!(others.next().is_none(), "a start beside one that serves: {:?}", self.actual);
                let stage = InstanceStage::Starting;
                self.actual.instances.push(ActualInstance { id, revision, generation, stage });
            }
            Action::Route { instance, revision } => {
                let found = self.instance(instance).clone();
                assert!(found.serves(), "traffic goes to an instance that is not healthy: {found:?}");
                let outcome = self.revision(*revision).outcome;
                assert_ne!(outcome, Outcome::Failed, "a failed revision takes traffic");
                self.actual.routed = Some(instance.clone());
            }
            Action::Unroute => {
                let serving = self.live;
                let old =
                    self.actual.instances.iter().find(|old| old.serves() && Some(old.revision) == serving);
                assert!(!gentle || old.is_none(), "traffic goes nowhere while {old:?} is healthy");
                self.actual.routed = None;
            }
            Action::Retire { instance, .. }
            | Action::Remove { instance, .. }
            | Action::Abort { instance, .. } => {
                let routed = self.actual.routed.as_ref() == Some(instance);
                let found = self.instance(instance);
                assert!(found.stage != InstanceStage::Going, "ended twice: {found:?}");
                assert!(
                    !(gentle && routed && found.health().is_some()),
                    "the instance with the traffic is taken away: {found:?}"
                );
                found.stage = InstanceStage::Going;
            }
            Action::MarkLive { revision } => {
                let routed = self.actual.routed.clone().expect("live without traffic");
                assert_eq!(self.instance(&routed).revision, *revision);
                self.revisions[*revision as usize - 1].outcome = Outcome::Live;
                self.live = Some(*revision);
            }
            Action::MarkFailed { revision, .. } => {
                let routed = self.actual.routed.clone();
                let found =
                    self.actual.instances.iter().find(|instance| Some(&instance.id) == routed.as_ref());
                assert!(
                    found.is_none_or(|found| found.revision != *revision || !found.serves()),
                    "a revision that serves fails"
                );
                let revision = &mut self.revisions[*revision as usize - 1];
                assert_eq!(revision.outcome, Outcome::Pending);
                revision.outcome = Outcome::Failed;
                let not_before = self.actual.serving_not_before;
                self.forget_attempts();
                (self.actual.not_before, self.actual.serving_not_before) = (not_before, not_before);
            }
            Action::Forget => {
                assert!(self.actual.instances.is_empty() && self.actual.routed.is_none());
                self.gone = true;
            }
            Action::AwaitHealthy { .. } | Action::Settle { .. } | Action::Backoff { .. } => {}
        }
    }

    /// Runs the plan without further events until it is empty.
    pub fn come_to_rest(&mut self) {
        for _ in 0..400 {
            let actions = plan(&self.desired(), &self.actual, self.now);
            if self.gone {
                return;
            }
            let rests =
                actions.is_empty()
                    && !self.actual.instances.iter().any(|instance| {
                        matches!(instance.stage, InstanceStage::Going | InstanceStage::Starting)
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
        if self.removing || want.strategy == Strategy::Recreate || want.revision == serving.revision {
            return;
        }
        self.steps(usize::MAX);
        // The plan may have moved on to another target.
        if self.desired() != desired {
            return;
        }
        let lives = |instance: &&ActualInstance| match instance.stage {
            InstanceStage::Running(Health::Unproven { since }) => self.now < after(since, START_LIMIT),
            InstanceStage::Running(health) => health.serves(),
            InstanceStage::Starting => true,
            _ => false,
        };
        let pauses = self.actual.serving_not_before.is_some_and(|until| self.now < until);
        let covers = |instance: &ActualInstance| instance.revision == serving.revision;
        let routed = self
            .actual
            .instances
            .iter()
            .any(|instance| self.actual.routed.as_ref() == Some(&instance.id) && instance.serves());
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
        assert!(only.serves() && !want.pending, "{only:?}");
        assert_eq!(self.actual.routed.as_ref(), Some(&only.id));
    }
}
