use jiff::Timestamp;

use super::super::deploy_spec;
use super::*;
use crate::deploy::tests;
use crate::model::confinement::AddedCapability;
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::{MountAccess, RoomRegistries, ServiceMount, ServiceMountSource};

const ENTRANCE: IngressAddress = IngressAddress { tls: false, port: 4380 };

fn full_spec() -> ServiceSpec {
    let mut spec = tests::spec(8080);
    spec.env = [
        ("A".to_owned(), EnvValue::Plain("1".to_owned())),
        ("B".to_owned(), EnvValue::Token { scope: "userDefault".to_owned() }),
        ("C".to_owned(), EnvValue::Secret { name: "db".to_owned() }),
    ]
    .into();
    let mount = |source, target: &str, mode| ServiceMount {
        source,
        target: target.parse().unwrap(),
        mode,
        create: false,
    };
    let image = ServiceMountSource::Image { reference: "a:1".parse().unwrap(), subpath: "usr".to_owned() };
    spec.mounts = vec![
        mount(ServiceMountSource::Room("r".to_owned()), "/r", MountAccess::ReadOnly),
        mount(ServiceMountSource::Project(String::new()), "/p", MountAccess::ReadWrite),
        mount(image, "/i", MountAccess::ReadWrite),
        mount(ServiceMountSource::EmptyDir, "/e", MountAccess::ReadWrite),
    ];
    let pinned = crate::model::image::PinnedImage { repository: "a".parse().unwrap(), digest: spec.digest };
    spec.mounted = [("/i".parse().unwrap(), pinned)].into();
    spec.ports.push(ServicePort { number: 5432, kind: PortKind::Tcp, published: false });
    spec.command = Some(vec!["run".to_owned(), "it".to_owned()]);
    spec.workdir = Some("/srv".parse().unwrap());
    spec.identity = Some("agent".to_owned());
    spec.limits.memory_bytes = Some(64 << 20);
    spec.limits.cpu_millis = Some(250);
    spec.confinement.isolated = true;
    spec.confinement.capabilities.insert(AddedCapability::NetRaw);
    spec.health.path = Some("/up".to_owned());
    spec.strategy = DeployStrategy::Recreate;
    spec.domains = vec!["www.example.com".parse().unwrap(), "*.example.com".parse().unwrap()];
    spec.public = true;
    spec.description = "d".to_owned();
    spec.annotations = [("k".to_owned(), "v".to_owned())].into();
    spec
}

fn state(spec: ServiceSpec, status: ServiceStatus) -> ServiceState {
    ServiceState {
        service: tests::service(spec),
        status,
        instances: Vec::new(),
        restarts: 0,
        last_exits: Vec::new(),
        reason: None,
        next_start: None,
    }
}

/// A shown spec can be sent back as a whole manifest, and requests the same.
#[test]
fn what_is_shown_of_a_revision_asks_for_the_same_when_it_is_sent_back() {
    let spec = full_spec();
    let shown = service_spec(spec.clone());
    let sent = v1::DeploySpec {
        image: shown.image.clone(),
        env: shown.env.clone(),
        mounts: shown.mounts.clone(),
        ports: Some(v1::ServicePorts { ports: shown.ports.clone() }),
        command: shown.command.clone(),
        working_dir: Some(shown.working_dir.clone()),
        identity: Some(shown.identity.clone()),
        memory_bytes: shown.memory_bytes,
        cpu_millis: shown.cpu_millis,
        liveness: shown.health.clone().map(|health| health.path),
        start_limit: shown.health.clone().and_then(|health| health.start_limit),
        strategy: shown.strategy,
        domains: Some(v1::DomainNames { domains: shown.domains.clone() }),
        public: Some(shown.public),
        description: Some(shown.description.clone()),
        annotations: Some(v1::Annotations { annotations: shown.annotations.clone() }),
        isolated: Some(shown.isolated),
        capabilities: Some(v1::Capabilities { names: shown.capabilities.clone() }),
        ..v1::DeploySpec::default()
    };
    let (request, _) = deploy_spec(sent, &RoomRegistries::default()).unwrap();
    assert_eq!((request.image, request.env, request.mounts), (spec.image, spec.env, spec.mounts));
    assert_eq!((request.ports, request.command), (Some(spec.ports), spec.command));
    assert_eq!((request.workdir, request.identity), (spec.workdir, spec.identity));
    assert_eq!(request.memory_bytes, spec.limits.memory_bytes);
    assert_eq!(request.cpu_millis, spec.limits.cpu_millis);
    assert_eq!((request.liveness, request.start_limit), (spec.health.path, Some(spec.health.start_limit)));
    assert_eq!((request.strategy, request.domains), (Some(spec.strategy), Some(spec.domains)));
    assert_eq!((request.public, request.description), (Some(spec.public), Some(spec.description)));
    assert_eq!(request.annotations, Some(spec.annotations));
    assert_eq!(request.isolated, Some(spec.confinement.isolated));
    assert_eq!(request.capabilities, Some(spec.confinement.capabilities));
}

#[test]
fn a_list_shows_what_serves_and_no_revisions() {
    let listed = service(state(full_spec(), ServiceStatus::Live), ENTRANCE, false);
    assert_eq!(listed.status(), v1::ServiceStatus::Live);
    assert!(listed.revisions.is_empty());
    assert_eq!(listed.domains, ["*.example.com", "www.example.com"]);
    // A wildcard domain has no URL.
    assert_eq!(listed.urls, ["http://www.example.com:4380/"]);
    assert_eq!((listed.image.as_str(), listed.ports.len()), ("room.meshagent.com/web:1", 2));
    assert_eq!((listed.desired_revision, listed.live_revision), (1, Some(1)));
}

#[test]
fn a_revision_shows_how_it_came_out() {
    let shown = |outcome| {
        let mut state = state(full_spec(), ServiceStatus::Starting);
        state.service.revisions[0].outcome = outcome;
        service(state, ENTRANCE, true).revisions.remove(0)
    };
    let live = shown(RevisionOutcome::Live { at: Timestamp::UNIX_EPOCH });
    assert_eq!((live.state(), live.live_at.is_some()), (v1::RevisionState::Live, true));
    let superseded = shown(RevisionOutcome::Superseded { by: 7 });
    assert_eq!((superseded.state(), superseded.superseded_by), (v1::RevisionState::Superseded, Some(7)));
    let mut fault = Fault::new(FaultStage::Deploy, ErrorCode::Exited, "it ended");
    (fault.exit_code, fault.log_tail) = (Some(3), vec!["oh".to_owned()]);
    let failed = shown(RevisionOutcome::Failed(Box::new(fault)));
    let error = failed.error.clone().unwrap();
    assert_eq!((failed.state(), error.exit_code), (v1::RevisionState::Failed, Some(3)));
    assert_eq!((error.stage.as_str(), error.log_tail), ("deploy", vec!["oh".to_owned()]));
    assert_eq!(shown(RevisionOutcome::Pending).state(), v1::RevisionState::Pending);
}

#[test]
fn an_address_leaves_out_the_port_that_everybody_knows() {
    let domain = "a.b".parse().unwrap();
    for (tls, port, url) in [
        (false, 80, "http://a.b/"),
        (true, 443, "https://a.b/"),
        (false, 443, "http://a.b:443/"),
        (true, 8443, "https://a.b:8443/"),
    ] {
        assert_eq!(IngressAddress { tls, port }.url(&domain).as_deref(), Some(url));
    }
}
