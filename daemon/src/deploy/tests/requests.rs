use std::collections::BTreeSet;

use super::*;
use crate::deploy::port::LogError;
use crate::model::confinement::AddedCapability;
use crate::model::deploy::{DeployAction, LogSource, ServiceLogLine, ServiceLogQuery};
use crate::model::id::InstanceId;
use crate::model::service::EnvValue;
use crate::model::share_owner::ShareOwnerResolver;
use crate::model::{MountAccess, MountTarget, ServiceMount, ServiceMountSource};

#[tokio::test]
async fn what_could_not_run_is_refused_before_anything_changes() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    let before = world.state().services.clone();
    let refused = async |change: &dyn Fn(&mut DeployRequest)| {
        let mut request = request("1");
        change(&mut request);
        handle.deploy(request, &ann(), &BTreeMap::new()).await.unwrap_err().code().to_owned()
    };
    let env = |value: EnvValue| {
        move |request: &mut DeployRequest| {
            request.env.insert("X".to_owned(), value.clone());
        }
    };
    let none = |request: &mut DeployRequest| request.mounts = vec![image_mount("assets:none", "/assets")];
    assert_eq!(refused(&none).await, "image_not_found");
    let other = |request: &mut DeployRequest| request.name = Some("other".parse().unwrap());
    assert_eq!(refused(&|request| request.image = "web:none".parse().unwrap()).await, "image_not_found");
    assert_eq!(refused(&env(EnvValue::Token { scope: "wrong".to_owned() })).await, "invalid_scope");
    assert_eq!(refused(&env(EnvValue::Secret { name: "s".to_owned() })).await, "secret_not_found");
    assert_eq!(refused(&other).await, "domain_taken");
    assert_eq!(refused(&|request| request.image = "w/eb:1".parse().unwrap()).await.as_str(), "domain_taken");
    let twin = |request: &mut DeployRequest| {
        request.image = "we.b:1".parse().unwrap();
        request.name = Some("web".parse().unwrap());
    };
    assert_eq!(refused(&twin).await, "name_taken");
    assert_eq!(world.state().services, before);
    assert_eq!(world.state().journal, ["start 1", "route 1"]);
}

