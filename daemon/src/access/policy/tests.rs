//! Each rule has cases with two participants: Ann, who owns the objects, and Bob. Turning a rule off must
//! change the outcome of at least one case.

use std::cell::Cell;

use serde_json::{Value, json};

use super::*;
use crate::model::access::ApiScope;
use crate::model::{Reference, Repository, RoomRegistries};

thread_local! {
    static OFF: Cell<Option<PolicyRule>> = const { Cell::new(None) };
}

/// Reports whether the test of this thread has turned a rule off. No rule can be turned off outside of tests.
pub(super) fn turned_off(rule: PolicyRule) -> bool {
    OFF.get() == Some(rule)
}

fn caller(name: &str, scope: Value) -> Caller {
    Caller::new(name, serde_json::from_value(scope).unwrap())
}

fn bob(scope: Value) -> Caller {
    caller("bob", scope)
}

fn containers(grant: Value) -> Value {
    Value::Object([("containers".to_owned(), grant)].into_iter().collect())
}

fn registry(grant: Value) -> Value {
    containers(Value::Object([("registry".to_owned(), grant)].into_iter().collect()))
}

/// Every case with an object, with its expected outcome.
fn objects() -> Vec<(String, bool, bool)> {
    let theirs: Repository = "ann/app".parse().unwrap();
    let scope: ApiScope = serde_json::from_value(registry(json!({"write": ["*"]}))).unwrap();
    let run = CallerAction::RunRoomImage { repository: &theirs, name: "room.meshagent.com/ann/app" };
    let change = CallerAction::ChangeService { what: "remove service `web`", owner: "ann", run: &run };
    let build = CallerAction::UseBuild { id: "7f3k9wq2m7xh", owner: "ann" };
    let mount = CallerAction::UseContextMount { owner: "ann" };
    let locked =
        json!({"storage": {"paths": [{"path": "/apps"}, {"path": "/apps/locked", "read_only": true}]}});
    let cases: Vec<(CallerAction<'_>, Vec<Caller>, Vec<Caller>)> = vec![
        (
            CallerAction::SendPack,
            vec![bob(containers(json!({"use_containers": true})))],
            vec![bob(json!({}))],
        ),
        (
            build,
            vec![caller("ann", json!({})), bob(json!({"admin": {}}))],
            vec![
                bob(serde_json::to_value(ApiScope::agent_default()).unwrap()),
                caller("service:ann", json!({})),
            ],
        ),
        (
            CallerAction::ListRepository(&theirs),
            vec![bob(registry(json!({"list": ["ann/*"]})))],
            vec![
                bob(registry(json!({"pull": ["*"], "write": ["*"], "run": ["*"], "list": ["bob/*"]}))),
                bob(json!({})),
            ],
        ),
        (
            CallerAction::PullRepository(&theirs),
            vec![bob(registry(json!({"pull": ["ann/*"]})))],
            vec![bob(registry(json!({"list": ["*"], "write": ["*"], "run": ["*"], "pull": ["bob/*"]})))],
        ),
        (
            CallerAction::ProbeRepository(&theirs),
            vec![bob(registry(json!({"pull": ["*"]}))), bob(registry(json!({"write": ["*"]})))],
            vec![bob(registry(json!({"list": ["*"], "run": ["*"]})))],
        ),
        (
            CallerAction::WriteRepository(&theirs),
            vec![bob(registry(json!({"write": ["ann/app"]})))],
            vec![bob(registry(json!({"list": ["*"], "pull": ["*"], "run": ["*"], "write": ["ann"]})))],
        ),
        (
            CallerAction::PullRemoteImage("docker.io/library/python"),
            vec![bob(containers(json!({"pull": ["docker.io/*"]})))],
            vec![bob(containers(json!({"run": ["*"], "pull": ["ghcr.io/*"], "registry": {"pull": ["*"]}})))],
        ),
        (
            CallerAction::PushRemoteImage("ghcr.io/a/b"),
            vec![bob(registry(json!({"write": ["ghcr.io/*"]})))],
            vec![bob(containers(json!({"pull": ["*"], "registry": {"write": ["a/*"], "pull": ["*"]}})))],
        ),
        (
            run,
            vec![
                bob(registry(json!({"run": ["ann/*"]}))),
                bob(containers(json!({"run": ["ann/app"]}))),
                bob(containers(json!({"run": ["room.meshagent.com/*"]}))),
            ],
            vec![bob(containers(json!({"run": ["app"], "registry": {"pull": ["*"], "write": ["*"]}})))],
        ),
        (
            CallerAction::RunRemoteImage("docker.io/library/nginx"),
            vec![bob(containers(json!({"run": ["docker.io/*"]})))],
            vec![bob(containers(json!({"pull": ["*"], "registry": {"run": ["*"]}})))],
        ),
        (
            CallerAction::ReadStorage("apps/locked/x"),
            vec![bob(locked.clone())],
            vec![bob(json!({"storage": {"paths": [{"path": "other"}]}})), bob(json!({}))],
        ),
        (
            CallerAction::WriteStorage("apps/locked/x"),
            vec![bob(json!({"storage": {"paths": [{"path": "/"}]}}))],
            vec![bob(locked.clone())],
        ),
        (
            CallerAction::RemoveTree("apps"),
            vec![bob(json!({"storage": {"paths": [{"path": "apps"}]}}))],
            vec![bob(locked.clone())],
        ),
        (
            CallerAction::MountStorage { verb: StorageVerb::Read, path: "apps" },
            vec![bob(locked.clone())],
            vec![bob(json!({"storage": {"paths": [{"path": "apps/mine"}]}}))],
        ),
        (
            CallerAction::MountStorage { verb: StorageVerb::Write, path: "apps" },
            vec![bob(json!({"storage": {"paths": [{"path": "/"}]}}))],
            vec![bob(locked)],
        ),
        (
            change,
            vec![
                caller("ann", json!({})),
                bob(json!({"admin": {}})),
                bob(containers(json!({"run": ["ann/*"]}))),
            ],
            vec![bob(json!({"services": {}, "containers": {"run": ["bob/*"], "logs": true}}))],
        ),
        (
            CallerAction::UseSecret("db"),
            vec![bob(json!({"secrets": {}}))],
            vec![bob(json!({"services": {}}))],
        ),
        (CallerAction::SeeSecretUsers, vec![bob(json!({"services": {}}))], vec![bob(json!({"secrets": {}}))]),
        (
            CallerAction::DelegateToken(&scope),
            vec![bob(registry(json!({"write": ["*"]}))), bob(json!({"admin": {}}))],
            vec![bob(registry(json!({"write": ["bob/*"], "pull": ["*"]})))],
        ),
        (
            mount,
            vec![caller("ann", json!({})), bob(json!({"admin": {}}))],
            vec![bob(serde_json::to_value(ApiScope::agent_default()).unwrap())],
        ),
        (
            CallerAction::UseUpload { id: "4f8e", owner: "ann" },
            vec![caller("ann", json!({}))],
            vec![bob(serde_json::to_value(ApiScope::full()).unwrap()), caller("service:ann", json!({}))],
        ),
        (
            CallerAction::UsePack { id: "4f8e", owner: "ann" },
            vec![caller("ann", json!({}))],
            vec![bob(serde_json::to_value(ApiScope::full()).unwrap()), caller("service:ann", json!({}))],
        ),
    ];
    let mut outcomes = Vec::new();
    for (action, may, may_not) in &cases {
        for (callers, expected) in [(may, true), (may_not, false)] {
            for caller in callers {
                let what = format!("{action:?} by {caller:?}");
                outcomes.push((what, decide(caller, action).is_ok(), expected));
            }
        }
    }
    outcomes
}

