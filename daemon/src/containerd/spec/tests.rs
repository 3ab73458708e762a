use std::collections::{BTreeMap, BTreeSet};

use super::image::ProcessDefaults;
use super::*;
use crate::deploy::port::{InstanceImage, NetworkAttachment};
use crate::model::Digest;
use crate::model::confinement::AddedCapability;
use crate::model::id::{InstanceId, ServiceId};
use crate::model::secret::Secret;
use crate::model::service::{InstanceLabel, ResourceLimits};

const MACHINE: HostFeatures = HostFeatures { seccomp: true, swap_accounting: true, open_files: 1 << 20 };

fn instance() -> InstanceSpec {
    InstanceSpec {
        label: InstanceLabel {
            instance: "0123456789ab".parse::<InstanceId>().unwrap(),
            service: "0123456789ab".parse::<ServiceId>().unwrap(),
            name: "web".parse().unwrap(),
            revision: 1,
            generation: 0,
        },
        image: InstanceImage { repository: "web".parse().unwrap(), manifest: Digest::from_sha256([1; 32]) },
        command: None,
        env: BTreeMap::new(),
        confidential: BTreeSet::new(),
        workdir: None,
        mounts: Vec::new(),
        limits: ResourceLimits::default(),
        capabilities: BTreeSet::new(),
        network: NetworkAttachment {
            address: [10, 0, 0, 2].into(),
            namespace: "/run/netns/x".into(),
            hostname: "web".to_owned(),
            hosts: "/s/hosts".into(),
            resolv_conf: "/s/resolv.conf".into(),
            hostname_file: "/s/hostname".into(),
        },
        log: "/s/log".into(),
    }
}

fn image() -> ProcessDefaults {
    ProcessDefaults {
        entrypoint: vec!["/bin/web".into()],
        cmd: vec!["serve".into()],
        stop_signal: 15,
        ..ProcessDefaults::default()
    }
}

fn built(spec: &InstanceSpec, image: &ProcessDefaults) -> RuntimeSpec {
    build(spec, image, &ResolvedUser::default(), MACHINE, "/hearth-x").unwrap()
}

#[test]
fn the_whole_of_it_for_a_plain_instance() {
    let mut spec = instance();
    spec.limits = ResourceLimits { memory_bytes: Some(64 << 20), cpu_millis: Some(500) };
    let mount = |source: &str, target: &str, read_only| BindMount {
        source: source.into(),
        target: target.parse().unwrap(),
        read_only,
        fill: false,
    };
    spec.mounts = vec![mount("/m/b", "/data/deep", true), mount("/m/a", "/data", false)];
    let mut built = built(&spec, &image());
    // The deny list itself is not repeated here; the test below checks its important entries.
    built.linux.seccomp = None;
    insta::assert_snapshot!(serde_json::to_string_pretty(&built).unwrap());
}

#[test]
fn a_command_takes_the_place_of_entrypoint_and_command_together() {
    let mut spec = instance();
    assert_eq!(built(&spec, &image()).process.args, ["/bin/web", "serve"]);
    let only_cmd = ProcessDefaults { entrypoint: Vec::new(), ..image() };
    assert_eq!(built(&spec, &only_cmd).process.args, ["serve"]);
    spec.command = Some(vec!["sh".into(), "-c".into(), "x".into()]);
    assert_eq!(built(&spec, &image()).process.args, ["sh", "-c", "x"]);
    spec.command = Some(Vec::new());
    let refused = build(&spec, &image(), &ResolvedUser::default(), MACHINE, "/x");
    assert_eq!(refused, Err(SpecFault::NoCommand));
}

#[test]
fn the_services_variables_win_over_the_images() {
    let mut spec = instance();
    spec.env.insert("MODE".into(), Secret::new("hot=1".into()));
    spec.env.insert("NEW".into(), Secret::new(String::new()));
    let image =
        ProcessDefaults { env: vec!["PATH=/opt/bin".into(), "MODE=cold".into(), "bad".into()], ..image() };
    let env = built(&spec, &image).process.env;
    assert_eq!(env, ["PATH=/opt/bin", "HOSTNAME=web", "MODE=hot=1", "NEW="]);
}