#[tokio::test]
async fn a_capability_needs_the_operator_at_the_deploy_and_at_every_start() {
    let world = world();
    let raw = DeployRequest { capabilities: Some(BTreeSet::from([AddedCapability::NetRaw])), ..request("1") };
    let services = start_with(&world, &[AddedCapability::Mknod]).await;
    let refused = services.handle().deploy(raw.clone(), &ann(), &BTreeMap::new()).await.unwrap_err();
    assert_eq!((refused.code().as_str(), world.running().len()), ("capability_not_allowed", 0));
    services.handle().drain(LIMIT).await;

    let services = start_with(&world, &[AddedCapability::NetRaw]).await;
    deploy(&services.handle(), raw).await;
    assert!(matches!(outcome(&services.handle(), 1).await, DeployEventKind::Live { .. }));
    services.handle().drain(LIMIT).await;

    // The operator has removed the capability meanwhile: running instances continue, and new ones do not start.
    let services = start(&world).await;
    until("compared", || services.handle().ready().borrow().is_ok()).await;
    assert_eq!(world.running().len(), 1);
    let refused = services.handle().deploy(request("2"), &ann(), &BTreeMap::new()).await.unwrap_err();
    assert_eq!(refused.code().as_str(), "capability_not_allowed", "it is kept, and not allowed any more");
    let restarted = services.handle().restart("web", &ann()).await.unwrap();
    match outcome(&services.handle(), restarted.revision).await {
        DeployEventKind::Failed(fault) => assert_eq!(fault.code, "capability_not_allowed"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_owner_has_a_limited_number_of_services_with_those_that_its_services_deploy() {
    let world = world();
    let directory = world.directory.as_ref().unwrap().path().to_owned();
    let mut options = Options::new("den".to_owned(), "http://10.0.0.1:4327".to_owned(), directory);
    (options.owners, options.max_per_owner) = (ShareOwnerResolver::default(), 2);
    let owners = options.owners.clone();
    let services = start_as(&world, options).await;
    let handle = services.handle();
    owners.set_service_creators(handle.share_owner_lookup());
    let named =
        |name: &str| DeployRequest { name: Some(name.parse().unwrap()), domains: None, ..request("1") };
    let deploy_as = async |by: &str, name: &str| {
        let by = Actor::new(by.to_owned(), AllPermits);
        handle.deploy(named(name), &by, &BTreeMap::new()).await
    };
    let first = deploy_as("ann", "one").await.unwrap().service;
    let as_service = format!("service:{}", first.id);
    deploy_as(&as_service, "two").await.unwrap();
    for by in ["ann", &as_service] {
        let refused = deploy_as(by, "three").await.unwrap_err();
        assert_eq!(
            (refused.code().as_str(), refused.hint().is_some()),
            ("service_limit", true),
            "{by}: {refused}"
        );
    }
    assert!(!deploy_as("ann", "one").await.unwrap().created, "an update is no new service");
    deploy_as("bob", "three").await.unwrap();
    // The services that a service has deployed still count when that service is removed.
    handle.remove("one", Duration::ZERO, LIMIT, &ann()).await.unwrap();
    deploy_as("ann", "four").await.unwrap();
    assert_eq!(deploy_as("ann", "five").await.unwrap_err().code(), "service_limit");
}

#[tokio::test]
async fn an_instance_has_the_memory_limit_of_the_room_unless_its_deploy_sets_one() {
    let world = world();
    let directory = world.directory.as_ref().unwrap().path().to_owned();
    let mut options = Options::new("den".to_owned(), "http://10.0.0.1:4327".to_owned(), directory);
    options.default_memory = Some(1 << 30);
    let services = start_as(&world, options).await;
    for (revision, asked, given) in [(1, None, 1 << 30), (2, Some(64 << 20), 64 << 20)] {
        let request = DeployRequest { memory_bytes: asked, ..request("1") };
        deploy(&services.handle(), request).await;
        assert!(matches!(outcome(&services.handle(), revision).await, DeployEventKind::Live { .. }));
        let of_revision =
            |container: &&crate::deploy::fake::FakeContainer| container.label.revision == revision;
        let limits = world.state().instances.values().find(of_revision).map(|container| container.limits);
        assert_eq!(limits.unwrap().memory_bytes, Some(given));
    }
}

#[tokio::test]
async fn a_room_has_addresses_left_for_the_updates_of_its_services() {
    let world = world();
    world.state().addresses = 5;
    let services = start(&world).await;
    let handle = services.handle();
    let deploy_as = async |by: &str, name: &str| {
        let named = DeployRequest { name: Some(name.parse().unwrap()), domains: None, ..request("1") };
        handle.deploy(named, &Actor::new(by.to_owned(), AllPermits), &BTreeMap::new()).await
    };
    deploy_as("ann", "one").await.unwrap();
    deploy_as("bob", "two").await.unwrap();
    assert_eq!(deploy_as("cleo", "three").await.unwrap_err().code(), "room_full");
    deploy_as("bob", "two").await.unwrap();
}

fn image_mount(reference: &str, target: &str) -> ServiceMount {
    ServiceMount {
        source: ServiceMountSource::Image { reference: reference.parse().unwrap(), subpath: String::new() },
        target: target.parse().unwrap(),
        mode: MountAccess::ReadOnly,
        create: false,
    }
}

#[tokio::test]
async fn images_that_are_mounted_are_looked_up_when_they_are_given_and_never_again() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    let mounts = vec![image_mount("assets:2", "/a"), image_mount("assets:2", "/b")];
    deploy(&handle, DeployRequest { mounts: mounts.clone(), ..request("1") }).await;
    assert!(matches!(outcome(&handle, 1).await, DeployEventKind::Live { .. }));
    let pinned = handle.get("web").unwrap().service.revisions[0].spec.mounted.clone();
    assert_eq!(pinned.keys().map(MountTarget::as_str).collect::<Vec<_>>(), ["/a", "/b"]);
    let repository = "assets".parse().unwrap();
    assert!(pinned.values().all(|image| image.repository == repository));
    // The tag is removed: a restart, a deploy that does not name the mounts, and a rollback do not need it any more.
    world.state().apps.remove("2");
    handle.restart("web", &ann()).await.unwrap();
    assert!(matches!(outcome(&handle, 1).await, DeployEventKind::Live { .. }));
    live(&handle, "3").await;
    handle.rollback("web", Some(1), &ann()).await.unwrap();
    assert!(matches!(outcome(&handle, 3).await, DeployEventKind::Live { .. }));
    let service = handle.get("web").unwrap().service;
    assert!(service.revisions.iter().all(|revision| revision.spec.mounted == pinned), "{service:?}");
    let given = world.state().mounted.clone();
    assert!(given.len() >= 4 && given.values().all(|images| *images == pinned), "{given:?}");
    let gone = handle.deploy(DeployRequest { mounts, ..request("1") }, &ann(), &BTreeMap::new()).await;
    let gone = gone.unwrap_err();
    assert_eq!(gone.to_string(), "mount at `/a`: there is no image `assets:2`");
}

#[tokio::test]
async fn a_dry_run_prints_the_plan_and_changes_nothing() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    let forecast = handle.dry_run(request("1"), &ann(), &BTreeMap::new()).await.unwrap();
    assert!(forecast.deployed.created && world.state().services.is_empty());
    assert!(
        forecast.deployed.notes.iter().any(|note| note.contains("8080")),
        "{:?}",
        forecast.deployed.notes
    );
    assert!(
        matches!(forecast.actions.first(), Some(DeployAction::Start { revision: 1, .. })),
        "{:?}",
        forecast.actions
    );
    live(&handle, "1").await;
    let before = world.state().services.clone();
    let forecast = handle.dry_run(request("2"), &ann(), &BTreeMap::new()).await.unwrap();
    assert!(
        matches!(forecast.actions.last(), Some(DeployAction::Retire { revision: 1, .. })),
        "{:?}",
        forecast.actions
    );
    assert_eq!(world.state().services, before);
}

#[tokio::test]
async fn a_route_goes_without_a_new_revision() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    assert_eq!(handle.routes().len(), 1);
    handle.remove_route(&"web.test".parse().unwrap(), &ann()).await.unwrap();
    assert!(handle.routes().is_empty() && world.state().routes.is_empty());
    assert_eq!(world.running().len(), 1);
    let missing = handle.remove_route(&"web.test".parse().unwrap(), &ann()).await.unwrap_err();
    assert_eq!(missing.code(), "route_not_found");
    // Another service may take the domain now.
    let mut other = request("2");
    other.name = Some("other".parse().unwrap());
    assert!(deploy(&handle, other).await.created);
}