/// Tokens with one grant each.
const GRANTS: &[&str] = &[
    "nothing",
    "containers.use_containers",
    "containers.logs",
    "services",
    "secrets",
    "admin",
    "storage.paths",
];

fn with(grant: &str) -> Caller {
    bob(match grant {
        "containers.use_containers" => containers(json!({"use_containers": true})),
        "containers.logs" => containers(json!({"logs": true})),
        "services" => json!({"services": {}}),
        "secrets" => json!({"secrets": {}}),
        "admin" => json!({"admin": {}}),
        "storage.paths" => json!({"storage": {"paths": [{"path": "/"}]}}),
        _ => json!({}),
    })
}

fn opens(gate: MethodGate) -> &'static [&'static str] {
    match gate {
        MethodGate::Public | MethodGate::Participant | MethodGate::Objects => GRANTS,
        MethodGate::Build => &["containers.use_containers"],
        MethodGate::SeeBuilds => &["containers.use_containers", "containers.logs"],
        MethodGate::ReadBuildLogs => &["containers.logs"],
        MethodGate::Services => &["services"],
        MethodGate::ReadServiceLogs => &["services", "containers.logs"],
        MethodGate::Secrets => &["secrets"],
        MethodGate::Admin => &["admin"],
    }
}

/// The expected outcome of each method for each grant.
fn gates() -> Vec<(String, bool, bool)> {
    let of = |method: &'static GrpcMethod| {
        GRANTS.iter().map(move |grant| {
            let answer = decide(&with(grant), &CallerAction::CallMethod(method)).is_ok();
            (format!("{} with {grant}", method.path), answer, opens(method.gate).contains(grant))
        })
    };
    GRPC_METHODS.iter().flat_map(of).collect()
}