#[test]
fn a_working_directory_is_the_services_or_the_images_or_the_root() {
    let mut spec = instance();
    assert_eq!(built(&spec, &image()).process.cwd, "/");
    let in_app = ProcessDefaults { workdir: "/app".into(), ..image() };
    assert_eq!(built(&spec, &in_app).process.cwd, "/app");
    let relative = ProcessDefaults { workdir: "app".into(), ..image() };
    let refused = build(&spec, &relative, &ResolvedUser::default(), MACHINE, "/x");
    assert_eq!(refused, Err(SpecFault::Workdir("app".into())));
    spec.workdir = Some("/srv".parse().unwrap());
    assert_eq!(built(&spec, &relative).process.cwd, "/srv");
}

#[test]
fn a_mount_of_the_services_own_takes_the_place_of_the_hosts_file() {
    let mut spec = instance();
    let target = "/etc/hosts".parse().unwrap();
    spec.mounts = vec![BindMount { source: "/m/hosts".into(), target, read_only: true, fill: false }];
    let built = built(&spec, &image());
    let sources: Vec<&str> = built
        .mounts
        .iter()
        .filter(|mount| mount.destination == "/etc/hosts")
        .map(|mount| mount.source.as_str())
        .collect();
    assert_eq!(sources, ["/m/hosts"]);
}

#[test]
fn swap_is_limited_only_where_it_is_counted_and_seccomp_only_where_there_is_one() {
    let mut spec = instance();
    spec.limits.memory_bytes = Some(1 << 20);
    let machine = HostFeatures { seccomp: false, swap_accounting: false, open_files: 1 << 20 };
    let linux = build(&spec, &image(), &ResolvedUser::default(), machine, "/x").unwrap().linux;
    assert_eq!(linux.resources.memory, Some(MemoryLimits { limit: 1 << 20, swap: None }));
    assert_eq!(linux.seccomp, None);
}

#[test]
fn raw_sockets_and_devices_are_given_to_those_that_have_them_added_alone() {
    let mut spec = instance();
    let has = |spec: &InstanceSpec, name: &str| {
        let given = built(spec, &image()).process.capabilities.unwrap();
        let lists = [given.bounding, given.effective, given.permitted];
        lists.map(|list| list.iter().any(|one| one == name))
    };
    for name in ["CAP_NET_RAW", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_SYS_ADMIN"] {
        assert_eq!(has(&spec, name), [false; 3], "{name}");
    }
    spec.capabilities.insert(AddedCapability::NetRaw);
    assert_eq!((has(&spec, "CAP_NET_RAW"), has(&spec, "CAP_MKNOD")), ([true; 3], [false; 3]));
    spec.capabilities = BTreeSet::from([AddedCapability::Mknod]);
    assert_eq!((has(&spec, "CAP_NET_RAW"), has(&spec, "CAP_MKNOD")), ([false; 3], [true; 3]));
}

#[test]
fn what_the_runtime_keeps_lacks_confidential_values_alone() {
    let mut spec = instance();
    for name in ["TOKEN", "TOKENS", "MODE"] {
        spec.env.insert(name.to_owned(), Secret::new("a=b".to_owned()));
    }
    let whole = built(&spec, &image());
    let kept = whole.without_variables(&BTreeSet::from(["TOKEN".to_owned()]));
    let gone: Vec<_> = whole.process.env.iter().filter(|entry| !kept.process.env.contains(entry)).collect();
    assert_eq!(gone, ["TOKEN=a=b"]);
    assert_eq!(kept.process.args, whole.process.args);
}

#[test]
fn no_user_namespace_can_be_made() {
    let profile = built(&instance(), &image()).linux.seccomp.unwrap();
    let rule = |name: &str| profile.syscalls.iter().find(|rule| rule.names.contains(&name)).unwrap();
    assert_eq!(rule("clone3").errno_ret, 38);
    for name in ["clone", "unshare"] {
        assert_eq!((rule(name).errno_ret, rule(name).args[0].value), (1, 0x1000_0000));
    }
    for name in ["keyctl", "bpf", "io_uring_setup", "mount"] {
        assert!(rule(name).args.is_empty());
    }
}