#[tokio::test]
async fn revisions_beyond_ten_are_forgotten_but_never_the_live_one() {
    let world = world();
    world.app("bad", FakeApp::NotFound);
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    for _ in 0..12 {
        let revision = deploy(&handle, request("bad")).await.revision;
        assert!(matches!(outcome(&handle, revision).await, DeployEventKind::Failed(_)));
    }
    let service = handle.get("web").unwrap().service;
    assert_eq!((service.revisions.len(), service.live, service.desired), (10, Some(1), 13));
    assert!(only_serves(&world, 1));
}

fn text(line: Result<ServiceLogLine, LogError>) -> String {
    String::from_utf8(line.unwrap().line.text).unwrap()
}

#[tokio::test]
async fn the_log_of_a_service_has_the_lines_of_all_its_instances_each_with_its_instance() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    let mut ran = vec![world.running().pop().unwrap().instance];
    for _ in 0..2 {
        world.exits(&ran[ran.len() - 1], 7);
        let next = || world.running().pop().map(|label| label.instance).filter(|id| !ran.contains(id));
        until("another runs", || next().is_some()).await;
        ran.push(next().unwrap());
    }
    let ask = async |query: ServiceLogQuery| {
        let lines = handle.logs("web", LogSource::Service, query).await.unwrap();
        lines
            .map(|line| line.map(|line| (line.instance.clone(), text(Ok(line)))).unwrap())
            .collect::<Vec<_>>()
            .await
    };
    let all: Vec<_> = ran
        .iter()
        .flat_map(|id| [(id.clone(), "begins".to_owned()), (id.clone(), format!("I am {id}"))])
        .collect();
    assert_eq!(ask(ServiceLogQuery::default()).await, all);
    assert_eq!(ask(ServiceLogQuery { tail: Some(3), ..ServiceLogQuery::default() }).await, all[3..]);
    assert_eq!(ask(ServiceLogQuery { tail: Some(2), ..ServiceLogQuery::default() }).await, all[4..]);
    let follow = ServiceLogQuery { follow: true, tail: Some(4), ..ServiceLogQuery::default() };
    let followed = handle.logs("web", LogSource::Service, follow).await.unwrap();
    let followed = tokio::time::timeout(LIMIT, followed.take(4).map(text).collect::<Vec<_>>()).await;
    assert_eq!(followed.unwrap(), all[2..].iter().map(|(_, text)| text.clone()).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_log_is_that_of_the_instance_that_serves_and_outlives_it() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    let instance = world.running().pop().unwrap().instance;
    let lines = handle.logs("web", LogSource::Service, ServiceLogQuery::default()).await.unwrap();
    let lines: Vec<String> = lines.map(text).collect().await;
    assert_eq!(lines, ["begins".to_owned(), format!("I am {instance}")]);
    // The log of a failed first deploy stays readable.
    world.app("exits", FakeApp::Exits(1));
    let mut other = DeployRequest::new("web:exits".parse().unwrap());
    other.name = Some("other".parse().unwrap());
    deploy(&handle, other).await;
    until("it failed and is gone", || {
        let shown = handle.get("other").unwrap();
        shown.status.as_str() == "failed" && shown.instances.is_empty()
    })
    .await;
    let lines = handle.logs("other", LogSource::Service, ServiceLogQuery::default()).await.unwrap();
    assert_eq!(lines.count().await, 2);
    assert_eq!(
        handle.logs("nobody", LogSource::Service, ServiceLogQuery::default()).await.err().unwrap().code(),
        "service_not_found"
    );
}

