use super::*;
use crate::model::deploy::Action;
use crate::model::service::EnvValue;

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
        handle.deploy(request, "ann", &BTreeMap::new()).await.unwrap_err().code().to_owned()
    };
    let env = |value: EnvValue| {
        move |request: &mut DeployRequest| {
            request.env.insert("X".to_owned(), value.clone());
        }
    };
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
async fn a_dry_run_tells_the_plan_and_changes_nothing() {
    let world = world();
    let services = start(&world).await;
    let handle = services.handle();
    let forecast = handle.dry_run(request("1"), "ann", &BTreeMap::new()).await.unwrap();
    assert!(forecast.deployed.created && world.state().services.is_empty());
    assert!(
        forecast.deployed.notes.iter().any(|note| note.contains("8080")),
        "{:?}",
        forecast.deployed.notes
    );
    assert!(
        matches!(forecast.actions.first(), Some(Action::Start { revision: 1, .. })),
        "{:?}",
        forecast.actions
    );
    live(&handle, "1").await;
    let before = world.state().services.clone();
    let forecast = handle.dry_run(request("2"), "ann", &BTreeMap::new()).await.unwrap();
    assert!(
        matches!(forecast.actions.last(), Some(Action::Retire { revision: 1, .. })),
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
    handle.remove_route(&"web.test".parse().unwrap()).await.unwrap();
    assert!(handle.routes().is_empty() && world.state().routes.is_empty());
    assert_eq!(world.running().len(), 1);
    let missing = handle.remove_route(&"web.test".parse().unwrap()).await.unwrap_err();
    assert_eq!(missing.code(), "route_not_found");
    // Another may have it now.
    let mut other = request("2");
    other.name = Some("other".parse().unwrap());
    assert!(deploy(&handle, other).await.created);
}

#[tokio::test]
async fn revisions_beyond_ten_are_forgotten_but_never_the_live_one() {
    let world = world();
    world.app("bad", App::NotFound);
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
