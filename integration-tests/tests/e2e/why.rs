//! `hearth builds why`: each kind of change is named by the step that it concerns.

use std::fs;

use integration_tests::daemon::{Daemon, Options};
use integration_tests::runner::Group;
use integration_tests::sources::Tree;
use integration_tests::wait::seconds;
use integration_tests::{lone_cases, process, shared_cases};
use serde_json::Value;

pub fn group() -> Group {
    Group::new(
        "why",
        shared_cases![each_cause_of_a_step_that_ran_again_is_named, only_the_submitter_learns_why]
            .into_iter()
            .chain(lone_cases![a_result_that_the_builder_lost_is_named])
            .collect(),
    )
}

const BASE: &str = "room.meshagent.com/whybase:1";

fn pack_base(daemon: &Daemon, setting: &str) {
    let tree = integration_tests::sources::base_tree().to_str().unwrap();
    let pack = ["pack", tree, "--tag", "whybase:1", "--cmd", "[\"sh\"]"];
    let path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    daemon.hearth_ok(&[&pack[..], &["--env", path, "--env", setting]].concat());
}

/// A project whose Dockerfile has a step for each kind of input.
fn project(more: &str, secret: &str) -> Tree {
    project_with_link(more, secret, "main.c")
}

fn project_with_link(more: &str, secret: &str, target: &str) -> Tree {
    Tree::new()
        .dockerfile(&format!(
            "FROM {BASE}\nARG VERSION=1\nCOPY package.json /app/\nRUN echo $VERSION > /version\nCOPY src /src\n\
             RUN --mount=type=secret,id={secret} true\n{more}"
        ))
        .file("package.json", "{}")
        .file("src/main.c", "main")
        .file("src/run", "run")
        .link("src/link", target)
}

/// Builds `why:1` and returns the explanation of the build.
fn build(daemon: &Daemon, tree: &Tree, more: &[&str]) -> (Value, String) {
    fs::remove_dir_all(daemon.room_files().join("why")).ok();
    daemon.put("why", tree);
    let output = daemon.build("why:1", "why", &[&["--json", "--progress", "plain"], more].concat());
    let id = output.expect_code(0).json()["build_id"].as_str().unwrap().to_owned();
    (daemon.hearth_ok(&["builds", "why", &id, "--json"]).json(), output.stderr)
}

/// Asserts that exactly one step has a cause of its own, and returns this cause.
#[track_caller]
fn only_cause(why: &Value) -> Value {
    let steps = why["steps"].as_array().unwrap();
    let causes = steps.iter().flat_map(|step| step["causes"].as_array().unwrap());
    let mut own: Vec<&Value> = causes.filter(|cause| cause["cause"] != "earlier_step").collect();
    assert_eq!(own.len(), 1, "{why:#}");
    own.remove(0).clone()
}

