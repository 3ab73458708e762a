//! Authorization: every method with every grant, and the protection of one caller's resources from another.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use hearth_proto::FILE_DESCRIPTOR_SET;
use integration_tests::daemon::{Daemon, Options};
use integration_tests::grpc::{block_on, call_empty};
use integration_tests::http::Request;
use integration_tests::process;
use integration_tests::runner::{Case, Group};
use integration_tests::service::{App, get, page};
use integration_tests::shared_cases;
use integration_tests::sources::Tree;
use integration_tests::wait::seconds;
use prost::Message as _;
use tonic::Code;

use super::identity::as_bearer;

pub fn group() -> Group {
    let mut cases = shared_cases![
        builds_of_another_are_not_there,
        images_of_another_are_read_and_changed_only_with_a_grant,
        storage_that_may_be_read_is_not_written_and_no_read_only_part_is_removed,
        mounted_contexts_of_another_are_theirs,
        secrets_take_their_grant,
        services_of_another_are_changed_only_by_who_may_run_them,
        a_service_gets_no_token_that_may_do_more_than_its_deployer,
        domains_that_overlap_and_public_suffixes_are_refused,
        changes_and_denials_are_in_the_audit_trail,
    ];
    cases.push(Case::alone("every_method_asks_for_its_grant", every_method_asks_for_its_grant));
    Group::new("walls_policy", cases)
}

/// Returns the methods that reflection serves, from the same descriptors.
fn methods() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let mut methods = Vec::new();
    for file in set.file {
        for service in &file.service {
            for method in &service.method {
                methods.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    methods
}

/// Returns the grants of each method as `docs/reference/access.md` lists them; one of them suffices. An empty list
/// means that any token of the room suffices.
fn documented() -> BTreeMap<String, Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/access.md");
    let text = fs::read_to_string(path).unwrap();
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `/hearth.v1.")?.split(" | ");
        let path = format!("/hearth.v1.{}", cells.next()?.trim_end_matches('`'));
        let grants = cells.next()?.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Some((path, grants))
    });
    rows.collect()
}

