//! Builds without a Dockerfile: LLB of other producers, and commands on a packed tree.

use integration_tests::daemon::{BASE, Daemon};
use integration_tests::process;
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::sources::Tree;
use integration_tests::wait::seconds;
use serde_json::{Value, json};

pub fn group() -> Group {
    Group::new(
        "llb",
        shared_cases![
            a_definition_is_built_with_its_context_and_secret,
            what_a_build_may_not_use_is_refused_before_anything_runs,
            images_of_a_definition_need_a_grant,
            commands_run_on_a_packed_tree_and_its_base,
        ],
    )
}

/// Returns a definition as `buildctl debug dump-llb` prints it: operations with a name and the names of their inputs.
fn definition(operations: &[(&str, &[&str], Value)], result: &str) -> String {
    let inputs = |names: &[&str]| names.iter().map(|name| json!({ "digest": name })).collect::<Vec<Value>>();
    let mut lines: Vec<Value> = operations
        .iter()
        .map(|(name, from, op)| json!({ "Op": { "inputs": inputs(from), "Op": op }, "Digest": name }))
        .collect();
    lines.push(json!({ "Op": { "inputs": inputs(&[result]), "Op": {} }, "Digest": "end" }));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn image(name: &str) -> Value {
    json!({ "source": { "identifier": format!("docker-image://{name}") } })
}

fn command(text: &str, mounts: &[Value]) -> Value {
    let mut all = vec![json!({ "dest": "/", "input": 0, "output": 0 })];
    all.extend(mounts.iter().cloned());
    json!({ "exec": { "meta": { "args": ["sh", "-c", text], "env": ["PATH=/bin:/usr/bin"], "cwd": "/" }, "mounts": all } })
}

fn build(daemon: &Daemon, tag: &str, definition: &str, more: &[&str]) -> process::Output {
    let mut client = daemon.client();
    client.args(["build", "--tag", tag, "--llb", "-"]).args(more);
    process::run_with_input(&mut client, definition.as_bytes(), seconds(120))
}

fn a_definition_is_built_with_its_context_and_secret(daemon: &Daemon) {
    daemon.base_image();
    daemon.put("llb", &Tree::new().file("app/a.txt", "from the context\n").file(".dockerignore", "app\n"));
    let copy = json!({ "copy": { "src": "/", "dest": "/ctx", "mode": -1, "dirCopyContents": true, "createDestPath": true, "timestamp": "-1" } });
    let secret = json!({ "dest": "/run/key", "input": -1, "output": -1, "mountType": "SECRET", "secretOpt": { "ID": "key" } });
    let text = definition(
        &[
            ("base", &[], image(BASE)),
            (
                "context",
                &[],
                json!({ "source": { "identifier": "local://context", "attrs": { "local.unique": "x" } } }),
            ),
            (
                "copy",
                &["base", "context"],
                json!({ "file": { "actions": [{ "input": 0, "secondaryInput": 1, "output": 0, "Action": copy }] } }),
            ),
            ("run", &["copy"], command("cat /ctx/app/a.txt /run/key > /out", &[secret])),
        ],
        "run",
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "secret\n").unwrap();
    let secret = format!("id=key,src={}", file.path().display());
    let more = ["--mount-room-path", "llb:/context:ro", "--secret", &secret];
    build(daemon, "llb:1", &text, &more).expect_code(0);
    assert_eq!(daemon.image("llb:1").file("out"), "from the context\nsecret\n");

    // Encoded by the daemon, read back from a file.
    let shown = daemon.hearth_ok(&["builds", "list", "--json"]);
    assert!(shown.json().to_string().contains("llb:1"), "{shown}");
    let unchanged = build(daemon, "llb:1", &text, &more);
    unchanged.expect_code(0);

    // A definition needs no files.
    let text =
        definition(&[("base", &[], image(BASE)), ("run", &["base"], command("echo 7 > /n", &[]))], "run");
    let definition = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(definition.path(), text).unwrap();
    let path = definition.path().to_str().unwrap();
    daemon.hearth_ok(&["build", "--tag", "llb:2", "--llb", path, "--network", "none"]);
    assert_eq!(daemon.image("llb:2").file("n"), "7\n");
}

fn what_a_build_may_not_use_is_refused_before_anything_runs(daemon: &Daemon) {
    daemon.base_image();
    let with =
        |operation: Value| definition(&[("base", &[], image(BASE)), ("bad", &["base"], operation)], "bad");
    let exec = |field: &str, value: Value| {
        let mut exec = command("true", &[]);
        exec["exec"][field] = value;
        exec
    };
    let source = |identifier: &str, attributes: Value| json!({ "source": { "identifier": identifier, "attrs": attributes } });
    for (operation, words) in [
        (exec("network", json!("HOST")), "network"),
        (exec("security", json!(1)), "sandbox"),
        (exec("cdiDevices", json!([{ "name": "gpu" }])), "devices"),
        (exec("secretenv", json!([{ "ID": "key", "name": "KEY" }])), "secret `key`"),
        (json!({ "build": { "def": {} } }), "`build`"),
        (source("local://context", json!({ "local.session": "other" })), "local.session"),
        (source("local://other", json!({})), "only local source"),
        (source("oci-layout://a/b@sha256:0", json!({})), "oci-layout"),
        (source("git://e.example/a", json!({ "git.authtokensecret": "key" })), "git.authtokensecret"),
        (source("git://e.example/a", json!({ "git.fullurl": "https://127.0.0.1/a" })), "git.fullurl"),
    ] {
        let output = build(daemon, "refused:1", &with(operation.clone()), &[]);
        assert_ne!(output.code, 0, "{operation}");
        output.says(&[words]);
    }
    // Addresses are refused as they are in a Dockerfile.
    let metadata = with(source("http://127.0.0.1:1/x", json!({})));
    let output = build(daemon, "refused:1", &metadata, &[]);
    assert_ne!(output.code, 0);
    output.says(&["operation 2", "127.0.0.1"]);
    assert_eq!(daemon.tag_digest("refused", "1"), None);
    build(daemon, "refused:1", "no definition", &[]).says(&["not LLB"]);
}

fn images_of_a_definition_need_a_grant(daemon: &Daemon) {
    daemon.base_image();
    let scope =
        r#"{"containers":{"use_containers":true,"logs":true,"registry":{"write":["own"],"pull":["own"]}}}"#;
    let token = daemon.mint(&["--name", "narrow", "--scope", scope]);
    let text = definition(&[("base", &[], image(BASE)), ("run", &["base"], command("true", &[]))], "run");
    let mut client = daemon.client();
    client.env("HEARTH_ADDR", format!("http://{}", daemon.listen())).env("HEARTH_TOKEN", token);
    client.args(["build", "--tag", "own:1", "--llb", "-"]);
    let output = process::run_with_input(&mut client, text.as_bytes(), seconds(120));
    assert_ne!(output.code, 0);
    output.says(&["operation 1", "may not pull", "busybox"]);
}

fn commands_run_on_a_packed_tree_and_its_base(daemon: &Daemon) {
    daemon.base_image();
    let tree = tempfile::tempdir().unwrap();
    std::fs::create_dir(tree.path().join("srv")).unwrap();
    std::fs::write(tree.path().join("srv/data"), "packed\n").unwrap();
    let path = tree.path().to_str().unwrap();
    let arguments = [
        "pack",
        path,
        "--tag",
        "ran:1",
        "--base",
        BASE,
        "--cmd",
        "[\"cat\",\"/srv/all\"]",
        "--env",
        "A=1",
        "--run",
        "cat /srv/data > /srv/all",
        "--run",
        "echo ran >> /srv/all",
    ];
    let output = daemon.hearth_ok(&arguments);
    assert!(output.line().starts_with("sha256:"), "{output}");
    let image = daemon.image("ran:1");
    assert_eq!(image.file("srv/all"), "packed\nran\n");
    assert_eq!(image.config["config"]["Cmd"], json!(["cat", "/srv/all"]));
    let env = image.config["config"]["Env"].to_string();
    assert!(env.contains("A=1") && env.contains("PATH=/usr/sbin"), "{env}");
    // The same again comes from the cache.
    assert_eq!(daemon.hearth_ok(&arguments).line(), output.line());

    let failed = daemon.hearth(&["pack", path, "--tag", "ran:2", "--base", BASE, "--run", "exit 9"]);
    failed.expect_code(9);
    assert_eq!(daemon.tag_digest("ran", "2"), None);
    daemon
        .hearth(&["pack", path, "--tag", "ran:2", "--base", "oci-archive:x.tar", "--run", "true"])
        .expect_code(2);
}