fn each_cause_of_a_step_that_ran_again_is_named(daemon: &Daemon) {
    pack_base(daemon, "ONE=1");
    let plain = project("", "one");
    let (first, _) = build(daemon, &plain, &[]);
    assert_eq!((&first["compared_build_id"], &first["steps"]), (&Value::Null, &serde_json::json!([])));
    let (same, _) = build(daemon, &plain, &[]);
    assert_eq!((&same["compared_build_id"], &same["steps"]), (&first["build_id"], &serde_json::json!([])));

    let file = |tree: Tree, path: &str, change: &str, text: &str| {
        build(daemon, &plain, &[]);
        let (why, shown) = build(daemon, &tree, &[]);
        let cause = only_cause(&why);
        assert_eq!((&cause["path"], &cause["change"]), (&path.into(), &change.into()), "{why:#}");
        assert!(shown.contains(&format!("ran again: {text}")), "{shown}");
    };
    let changed = project("", "one").file("package.json", "{ }");
    file(changed, "package.json", "content", "package.json changed");
    file(project("", "one").file("src/new", "x"), "src/new", "added", "src/new was added");
    let mode = project("", "one").file_with_mode("src/run", "run", 0o755);
    file(mode, "src/run", "mode", "src/run has another mode");
    let link = project_with_link("", "one", "run");
    file(link, "src/link", "link_target", "src/link links to another target");
    let (uncached, _) = build(daemon, &plain, &["--no-cache"]);
    assert_eq!(uncached["steps"][0]["causes"][0]["cause"], "no_cache", "{uncached:#}");
    let kept = Tree::new().dockerfile(&format!("FROM {BASE}\nCOPY src /src\n")).file("src/kept", "1");
    build(daemon, &kept.clone().file("src/gone", "1"), &[]);
    let (removed, _) = build(daemon, &kept, &[]);
    let cause = only_cause(&removed);
    assert_eq!((&cause["path"], &cause["change"]), (&"src/gone".into(), &"removed".into()), "{removed:#}");

    build(daemon, &plain, &[]);
    let (argument, shown) = build(daemon, &plain, &["--build-arg", "VERSION=2"]);
    // Both commands after the ARG receive it.
    let cause = &argument["steps"][0]["causes"][0];
    assert_eq!(
        (&cause["name"], &cause["before"], &cause["after"]),
        (&"VERSION".into(), &"1".into(), &"2".into())
    );
    assert!(shown.contains("ran again: argument VERSION changed from `1` to `2`"), "{shown}");

    build(daemon, &plain, &[]);
    let (text, _) = build(daemon, &project("RUN true\n", "one"), &[]);
    assert_eq!(only_cause(&text)["after"], "RUN true", "{text:#}");
    build(daemon, &plain, &[]);
    let (secret, _) = build(daemon, &project("", "two"), &[]);
    let cause = only_cause(&secret);
    assert_eq!((&cause["cause"], &cause["after"]), (&"secret_ids".into(), &"two".into()), "{secret:#}");

    build(daemon, &plain, &[]);
    pack_base(daemon, "ONE=2");
    let (base, _) = build(daemon, &plain, &[]);
    let cause = only_cause(&base);
    assert_eq!((&cause["cause"], &cause["name"]), (&"source".into(), &BASE.into()), "{base:#}");
    assert!(cause["before"].as_str().unwrap().starts_with("sha256:") && cause["before"] != cause["after"]);
    // Compared with another build, and one step of it only.
    let (id, other) = (base["build_id"].as_str().unwrap(), argument["build_id"].as_str().unwrap());
    let run = base["steps"].as_array().unwrap().iter().find(|step| step["line"] == 4).unwrap();
    let number = run["step"].to_string();
    let compared = daemon.hearth_ok(&["builds", "why", id, &number, "--compare", other]);
    for said in
        [format!("compared with build {other}"), "argument VERSION changed from `2` to `1`".to_owned()]
    {
        assert!(compared.stdout.contains(&said), "{compared}");
    }

    let passes = "FROM BASE\nRUN --mount=type=secret,id=ok test \"$(cat /run/secrets/ok)\" = yes\n";
    let tree = Tree::new().dockerfile(&passes.replace("BASE", BASE));
    daemon.put("failed", &tree);
    let attempt = |answer: &str| {
        let mut command = daemon.client();
        let more = ["--secret", "id=ok,env=ANSWER", "--json"];
        command.env("ANSWER", answer).args(daemon.build_arguments("failed:1", "failed:/context", &more));
        process::run(&mut command, seconds(120))
    };
    assert_ne!(attempt("no").code, 0);
    let id = attempt("yes").expect_code(0).json()["build_id"].as_str().unwrap().to_owned();
    let why = daemon.hearth_ok(&["builds", "why", &id, "--json"]).json();
    assert_eq!(only_cause(&why)["cause"], "not_built_before", "{why:#}");
}

fn only_the_submitter_learns_why(daemon: &Daemon) {
    pack_base(daemon, "ONE=1");
    daemon.put("own", &project("", "one"));
    let id = daemon.build("own:1", "own", &["--detach"]).expect_code(0).line().to_owned();
    daemon.hearth_ok(&["builds", "logs", &id, "--follow"]);
    let token = daemon.mint(&["--name", "someone-else", "--scope", "agentDefault"]);
    let mut command = daemon.client();
    command.env("HEARTH_ADDR", format!("http://{}", daemon.listen())).env("HEARTH_TOKEN", token);
    let refused = process::run(command.args(["builds", "why", &id]), seconds(30));
    assert_ne!(refused.code, 0);
    refused.says(&["there is no build"]);
}

fn a_result_that_the_builder_lost_is_named() {
    let daemon = Daemon::start(Options::room("why-lost"));
    pack_base(&daemon, "ONE=1");
    build(&daemon, &project("", "one"), &[]);
    daemon.terminate();
    fs::remove_dir_all(daemon.state().join("builders")).unwrap();
    daemon.restart();
    let (why, shown) = build(&daemon, &project("", "one"), &[]);
    assert_eq!(only_cause(&why)["cause"], "evicted", "{why:#}");
    assert!(shown.contains("ran again: nothing changed"), "{shown}");
    assert!(daemon.retire().is_empty());
}
