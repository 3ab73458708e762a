//! A missing grant denies a call, and the error names it.

use serde_json::json;

use super::*;

/// Returns the message of a call that was denied.
fn denied<T: std::fmt::Debug>(answer: Result<T, Status>) -> String {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert_eq!(error_detail(&status).unwrap().code, "denied");
    status.message().to_owned()
}

#[tokio::test]
async fn every_call_asks_for_its_grant_and_names_it() {
    let mut room = room().await;
    room.live(spec("1")).await;
    // All grants except the required one.
    let scope = json!({"containers": {"use_containers": true, "run": ["*"], "pull": ["*"]},
        "storage": {"paths": [{"path": "/"}]}, "secrets": {}});
    let scope = scope.to_string();
    let service = || "web".to_owned();
    let mut client = room.client.clone();
    let mut said = vec![denied(room.deploy(&scope, spec("1")).await)];
    let request = v1::GetServiceRequest { service: service() };
    said.push(denied(client.get(by(&scope, request)).await));
    said.push(denied(client.list(by(&scope, v1::ListServicesRequest::default())).await));
    let request = v1::RestartServiceRequest { service: service() };
    said.push(denied(client.restart(by(&scope, request)).await));
    let request = v1::RollbackServiceRequest { service: service(), revision: 1 };
    said.push(denied(client.rollback(by(&scope, request)).await));
    let request = v1::RemoveServiceRequest { service: service(), grace: None };
    said.push(denied(client.remove(by(&scope, request)).await));
    said.push(denied(client.exec(by(&scope, futures::stream::empty())).await));
    said.push(denied(client.list_routes(by(&scope, v1::ListRoutesRequest {})).await));
    let request = v1::RemoveRouteRequest { domain: "web.test".to_owned() };
    said.push(denied(client.remove_route(by(&scope, request)).await));
    for message in said {
        assert!(message.ends_with("that takes the grant `services`"), "{message}");
    }
    let watch = || v1::WatchDeployRequest { service: service(), revision: 1, from_sequence: 0 };
    let log = || v1::ReadServiceLogsRequest { service: service(), ..v1::ReadServiceLogsRequest::default() };
    for message in
        [denied(client.watch(by(&scope, watch())).await), denied(client.logs(by(&scope, log())).await)]
    {
        assert!(message.ends_with("that takes the grant `containers.logs`"), "{message}");
    }
    for enough in [json!({"containers": {"logs": true}}), json!({"services": {}})] {
        let enough = enough.to_string();
        client.watch(by(&enough, watch())).await.unwrap();
        client.logs(by(&enough, log())).await.unwrap();
    }
    assert_eq!(room.get("web").await.unwrap().revisions.len(), 1);
}

