use super::*;
use crate::deploy::tests::{service, spec};
use crate::model::Digest;
use crate::model::confinement::AddedCapability;
use crate::model::deploy::ServiceSetting;
use crate::model::fault::{Fault, FaultStage};
use crate::model::service::{EnvValue, RevisionOutcome};

fn image(exposed: &[u16], volumes: &[&str]) -> ImageFacts {
    ImageFacts {
        repository: "web".parse().unwrap(),
        kept_in: Some("cached.hearth/public/web".parse().unwrap()),
        digest: Digest::from_sha256([1; 32]),
        manifest: Digest::from_sha256([2; 32]),
        exposed: exposed.to_vec(),
        volumes: volumes.iter().map(|path| path.parse().unwrap()).collect(),
    }
}

fn request() -> DeployRequest {
    DeployRequest::new("room.meshagent.com/web:2".parse().unwrap())
}

fn plain(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, EnvValue> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), EnvValue::Plain((*value).to_owned()))).collect()
}

fn mount(source: ServiceMountSource, target: &str) -> ServiceMount {
    ServiceMount { source, target: target.parse().unwrap(), mode: MountAccess::ReadWrite, create: false }
}

fn merged(
    existing: Option<&ServiceRecord>,
    request: &DeployRequest,
    image: &ImageFacts,
) -> Result<MergedSpec, MergeError> {
    merge(existing, request, image, &BTreeMap::new())
}

fn http(number: u16) -> ServicePort {
    ServicePort { number, kind: PortKind::Http, published: true }
}

#[test]
fn what_is_not_mentioned_is_kept() {
    let mut kept = spec(8000);
    kept.env = plain(&[("A", "1"), ("B", "2")]);
    kept.command = Some(vec!["serve".to_owned()]);
    kept.description = "the web".to_owned();
    kept.identity = Some("me".to_owned());
    kept.limits.memory_bytes = Some(64 << 20);
    kept.domains = vec!["a.test".parse().unwrap()];
    kept.public = true;
    kept.confinement =
        ServiceConfinement { isolated: true, capabilities: BTreeSet::from([AddedCapability::NetRaw]) };
    kept.mounts = vec![
        mount(ServiceMountSource::Room("a".to_owned()), "/a"),
        mount(ServiceMountSource::EmptyDir, "/tmp"),
    ];
    let existing = service(kept.clone());
    let mut request = request();
    request.env = plain(&[("B", "3"), ("C", "4")]);
    request.mounts = vec![mount(ServiceMountSource::Room("b".to_owned()), "/b")];
    let merged = merged(Some(&existing), &request, &image(&[1], &[])).unwrap().spec;
    assert_eq!(merged.env, plain(&[("A", "1"), ("B", "3"), ("C", "4")]));
    assert_eq!(
        merged.mounts,
        [mount(ServiceMountSource::Room("b".to_owned()), "/b"), mount(ServiceMountSource::EmptyDir, "/tmp")]
    );
    assert_eq!((merged.digest, merged.manifest), (image(&[], &[]).digest, image(&[], &[]).manifest));
    let expected = ServiceSpec {
        kept_in: Some("cached.hearth/public/web".parse().unwrap()),
        image: merged.image.clone(),
        digest: merged.digest,
        manifest: merged.manifest,
        env: merged.env.clone(),
        mounts: merged.mounts.clone(),
        ..kept
    };
    assert_eq!(merged, expected);
}

#[test]
fn isolation_and_capabilities_are_taken_back_when_that_is_said_and_by_a_manifest_that_is_silent() {
    let mut kept = spec(8000);
    kept.confinement =
        ServiceConfinement { isolated: true, capabilities: BTreeSet::from([AddedCapability::NetRaw]) };
    let existing = service(kept);
    let said = DeployRequest { isolated: Some(false), capabilities: Some(BTreeSet::new()), ..request() };
    let silent = DeployRequest { replace: true, ..request() };
    for request in [said, silent] {
        let spec = merged(Some(&existing), &request, &image(&[], &[])).unwrap().spec;
        assert_eq!(spec.confinement, ServiceConfinement::default());
    }
}

