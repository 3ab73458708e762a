//! A simulated world: revisions of several qualities, time, and everything that may happen between two steps of a
//! plan. Whatever happened, the plan must come to where one healthy instance of the right revision serves.

use proptest::prelude::{Just, ProptestConfig, any, prop};
use proptest::strategy::Strategy as _;
use proptest::{prop_oneof, proptest};

use super::*;

const SETTLE: Duration = Duration::from_secs(2);
const START_LIMIT: Duration = Duration::from_secs(60);

/// What becomes of a revision's instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quality {
    Good,
    NeverHealthy,
    /// Ends by itself before it is healthy.
    Ends,
    CannotStart,
    /// Healthy, and soon not any more: every instance until the revision is live.
    Wavers,
}

#[derive(Clone, Debug)]
enum Event {
    Deploy(Quality, Strategy),
    Restart,
    /// Something kills the n-th instance.
    Kill(usize),
    /// The n-th instance ends by itself.
    End(usize),
    /// The n-th instance is not there any more.
    Vanish(usize),
    Sicken(usize),
    /// Time goes on, and what is under way comes further.
    Tick(u16),
    /// The daemon dies; what was under way is at a random point.
    Daemon(u8),
    /// So many steps of the plan are done, and then something else happens.
    Steps(usize),
    Remove,
}

struct Revision {
    quality: Quality,
    strategy: Strategy,
    generation: u32,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Pending,
    Live,
    Failed,
    Superseded,
}

struct World {
    /// Numbered from 1.
    revisions: Vec<Revision>,
    live: Option<u32>,
    removing: bool,
    gone: bool,
    actual: ActualService,
    now: Timestamp,
    next_id: u64,
}

fn id(number: u64) -> InstanceId {
    const LETTERS: &[u8] = b"0123456789abcdef";
    let text: String =
        (0..12).rev().map(|at| char::from(LETTERS[(number >> (4 * at)) as usize & 15])).collect();
    text.parse().unwrap()
}

