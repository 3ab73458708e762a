use super::*;
use crate::deploy::port::MountFaultKind;

fn failed(outcome: DeployEventKind) -> crate::model::fault::Fault {
    match outcome {
        DeployEventKind::Failed(fault) => *fault,
        other => panic!("not failed: {other:?}"),
    }
}

#[tokio::test]
async fn a_first_deploy_is_live_when_it_answers_and_prints_its_steps_and_log() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    let deployed = deploy(&handle, request("1")).await;
    assert!(deployed.created && deployed.revision == 1, "{deployed:?}");
    let events = events(&handle, 1).await;
    let kinds: Vec<&DeployEventKind> = events.iter().map(|event| &event.kind).collect();
    for step in ["image", "network", "mounts", "start"] {
        assert!(
            kinds.iter().any(|kind| matches!(kind, DeployEventKind::Step { name, .. } if name == step)),
            "{step}"
        );
    }
    assert!(
        kinds.iter().any(|kind| matches!(kind, DeployEventKind::Probed(probe) if probe.healthy)),
        "{kinds:?}"
    );
    assert!(kinds.iter().any(|kind| matches!(kind, DeployEventKind::Log { .. })), "{kinds:?}");
    assert!(only_serves(&world, 1));
    let shown = handle.get("web").unwrap();
    assert_eq!(shown.status.as_str(), "live");
    assert!(shown.instances[0].routed, "{shown:?}");
}

#[tokio::test]
async fn an_update_switches_then_drains_then_stops() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    assert!(!live(&handle, "2").await.created);
    until("the old one is gone", || only_serves(&world, 2)).await;
    let journal = world.state().journal.clone();
    assert_eq!(journal, ["start 1", "route 1", "start 2", "route 2", "drain", "stop 1"]);
}

#[tokio::test]
async fn a_service_that_may_not_run_twice_never_does() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    let recreate = |tag| DeployRequest { strategy: Some(DeployStrategy::Recreate), ..request(tag) };
    deploy(&handle, recreate("2")).await;
    assert!(matches!(outcome(&handle, 2).await, DeployEventKind::Live { .. }));
    handle.restart("web", &ann()).await.unwrap();
    assert!(matches!(outcome(&handle, 2).await, DeployEventKind::Live { .. }));
    assert_eq!(world.state().peak, 1);
    // The new revision does not start: the previous one is started again.
    world.app("bad", FakeApp::Exits(1));
    deploy(&handle, recreate("bad")).await;
    failed(outcome(&handle, 3).await);
    until("the one before runs again", || only_serves(&world, 2)).await;
    assert_eq!(world.state().peak, 1);
}

#[tokio::test]
async fn a_revision_that_fails_never_takes_traffic_and_says_why() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    for (tag, app, code) in [
        ("exits", FakeApp::Exits(3), "exited"),
        ("hungry", FakeApp::Hungry, "out_of_memory"),
        ("nope", FakeApp::NotFound, "command_not_found"),
        ("silent", FakeApp::Silent, "port_not_listening"),
    ] {
        world.app(tag, app);
        let mut request = request(tag);
        request.start_limit = Some(Duration::from_millis(300));
        request.memory_bytes = Some(64 << 20);
        let revision = deploy(&handle, request).await.revision;
        let fault = failed(outcome(&handle, revision).await);
        assert_eq!(fault.code, code, "{fault:?}");
        if app == FakeApp::Exits(3) {
            assert_eq!(fault.exit_code, Some(3));
        }
        if app != FakeApp::NotFound {
            assert_eq!(fault.log_tail.first().map(String::as_str), Some("begins"), "{fault:?}");
        }
        if app == FakeApp::Silent {
            assert!(fault.probes.last().is_some_and(|probe| probe.contains("refused")), "{fault:?}");
        }
        until("the old one serves alone", || only_serves(&world, 1)).await;
    }
    assert!(world.state().history.iter().all(|(revision, _)| *revision == 1));
    let shown = handle.get("web").unwrap();
    assert_eq!(shown.status.as_str(), "live");
    assert!(shown.reason.unwrap().contains("revision 5"));
}