#[test]
fn a_deploy_that_failed_leaves_nothing_to_the_next() {
    let mut kept = spec(8000);
    kept.env = plain(&[("A", "1")]);
    let mut existing = service(kept.clone());
    let mut failed = existing.revisions[0].clone();
    failed.number = 2;
    failed.spec.env = plain(&[("A", "2")]);
    failed.spec.mounts = vec![mount(ServiceMountSource::Room("no-such".to_owned()), "/data")];
    failed.outcome =
        RevisionOutcome::Failed(Box::new(Fault::new(FaultStage::Deploy, ErrorCode::NotStarted, "gone")));
    existing.revisions.push(failed.clone());
    existing.desired = 2;
    let next = |existing: &ServiceRecord| merged(Some(existing), &request(), &image(&[], &[])).unwrap().spec;
    assert_eq!((next(&existing).env, next(&existing).mounts), (kept.env, kept.mounts));
    // A first deploy that failed leaves nothing either, not even the path of its health check.
    existing.live = None;
    existing.revisions.remove(0);
    existing.revisions[0].spec.health.path = Some("/nope".to_owned());
    let first = next(&existing);
    assert_eq!((first.env.len(), first.mounts.len(), first.health.path), (0, 0, None));
}

#[test]
fn a_deploy_that_is_not_live_yet_leaves_nothing_to_the_next() {
    let mut kept = spec(8000);
    kept.env = plain(&[("A", "1")]);
    let mut existing = service(kept.clone());
    let mut pending = existing.revisions[0].clone();
    pending.number = 2;
    pending.outcome = RevisionOutcome::Pending;
    pending.spec.env = plain(&[("A", "2"), ("B", "2")]);
    existing.revisions.push(pending);
    existing.desired = 2;
    let next = merged(Some(&existing), &request(), &image(&[], &[])).unwrap().spec;
    assert_eq!(next.env, kept.env);
}

#[test]
fn settings_are_taken_away_one_by_one() {
    use ServiceSetting::{
        Command, Cpus, EmptyDirMounts, FileMounts, ImageMounts, Liveness, Memory, Ports, ProjectMounts,
        RoomMounts, WorkingDir,
    };
    let reference = "assets:1".parse().unwrap();
    let sources = [
        (RoomMounts, ServiceMountSource::Room("a".to_owned()), "/room"),
        (ProjectMounts, ServiceMountSource::Project("a".to_owned()), "/project"),
        (ImageMounts, ServiceMountSource::Image { reference, subpath: String::new() }, "/image"),
        (EmptyDirMounts, ServiceMountSource::EmptyDir, "/empty"),
        (FileMounts, ServiceMountSource::File("text".to_owned()), "/file"),
    ];
    let mut kept = spec(8000);
    kept.env = plain(&[("A", "1"), ("B", "2")]);
    kept.health.path = Some("/health".to_owned());
    kept.command = Some(vec!["serve".to_owned()]);
    kept.workdir = Some("/srv".parse().unwrap());
    kept.limits = ResourceLimits { memory_bytes: Some(64 << 20), cpu_millis: Some(500) };
    kept.mounts = sources.iter().map(|(_, source, target)| mount(source.clone(), target)).collect();
    let existing = service(kept.clone());
    let next =
        |request: &DeployRequest| merged(Some(&existing), request, &image(&[80], &["/empty"])).unwrap();
    let without = |setting| next(&DeployRequest { unset: BTreeSet::from([setting]), ..request() }).spec;
    assert_eq!(without(Liveness).health.path, None);
    assert_eq!(without(Command).command, None);
    assert_eq!(without(WorkingDir).workdir, None);
    assert_eq!(without(Memory).limits, ResourceLimits { memory_bytes: None, cpu_millis: Some(500) });
    assert_eq!(without(Cpus).limits, ResourceLimits { memory_bytes: Some(64 << 20), cpu_millis: None });
    assert_eq!(without(Ports).ports, [http(80)]);
    for (kind, _, target) in &sources {
        let targets: Vec<String> =
            without(*kind).mounts.iter().map(|mount| mount.target.to_string()).collect();
        // The image's volume is an empty directory again.
        let expected = if *kind == EmptyDirMounts { 5 } else { 4 };
        assert_eq!(
            (targets.len(), targets.contains(&(*target).to_owned())),
            (expected, expected == 5),
            "{target}"
        );
    }
    let names = BTreeSet::from(["B".to_owned(), "C".to_owned()]);
    let merged = next(&DeployRequest { unset_env: names, ..request() });
    assert_eq!(
        merged.spec,
        ServiceSpec {
            env: plain(&[("A", "1")]),
            image: merged.spec.image.clone(),
            kept_in: merged.spec.kept_in.clone(),
            digest: merged.spec.digest,
            manifest: merged.spec.manifest,
            ..kept
        }
    );
    assert!(merged.notes.iter().any(|note| note.starts_with("variable C is not set")), "{:?}", merged.notes);
}