const GRANTS: [(&str, &str); 6] = [
    ("containers.use_containers", r#"{"containers": {"use_containers": true}}"#),
    ("containers.logs", r#"{"containers": {"logs": true}}"#),
    ("services", r#"{"services": {}}"#),
    ("secrets", r#"{"secrets": {}}"#),
    ("admin", r#"{"admin": {}}"#),
    ("nothing", "{}"),
];

/// Calls each method with an empty request, as callers with one grant each: a caller with none of the method's grants
/// is denied with the name of one of them, and a caller with one gets an error about the request itself.
fn every_method_asks_for_its_grant() {
    let daemon = Daemon::start(Options::room("grants"));
    let documented = documented();
    let listen = daemon.listen();
    for (grant, scope) in GRANTS {
        let token = daemon.mint(&["--name", "bob", "--scope", scope]);
        for method in methods() {
            let wanted = documented
                .get(&method)
                .unwrap_or_else(|| panic!("{method} is not in docs/reference/access.md"));
            let answer = block_on(seconds(30), call_empty(&listen, Some(&token), &method));
            let denied = answer.as_ref().is_err_and(|status| {
                let named =
                    |grant: &String| status.message().ends_with(&format!("takes the grant `{grant}`"));
                status.code() == Code::PermissionDenied && wanted.iter().any(named)
            });
            let may = wanted.is_empty() || wanted.iter().any(|wanted| wanted == grant);
            assert_eq!(denied, !may, "{method} with {grant}: {answer:?}");
        }
    }
    for method in methods() {
        let answer = block_on(seconds(30), call_empty(&listen, None, &method));
        assert_eq!(answer.unwrap_err().code(), Code::Unauthenticated, "{method}");
    }
}

/// Returns a token of a participant who may do everything with `NAME/*`, and nothing with the resources of others.
fn participant(daemon: &Daemon, name: &str) -> String {
    let own = format!(r#"["{name}/*"]"#);
    let scope = format!(
        r#"{{"containers": {{"use_containers": true, "logs": true, "pull": {own}, "run": {own},
            "registry": {{"list": {own}, "pull": {own}, "run": {own}, "write": {own}}}}},
            "storage": {{"paths": [{{"path": "{name}"}}]}}, "services": {{}}}}"#
    );
    daemon.mint(&["--name", name, "--scope", &scope])
}

#[track_caller]
fn denied(daemon: &Daemon, token: &str, arguments: &[&str], says: &str) {
    as_bearer(daemon, token, arguments).expect_code(3).says(&["this token may not", says]);
}

/// Builds Ann's image from her storage; returns the id of the build.
fn built(daemon: &Daemon, ann: &str, tag: &str) -> String {
    daemon.put("ann", &Tree::new().dockerfile("FROM scratch\nCOPY file /\n").file("file", "ann's"));
    let build = ["build", "--mount-room-path", "ann", "--json", "--tag", tag];
    as_bearer(daemon, ann, &build).expect_code(0);
    let listed = as_bearer(daemon, ann, &["builds", "list", "--json"]).json();
    listed[0]["build_id"].as_str().unwrap().to_owned()
}

fn builds_of_another_are_not_there(daemon: &Daemon) {
    let (ann, bob) = (participant(daemon, "ann"), participant(daemon, "bob"));
    let build = built(daemon, &ann, "ann/build:1");
    for arguments in [&["show"][..], &["logs"], &["cancel"], &["rm"]] {
        for id in [build.as_str(), &build[..6]] {
            let output = as_bearer(daemon, &bob, &[&["builds"], arguments, &[id]].concat());
            output.expect_code(1).says(&["there is no build"]);
        }
    }
    let listed = as_bearer(daemon, &bob, &["builds", "list", "--json"]).json();
    assert!(listed.as_array().unwrap().iter().all(|one| one["build_id"] != build.as_str()), "{listed}");
    as_bearer(daemon, &ann, &["builds", "show", &build]).expect_code(0);
    daemon.hearth_ok(&["builds", "show", &build]);
    // Bob's own tag, from Ann's storage; Ann's tag; a tag in a remote registry that he may not write.
    let mount = |path: &'static str| ["build", "--mount-room-path", path, "--tag"];
    denied(daemon, &bob, &[&mount("ann")[..], &["bob/x:1"]].concat(), "`/ann` in storage");
    daemon.put("bob", &Tree::new().dockerfile("FROM scratch\nCOPY f /\n").file("f", "f"));
    denied(daemon, &bob, &[&mount("bob")[..], &["ann/x:1"]].concat(), "write to repository `ann/x`");
    let elsewhere = "registry.invalid/bob/x:1";
    denied(daemon, &bob, &[&mount("bob")[..], &[elsewhere]].concat(), "push to `registry.invalid/bob/x`");
    let more = ["bob/x:1", "--also-tag", elsewhere];
    denied(daemon, &bob, &[&mount("bob")[..], &more].concat(), "push to `registry.invalid/bob/x`");
    // An image of the room, mounted without the right to pull it.
    let image = ["build", "--mount-image", "room.meshagent.com/ann/build:1", "--tag", "bob/x:1"];
    denied(daemon, &bob, &image, "pull from repository `ann/build`");
    as_bearer(daemon, &ann, &["builds", "rm", &build]).expect_code(0);
}

fn images_of_another_are_read_and_changed_only_with_a_grant(daemon: &Daemon) {
    let (ann, bob) = (participant(daemon, "ann"), participant(daemon, "bob"));
    built(daemon, &ann, "ann/image:1");
    let saved = daemon.directory().join("ann.tar");
    let saved = saved.to_str().unwrap();
    let here = "room.meshagent.com/ann/image:1";
    as_bearer(daemon, &ann, &["images", "save", here, "-o", saved]).expect_code(0);
    let directory = daemon.directory().join("packed");
    Tree::new().dockerfile("FROM scratch\nCOPY f /\n").file("f", "f").write(&directory);
    let directory = directory.to_str().unwrap();
    let pull = "pull from repository `ann/image`";
    let write = "write to repository `ann/image`";
    let stolen = daemon.directory().join("bob.tar");
    let stolen = stolen.to_str().unwrap();
    let cases: [(&[&str], &str); 8] = [
        (&["images", "inspect", here], pull),
        (&["images", "save", here, "-o", stolen], pull),
        (&["images", "tag", here, "bob/image:1"], pull),
        (&["images", "push", here, "registry.invalid/bob/image:1"], pull),
        (&["images", "rm", here], write),
        (&["images", "load", saved, "--tag", "ann/image:2"], "write to repository"),
        (&["pack", directory, "--tag", here], write),
        (&["context", "ls", "--mount-image", here], pull),
    ];
    for (arguments, says) in cases {
        denied(daemon, &bob, arguments, says);
    }
    let own = as_bearer(daemon, &bob, &["images", "load", saved, "--tag", "bob/image:1"]);
    own.expect_code(0);
    denied(daemon, &bob, &["images", "tag", "bob/image:1", here], write);
    denied(
        daemon,
        &bob,
        &["images", "pull", "registry.invalid/a:1", "--tag", "bob/a:1"],
        "pull `registry.invalid/a`",
    );
    denied(
        daemon,
        &bob,
        &["images", "push", "bob/image:1", "registry.invalid/bob/image:1"],
        "push to `registry.invalid/bob/image`",
    );
    let listed = as_bearer(daemon, &bob, &["images", "list"]);
    assert!(!listed.stdout.contains("ann/image") && listed.stdout.contains("bob/image"), "{listed}");
    // A caller that may not build cannot send packs for builds.
    let poor =
        daemon.mint(&["--name", "poor", "--scope", r#"{"containers": {"registry": {"write": ["bob/*"]}}}"#]);
    denied(daemon, &poor, &["build", directory, "--tag", "bob/p:1"], "send packs for builds");
    as_bearer(daemon, &ann, &["images", "inspect", here]).expect_code(0);
}

fn storage_that_may_be_read_is_not_written_and_no_read_only_part_is_removed(daemon: &Daemon) {
    let scope =
        r#"{"storage": {"paths": [{"path": "shared"}, {"path": "shared/sub/locked", "read_only": true}]}}"#;
    let bob = daemon.mint(&["--name", "bob", "--scope", scope]);
    let tree = Tree::new().file("mine", "m").file("sub/own", "o").file("sub/locked/kept", "kept");
    daemon.put("shared", &tree);
    let file = daemon.directory().join("new");
    fs::write(&file, "new").unwrap();
    let file = file.to_str().unwrap();
    as_bearer(daemon, &bob, &["storage", "get", "shared/sub/locked/kept"]).expect_code(0);
    denied(
        daemon,
        &bob,
        &["storage", "put", file, "shared/sub/locked/new"],
        "write `/shared/sub/locked/new`",
    );
    denied(daemon, &bob, &["storage", "rm", "shared/sub/locked/kept"], "write `/shared/sub/locked/kept`");
    for path in ["shared", "shared/sub", "shared/sub/locked"] {
        let output = as_bearer(daemon, &bob, &["storage", "rm", "--recursive", path]);
        output.expect_code(3).says(&["this token may not"]);
    }
    assert_eq!(fs::read(daemon.room_files().join("shared/sub/locked/kept")).unwrap(), b"kept");
    assert!(daemon.room_files().join("shared/mine").exists());
    as_bearer(daemon, &bob, &["storage", "put", file, "shared/sub/new"]).expect_code(0);
    as_bearer(daemon, &bob, &["storage", "rm", "shared/sub/own"]).expect_code(0);
    denied(daemon, &bob, &["storage", "ls", "elsewhere"], "read `/elsewhere`");
}

fn mounted_contexts_of_another_are_theirs(daemon: &Daemon) {
    daemon.put("ann", &Tree::new().file("file", "ann's"));
    let place = daemon.directory().join("mounted");
    fs::create_dir_all(&place).unwrap();
    let place = place.to_str().unwrap();
    // Both are root on the socket, and are identified by their tokens there.
    let file = |name: &str| {
        let path = daemon.directory().join(format!("{name}.token"));
        fs::write(&path, participant(daemon, name)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (ann, bob) = (file("ann"), file("bob"));
    let by = |token: &str, arguments: &[&str]| {
        process::run(daemon.client().args(["--token-file", token]).args(arguments), seconds(60))
    };
    by(&ann, &["context", "mount", place, "--mount-room-path", "ann"]).expect_code(0);
    let listed = by(&bob, &["context", "mounts", "--json"]);
    assert!(!listed.expect_code(0).stdout.contains(place), "{listed}");
    let unmounted = by(&bob, &["context", "unmount", place]);
    unmounted.expect_code(3).says(&["of another caller"]);
    assert!(by(&ann, &["context", "mounts", "--json"]).stdout.contains(place));
    by(&ann, &["context", "unmount", place]).expect_code(0);
}

fn secrets_take_their_grant(daemon: &Daemon) {
    let bob = participant(daemon, "bob");
    let value = daemon.directory().join("value");
    fs::write(&value, "canary-walls").unwrap();
    let value = value.to_str().unwrap();
    daemon.hearth_ok(&["secrets", "set", "walls", "--from-file", value]);
    for arguments in [&["secrets", "list"][..], &["secrets", "rm", "walls"]] {
        denied(daemon, &bob, arguments, "takes the grant `secrets`");
    }
    let set = as_bearer(daemon, &bob, &["secrets", "set", "walls", "--from-file", value]);
    set.expect_code(3).says(&["takes the grant `secrets`"]);
    App::page("x\n").pack(daemon, "bob/secret:1");
    let deploy = ["deploy", "--tag", "bob/secret:1", "--env-secret", "S=walls"];
    denied(daemon, &bob, &deploy, "takes the grant `secrets`");
    daemon.hearth_ok(&["secrets", "rm", "walls"]);
}

fn services_of_another_are_changed_only_by_who_may_run_them(daemon: &Daemon) {
    let (ann, bob) = (participant(daemon, "ann"), participant(daemon, "bob"));
    App::page("ann's\n").pack(daemon, "ann/web:1");
    App::page("ann's\n").pack(daemon, "ann/web:2");
    for tag in ["ann/web:1", "ann/web:2"] {
        let deploy = ["deploy", "--tag", tag, "--name", "anns", "--domain", "anns.test", "--public"];
        as_bearer(daemon, &ann, &deploy).expect_code(0);
    }
    for arguments in [
        &["services", "rm", "anns"][..],
        &["services", "logs", "anns"],
        &["services", "restart", "anns"],
        &["services", "rollback", "anns"],
        &["services", "exec", "anns", "--", "cat", "/site/index.html"],
        &["routes", "rm", "anns.test"],
    ] {
        denied(daemon, &bob, arguments, "takes the grant `containers.run`");
    }
    denied(daemon, &bob, &["deploy", "--tag", "ann/web:1", "--name", "anns"], "run `ann/web`");
    assert_eq!(page(daemon, "anns.test"), "ann's\n");
    // Without the grant `services`, every call is denied.
    let poor = daemon.mint(&["--name", "poor", "--scope", r#"{"containers": {"run": ["*"]}}"#]);
    denied(daemon, &poor, &["services", "rm", "anns"], "takes the grant `services`");
    // The owner has access, and so has a caller that may run the image.
    as_bearer(daemon, &ann, &["services", "logs", "anns"]).expect_code(0);
    let runs =
        daemon.mint(&["--name", "ops", "--scope", r#"{"services": {}, "containers": {"run": ["ann/*"]}}"#]);
    as_bearer(daemon, &runs, &["services", "restart", "anns"]).expect_code(0);
    as_bearer(daemon, &runs, &["routes", "rm", "anns.test"]).expect_code(0);
    as_bearer(daemon, &ann, &["services", "rm", "anns"]).expect_code(0);
    assert_eq!(get(daemon, "anns.test", "/").status, 404);
}

fn a_service_gets_no_token_that_may_do_more_than_its_deployer(daemon: &Daemon) {
    let bob = participant(daemon, "bob");
    App::page("x\n").pack(daemon, "bob/token:1");
    let registry =
        |verb: &str, names: &str| format!(r#"{{"containers": {{"registry": {{"{verb}": ["{names}"]}}}}}}"#);
    for (scope, grant) in [
        (registry("write", "ann/*"), "containers.registry.write"),
        (registry("write", "*"), "containers.registry.write"),
        (registry("pull", "ann/web"), "containers.registry.pull"),
        (r#"{"storage": {"paths": [{"path": "/"}]}}"#.to_owned(), "storage"),
        ("full".to_owned(), "admin"),
        ("agentDefault".to_owned(), "secrets"),
    ] {
        let deploy = ["deploy", "--tag", "bob/token:1", "--env-token", &scope];
        denied(daemon, &bob, &deploy, &format!("takes the grant `{grant}`"));
    }
    let deploy = ["deploy", "--tag", "bob/token:1", "--dry-run", "--env-token", &registry("write", "bob/*")];
    as_bearer(daemon, &bob, &deploy).expect_code(0);
}

fn domains_that_overlap_and_public_suffixes_are_refused(daemon: &Daemon) {
    App::page("first\n").pack(daemon, "overlap:1");
    let deploy = |name: &str, domain: &str| {
        daemon.hearth(&["deploy", "--tag", "overlap:1", "--name", name, "--domain", domain, "--public"])
    };
    deploy("wide", "*.overlap.test").expect_code(0);
    assert_eq!(page(daemon, "any.overlap.test"), "first\n");
    assert_eq!(get(daemon, "two.labels.overlap.test", "/").status, 404, "one label only");
    deploy("narrow", "bank.overlap.test")
        .expect_code(1)
        .says(&["belongs to service `wide`", "*.overlap.test"]);
    deploy("exact", "one.apart.test").expect_code(0);
    deploy("around", "*.apart.test").expect_code(1).says(&["belongs to service `exact`"]);
    deploy("below", "a.b.overlap.test").expect_code(0);
    for domain in ["*.internal", "*.com", "com", "co.uk", "*.co.uk", "*.github.io"] {
        let output = deploy("greedy", domain);
        assert_ne!(output.code, 0, "{domain}: {output}");
        output.says(&["public suffix"]);
    }
}

fn changes_and_denials_are_in_the_audit_trail(daemon: &Daemon) {
    // A caller of its own: only the first few of many denials in a minute are recorded, and other cases cause denials
    // too.
    let (ann, bob) = (participant(daemon, "ann"), participant(daemon, "audited-bob"));
    let build = built(daemon, &ann, "ann/audited:1");
    as_bearer(daemon, &bob, &["builds", "rm", &build]).expect_code(1);
    as_bearer(daemon, &bob, &["images", "rm", "room.meshagent.com/ann/audited:1"]).expect_code(3);
    let value = daemon.directory().join("audited");
    fs::write(&value, "canary-in-no-trail").unwrap();
    daemon.hearth_ok(&["secrets", "set", "audited", "--from-file", value.to_str().unwrap()]);
    let push = Request::new("PUT", "/v2/ann/audited/manifests/2").bearer(&bob).body("{}");
    push.send(&daemon.listen()).expect(403);
    for _ in 0..40 {
        assert_eq!(Request::new("GET", "/v2/").bearer("eyJ.nonsense.x").send(&daemon.listen()).status, 401);
    }
    denied(daemon, &bob, &["audit"], "takes the grant `admin`");
    let trail = daemon.hearth_ok(&["audit", "--json", "--since", "10m", "--limit", "10000"]);
    let records = trail.json();
    let found = |caller: &str, action: &str, outcome: &str| -> Vec<String> {
        let records = records.as_array().unwrap().iter().filter(|record| {
            record["caller"] == caller && record["action"] == action && record["outcome"] == outcome
        });
        records.map(|record| record["object"].as_str().unwrap().to_owned()).collect()
    };
    assert!(found("ann", "Builds.Submit", "done").iter().any(|tag| tag.contains("ann/audited:1")), "{trail}");
    // The answer says that there is no such build; the audit trail says what was tried.
    let tried =
        [found("audited-bob", "Builds.Get", "denied"), found("audited-bob", "Builds.Remove", "denied")]
            .concat();
    assert!(tried.contains(&build), "{trail}");
    assert!(
        found("audited-bob", "Images.Remove", "denied").iter().any(|image| image.contains("ann/audited")),
        "{trail}"
    );
    assert!(found("uid:0", "Secrets.Set", "done").iter().any(|name| name == "audited"), "{trail}");
    let manifest = "PUT /v2/<repository>/manifests/<tag or digest>";
    assert_eq!(found("audited-bob", manifest, "denied"), ["/v2/ann/audited/manifests/2"]);
    // Only the first few denials of a flood from one address are recorded.
    let flood = found("", "GET /v2/", "denied").len();
    assert!((1..=20).contains(&flood), "{flood} records of a flood");
    for secret in ["canary-in-no-trail", &ann, &bob] {
        assert!(!trail.stdout.contains(secret), "a secret is in the audit trail");
    }
    let of_bob =
        daemon.hearth_ok(&["audit", "--json", "--caller", "audited-bob", "--action", "images."]).json();
    assert!(of_bob.as_array().unwrap().iter().all(|one| one["caller"] == "audited-bob"), "{of_bob}");
    daemon.hearth_ok(&["audit", "--denied"]);
    daemon.hearth_ok(&["secrets", "rm", "audited"]);
}
