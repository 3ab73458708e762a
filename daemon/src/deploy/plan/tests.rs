//! Simulation of a service: after any sequence of events, the plan must reach the state where one healthy instance of
//! the right revision serves.

mod world;

use proptest::prelude::{Just, ProptestConfig, any, prop};
use proptest::strategy::Strategy as _;
use proptest::{prop_oneof, proptest};

use super::*;
use world::{RevisionQuality, SimulatedEvent, SimulatedOutcome, SimulatedWorld};

fn events() -> impl proptest::strategy::Strategy<Value = Vec<SimulatedEvent>> {
    let quality = prop_oneof![
        4 => Just(RevisionQuality::Good),
        1 => Just(RevisionQuality::NeverHealthy),
        1 => Just(RevisionQuality::Ends),
        1 => Just(RevisionQuality::CannotStart),
        1 => Just(RevisionQuality::Wavers),
    ];
    let how = prop_oneof![3 => Just(DeployStrategy::Rolling), 1 => Just(DeployStrategy::Recreate)];
    let event = prop_oneof![
        4 => (quality, how).prop_map(|(quality, how)| SimulatedEvent::Deploy(quality, how)),
        2 => Just(SimulatedEvent::Restart),
        2 => (0..4usize).prop_map(SimulatedEvent::Kill),
        1 => (0..4usize).prop_map(SimulatedEvent::End),
        1 => (0..4usize).prop_map(SimulatedEvent::Vanish),
        1 => (0..4usize).prop_map(SimulatedEvent::Sicken),
        8 => (0..400u16).prop_map(SimulatedEvent::Tick),
        2 => any::<u8>().prop_map(SimulatedEvent::Daemon),
        16 => (1..5usize).prop_map(SimulatedEvent::Steps),
    ];
    (prop::collection::vec(event, 1..60), prop::bool::weighted(0.1)).prop_map(|(mut events, removed)| {
        if removed {
            events.push(SimulatedEvent::Remove);
        }
        events
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_one_healthy_instance_of_the_right_revision_serves_in_the_end(
        events in events(),
        checked in any::<bool>(),
    ) {
        let mut world = SimulatedWorld::new();
        for event in &events {
            world.happen(event);
            if world.gone {
                return Ok(());
            }
            if checked {
                world.check_cover();
            }
        }
        // A revision whose instance was killed by an external cause during its trial may have failed because of that.
        let disturbed = events.iter().any(|event| {
            matches!(event, SimulatedEvent::Kill(_) | SimulatedEvent::End(_) | SimulatedEvent::Vanish(_) | SimulatedEvent::Sicken(_) | SimulatedEvent::Daemon(_))
        });
        world.come_to_rest();
        world.check_rest();
        if let Some(last) = world.revisions.last().filter(|last| last.quality == RevisionQuality::Good && !disturbed) {
            assert!(world.removing || last.outcome == SimulatedOutcome::Live, "a good revision is {:?}", last.outcome);
        }
    }
}

fn world(events: &[SimulatedEvent]) -> SimulatedWorld {
    let mut world = SimulatedWorld::new();
    for event in events {
        world.happen(event);
    }
    world
}

const GOOD: SimulatedEvent = SimulatedEvent::Deploy(RevisionQuality::Good, DeployStrategy::Rolling);

fn lives() -> SimulatedWorld {
    let mut world = world(&[GOOD]);
    world.come_to_rest();
    world
}

#[test]
fn a_first_revision_is_routed_without_settling() {
    let mut world = world(&[
        GOOD,
        SimulatedEvent::Steps(9),
        SimulatedEvent::Tick(1),
        SimulatedEvent::Steps(9),
        SimulatedEvent::Tick(1),
    ]);
    let actions = plan(&world.desired(), &world.actual, world.now);
    assert!(
        matches!(actions.as_slice(), [DeployAction::Route { .. }, DeployAction::MarkLive { revision: 1 }]),
        "{actions:?}"
    );
    world.come_to_rest();
    world.check_rest();
}

#[test]
fn a_new_revision_that_wavers_fails_and_never_takes_traffic() {
    let mut world = lives();
    world.happen(&SimulatedEvent::Deploy(RevisionQuality::Wavers, DeployStrategy::Rolling));
    world.come_to_rest();
    assert_eq!((world.revision(2).outcome, world.live), (SimulatedOutcome::Failed, Some(1)));
    world.check_rest();
}

#[test]
fn a_killed_new_revision_is_tried_again_and_one_that_ends_by_itself_is_not() {
    for (event, outcome) in [
        (SimulatedEvent::Kill(1), SimulatedOutcome::Live),
        (SimulatedEvent::End(1), SimulatedOutcome::Failed),
    ] {
        let mut world = lives();
        for event in [GOOD, SimulatedEvent::Steps(9), SimulatedEvent::Tick(1), event] {
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
    for event in [GOOD, SimulatedEvent::Steps(9), SimulatedEvent::Tick(1), GOOD] {
        world.happen(&event);
    }
    world.come_to_rest();
    assert_eq!((world.revision(2).outcome, world.live), (SimulatedOutcome::Superseded, Some(3)));
    world.check_rest();
}

#[test]
fn a_live_revision_that_ends_is_started_again_after_its_pause() {
    let mut world = lives();
    world.happen(&SimulatedEvent::End(0));
    let actions = plan(&world.desired(), &world.actual, world.now);
    assert!(
        matches!(
            actions.as_slice(),
            [DeployAction::Remove { .. }, DeployAction::Unroute, DeployAction::Backoff { .. }]
        ),
        "{actions:?}"
    );
    world.come_to_rest();
    world.check_rest();
}

#[test]
fn a_revision_that_is_killed_too_often_while_it_is_tried_fails() {
    let mut world = lives();
    world.happen(&GOOD);
    for _ in 0..MAX_EXTERNAL_EXITS {
        for event in [
            SimulatedEvent::Steps(9),
            SimulatedEvent::Tick(100),
            SimulatedEvent::Steps(9),
            SimulatedEvent::Tick(1),
        ] {
            world.happen(&event);
        }
        let newest = world.actual.instances.iter().filter(|instance| instance.health().is_some()).count() - 1;
        world.happen(&SimulatedEvent::Kill(newest));
    }
    world.come_to_rest();
    assert_eq!(world.revision(2).outcome, SimulatedOutcome::Failed);
    world.check_rest();
}

/// Revision 2 is on trial, and the instance of revision 1 exits or becomes unhealthy.
fn update_without_the_old_one(
    quality: RevisionQuality,
    strategy: DeployStrategy,
    event: SimulatedEvent,
) -> SimulatedWorld {
    let mut world = lives();
    world.happen(&SimulatedEvent::Deploy(quality, strategy));
    for event in [SimulatedEvent::Steps(9), SimulatedEvent::Tick(1), event] {
        world.happen(&event);
    }
    world
}

#[test]
fn an_old_instance_that_exits_or_becomes_unhealthy_during_an_update_is_restarted_at_once() {
    for event in [SimulatedEvent::End(0), SimulatedEvent::Kill(0), SimulatedEvent::Sicken(0)] {
        let mut world =
            update_without_the_old_one(RevisionQuality::NeverHealthy, DeployStrategy::Rolling, event);
        world.happen(&SimulatedEvent::Steps(9));
        world.happen(&SimulatedEvent::Tick(20));
        for _ in 0..3 {
            world.happen(&SimulatedEvent::Steps(9));
            world.happen(&SimulatedEvent::Tick(1));
        }
        let routed = world.actual.routed.clone().expect("nothing has the traffic");
        assert_eq!(world.instance(&routed).revision, 1);
        assert!(world.instance(&routed).is_ready() && world.revision(2).outcome == SimulatedOutcome::Pending);
        let serving = world.actual.instances.iter().filter(|instance| instance.revision == 1).count();
        assert_eq!(serving, 1, "{:?}", world.actual);
        world.come_to_rest();
        world.check_rest();
        assert_eq!(
            (world.revision(2).outcome, world.actual.routed),
            (SimulatedOutcome::Failed, Some(routed))
        );
    }
}

#[test]
fn the_new_revision_takes_the_traffic_at_once_where_the_old_one_ended() {
    let mut world =
        update_without_the_old_one(RevisionQuality::Good, DeployStrategy::Rolling, SimulatedEvent::End(0));
    world.happen(&SimulatedEvent::Steps(9));
    world.happen(&SimulatedEvent::Tick(20));
    world.happen(&SimulatedEvent::Steps(9));
    let routed = world.actual.routed.clone().expect("nothing has the traffic");
    assert_eq!(world.instance(&routed).revision, 2);
    world.come_to_rest();
    world.check_rest();
}

#[test]
fn a_service_that_may_not_run_twice_is_not_started_beside_the_new_one() {
    let mut world = lives();
    world.happen(&SimulatedEvent::Deploy(RevisionQuality::NeverHealthy, DeployStrategy::Recreate));
    for _ in 0..5 {
        world.happen(&SimulatedEvent::Steps(9));
        world.happen(&SimulatedEvent::Tick(20));
    }
    let running: Vec<u32> = world.actual.instances.iter().map(|instance| instance.revision).collect();
    assert_eq!(running, [2]);
}
