//! Commands about builds that have run or are running: again, wait, pin, prune; and one build for two commands.

use std::process::Stdio;

use integration_tests::daemon::{BASE, Daemon};
use integration_tests::process;
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::sources::Tree;
use integration_tests::wait::seconds;

pub fn group() -> Group {
    Group::new(
        "build_checks",
        shared_cases![
            a_build_is_run_again_with_its_secrets_given_again,
            waiting_for_a_build_has_its_exit_code,
            two_commands_with_one_key_see_one_build,
            ended_builds_are_pruned_except_for_pinned_ones,
            a_dockerfile_is_checked_and_outlined_without_a_build,
        ],
    )
}

/// Starts a build without waiting for it, and returns its id.
fn detached(daemon: &Daemon, tag: &str, path: &str, more: &[&str]) -> String {
    let output = daemon.build(tag, path, &[&["--detach"], more].concat());
    output.expect_code(0);
    output.line().to_owned()
}

fn a_build_is_run_again_with_its_secrets_given_again(daemon: &Daemon) {
    daemon.base_image();
    let dockerfile = format!(
        "FROM {BASE}\nRUN --mount=type=secret,id=key cat /run/secrets/key | wc -c > /n; head -c 9 /dev/urandom > /r\n"
    );
    daemon.put("again", &Tree::new().dockerfile(&dockerfile));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "12345").unwrap();
    let secret = format!("id=key,src={}", file.path().display());
    let id = detached(daemon, "again:1", "again", &["--secret", &secret]);
    daemon.hearth_ok(&["builds", "wait", &id]);
    let missing = daemon.hearth(&["builds", "retry", &id]);
    missing.expect_code(2).says(&["had the secret `key`", "--secret id=key"]);
    let cached = daemon.hearth_ok(&["builds", "retry", &id, "--secret", &secret, "--progress", "plain"]);
    let first = daemon.image("again:1");
    assert_eq!((cached.line(), first.file("n").trim()), (first.digest.as_str(), "5"));
    let fresh = daemon.hearth_ok(&["builds", "retry", &id, "--no-cache", "--secret", &secret]);
    assert_ne!(fresh.line(), cached.line());
    let credential = ["--cred", "registry.example.com,someone,password"];
    let detached = daemon
        .hearth_ok(&[&["builds", "retry", &id, "--detach", "--secret", &secret], &credential[..]].concat());
    daemon.hearth_ok(&["builds", "wait", detached.line()]);

    let work = tempfile::tempdir().unwrap();
    Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "").write(work.path());
    let pack = work.path().to_str().unwrap();
    let id = daemon.hearth_ok(&["build", "--detach", "--tag", "packed:1", pack]).line().to_owned();
    daemon.hearth_ok(&["builds", "wait", &id]);
    daemon.hearth(&["builds", "retry", &id]).expect_code(1).says(&["there is no pack", "send it again"]);
}

fn waiting_for_a_build_has_its_exit_code(daemon: &Daemon) {
    daemon.base_image();
    daemon.put("exits", &Tree::new().dockerfile(&format!("FROM {BASE}\nRUN sleep 3; exit 7\n")));
    let id = detached(daemon, "exits:1", "exits", &[]);
    daemon
        .hearth(&["builds", "wait", &id, "--timeout", "500ms"])
        .expect_code(1)
        .says(&["goes on in the room"]);
    daemon.hearth(&["builds", "wait", &id, "--timeout", "2m"]).expect_code(7);
    daemon.hearth(&["builds", "wait", &id]).expect_code(7);
}

