//! The daemon dies at any call to a dependency, and its next run reaches the same state.

use super::*;

#[tokio::test]
async fn a_restart_of_the_daemon_takes_instances_back_without_an_outage() {
    let world = world();
    let services = start(&world).await;
    live(&services.handle(), "1").await;
    let before = world.running();
    services.handle().drain(LIMIT).await;
    assert!(only_serves(&world, 1), "the end of the daemon changes nothing");
    let services = start(&world).await;
    until("compared", || services.handle().ready().borrow().is_ok()).await;
    assert!(only_serves(&world, 1));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.running(), before);
    assert_eq!(world.state().journal, ["start 1", "route 1"]);
    assert_eq!(services.handle().get("web").unwrap().status.as_str(), "live");
}

#[tokio::test]
async fn what_ended_or_belongs_to_nobody_is_healed_at_the_start() {
    let world = world();
    let services = start(&world).await;
    live(&services.handle(), "1").await;
    services.handle().drain(LIMIT).await;
    let ended = world.running().pop().unwrap();
    world.kill(&ended.instance);
    let stray = InstanceId::random();
    world.state().networks.insert(stray.clone());
    world.state().mounts.insert(stray);
    let _services = start(&world).await;
    until("another serves", || only_serves(&world, 1)).await;
    assert_ne!(world.running()[0].instance, ended.instance);
}

#[tokio::test]
async fn services_that_are_not_stored_any_more_are_taken_away() {
    let world = world();
    let services = start(&world).await;
    live(&services.handle(), "1").await;
    services.handle().drain(LIMIT).await;
    world.state().services.clear();
    let _services = start(&world).await;
    until("nothing is left", || {
        let state = world.state();
        state.instances.is_empty() && state.networks.is_empty() && state.mounts.is_empty()
    })
    .await;
}

#[tokio::test]
async fn an_instance_whose_mounts_died_serves_until_another_does() {
    let world = world();
    let services = start(&world).await;
    live(&services.handle(), "1").await;
    services.handle().drain(LIMIT).await;
    let broken = world.running().pop().unwrap().instance;
    world.state().broken_mounts.insert(broken.clone());
    let services = start(&world).await;
    until("it is routed", || services.handle().ready().borrow().is_ok()).await;
    until("another serves", || only_serves(&world, 1) && world.running()[0].instance != broken).await;
    assert!(world.state().routes.iter().all(|route| route.backend.is_some()));
}

#[tokio::test]
async fn a_restart_begun_by_an_earlier_daemon_is_reported_live() {
    let world = world();
    let services = start(&world).await;
    live(&services.handle(), "1").await;
    world.state().runtime_unavailable = true;
    services.handle().restart("web", &ann()).await.unwrap();
    services.handle().drain(LIMIT).await;
    let services = start(&world).await;
    let handle = services.handle();
    let early = tokio::time::timeout(Duration::from_millis(200), outcome(&handle, 1)).await;
    assert!(early.is_err(), "{early:?}");
    world.state().runtime_unavailable = false;
    world.changed();
    assert!(matches!(outcome(&handle, 1).await, DeployEventKind::Live { .. }));
    let generations: Vec<u32> = world.running().iter().map(|label| label.generation).collect();
    assert!(generations.contains(&1), "{generations:?}");
    until("one serves", || only_serves(&world, 1)).await;
}

#[tokio::test]
async fn a_runtime_that_is_away_is_waited_for() {
    let world = world();
    world.state().runtime_unavailable = true;
    let services = start(&world).await;
    let handle = services.handle();
    let comes_back = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!handle.ready().borrow().is_ok());
        world.state().runtime_unavailable = false;
    };
    tokio::join!(deploy(&handle, request("1")), comes_back);
    assert!(matches!(outcome(&handle, 1).await, DeployEventKind::Live { .. }));
    world.state().runtime_unavailable = true;
    deploy(&handle, request("2")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.state().runtime_unavailable = false;
    world.changed();
    assert!(matches!(outcome(&handle, 2).await, DeployEventKind::Live { .. }));
}

/// Runs `act` on a daemon that dies at its n-th call, then lets another run recover. Returns false if the daemon did
/// not die.
async fn dies_at(n: usize, strategy: DeployStrategy, removes: bool) -> bool {
    let world = world();
    let services = start(&world).await;
    live(&services.handle(), "1").await;
    services.handle().drain(LIMIT).await;
    let dead = world.begin_run(n);
    let services = start(&world).await;
    let handle = services.handle();
    let act = async {
        until("compared", || handle.ready().borrow().is_ok()).await;
        if removes {
            handle.remove("web", Duration::from_millis(10), LIMIT, &ann()).await.unwrap();
        } else {
            deploy(&handle, DeployRequest { strategy: Some(strategy), ..request("2") }).await;
            assert!(matches!(outcome(&handle, 2).await, DeployEventKind::Live { .. }));
            until("the old one is gone", || only_serves(&world, 2)).await;
        }
    };
    let died = tokio::select! {
        () = act => false,
        () = dead.cancelled() => true,
    };
    services.handle().drain(LIMIT).await;
    drop(services);
    world.begin_run(usize::MAX);
    let services = start(&world).await;
    until("compared", || services.handle().ready().borrow().is_ok()).await;
    let stored = world.state().services.values().next().cloned();
    match stored {
        // Either the request was never stored, or it completes.
        Some(service) if !service.removing => {
            let what = format!("death at call {n}: revision {} serves alone", service.desired);
            until(&what, || only_serves(&world, service.desired)).await;
        }
        _ => {
            until("nothing is left", || {
                let state = world.state();
                state.instances.is_empty()
                    && state.networks.is_empty()
                    && state.mounts.is_empty()
                    && state.services.is_empty()
            })
            .await;
        }
    }
    if strategy == DeployStrategy::Recreate {
        assert_eq!(world.state().peak, 1, "death at call {n}");
    }
    died
}

async fn dies_anywhere(strategy: DeployStrategy, removes: bool, at_least: usize) {
    // The runs are concurrent, since each waits for its own settle time.
    let runs = (1..=120).map(|n| dies_at(n, strategy, removes));
    let died = futures::future::join_all(runs).await.into_iter().filter(|died| *died).count();
    assert!(died >= at_least, "the daemon died at {died} points only");
}

#[tokio::test]
async fn an_update_heals_from_the_death_of_the_daemon_at_any_call() {
    dies_anywhere(DeployStrategy::Rolling, false, 20).await;
}

#[tokio::test]
async fn an_update_that_may_not_run_twice_heals_from_a_death_at_any_call() {
    dies_anywhere(DeployStrategy::Recreate, false, 20).await;
}

#[tokio::test]
async fn a_removal_heals_from_a_death_at_any_call() {
    dies_anywhere(DeployStrategy::Rolling, true, 8).await;
}