#[tokio::test]
async fn a_later_watcher_gets_all_events_and_after_a_restart_the_last_one() {
    let world = world();
    let services = start(&world).await;
    live(&services.handle(), "1").await;
    let all = events(&services.handle(), 1).await;
    assert_eq!(events(&services.handle(), 1).await, all);
    let from = services.handle().watch("web", 1, 3).unwrap().next().await.unwrap();
    assert_eq!(from, all[2]);
    services.handle().drain(LIMIT).await;
    let services = start(&world).await;
    let told = events(&services.handle(), 1).await;
    assert!(matches!(told.as_slice(), [DeployEvent { sequence: 1, kind: DeployEventKind::Live { .. }, .. }]));
    assert_eq!(services.handle().watch("web", 9, 1).err().unwrap().code(), "revision_not_found");
}

#[tokio::test]
async fn who_follows_a_log_sees_that_of_the_next_instance_too() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    let first = world.running().pop().unwrap().instance;
    let query = ServiceLogQuery { follow: true, ..ServiceLogQuery::default() };
    let mut lines = handle.logs("web", LogSource::Service, query).await.unwrap();
    let mut next = async || {
        let line = tokio::time::timeout(LIMIT, lines.next()).await.expect("no line comes");
        text(line.unwrap())
    };
    assert_eq!((next().await, next().await), ("begins".to_owned(), format!("I am {first}")));
    world.exits(&first, 1);
    assert_eq!(next().await, "begins");
    assert_ne!(next().await, format!("I am {first}"));
    handle.remove("web", Duration::ZERO, LIMIT, &ann()).await.unwrap();
    assert!(tokio::time::timeout(LIMIT, lines.next()).await.expect("it does not end").is_none());
}