#[tokio::test]
async fn a_mount_that_fails_for_a_while_is_tried_again_and_one_that_cannot_be_is_not() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    world.state().mount_faults = vec![MountFaultKind::Transient, MountFaultKind::Unavailable];
    live(&handle, "1").await;
    let trouble = events(&handle, 1).await;
    let told = |event: &&DeployEvent| matches!(&event.kind, DeployEventKind::Trouble { message } if message.contains("mount at `/data`"));
    assert_eq!(trouble.iter().filter(told).count(), 2, "{trouble:?}");
    world.state().mount_faults = vec![MountFaultKind::Permanent];
    deploy(&handle, request("2")).await;
    let fault = failed(outcome(&handle, 2).await);
    assert_eq!((fault.code.as_str(), fault.retryable), ("mount_failed", false));
    // A fault that is reported as transient but persists ends the deploy all the same.
    world.state().mount_faults = vec![MountFaultKind::Transient; 20];
    deploy(&handle, request("3")).await;
    let fault = failed(outcome(&handle, 3).await);
    assert!(fault.retryable, "{fault:?}");
    world.state().mount_faults.clear();
    until("the one before serves alone", || only_serves(&world, 1)).await;
}

#[tokio::test]
async fn of_two_deploys_the_later_wins_and_the_earlier_is_superseded() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    deploy(&handle, request("silent")).await;
    until("it has started", || world.state().journal.contains(&"start 2".to_owned())).await;
    deploy(&handle, request("3")).await;
    assert_eq!(outcome(&handle, 2).await, DeployEventKind::Superseded { by: 3 });
    assert!(matches!(outcome(&handle, 3).await, DeployEventKind::Live { .. }));
    until("one serves", || only_serves(&world, 3)).await;
    assert!(world.state().history.iter().all(|(revision, _)| *revision != 2));
}

#[tokio::test]
async fn a_live_instance_that_ends_is_started_again_and_counted() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    let first = world.running()[0].instance.clone();
    world.exits(&first, 7);
    until("another serves", || only_serves(&world, 1) && world.running()[0].instance != first).await;
    let shown = handle.get("web").unwrap();
    assert_eq!((shown.restarts, shown.last_exits.first().and_then(|exit| exit.code)), (1, Some(7)));
}

#[tokio::test]
async fn an_old_instance_that_ends_during_an_update_is_started_again() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    let first = world.running()[0].instance.clone();
    let request = DeployRequest { start_limit: Some(Duration::from_secs(2)), ..request("silent") };
    deploy(&handle, request).await;
    until("the new one has started", || world.state().journal.contains(&"start 2".to_owned())).await;
    world.exits(&first, 7);
    until("another has the traffic", || {
        world.state().journal.ends_with(&["start 1".to_owned(), "route 1".to_owned()])
    })
    .await;
    assert_eq!(handle.get("web").unwrap().status.as_str(), "updating");
    let second = world.running().into_iter().find(|label| label.revision == 1).unwrap().instance;
    let events = events(&handle, 2).await;
    let told = |event: &DeployEvent| matches!(&event.kind, DeployEventKind::Trouble { message } if message.contains("revision 1"));
    assert!(events.iter().any(told), "{events:?}");
    let waits = events.iter().filter(
        |event| matches!(&event.kind, DeployEventKind::Started(step) if step.to_string().contains("wait")),
    );
    assert!(waits.count() <= 3, "told again and again: {events:?}");
    failed(outcome(&handle, 2).await);
    until("it serves alone", || only_serves(&world, 1)).await;
    assert_eq!(world.running()[0].instance, second);
}

