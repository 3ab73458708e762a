//! Tests of the service over gRPC, as clients use it, with deploys against scripted neighbours.

mod exec;
mod grants;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::middleware::{Next, from_fn};
use hearth_proto::status::error_detail;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::service::Routes;
use tonic::transport::Channel;
use v1::services_client::ServicesClient;
use v1::services_server::ServicesServer;

use super::*;
use crate::access::parse_scope;
use crate::api::auth::admit;
use crate::api::serve::{ServeOptions, serve};
use crate::connections::{ConnectionLimiter, ConnectionLimits};
use crate::deploy::fake::{FakeApp, FakeWorld};
use crate::deploy::{Options, Service as Deploys};
use crate::model::access::Caller;

const LIMIT: Duration = Duration::from_secs(30);
const FULL: &str = "full";

struct Room {
    world: Arc<FakeWorld>,
    deploys: Deploys,
    address: SocketAddr,
    client: ServicesClient<Channel>,
}

/// Replaces authentication: inserts a caller with the name and the scope that the test sets.
async fn as_caller(request: axum::extract::Request, next: Next) -> axum::response::Response {
    let caller = caller_of(request.headers());
    admit(caller, request, next).await
}

fn caller_of(headers: &http::HeaderMap) -> Caller {
    let said = |name: &str| headers.get(name).unwrap().to_str().unwrap();
    Caller::new(said("name"), parse_scope(said("scope")).unwrap())
}

/// A request of Ann with this scope.
fn by<T>(scope: &str, message: T) -> Request<T> {
    of("ann", scope, message)
}

fn of<T>(name: &str, scope: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("name", name.parse().unwrap());
    request.metadata_mut().insert("scope", scope.parse().unwrap());
    request.set_timeout(LIMIT);
    request
}

