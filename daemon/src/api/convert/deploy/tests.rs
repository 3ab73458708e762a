use super::*;
use crate::model::{MountAccess, ServiceMountSource};

type Checked = Result<(DeployRequest, BTreeMap<String, RegistryCredential>), ApiError>;

fn check(change: impl FnOnce(&mut v1::DeploySpec)) -> Checked {
    let mut wire = v1::DeploySpec { image: "web:1".to_owned(), ..v1::DeploySpec::default() };
    change(&mut wire);
    deploy_spec(wire, &RoomRegistries::default())
}

fn mount(source: v1::mount::Source, target: &str) -> v1::Mount {
    v1::Mount { source: Some(source), target: target.to_owned(), ..v1::Mount::default() }
}

fn room(path: &str, target: &str) -> v1::Mount {
    mount(v1::mount::Source::RoomPath(path.to_owned()), target)
}

fn port(number: u32) -> v1::ServicePort {
    v1::ServicePort { number, ..v1::ServicePort::default() }
}

fn variable(name: &str, value: v1::env_value::Value) -> BTreeMap<String, v1::EnvValue> {
    [(name.to_owned(), v1::EnvValue { value: Some(value) })].into()
}

#[test]
fn an_absent_setting_is_distinguished_from_an_empty_one() {
    let (request, credentials) = check(|_| {}).unwrap();
    let expected = DeployRequest::new("room.meshagent.com/web:1".parse().unwrap());
    assert_eq!(request, expected, "a bare name is the room's, and nothing else was said");
    assert!(credentials.is_empty());
    let (request, _) = check(|wire| {
        wire.ports = Some(v1::ServicePorts::default());
        wire.domains = Some(v1::DomainNames::default());
        wire.annotations = Some(v1::Annotations::default());
        wire.description = Some(String::new());
        wire.public = Some(false);
    })
    .unwrap();
    assert_eq!((request.ports, request.domains), (Some(Vec::new()), Some(Vec::new())));
    assert_eq!((request.annotations, request.public), (Some(BTreeMap::new()), Some(false)));
    assert_eq!(request.description.as_deref(), Some(""));
}

#[test]
fn everything_that_is_said_arrives() {
    use v1::env_value::Value;
    use v1::mount::Source;
    let (request, credentials) = check(|wire| {
        wire.image = "ghcr.io/a/web@sha256:".to_owned() + &"0a".repeat(32);
        wire.name = Some("front".to_owned());
        wire.env = variable("A", Value::Plain("1=2".to_owned()));
        wire.env.extend(variable("B", Value::TokenScope("full".to_owned())));
        wire.env.extend(variable("C", Value::Secret("db.password".to_owned())));
        let image = v1::ImageSource { reference: "assets:2".to_owned(), subpath: "/usr".to_owned() };
        wire.mounts = vec![
            room("", "/a"),
            mount(Source::ProjectPath("p".to_owned()), "/b"),
            mount(Source::Image(image), "/c"),
            mount(Source::EmptyDir(v1::EmptyDirSource {}), "/d"),
        ];
        wire.mounts[1].mode = v1::MountMode::ReadWrite.into();
        let tcp = v1::ServicePort { number: 5432, kind: v1::PortKind::Tcp.into(), published: Some(false) };
        wire.ports = Some(v1::ServicePorts { ports: vec![port(8080), tcp] });
        wire.command = Some(v1::CommandLine { arguments: vec!["run".to_owned(), String::new()] });
        wire.working_dir = Some("/srv/".to_owned());
        wire.identity = Some("agent".to_owned());
        (wire.memory_bytes, wire.cpu_millis) = (Some(64 << 20), Some(1500));
        wire.liveness = Some("/healthz".to_owned());
        wire.start_limit = Some(prost_types::Duration { seconds: 5, nanos: 0 });
        wire.strategy = v1::DeployStrategy::Recreate.into();
        wire.domains = Some(v1::DomainNames { domains: vec!["WWW.Example.com".to_owned()] });
        wire.replace = true;
        wire.unset_env = vec!["D".to_owned(), "D".to_owned()];
        wire.unset = vec![v1::ServiceSetting::Memory.into(), v1::ServiceSetting::FileMounts.into()];
        let password = "canary".to_owned();
        let username = "me".to_owned();
        wire.credentials =
            vec![v1::RegistryCredential { registry: "ghcr.io".to_owned(), username, password }];
    })
    .unwrap();
    assert_eq!(request.image.to_string(), format!("ghcr.io/a/web@sha256:{}", "0a".repeat(32)));
    assert_eq!(request.name.as_ref().unwrap().as_str(), "front");
    let values: Vec<&EnvValue> = request.env.values().collect();
    let token = EnvValue::Token { scope: "full".to_owned() };
    let secret = EnvValue::Secret { name: "db.password".to_owned() };
    assert_eq!(values, [&EnvValue::Plain("1=2".to_owned()), &token, &secret]);
    let modes: Vec<MountAccess> = request.mounts.iter().map(|mount| mount.mode).collect();
    assert_eq!(
        modes,
        [MountAccess::ReadWrite, MountAccess::ReadWrite, MountAccess::ReadOnly, MountAccess::ReadWrite]
    );
    assert_eq!(request.mounts[0].source, ServiceMountSource::Room(String::new()));
    assert_eq!(request.mounts[3].source, ServiceMountSource::EmptyDir);
    let ports = request.ports.clone().unwrap();
    assert_eq!(ports[0], ServicePort { number: 8080, kind: PortKind::Http, published: true });
    assert_eq!(ports[1], ServicePort { number: 5432, kind: PortKind::Tcp, published: false });
    assert_eq!(request.command.as_ref().unwrap().len(), 2);
    assert_eq!(request.workdir.as_ref().unwrap().as_str(), "/srv");
    assert_eq!((request.memory_bytes, request.cpu_millis), (Some(64 << 20), Some(1500)));
    assert_eq!(
        (request.start_limit, request.strategy),
        (Some(Duration::from_secs(5)), Some(DeployStrategy::Recreate))
    );
    assert_eq!(request.domains.as_ref().unwrap()[0].as_str(), "www.example.com");
    assert!(request.replace && request.liveness.as_deref() == Some("/healthz"));
    assert_eq!(request.identity.as_deref(), Some("agent"));
    assert_eq!(request.unset_env, BTreeSet::from(["D".to_owned()]));
    assert_eq!(request.unset, BTreeSet::from([ServiceSetting::Memory, ServiceSetting::FileMounts]));
    assert_eq!(credentials["ghcr.io"].password.reveal(), "canary");
    assert!(!format!("{request:?}{credentials:?}").contains("canary"));
}