#[tokio::test]
async fn a_restart_replaces_the_instance_with_a_fresh_token() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    let mut request = request("1");
    let token = crate::model::service::EnvValue::Token { scope: "full".to_owned() };
    request.env.insert("MESHAGENT_TOKEN".to_owned(), token);
    deploy(&handle, request).await;
    assert!(matches!(outcome(&handle, 1).await, DeployEventKind::Live { .. }));
    let env = |world: &FakeWorld| {
        let instance = world.running().pop().unwrap().instance;
        world.state().env[&instance].clone()
    };
    let before = env(&world);
    assert_eq!(before["HEARTH_ADDR"], "http://10.0.0.1:4327");
    assert_eq!((before["HEARTH_ROOM"].as_str(), before["MESHAGENT_ROOM"].as_str()), ("den", "den"));
    handle.restart("web", &ann()).await.unwrap();
    assert!(matches!(outcome(&handle, 1).await, DeployEventKind::Live { .. }));
    until("one serves", || only_serves(&world, 1)).await;
    let after = env(&world);
    assert!(after["MESHAGENT_TOKEN"].ends_with("of web for full"), "{after:?}");
    assert_ne!(before["MESHAGENT_TOKEN"], after["MESHAGENT_TOKEN"]);
    let stored = serde_json::to_string(&handle.get("web").unwrap().service).unwrap();
    assert!(!stored.contains("token 1 of"), "{stored}");
}

#[tokio::test]
async fn services_with_a_token_are_restarted_for_a_fresh_one_and_others_go_on() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    assert!(handle.renew_tokens().await.is_empty(), "it has no token");
    let first = world.running()[0].instance.clone();
    let mut request = request("2");
    let token = crate::model::service::EnvValue::Token { scope: "full".to_owned() };
    request.env.insert("MESHAGENT_TOKEN".to_owned(), token);
    deploy(&handle, request).await;
    assert!(matches!(outcome(&handle, 2).await, DeployEventKind::Live { .. }));
    until("one serves", || only_serves(&world, 2)).await;
    let before = world.running()[0].instance.clone();
    assert_ne!(before, first);
    let [(name, restarted)] = handle.renew_tokens().await.try_into().unwrap();
    assert_eq!(name.as_str(), "web");
    restarted.unwrap();
    assert!(matches!(outcome(&handle, 2).await, DeployEventKind::Live { .. }));
    until("one serves", || only_serves(&world, 2)).await;
    let after = world.running()[0].instance.clone();
    let token = |instance| world.state().env[instance]["MESHAGENT_TOKEN"].clone();
    assert_ne!(token(&before), token(&after));
}

#[tokio::test]
async fn a_rollback_runs_what_was_live_before() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    live(&handle, "2").await;
    let back = handle.rollback("web", None, &ann()).await.unwrap();
    assert_eq!(back.revision, 3);
    assert!(matches!(outcome(&handle, 3).await, DeployEventKind::Live { .. }));
    let service = handle.get("web").unwrap().service;
    assert_eq!(service.revision(3).unwrap().spec, service.revision(1).unwrap().spec);
    let missing = handle.rollback("web", Some(9), &ann()).await.unwrap_err();
    assert_eq!(missing.code(), "revision_not_found");
}

#[tokio::test]
async fn a_removed_service_leaves_nothing_and_its_name_and_domain_are_free() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    handle.remove("web", Duration::ZERO, LIMIT, &ann()).await.unwrap();
    {
        let state = world.state();
        assert!(state.instances.is_empty() && state.networks.is_empty() && state.mounts.is_empty());
        assert!(state.services.is_empty() && state.routes.is_empty() && state.names.is_empty());
    }
    assert_eq!(handle.get("web").unwrap_err().code(), "service_not_found");
    assert!(live(&handle, "2").await.created);
}

#[tokio::test]
async fn an_instance_is_asked_to_end_also_where_the_runtime_was_away_for_a_moment() {
    let world = world();
    let services = start(&world).await;
    live(&services.handle(), "1").await;
    world.state().unavailable_stops = 2;
    live(&services.handle(), "2").await;
    until("the first is gone", || only_serves(&world, 2)).await;
    assert_eq!(world.state().unavailable_stops, 0);
    assert!(world.state().journal.contains(&"stop 1".to_owned()), "{:?}", world.state().journal);
}