async fn room() -> Room {
    let world = FakeWorld::new();
    for tag in ["1", "2", "3"] {
        world.app(tag, FakeApp::Serves(200));
    }
    let directory = world.directory.as_ref().unwrap().path().to_owned();
    let mut options = Options::new("den".to_owned(), "http://10.0.0.1:4327".to_owned(), directory);
    options.stop_grace = Duration::from_millis(50);
    options.drain_limit = Duration::from_millis(500);
    let deploys = Deploys::start(options, world.ports()).await.unwrap();
    let service = ServicesService {
        deploys: deploys.handle(),
        rooms: RoomRegistries::default(),
        ingress_address: IngressAddress { tls: false, port: 4380 },
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Routes::new(ServicesServer::new(service)).into_axum_router().layer(from_fn(as_caller));
    let limits = ConnectionLimits { total: 10, per_peer: 10, unadmitted_timeout: LIMIT, idle_timeout: LIMIT };
    let (connections, stop) = (ConnectionLimiter::new(limits), CancellationToken::new());
    task::spawn("server", serve(listener, ServeOptions { router, connections, stop, grace: LIMIT }));
    let client = ServicesClient::connect(format!("http://{address}")).await.unwrap();
    Room { world, deploys, address, client }
}

fn spec(tag: &str) -> v1::DeploySpec {
    let domains = Some(v1::DomainNames { domains: vec!["web.test".to_owned()] });
    v1::DeploySpec { image: format!("web:{tag}"), domains, ..v1::DeploySpec::default() }
}

impl Room {
    async fn deploy(&mut self, scope: &str, spec: v1::DeploySpec) -> Result<v1::DeployResponse, Status> {
        let request = v1::DeployRequest { spec: Some(spec), dry_run: false };
        self.client.deploy(by(scope, request)).await.map(Response::into_inner)
    }

    /// Deploys, and follows the deploy to its last event.
    async fn live(&mut self, spec: v1::DeploySpec) -> v1::DeployResponse {
        let deployed = self.deploy(FULL, spec).await.unwrap();
        let last = self.events(&deployed.name, deployed.revision).await.pop().unwrap();
        assert!(matches!(last.event, Some(v1::deploy_event::Event::Live(_))), "{last:?}");
        deployed
    }

    async fn events(&mut self, service: &str, revision: u32) -> Vec<v1::DeployEvent> {
        let request = v1::WatchDeployRequest { service: service.to_owned(), revision, from_sequence: 0 };
        let events = self.client.watch(by(FULL, request)).await.unwrap().into_inner();
        events.map(|event| event.unwrap()).collect().await
    }

    async fn get(&mut self, service: &str) -> Result<v1::Service, Status> {
        let request = v1::GetServiceRequest { service: service.to_owned() };
        self.client.get(by(FULL, request)).await.map(Response::into_inner)
    }

    async fn log(&mut self, request: v1::ReadServiceLogsRequest) -> Result<Vec<String>, Status> {
        let messages = self.client.logs(by(FULL, request)).await?.into_inner();
        let text = |line: v1::InstanceLogLine| String::from_utf8(line.line.unwrap().text.to_vec()).unwrap();
        let lines = messages.map(|message| message.unwrap().lines.into_iter().map(text));
        Ok(lines.collect::<Vec<_>>().await.into_iter().flatten().collect())
    }
}

#[tokio::test]
async fn a_service_is_deployed_watched_shown_restarted_rolled_back_and_removed() {
    let mut room = room().await;
    let first = room.live(spec("1")).await;
    assert!(first.created && first.plan.is_empty());
    assert_eq!((first.name.as_str(), first.revision), ("web", 1));
    assert_eq!(first.urls, ["http://web.test:4380/"]);
    let ran = first.spec.unwrap();
    assert_eq!((ran.image.as_str(), ran.ports[0].number), ("room.meshagent.com/web:1", 8080));
    assert!(first.notes.iter().any(|note| note.contains("8080")), "{:?}", first.notes);

    let second = room.live(v1::DeploySpec { public: Some(true), ..spec("2") }).await;
    assert!(!second.created && second.service_id == first.service_id);
    let shown = room.get(&second.service_id).await.unwrap();
    assert_eq!((shown.status(), shown.revisions.len()), (v1::ServiceStatus::Live, 2));
    assert_eq!((shown.live_revision, shown.desired_revision), (Some(2), 2));
    assert_eq!(shown.revisions[0].created_by, "ann");
    let serving = shown.instances.iter().find(|instance| instance.routed).unwrap();
    assert_eq!((serving.revision, serving.phase()), (2, v1::InstancePhase::Healthy));
    assert!(serving.last_probe.as_ref().unwrap().healthy);

    let from = room.events("web", 0).await;
    assert!(from.iter().zip(1u64..).all(|(event, n)| event.sequence == n));
    let request = v1::WatchDeployRequest { service: "web".to_owned(), revision: 2, from_sequence: 3 };
    let rest = room.client.watch(by(FULL, request)).await.unwrap().into_inner();
    let rest: Vec<_> = rest.map(Result::unwrap).collect().await;
    assert_eq!(rest, from[2..]);

    let request = v1::RestartServiceRequest { service: "web".to_owned() };
    let restarted = room.client.restart(by(FULL, request)).await.unwrap().into_inner();
    assert_eq!(restarted.revision, 2);
    room.events("web", 2).await;
    assert_eq!(room.get("web").await.unwrap().revisions[1].generation, 1);

    let request = v1::RollbackServiceRequest { service: "web".to_owned(), revision: 0 };
    let back = room.client.rollback(by(FULL, request)).await.unwrap().into_inner();
    assert_eq!((back.revision, back.spec.unwrap().image), (3, "room.meshagent.com/web:1".to_owned()));
    room.events("web", 3).await;

    let routes = room.client.list_routes(by(FULL, v1::ListRoutesRequest {})).await.unwrap().into_inner();
    let [route] = routes.routes.as_slice() else { panic!("{routes:?}") };
    assert_eq!((route.domain.as_str(), route.url.as_str()), ("web.test", "http://web.test:4380/"));
    assert_eq!((route.revision, route.private), (Some(3), true));
    let request = v1::RemoveRouteRequest { domain: "WEB.test".to_owned() };
    assert_eq!(room.client.remove_route(by(FULL, request)).await.unwrap().into_inner().service, "web");
    assert!(room.get("web").await.unwrap().domains.is_empty());

    let grace = Some(prost_types::Duration::default());
    let request = v1::RemoveServiceRequest { service: "web".to_owned(), grace };
    let removed = room.client.remove(by(FULL, request)).await.unwrap().into_inner();
    assert_eq!(removed.service_id, first.service_id);
    assert_eq!(room.get("web").await.unwrap_err().code(), Code::NotFound);
    assert!(room.world.running().is_empty());
}

#[tokio::test]
async fn a_dry_run_prints_the_plan_and_changes_nothing() {
    let mut room = room().await;
    let request = v1::DeployRequest { spec: Some(spec("1")), dry_run: true };
    let forecast = room.client.deploy(by(FULL, request)).await.unwrap().into_inner();
    assert!(forecast.created && forecast.revision == 1);
    let kinds: Vec<_> = forecast.plan.iter().map(v1::DeployAction::kind).collect();
    assert_eq!(kinds.first(), Some(&v1::DeployActionKind::Start));
    assert!(kinds.contains(&v1::DeployActionKind::Route), "{kinds:?}");
    assert_eq!(room.get("web").await.unwrap_err().code(), Code::NotFound);
    assert!(room.world.state().services.is_empty());
}

#[tokio::test]
async fn a_list_goes_in_pages_by_name() {
    let mut room = room().await;
    for name in ["c", "a", "b"] {
        let spec = v1::DeploySpec { name: Some(name.to_owned()), domains: None, ..spec("1") };
        room.deploy(FULL, spec).await.unwrap();
    }
    let mut list = async |page_size, page_token: &str| {
        let request = v1::ListServicesRequest { page_size, page_token: page_token.to_owned() };
        let page = room.client.list(by(FULL, request)).await?.into_inner();
        let names: Vec<String> = page.services.iter().map(|service| service.name.clone()).collect();
        assert!(page.services.iter().all(|service| service.revisions.is_empty()));
        Ok::<_, Status>((names.join(""), page.next_page_token))
    };
    assert_eq!(list(0, "").await.unwrap(), ("abc".to_owned(), String::new()));
    assert_eq!(list(2, "").await.unwrap(), ("ab".to_owned(), "b".to_owned()));
    assert_eq!(list(2, "b").await.unwrap(), ("c".to_owned(), String::new()));
    assert_eq!(list(2, "no token").await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_log_is_asked_for_by_service_revision_or_instance() {
    use v1::read_service_logs_request::Source;
    let mut room = room().await;
    room.live(spec("1")).await;
    let instance = room.world.running().pop().unwrap().instance;
    let ask = |source| v1::ReadServiceLogsRequest {
        service: "web".to_owned(),
        source,
        ..v1::ReadServiceLogsRequest::default()
    };
    for source in [None, Some(Source::Revision(1)), Some(Source::InstanceId(instance.to_string()))] {
        let lines = room.log(ask(source)).await.unwrap();
        assert_eq!(lines, ["begins".to_owned(), format!("I am {instance}")]);
    }
    for (source, code) in [
        (Source::Revision(7), "revision_not_found"),
        (Source::InstanceId("0".repeat(12)), "instance_not_found"),
    ] {
        let refused = room.log(ask(Some(source))).await.unwrap_err();
        assert_eq!((refused.code(), error_detail(&refused).unwrap().code.as_str()), (Code::NotFound, code));
    }
    let follow = v1::ReadServiceLogsRequest { follow: true, ..ask(None) };
    let mut lines = room.client.logs(by(FULL, follow)).await.unwrap().into_inner();
    assert_eq!(lines.message().await.unwrap().unwrap().lines.len(), 2);
    room.deploys.handle().drain(LIMIT).await;
    let end = tokio::time::timeout(LIMIT, lines.message()).await.expect("it keeps the daemon from its end");
    assert_eq!(end.unwrap(), None);
}

fn image_mount(reference: &str) -> v1::Mount {
    let image = v1::ImageSource { reference: reference.to_owned(), subpath: String::new() };
    let source = Some(v1::mount::Source::Image(image));
    v1::Mount { source, target: "/assets".to_owned(), ..v1::Mount::default() }
}

#[tokio::test]
async fn what_cannot_be_says_why_where_and_what_to_do() {
    use v1::env_value::Value;
    let mut room = room().await;
    room.live(spec("1")).await;
    type Change = fn(&mut v1::DeploySpec);
    let value = |value| v1::EnvValue { value: Some(value) };
    fn other(spec: &mut v1::DeploySpec) {
        (spec.image, spec.name) = ("other:1".to_owned(), Some("other".to_owned()));
    }
    let cases: &[(Code, &str, &str, Change)] = &[
        (Code::NotFound, "image_not_found", "spec.image", |spec| spec.image = "web:none".to_owned()),
        (Code::NotFound, "image_not_found", "spec.mounts", |spec| spec.mounts = vec![image_mount("a:none")]),
        (Code::AlreadyExists, "domain_taken", "spec.domains", other),
        (Code::AlreadyExists, "name_taken", "spec.name", |spec| {
            (spec.image, spec.name) = ("w.eb:1".to_owned(), Some("web".to_owned()));
        }),
        (Code::InvalidArgument, "reserved_port", "spec.ports", |spec| {
            let port = v1::ServicePort { number: 8078, ..v1::ServicePort::default() };
            spec.ports = Some(v1::ServicePorts { ports: vec![port] });
        }),
        (Code::InvalidArgument, "domain_port", "spec.domains", |spec| {
            spec.ports = Some(v1::ServicePorts::default());
        }),
        (Code::InvalidArgument, "invalid_request", "spec.memory_bytes", |spec| spec.memory_bytes = Some(1)),
        (Code::InvalidArgument, "invalid_request", "spec.liveness", |spec| {
            spec.liveness = Some("no slash".to_owned());
        }),
        (Code::InvalidArgument, "invalid_name", "spec.name", |spec| spec.image = "a".repeat(70)),
    ];
    for (code, word, field, change) in cases {
        let mut spec = spec("1");
        change(&mut spec);
        let refused = room.deploy(FULL, spec).await.unwrap_err();
        let detail = error_detail(&refused).unwrap();
        let seen = (refused.code(), detail.code.as_str(), detail.field.as_str());
        assert_eq!(seen, (*code, *word, *field), "{refused:?}");
        assert!(!detail.message.is_empty());
    }
    for (word, given) in [
        ("invalid_scope", value(Value::TokenScope("{\"services\"".to_owned()))),
        ("secret_not_found", value(Value::Secret("none".to_owned()))),
    ] {
        let spec = v1::DeploySpec { env: BTreeMap::from([("X".to_owned(), given)]), ..spec("1") };
        let detail = error_detail(&room.deploy(FULL, spec).await.unwrap_err()).unwrap();
        assert_eq!((detail.code.as_str(), detail.field.as_str()), (word, "spec.env.X"));
        assert!(!detail.hint.is_empty());
    }
    let request = v1::RollbackServiceRequest { service: "web".to_owned(), revision: 0 };
    let refused = room.client.rollback(by(FULL, request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    let request = v1::RemoveRouteRequest { domain: "none.test".to_owned() };
    let refused = room.client.remove_route(by(FULL, request)).await.unwrap_err();
    assert_eq!(error_detail(&refused).unwrap().code, "route_not_found");
    let grace = Some(prost_types::Duration { seconds: 601, nanos: 0 });
    let request = v1::RemoveServiceRequest { service: "web".to_owned(), grace };
    let refused = room.client.remove(by(FULL, request)).await.unwrap_err();
    assert_eq!(error_detail(&refused).unwrap().field, "grace");
    assert_eq!(room.get("web").await.unwrap().revisions.len(), 1, "a refusal has changed something");
}