#[test]
fn every_fault_names_its_field() {
    use v1::env_value::Value;
    use v1::mount::Source;
    type Change = fn(&mut v1::DeploySpec);
    let cases: &[(&str, Change)] = &[
        ("spec.image", |wire| wire.image = String::new()),
        ("spec.image", |wire| wire.image = "UPPER".to_owned()),
        ("spec.name", |wire| wire.name = Some("a.b".to_owned())),
        ("spec.unset_env", |wire| wire.unset_env = vec!["a".repeat(257)]),
        ("spec.unset", |wire| wire.unset = vec![0]),
        ("spec.unset", |wire| wire.unset = vec![99]),
        ("spec.name", |wire| wire.name = Some("a".repeat(64))),
        ("spec.env.A", |wire| wire.env = [("A".to_owned(), v1::EnvValue::default())].into()),
        ("spec.env.A", |wire| wire.env = variable("A", Value::Secret("no such/name".to_owned()))),
        ("spec.env", |wire| {
            let many = (0..513).map(|n| (n.to_string(), v1::EnvValue::default()));
            wire.env = many.collect();
        }),
        ("spec.env", |wire| wire.env = variable(&"A".repeat(257), Value::Plain(String::new()))),
        ("spec.mounts", |wire| wire.mounts = vec![room("a", "/a"); 65]),
        ("spec.mounts[1].target", |wire| wire.mounts = vec![room("a", "/a"), room("b", "/a/")]),
        ("spec.mounts[0].target", |wire| wire.mounts = vec![room("a", "")]),
        ("spec.mounts[0].target", |wire| wire.mounts = vec![room("a", "a")]),
        ("spec.mounts[0].room_path", |wire| wire.mounts = vec![room("../a", "/a")]),
        ("spec.mounts[0].pack_id", |wire| {
            wire.mounts = vec![mount(Source::PackId("k3v9wq2m7xhd".to_owned()), "/a")];
        }),
        ("spec.ports.ports[0].number", |wire| wire.ports = Some(v1::ServicePorts { ports: vec![port(0)] })),
        ("spec.ports.ports[1].number", |wire| {
            wire.ports = Some(v1::ServicePorts { ports: vec![port(1), port(65_536)] });
        }),
        ("spec.ports.ports[0].kind", |wire| {
            wire.ports = Some(v1::ServicePorts { ports: vec![v1::ServicePort { kind: 7, ..port(1) }] });
        }),
        ("spec.ports", |wire| wire.ports = Some(v1::ServicePorts { ports: vec![port(1); 65] })),
        ("spec.command", |wire| wire.command = Some(v1::CommandLine::default())),
        ("spec.working_dir", |wire| wire.working_dir = Some("srv".to_owned())),
        ("spec.identity", |wire| wire.identity = Some(String::new())),
        ("spec.identity", |wire| wire.identity = Some("x".repeat(201))),
        ("spec.liveness", |wire| wire.liveness = Some("/".repeat(3000))),
        ("spec.start_limit", |wire| wire.start_limit = Some(prost_types::Duration::default())),
        ("spec.start_limit", |wire| {
            wire.start_limit = Some(prost_types::Duration { seconds: 90_000, nanos: 0 });
        }),
        ("spec.strategy", |wire| wire.strategy = 9),
        ("spec.domains.domains[1]", |wire| {
            let domains = vec!["a.b".to_owned(), "http://a.b".to_owned()];
            wire.domains = Some(v1::DomainNames { domains });
        }),
        ("spec.domains", |wire| {
            wire.domains = Some(v1::DomainNames { domains: vec!["a.b".to_owned(); 65] });
        }),
        ("spec.description", |wire| wire.description = Some("x".repeat(9 << 10))),
        ("spec.annotations", |wire| {
            let annotations = [(String::new(), "x".to_owned())].into();
            wire.annotations = Some(v1::Annotations { annotations });
        }),
        ("spec.credentials", |wire| wire.credentials = vec![v1::RegistryCredential::default(); 65]),
    ];
    for (field, change) in cases {
        let refusal = check(change).unwrap_err();
        assert_eq!(refusal.detail().field, *field);
        assert_eq!(tonic::Status::from(refusal).code(), tonic::Code::InvalidArgument, "{field}");
    }
}