fn two_commands_with_one_key_see_one_build(daemon: &Daemon) {
    daemon.base_image();
    let dockerfile = format!("FROM {BASE}\nRUN echo begun; sleep 4; head -c 9 /dev/urandom | sha256sum\n");
    daemon.put("joined", &Tree::new().dockerfile(&dockerfile));
    let arguments = daemon.build_arguments(
        "joined:1",
        "joined:/context:ro",
        &["--idempotency-key", "one", "--progress", "plain"],
    );
    let mut command = daemon.client();
    command.args(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let first = command.spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let second = process::run(daemon.client().args(&arguments), seconds(60));
    let first = first.wait_with_output().unwrap();
    assert!(first.status.success());
    second.expect_code(0).says(&["an earlier command with this key", "begun"]);
    assert_eq!(String::from_utf8(first.stdout).unwrap(), second.stdout);
    let log = String::from_utf8(first.stderr).unwrap();
    let random = log.lines().find(|line| line.trim_end().ends_with("  -")).expect("the sum in the log");
    assert!(second.stderr.contains(random.rsplit(' ').nth(2).unwrap()), "{second}");
    let other = [&arguments[..], &["--no-cache"]].concat();
    process::run(daemon.client().args(&other), seconds(60)).expect_code(1).says(&["another spec"]);
}

fn ended_builds_are_pruned_except_for_pinned_ones(daemon: &Daemon) {
    daemon.put("kept", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", ""));
    let token = daemon.mint(&["--name", "pruner"]);
    let hearth = |arguments: &[&str]| {
        let mut command = daemon.client();
        command.env("HEARTH_ADDR", format!("http://{}", daemon.listen())).env("HEARTH_TOKEN", &token);
        process::run(command.args(arguments), seconds(120))
    };
    let mut builds = Vec::new();
    for tag in ["kept:1", "kept:2", "kept:3"] {
        let output = hearth(&daemon.build_arguments(tag, "kept:/context:ro", &["--json"]));
        output.expect_code(0);
        let build: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
        builds.push(build["build_id"].as_str().unwrap().to_owned());
    }
    hearth(&["builds", "pin", &builds[0]]).expect_code(0).says(&["pinned build"]);
    assert!(hearth(&["builds", "show", &builds[0]]).stdout.contains("pinned    yes"));
    hearth(&["builds", "prune"]).expect_code(2);
    assert_eq!(hearth(&["builds", "prune", "--older-than", "1h"]).expect_code(0).stdout, "");
    assert_eq!(hearth(&["builds", "prune", "--keep", "1", "--dry-run"]).line(), builds[1]);
    hearth(&["builds", "show", &builds[1]]).expect_code(0);
    assert_eq!(hearth(&["builds", "prune", "--all"]).expect_code(0).stdout.lines().count(), 2);
    hearth(&["builds", "show", &builds[1]]).expect_code(1);
    hearth(&["builds", "unpin", &builds[0]]).expect_code(0);
    assert_eq!(hearth(&["builds", "prune", "--all"]).line(), builds[0]);
}

fn a_dockerfile_is_checked_and_outlined_without_a_build(daemon: &Daemon) {
    daemon.base_image();
    let dockerfile = format!(
        "ARG VERSION=1\n\
         FROM {BASE} AS Compile\n\
         # LEVEL of the compiler\n\
         ARG LEVEL=3\n\
         RUN --mount=type=secret,id=key,required exit 1\n\
         FROM {BASE} AS release\n\
         COPY --from=Compile /bin/sh /sh\n\
         COPY hidden.txt /\n"
    );
    let work = tempfile::tempdir().unwrap();
    let tree =
        Tree::new().dockerfile(&dockerfile).file(".dockerignore", "hidden.txt\n").file("hidden.txt", "x");
    tree.write(work.path());
    daemon.put("checked", &tree);
    let local = ["build", work.path().to_str().unwrap()];
    let mounted = ["build", "--mount-room-path", "checked"];
    for files in [&local[..], &mounted[..]] {
        let hearth = |more: &[&str]| daemon.hearth(&[files, more].concat());
        let checked = hearth(&["--check"]);
        checked.expect_code(0);
        for rule in ["StageNameCasing", "CopyIgnoredFile", "Dockerfile:2"] {
            assert!(checked.stdout.contains(rule), "{rule}\n{checked}");
        }
        hearth(&["--check", "--strict"]).expect_code(1).says(&["the Dockerfile has 2 warnings"]);
        let json = hearth(&["--check", "--strict", "--json"]);
        let document: serde_json::Value = serde_json::from_str(&json.expect_code(1).stdout).unwrap();
        assert_eq!(document["warnings"].as_array().unwrap().len(), 2, "{json}");
        assert_eq!(document["error"]["code"], "dockerfile_check_failed");
        let targets = hearth(&["--targets", "--json"]);
        let document: serde_json::Value = serde_json::from_str(&targets.expect_code(0).stdout).unwrap();
        assert_eq!(document["targets"][0]["name"], "compile", "{document}");
        assert!(hearth(&["--targets"]).stdout.contains("release (default)"));
        let outline = hearth(&["--outline", "--target", "compile"]);
        outline.expect_code(0);
        for word in ["LEVEL", "of the compiler", "key"] {
            assert!(outline.stdout.contains(word), "{word}\n{outline}");
        }
    }
    let builds = daemon.hearth_ok(&["builds", "list", "--tag", "not-built", "--json"]);
    assert_eq!(builds.stdout.trim(), "[]");
    daemon.put("fine", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", ""));
    let fine = daemon.hearth(&["build", "--mount-room-path", "fine", "--check", "--strict"]);
    fine.expect_code(0).says(&["no warnings"]);
    daemon.put("broken", &Tree::new().dockerfile("FROM scratch\nFRM b\n"));
    daemon.hearth(&["build", "--mount-room-path", "broken", "--check"]).expect_code(1).says(&["FRM"]);
    // A caller inspects what it may read only.
    let scope = r#"{"containers": {"use_containers": true}, "storage": {"paths": [{"path": "fine"}]}}"#;
    let token = daemon.mint(&["--name", "reader", "--scope", scope]);
    let as_reader = |path: &str| {
        let mut command = daemon.client();
        command.env("HEARTH_ADDR", format!("http://{}", daemon.listen())).env("HEARTH_TOKEN", &token);
        process::run(command.args(["build", "--mount-room-path", path, "--check"]), seconds(60))
    };
    as_reader("fine:/context:ro").expect_code(0);
    as_reader("checked:/context:ro").expect_code(3);
    daemon.hearth(&["build", "--mount-room-path", "fine"]).expect_code(2).says(&["--tag"]);
}