impl World {
    fn new() -> Self {
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

    fn revision(&self, number: u32) -> &Revision {
        &self.revisions[number as usize - 1]
    }

    fn desired(&self) -> DesiredService {
        let last = u32::try_from(self.revisions.len()).unwrap();
        let wanted = match self.revisions.last().map(|revision| revision.outcome) {
            None => None,
            Some(Outcome::Failed) => self.live,
            Some(_) => Some(last),
        };
        let want = wanted.map(|number| Target {
            revision: number,
            generation: self.revision(number).generation,
            pending: self.revision(number).outcome == Outcome::Pending,
            strategy: self.revision(number).strategy,
            settle: SETTLE,
            start_limit: START_LIMIT,
        });
        DesiredService { removing: self.removing, want, serving: self.live }
    }

    fn instance(&mut self, id: &InstanceId) -> &mut ActualInstance {
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

    fn count_end(&mut self, outside: bool) {
        self.actual.not_before = Some(after(self.now, Duration::from_millis(100)));
        self.actual.outside_ends += u32::from(outside);
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Deploy(quality, strategy) if !self.removing => {
                if let Some(last) = self.revisions.last_mut().filter(|last| last.outcome == Outcome::Pending)
                {
                    last.outcome = Outcome::Superseded;
                }
                let outcome = Outcome::Pending;
                self.revisions.push(Revision { quality, strategy, generation: 0, outcome });
                self.actual.not_before = None;
                self.actual.start_failed = None;
                self.actual.outside_ends = 0;
            }
            Event::Restart => {
                if let Some(want) = self.desired().want {
                    self.revisions[want.revision as usize - 1].generation += 1;
                    self.actual.outside_ends = 0;
                }
            }
            Event::Kill(n) | Event::End(n) => {
                let outside = matches!(event, Event::Kill(_));
                let Some(instance) = self.nth_running(n) else { return };
                instance.stage = InstanceStage::Ended { outside };
                self.count_end(outside);
            }
            Event::Vanish(n) => {
                let Some(instance) = self.nth_running(n) else { return };
                instance.stage = InstanceStage::Ended { outside: true };
                self.count_end(true);
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
        let mut failed = Vec::new();
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
                        self.actual.not_before = Some(after(now, Duration::from_millis(100)));
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
            self.actual.start_failed = Some(of);
        }
    }

    /// What only the daemon knew is lost; what it had begun may have come to anything.
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
        self.actual.routed = None;
        self.actual.start_failed = None;
        self.actual.not_before = None;
        self.actual.outside_ends = 0;
        let (live, removing) = (self.live, self.removing);
        let running = self.actual.instances.iter_mut().filter(|instance| instance.health().is_some());
        let live = running.filter(|instance| Some(instance.revision) == live);
        if let Some(serving) = live.min_by_key(|instance| instance.generation).filter(|_| !removing) {
            serving.stage = InstanceStage::Running(Health::Presumed);
            self.actual.routed = Some(serving.id.clone());
        }
    }

    /// Does the first steps of the plan.
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
                self.actual.not_before = None;
                self.actual.start_failed = None;
            }
            Action::Forget => {
                assert!(self.actual.instances.is_empty() && self.actual.routed.is_none());
                self.gone = true;
            }
            Action::AwaitHealthy { .. } | Action::Settle { .. } | Action::Backoff { .. } => {}
        }
    }

    /// Nothing else happens any more.
    fn come_to_rest(&mut self) {
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

    fn check_rest(&self) {
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

fn events() -> impl proptest::strategy::Strategy<Value = Vec<Event>> {
    let quality = prop_oneof![
        4 => Just(Quality::Good),
        1 => Just(Quality::NeverHealthy),
        1 => Just(Quality::Ends),
        1 => Just(Quality::CannotStart),
        1 => Just(Quality::Wavers),
    ];
    let how = prop_oneof![3 => Just(Strategy::Rolling), 1 => Just(Strategy::Recreate)];
    let event = prop_oneof![
        4 => (quality, how).prop_map(|(quality, how)| Event::Deploy(quality, how)),
        2 => Just(Event::Restart),
        2 => (0..4usize).prop_map(Event::Kill),
        1 => (0..4usize).prop_map(Event::End),
        1 => (0..4usize).prop_map(Event::Vanish),
        1 => (0..4usize).prop_map(Event::Sicken),
        8 => (0..400u16).prop_map(Event::Tick),
        2 => any::<u8>().prop_map(Event::Daemon),
        16 => (1..5usize).prop_map(Event::Steps),
    ];
    (prop::collection::vec(event, 1..60), prop::bool::weighted(0.1)).prop_map(|(mut events, removed)| {
        if removed {
            events.push(Event::Remove);
        }
        events
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_one_healthy_instance_of_the_right_revision_serves_in_the_end(events in events()) {
        let mut world = World::new();
        for event in &events {
            world.happen(event);
            if world.gone {
                return Ok(());
            }
        }
        // A revision that ended by a stranger's hand while it was tried may have failed for that.
        let disturbed = events.iter().any(|event| {
            matches!(event, Event::Kill(_) | Event::End(_) | Event::Vanish(_) | Event::Sicken(_) | Event::Daemon(_))
        });
        world.come_to_rest();
        world.check_rest();
        if let Some(last) = world.revisions.last().filter(|last| last.quality == Quality::Good && !disturbed) {
            assert!(world.removing || last.outcome == Outcome::Live, "a good revision is {:?}", last.outcome);
        }
    }
}

fn world(events: &[Event]) -> World {
    let mut world = World::new();
    for event in events {
        world.happen(event);
    }
    world
}

const GOOD: Event = Event::Deploy(Quality::Good, Strategy::Rolling);

fn lives() -> World {
    let mut world = world(&[GOOD]);
    world.come_to_rest();
    world
}

#[test]
fn a_first_revision_is_routed_without_settling() {
    let mut world = world(&[GOOD, Event::Steps(9), Event::Tick(1), Event::Steps(9), Event::Tick(1)]);
    let actions = plan(&world.desired(), &world.actual, world.now);
    assert!(
        matches!(actions.as_slice(), [Action::Route { .. }, Action::MarkLive { revision: 1 }]),
        "{actions:?}"
    );
    world.come_to_rest();
    world.check_rest();
}

#[test]
fn a_new_revision_that_wavers_fails_and_never_takes_traffic() {
    let mut world = lives();
    world.happen(&Event::Deploy(Quality::Wavers, Strategy::Rolling));
    world.come_to_rest();
    assert_eq!((world.revision(2).outcome, world.live), (Outcome::Failed, Some(1)));
    world.check_rest();
}

#[test]
fn a_killed_new_revision_is_tried_again_and_one_that_ends_by_itself_is_not() {
    for (event, outcome) in [(Event::Kill(1), Outcome::Live), (Event::End(1), Outcome::Failed)] {
        let mut world = lives();
        for event in [GOOD, Event::Steps(9), Event::Tick(1), event] {
            world.happen(&event);
        }
        world.come_to_rest();
        assert_eq!(world.revision(2).outcome, outcome);
        world.check_rest();
    }
}

#[test]
fn the_last_of_two_deploys_at_once_wins() {
    let mut world = lives();
    for event in [GOOD, Event::Steps(9), Event::Tick(1), GOOD] {
        world.happen(&event);
    }
    world.come_to_rest();
    assert_eq!((world.revision(2).outcome, world.live), (Outcome::Superseded, Some(3)));
    world.check_rest();
}

#[test]
fn a_live_revision_that_ends_is_started_again_after_its_pause() {
    let mut world = lives();
    world.happen(&Event::End(0));
    let actions = plan(&world.desired(), &world.actual, world.now);
    assert!(
        matches!(actions.as_slice(), [Action::Remove { .. }, Action::Unroute, Action::Backoff { .. }]),
        "{actions:?}"
    );
    world.come_to_rest();
    world.check_rest();
}

#[test]
fn a_revision_that_is_killed_too_often_while_it_is_tried_fails() {
    let mut world = lives();
    world.happen(&GOOD);
    for _ in 0..MAX_OUTSIDE_ENDS {
        for event in [Event::Steps(9), Event::Tick(100), Event::Steps(9), Event::Tick(1)] {
            world.happen(&event);
        }
        let newest = world.actual.instances.iter().filter(|instance| instance.health().is_some()).count() - 1;
        world.happen(&Event::Kill(newest));
    }
    world.come_to_rest();
    assert_eq!(world.revision(2).outcome, Outcome::Failed);
    world.check_rest();
}