#[tokio::test]
async fn who_follows_a_log_misses_no_instance_that_ends_at_once() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    let query = ServiceLogQuery { follow: true, ..ServiceLogQuery::default() };
    let lines = handle.logs("web", LogSource::Service, query).await.unwrap();
    let mut ran = vec![world.running().pop().unwrap().instance];
    for _ in 0..2 {
        world.exits(&ran[ran.len() - 1], 1);
        let next = || world.running().pop().map(|label| label.instance).filter(|id| !ran.contains(id));
        until("another runs", || next().is_some()).await;
        let another = next().unwrap();
        ran.push(another);
    }
    let told = lines.map(text).filter(|text| std::future::ready(text != "begins"));
    let told =
        tokio::time::timeout(LIMIT, told.take(3).collect::<Vec<_>>()).await.expect("lines are missing");
    assert_eq!(told, ran.iter().map(|instance| format!("I am {instance}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_log_of_a_revision_or_an_instance_is_read_after_it_is_gone() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    let first = world.running().pop().unwrap().instance;
    live(&handle, "2").await;
    until("the first is gone", || only_serves(&world, 2)).await;
    let second = world.running().pop().unwrap().instance;
    let follow = ServiceLogQuery { follow: true, ..ServiceLogQuery::default() };
    for (source, instance) in [
        (LogSource::Revision(1), &first),
        (LogSource::Instance(first.clone()), &first),
        (LogSource::Revision(2), &second),
        (LogSource::Instance(second.clone()), &second),
    ] {
        let lines = handle.logs("web", source.clone(), ServiceLogQuery::default()).await.unwrap();
        let lines: Vec<String> = lines.map(text).collect().await;
        assert_eq!(lines.last().unwrap(), &format!("I am {instance}"), "{source:?}");
        if *instance == first {
            let lines = handle.logs("web", source, follow.clone()).await.unwrap();
            let lines = tokio::time::timeout(LIMIT, lines.count()).await;
            assert_eq!(lines.expect("nothing more can come, and it does not end"), 2);
        }
    }
    let refused = async |source| {
        let refused = handle.logs("web", source, ServiceLogQuery::default()).await.err().unwrap();
        refused.code().to_owned()
    };
    assert_eq!(refused(LogSource::Revision(9)).await, "revision_not_found");
    assert_eq!(refused(LogSource::Instance(InstanceId::random())).await, "instance_not_found");
}

#[tokio::test]
async fn who_watches_or_follows_is_let_go_when_the_daemon_ends_or_the_service_is_gone() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    live(&handle, "1").await;
    let follow = ServiceLogQuery { follow: true, ..ServiceLogQuery::default() };
    let log = handle.logs("web", LogSource::Service, follow).await.unwrap();
    let silent = deploy(&handle, request("silent")).await;
    let watched = handle.watch("web", silent.revision, 1).unwrap();
    let mut gone = DeployRequest::new("gone:silent".parse().unwrap());
    gone.name = Some("gone".parse().unwrap());
    let gone = deploy(&handle, gone).await;
    let forgotten = handle.watch("gone", gone.revision, 1).unwrap();
    handle.remove("gone", Duration::ZERO, LIMIT, &ann()).await.unwrap();
    tokio::time::timeout(LIMIT, forgotten.count()).await.expect("it watches what is gone");
    handle.drain(LIMIT).await;
    let both = async { tokio::join!(watched.count(), log.count()) };
    tokio::time::timeout(LIMIT, both).await.expect("they keep the daemon from its end");
}