fn lists() -> Vec<(String, bool, bool)> {
    let all = |caller: &Caller| listed_owner(caller).is_none();
    vec![
        ("everything is listed to an admin".to_owned(), all(&with("admin")), true),
        ("everything is listed to Bob".to_owned(), all(&with("containers.logs")), false),
    ]
}

fn outcomes() -> Vec<(String, bool, bool)> {
    [objects(), gates(), lists()].concat()
}

#[test]
fn each_question_has_the_answer_that_the_grants_give() {
    for (what, answer, expected) in outcomes() {
        assert_eq!(answer, expected, "{what}");
    }
}

#[test]
fn a_rule_that_is_turned_off_is_noticed() {
    for rule in PolicyRule::ALL {
        OFF.set(Some(*rule));
        let noticed = outcomes().iter().any(|(_, answer, expected)| answer != expected);
        OFF.set(None);
        assert!(noticed, "no case notices that rule `{rule}` is gone");
    }
}

#[test]
fn a_denial_names_what_was_wanted_and_the_grant() {
    let denied =
        decide(&bob(json!({})), &CallerAction::PullRemoteImage("docker.io/library/python")).unwrap_err();
    assert_eq!(
        denied.to_string(),
        "pull `docker.io/library/python` from its registry: that takes the grant `containers.pull`"
    );
    let denied = decide(&bob(json!({})), &CallerAction::UsePack { id: "x", owner: "ann" }).unwrap_err();
    assert_eq!(denied.to_string(), "use pack `x` of another caller: only its owner may");
    let set = GrpcMethod::find("/hearth.v1.Secrets/Set").unwrap();
    let denied = decide(&bob(json!({})), &CallerAction::CallMethod(set)).unwrap_err();
    assert_eq!(denied.to_string(), "set secrets: that takes the grant `secrets`");
}

#[test]
fn each_row_of_the_table_is_there_once() {
    for (at, method) in GRPC_METHODS.iter().enumerate() {
        assert!(GRPC_METHODS[..at].iter().all(|other| other.path != method.path), "{}", method.path);
    }
}

#[test]
fn a_mount_of_a_build_asks_for_the_image_where_it_lies() {
    use crate::model::{BuildMount, BuildMountSource, MountAccess};
    let rooms = RoomRegistries::default();
    let mount = |reference: &str| BuildMount {
        source: BuildMountSource::Image {
            reference: reference.parse::<Reference>().unwrap(),
            subpath: String::new(),
        },
        target: "/m".parse().unwrap(),
        mode: MountAccess::ReadOnly,
        create: false,
    };
    let may = |scope, reference: &str| may_mount_in_builds(&bob(scope), &[mount(reference)], &rooms).is_ok();
    let here = "room.meshagent.com/ann/app:1";
    assert!(may(registry(json!({"pull": ["ann/*"]})), here));
    assert!(!may(containers(json!({"pull": ["*"], "registry": {"write": ["*"]}})), here));
    assert!(may(containers(json!({"pull": ["ghcr.io/*"]})), "ghcr.io/a/b:1"));
    assert!(!may(registry(json!({"pull": ["*"]})), "ghcr.io/a/b:1"));
}

#[test]
fn a_cached_image_is_run_by_no_name_of_the_room() {
    let repository: Repository = "cached.hearth/caller-1/ghcr.io/team/app".parse().unwrap();
    let name = format!("docker.io/{repository}");
    let all = json!({"run": ["*", name, repository], "registry": {"run": ["*", repository]}});
    let run = CallerAction::RunRoomImage { repository: &repository, name: &name };
    assert!(decide(&bob(containers(all)), &run).is_err());
}