#[tokio::test]
async fn a_deploy_mentions_only_what_its_caller_may_use() {
    use v1::mount::Source;
    let mut room = room().await;
    let mount = |source, mode: v1::MountMode| {
        let mounts = vec![v1::Mount {
            source: Some(source),
            target: "/m".to_owned(),
            mode: mode.into(),
            create: false,
        }];
        v1::DeploySpec { mounts, domains: None, ..spec("1") }
    };
    let image = |reference: &str| {
        let reference = reference.to_owned();
        Source::Image(v1::ImageSource { reference, subpath: String::new() })
    };
    let room_path = |path: &str| Source::RoomPath(path.to_owned());
    let (ro, rw, unsaid) = (v1::MountMode::ReadOnly, v1::MountMode::ReadWrite, v1::MountMode::Unspecified);
    let value = |value| {
        let env = [("X".to_owned(), v1::EnvValue { value: Some(value) })].into();
        v1::DeploySpec { env, domains: None, ..spec("1") }
    };
    let foreign = || v1::DeploySpec { image: "ghcr.io/a/web:1".to_owned(), domains: None, ..spec("1") };
    room.world.state().secrets.insert("db".to_owned(), "canary".to_owned());
    let run = json!({"run": ["web"]});
    let storage = json!({"paths": [{"path": "/apps"}, {"path": "/apps/locked", "read_only": true}]});
    let token = |scope: &str| v1::env_value::Value::TokenScope(scope.to_owned());
    let secret = || v1::env_value::Value::Secret("db".to_owned());
    let cases = [
        // Images of the room's registry, granted by repository or by name.
        (json!({}), spec("1"), Some("containers.run")),
        (json!({"containers": {"run": ["other"]}}), spec("1"), Some("containers.run")),
        (
            json!({"containers": {"registry": {"pull": ["*"], "write": ["*"]}}}),
            spec("1"),
            Some("containers.run"),
        ),
        (json!({"containers": run}), spec("1"), None),
        (json!({"containers": {"registry": {"run": ["w*"]}}}), spec("1"), None),
        (json!({"containers": {"run": ["room.meshagent.com/web"]}}), spec("1"), None),
        // Images of another registry.
        (
            json!({"containers": {"registry": {"run": ["*"]}, "pull": ["*"]}}),
            foreign(),
            Some("containers.run"),
        ),
        (json!({"containers": {"run": ["ghcr.io/a/*"]}}), foreign(), Some("containers.pull")),
        (json!({"containers": {"run": ["ghcr.io/a/*"], "pull": ["ghcr.io/*"]}}), foreign(), None),
        // Storage: reading needs a read grant, writing needs a write grant.
        (json!({"containers": run}), mount(room_path("apps"), ro), Some("storage.paths")),
        (json!({"containers": run, "storage": storage}), mount(room_path("apps/x"), unsaid), None),
        (json!({"containers": run, "storage": storage}), mount(room_path(""), ro), Some("storage.paths")),
        (json!({"containers": run, "storage": storage}), mount(room_path("apps/locked"), ro), None),
        (
            json!({"containers": run, "storage": storage}),
            mount(room_path("apps/locked"), rw),
            Some("storage.paths"),
        ),
        // A room path is writable by default.
        (
            json!({"containers": run, "storage": storage}),
            mount(room_path("apps/locked"), unsaid),
            Some("storage.paths"),
        ),
        (
            json!({"containers": run, "storage": storage}),
            mount(Source::ProjectPath("apps/locked/x".to_owned()), unsaid),
            None,
        ),
        // Mounted images.
        (json!({"containers": run}), mount(image("assets:1"), ro), Some("containers.registry.pull")),
        (json!({"containers": run}), mount(image("ghcr.io/a:1"), ro), Some("containers.pull")),
        (
            json!({"containers": {"run": ["web"], "registry": {"pull": ["assets"]}}}),
            mount(image("assets:1"), rw),
            None,
        ),
        (json!({"containers": run}), mount(Source::EmptyDir(v1::EmptyDirSource {}), rw), None),
        // Secrets and tokens.
        (json!({"containers": run}), value(secret()), Some("secrets")),
        (json!({"containers": run, "secrets": {}}), value(secret()), None),
        (json!({"containers": run}), value(token("userDefault")), Some("storage")),
        (json!({"containers": run}), value(token("full")), Some("admin")),
        (
            json!({"containers": run}),
            value(token(r#"{"containers": {"run": ["web", "x"]}}"#)),
            Some("containers.run"),
        ),
        (
            json!({"containers": run}),
            value(token(r#"{"containers": {"run": ["web"]}, "services": {}}"#)),
            None,
        ),
        (json!({"containers": run, "admin": {}}), value(token("full")), None),
    ];
    for (n, (mut scope, spec, grant)) in cases.into_iter().enumerate() {
        scope["services"] = json!({});
        let spec = v1::DeploySpec { domains: None, name: Some(format!("case-{n}")), ..spec };
        let what = format!("{scope} {spec:?}");
        let request = v1::DeployRequest { spec: Some(spec), dry_run: true };
        let answer = room.client.deploy(by(&scope.to_string(), request)).await;
        match grant {
            None => drop(answer.unwrap_or_else(|status| panic!("{what}: {status:?}"))),
            Some(grant) => {
                let message = denied(answer);
                assert!(message.ends_with(&format!("that takes the grant `{grant}`")), "{what}: {message}");
            }
        }
    }
    assert!(room.world.state().services.is_empty());
}

#[tokio::test]
async fn what_ran_once_is_run_again_only_by_who_may_run_it() {
    let mut room = room().await;
    room.live(spec("1")).await;
    let mut client = room.client.clone();
    let restart = || v1::RestartServiceRequest { service: "web".to_owned() };
    let rollback = || v1::RollbackServiceRequest { service: "web".to_owned(), revision: 1 };
    let scope = json!({"services": {}, "containers": {"run": ["other"]}}).to_string();
    for message in [
        denied(client.restart(by(&scope, restart())).await),
        denied(client.rollback(by(&scope, rollback())).await),
    ] {
        assert!(message.ends_with("that takes the grant `containers.run`"), "{message}");
    }
    let scope = json!({"services": {}, "containers": {"run": ["web"]}}).to_string();
    assert_eq!(client.restart(by(&scope, restart())).await.unwrap().into_inner().revision, 1);
    assert_eq!(client.rollback(by(&scope, rollback())).await.unwrap().into_inner().revision, 2);
}

#[tokio::test]
async fn a_service_of_another_is_removed_and_read_only_by_who_may_run_its_image() {
    let mut room = room().await;
    room.live(spec("1")).await;
    let mut client = room.client.clone();
    let service = || "web".to_owned();
    let watch = || v1::WatchDeployRequest { service: service(), revision: 0, from_sequence: 0 };
    let log = || v1::ReadServiceLogsRequest { service: service(), ..v1::ReadServiceLogsRequest::default() };
    let route = || v1::RemoveRouteRequest { domain: "web.test".to_owned() };
    let remove = || v1::RemoveServiceRequest { service: service(), grace: None };
    let other = json!({"services": {}, "containers": {"logs": true, "run": ["other"]}}).to_string();
    for message in [
        denied(client.watch(of("bob", &other, watch())).await),
        denied(client.logs(of("bob", &other, log())).await),
        denied(client.remove_route(of("bob", &other, route())).await),
        denied(client.remove(of("bob", &other, remove())).await),
    ] {
        assert!(message.contains("service `web`, which another caller deployed"), "{message}");
        assert!(message.ends_with("that takes the grant `containers.run`"), "{message}");
    }
    assert_eq!(room.get("web").await.unwrap().status(), v1::ServiceStatus::Live);
    // Callers who may run the image may change the service. So may its owner, with only the grant for the method.
    let runs = json!({"services": {}, "containers": {"run": ["web"]}}).to_string();
    client.watch(of("bob", &runs, watch())).await.unwrap();
    client.logs(of("bob", &runs, log())).await.unwrap();
    client.remove_route(of("bob", &runs, route())).await.unwrap();
    let bare = json!({"services": {}}).to_string();
    client.remove(of("ann", &bare, remove())).await.unwrap();
}
