use std::sync::Arc;
use std::time::Duration;

use hearth_proto::status::error_detail;
use v1::secrets_server::Secrets as _;

use super::*;
use crate::deploy::fake::FakeWorld;
use crate::deploy::{Options, Service as Deploys};
use crate::model::access::{ApiScope, Caller};
use crate::model::deploy::DeployRequest;
use crate::store::StateStore;

struct Room {
    _directory: tempfile::TempDir,
    world: Arc<FakeWorld>,
    deploys: Deploys,
    service: SecretsService,
}

async fn room() -> Room {
    let directory = tempfile::tempdir().unwrap();
    let store = StateStore::open(&directory.path().join("state.db")).unwrap();
    let secrets = RoomSecrets::open(&directory.path().join("secrets.key"), Arc::new(store));
    let world = FakeWorld::new();
    let logs = world.directory.as_ref().unwrap().path().to_owned();
    let options = Options::new("den".to_owned(), "http://10.0.0.1:4327".to_owned(), logs);
    let deploys = Deploys::start(options, world.ports()).await.unwrap();
    let service = SecretsService { secrets, deploys: deploys.handle() };
    Room { _directory: directory, world, deploys, service }
}

fn by<T>(scope: ApiScope, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Caller::new("ann", scope));
    request
}

fn set(name: &str, value: &[u8]) -> v1::SetSecretRequest {
    v1::SetSecretRequest { name: name.to_owned(), value: value.to_vec().into() }
}

#[tokio::test]
async fn a_secret_is_set_listed_and_removed_and_never_shown() {
    let room = room().await;
    let agent = ApiScope::agent_default;
    let first = room.service.set(by(agent(), set("db", b"canary"))).await.unwrap().into_inner();
    let again = room.service.set(by(agent(), set("db", b"canary2"))).await.unwrap().into_inner();
    let (first, again) = (first.secret.unwrap(), again.secret.unwrap());
    assert_eq!((first.created_at, first.changed_at), (again.created_at, first.created_at));
    let listed = room.service.list(by(agent(), v1::ListSecretsRequest {})).await.unwrap().into_inner();
    assert_eq!(listed.secrets, [again]);
    assert!(!format!("{listed:?}").contains("canary"));
    let remove = || v1::RemoveSecretRequest { name: "db".to_owned() };
    let removed = room.service.remove(by(agent(), remove())).await.unwrap().into_inner();
    assert!(removed.used_by.is_empty());
    let gone = room.service.remove(by(agent(), remove())).await.unwrap_err();
    let detail = error_detail(&gone).unwrap();
    assert_eq!((gone.code(), detail.code.as_str()), (tonic::Code::NotFound, "secret_not_found"));
    assert!(!detail.hint.is_empty());
}

#[tokio::test]
async fn removing_a_secret_reports_the_services_that_use_it() {
    let room = room().await;
    room.world.app("1", crate::deploy::fake::FakeApp::Silent);
    room.world.state().secrets.insert("db".to_owned(), "x".to_owned());
    let mut request = DeployRequest::new("web:1".parse().unwrap());
    request.env.insert("DB".to_owned(), EnvValue::Secret { name: "db".to_owned() });
    room.deploys
        .handle()
        .deploy(
            request,
            &crate::deploy::Actor::new("ann".to_owned(), crate::deploy::fake::AllPermits),
            &Default::default(),
        )
        .await
        .unwrap();
    let no_services = ApiScope { services: None, ..ApiScope::agent_default() };
    for (scope, used_by) in [(ApiScope::agent_default(), vec!["web".to_owned()]), (no_services, Vec::new())] {
        room.service.set(by(ApiScope::full(), set("db", b"x"))).await.unwrap();
        let request = v1::RemoveSecretRequest { name: "db".to_owned() };
        let removed = room.service.remove(by(scope, request)).await.unwrap().into_inner();
        assert_eq!(removed.used_by, used_by);
    }
    room.deploys.handle().drain(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_value_that_no_variable_can_have_and_a_name_that_is_none_are_refused() {
    let room = room().await;
    for (field, request) in [
        ("name", set("no/name", b"x")),
        ("name", set("", b"x")),
        ("value", set("db", b"canary\xff")),
        ("value", set("db", b"canary\0")),
        ("value", set("db", &vec![b'x'; 70 << 10])),
    ] {
        let refused = room.service.set(by(ApiScope::full(), request)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert_eq!(error_detail(&refused).unwrap().field, field);
        assert!(!format!("{refused:?}").contains("canary"));
    }
}
