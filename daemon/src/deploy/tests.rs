//! Tests of services with scripted dependencies, and helpers that the tests of the parts share.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::Digest;
use crate::model::confinement::{AddedCapability, ServiceConfinement};
use crate::model::deploy::{ProbeAnswer, ProbeResult};
use crate::model::id::{InstanceId, ServiceId};
use crate::model::service::{
    DeployStrategy, HealthCheck, PortKind, ResourceLimits, RevisionOutcome, ServicePort, ServiceRecord,
    ServiceRevision, ServiceSpec,
};

pub(crate) fn spec(port: u16) -> ServiceSpec {
    ServiceSpec {
        image: "room.meshagent.com/web:1".parse().unwrap(),
        repository: "web".parse().unwrap(),
        kept_in: None,
        digest: Digest::from_sha256([7; 32]),
        manifest: Digest::from_sha256([7; 32]),
        env: std::collections::BTreeMap::new(),
        mounts: Vec::new(),
        mounted: std::collections::BTreeMap::new(),
        ports: vec![ServicePort { number: port, kind: PortKind::Http, published: true }],
        command: None,
        workdir: None,
        identity: None,
        limits: ResourceLimits::default(),
        health: HealthCheck::default(),
        strategy: DeployStrategy::Rolling,
        domains: Vec::new(),
        public: false,
        description: String::new(),
        annotations: std::collections::BTreeMap::new(),
        confinement: ServiceConfinement::default(),
    }
}

pub(crate) fn service(spec: ServiceSpec) -> ServiceRecord {
    ServiceRecord {
        id: ServiceId::random(),
        name: "web".parse().unwrap(),
        repository: spec.repository.clone(),
        created_at: Timestamp::UNIX_EPOCH,
        created_by: "ann".to_owned(),
        share_owner: None,
        desired: 1,
        live: Some(1),
        revisions: vec![ServiceRevision {
            number: 1,
            spec,
            created_at: Timestamp::UNIX_EPOCH,
            created_by: "ann".to_owned(),
            outcome: RevisionOutcome::Live { at: Timestamp::UNIX_EPOCH },
            generation: 0,
        }],
        removing: false,
    }
}

pub(super) fn probe(answer: ProbeAnswer) -> ProbeResult {
    ProbeResult {
        at: Timestamp::UNIX_EPOCH,
        instance: InstanceId::random(),
        target: "http://10.0.0.2:8080/".to_owned(),
        took: Duration::from_millis(3),
        healthy: false,
        answer,
    }
}

mod crash;
mod lifecycle;
mod requests;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt as _;

use super::fake::{AllPermits, FakeApp, FakeWorld};
use super::options::Options;
use super::service::{Actor, Handle, Service as Services};
use crate::model::deploy::{AcceptedDeploy, DeployEvent, DeployEventKind, DeployRequest};
use crate::model::service::ServiceName;

const LIMIT: Duration = Duration::from_secs(30);

fn world() -> Arc<FakeWorld> {
    let world = FakeWorld::new();
    for (tag, app) in [
        ("1", FakeApp::Serves(200)),
        ("2", FakeApp::Serves(200)),
        ("3", FakeApp::Serves(200)),
        ("silent", FakeApp::Silent),
    ] {
        world.app(tag, app);
    }
    world
}

async fn start(world: &Arc<FakeWorld>) -> Services {
    start_with(world, &[]).await
}

async fn start_as(world: &Arc<FakeWorld>, options: Options) -> Services {
    Services::start(options, world.ports()).await.unwrap()
}

async fn start_with(world: &Arc<FakeWorld>, allowed: &[AddedCapability]) -> Services {
    let directory = world.directory.as_ref().unwrap().path().to_owned();
    let mut options = Options::new("den".to_owned(), "http://10.0.0.1:4327".to_owned(), directory);
    options.stop_grace = Duration::from_millis(50);
    options.drain_limit = Duration::from_millis(500);
    options.allowed_capabilities = allowed.iter().copied().collect();
    start_as(world, options).await
}

fn request(tag: &str) -> DeployRequest {
    let mut request = DeployRequest::new(format!("web:{tag}").parse().unwrap());
    request.domains = Some(vec!["web.test".parse().unwrap()]);
    request
}

/// Returns an actor who may do everything.
fn ann() -> Actor {
    Actor::new("ann".to_owned(), AllPermits)
}

async fn deploy(handle: &Handle, request: DeployRequest) -> AcceptedDeploy {
    handle.deploy(request, &ann(), &BTreeMap::new()).await.unwrap()
}

/// Follows a revision to its last event.
async fn events(handle: &Handle, revision: u32) -> Vec<DeployEvent> {
    let events = handle.watch("web", revision, 1).unwrap();
    let events = tokio::time::timeout(LIMIT, events.collect::<Vec<_>>()).await.expect("it does not end");
    assert!(events.iter().zip(1u64..).all(|(event, n)| event.sequence == n), "a gap in {events:?}");
    events
}

async fn outcome(handle: &Handle, revision: u32) -> DeployEventKind {
    events(handle, revision).await.pop().unwrap().kind
}

async fn live(handle: &Handle, tag: &str) -> AcceptedDeploy {
    let deployed = deploy(handle, request(tag)).await;
    let outcome = outcome(handle, deployed.revision).await;
    assert!(matches!(outcome, DeployEventKind::Live { .. }), "{outcome:?}");
    deployed
}

/// Waits until a condition holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("not so: {what}"));
}

/// Reports whether exactly one instance of this revision is running and receives the traffic, and nothing is left of
/// any other.
fn only_serves(world: &FakeWorld, revision: u32) -> bool {
    let running = world.running();
    let state = world.state();
    let [label] = running.as_slice() else { return false };
    let name: ServiceName = "web".parse().unwrap();
    let backend = state.routes.first().and_then(|route| route.backend);
    label.revision == revision
        && state.instances.len() == 1
        && state.networks.iter().eq([&label.instance])
        && state.mounts.iter().eq([&label.instance])
        && state.names.get(&name).copied().map(|address| (address, 8080).into()) == backend
        && state.history.last().is_some_and(|(routed, _)| *routed == revision)
        && backend.is_some()
        && state.services.values().all(|service| service.live == Some(revision))
}