#[test]
fn a_kept_mount_keeps_its_image_and_a_given_one_is_what_it_is_now() {
    let assets = |target| {
        let reference = "assets:1".parse().unwrap();
        mount(ServiceMountSource::Image { reference, subpath: String::new() }, target)
    };
    let pin =
        |byte| PinnedImage { repository: "assets".parse().unwrap(), digest: Digest::from_sha256([byte; 32]) };
    let pins = |pairs: &[(&str, u8)]| -> BTreeMap<MountTarget, PinnedImage> {
        pairs.iter().map(|(target, byte)| (target.parse().unwrap(), pin(*byte))).collect()
    };
    let mut kept = spec(8000);
    kept.mounts = vec![assets("/a"), assets("/b"), mount(ServiceMountSource::EmptyDir, "/e")];
    kept.mounted = pins(&[("/a", 3), ("/b", 4)]);
    let existing = service(kept.clone());
    let mounted = |request: &DeployRequest, given: &[(&str, u8)]| {
        merge(Some(&existing), request, &image(&[], &[]), &pins(given)).unwrap().spec.mounted
    };
    assert_eq!(mounted(&request(), &[]), kept.mounted);
    // A mount of another kind replaces one of them.
    let room = mount(ServiceMountSource::Room(String::new()), "/b");
    assert_eq!(mounted(&DeployRequest { mounts: vec![room], ..request() }, &[]), pins(&[("/a", 3)]));
    let given = DeployRequest { mounts: vec![assets("/b")], ..request() };
    assert_eq!(mounted(&given, &[("/b", 9)]), pins(&[("/b", 9)]));
    assert_eq!(mounted(&DeployRequest { replace: true, ..request() }, &[]), pins(&[]));
}

#[test]
fn a_whole_manifest_keeps_nothing_but_the_identity() {
    let mut kept = spec(8000);
    kept.env = plain(&[("A", "1")]);
    kept.identity = Some("me".to_owned());
    kept.domains = vec!["a.test".parse().unwrap()];
    let request = DeployRequest { replace: true, ..request() };
    let merged = merged(Some(&service(kept)), &request, &image(&[9], &[])).unwrap().spec;
    assert!(merged.env.is_empty() && merged.domains.is_empty());
    assert_eq!((merged.ports, merged.identity.as_deref()), (vec![http(9)], Some("me")));
}

#[test]
fn ports_are_those_given_else_kept_else_exposed() {
    let ports = |existing: Option<&ServiceRecord>, given: Option<Vec<ServicePort>>| {
        let request = DeployRequest { ports: given, ..request() };
        merged(existing, &request, &image(&[80, 443], &[])).unwrap().spec.ports
    };
    assert_eq!(ports(None, None), [http(80), http(443)]);
    let kept = service(spec(8000));
    assert_eq!(ports(Some(&kept), None), [http(8000)]);
    assert_eq!(ports(Some(&kept), Some(vec![http(1)])), [http(1)]);
    let mut portless = spec(1);
    portless.ports.clear();
    assert_eq!(ports(Some(&service(portless)), None), [http(80), http(443)]);
}

#[test]
fn volumes_without_a_mount_get_an_empty_directory_and_a_note() {
    let request =
        DeployRequest { mounts: vec![mount(ServiceMountSource::Room("d".to_owned()), "/data")], ..request() };
    let merged = merged(None, &request, &image(&[80], &["/data", "/cache"])).unwrap();
    assert_eq!(
        merged.spec.mounts,
        [
            mount(ServiceMountSource::Room("d".to_owned()), "/data"),
            mount(ServiceMountSource::EmptyDir, "/cache")
        ]
    );
    assert!(merged.notes.iter().any(|note| note.contains("/cache")), "{:?}", merged.notes);
}

#[test]
fn what_cannot_be_is_refused_by_its_flag() {
    let refused = |change: &dyn Fn(&mut DeployRequest), exposed: &[u16]| {
        let mut request = request();
        change(&mut request);
        merged(None, &request, &image(exposed, &[])).unwrap_err()
    };
    let domain = |request: &mut DeployRequest| request.domains = Some(vec!["a.test".parse().unwrap()]);
    let set_and_unset = |request: &mut DeployRequest| {
        request.env = plain(&[("A", "1")]);
        request.unset_env = BTreeSet::from(["A".to_owned()]);
    };
    let liveness = |request: &mut DeployRequest| {
        request.liveness = Some("/".to_owned());
        request.unset = BTreeSet::from([ServiceSetting::Liveness]);
    };
    let mounts = |request: &mut DeployRequest| {
        request.mounts = vec![mount(ServiceMountSource::EmptyDir, "/x")];
        request.unset = BTreeSet::from([ServiceSetting::EmptyDirMounts]);
    };
    for (error, flag) in [
        (refused(&|request| request.ports = Some(vec![http(8078)]), &[]), "--port"),
        (refused(&|_| {}, &[8078]), "--port"),
        (refused(&|request| request.ports = Some(vec![http(0)]), &[]), "--port"),
        (refused(&|request| request.ports = Some(vec![http(1), http(1)]), &[]), "--port"),
        (refused(&domain, &[]), "--domain"),
        (refused(&domain, &[1, 2]), "--domain"),
        (refused(&|request| request.env = plain(&[("A=B", "")]), &[]), "--env"),
        (refused(&|request| request.env = plain(&[("A", "x\0")]), &[]), "--env"),
        (refused(&|request| request.env = plain(&[("A", &"x".repeat(200_000))]), &[]), "--env"),
        (refused(&|request| request.mounts = vec![mount(ServiceMountSource::EmptyDir, "/")], &[]), "--mount"),
        (refused(&|request| request.liveness = Some("x".to_owned()), &[1]), "--liveness"),
        (refused(&|request| request.liveness = Some("/a b".to_owned()), &[1]), "--liveness"),
        (refused(&|request| request.liveness = Some("/\r\nX: y".to_owned()), &[1]), "--liveness"),
        (refused(&|request| request.liveness = Some("/".to_owned()), &[]), "--liveness"),
        (refused(&|request| request.command = Some(Vec::new()), &[]), "--command"),
        (refused(&|request| request.memory_bytes = Some(1000), &[]), "--memory"),
        (refused(&|request| request.cpu_millis = Some(0), &[]), "--cpus"),
        (refused(&set_and_unset, &[]), "--unset-env"),
        (refused(&|request| request.unset_env = BTreeSet::from(["A B".to_owned()]), &[]), "--env"),
        (refused(&liveness, &[80]), "--no-liveness"),
        (refused(&mounts, &[80]), "--no-mounts empty-dir"),
    ] {
        assert_eq!(error.flag(), flag, "{error}");
    }
    let tcp = ServicePort { kind: PortKind::Tcp, ..http(5432) };
    let both = |request: &mut DeployRequest| {
        domain(request);
        request.ports = Some(vec![tcp.clone()]);
    };
    assert_eq!(refused(&both, &[]), MergeError::DomainTcp(5432));
}

#[test]
fn a_second_repository_of_one_name_is_refused_with_a_hint_at_the_flag() {
    let other = ImageFacts { repository: "we/b".parse().unwrap(), ..image(&[80], &[]) };
    let error = merged(Some(&service(spec(80))), &request(), &other).unwrap_err();
    assert_eq!((error.code().as_str(), error.flag()), ("name_taken", "--name"));
    assert!(error.hint().unwrap().contains("--name"));
}

#[test]
fn the_name_comes_from_the_repository_whatever_the_registry() {
    let name = |text: &str| service_name_of(&DeployRequest::new(text.parse().unwrap())).map(String::from);
    assert_eq!(name("room.meshagent.com/repo/web:1").unwrap(), "repo-web");
    assert_eq!(name("docker.io/library/nginx").unwrap(), "library-nginx");
    assert_eq!(name(&"a".repeat(64)).unwrap_err().flag(), "--name");
    for own in ["localhost", "ip6-localhost"] {
        assert!(matches!(name(own), Err(MergeError::OwnHostName(_))), "{own}");
    }
}
