//! Faults: the daemon or buildkitd is killed, the disk is full. Nothing is lost or left behind.

use std::fs;

use hearth_proto::v1::{BuildState, ListBuildsRequest};
use integration_tests::daemon::{BASE, Daemon, Options};
use integration_tests::grpc::{Api, block_on, spec};
use integration_tests::http::Request;
use integration_tests::leftovers;
use integration_tests::lone_cases;
use integration_tests::process;
use integration_tests::runner::Group;
use integration_tests::sources::{Tree, noise, sha256};
use integration_tests::wait::{self, seconds};
use rustix::process::Signal;
use serde_json::Value;

pub fn group() -> Group {
    let cases = lone_cases![
        a_daemon_killed_in_the_middle_of_builds_brings_each_to_an_end,
        a_build_with_secrets_is_interrupted_by_a_restart,
        sigkill_leaves_no_buildkitd_and_the_next_start_is_clean,
        buildkitd_killed_in_the_middle_of_a_build_is_a_typed_error_or_one_retry,
        sigterm_drains,
        two_daemons_side_by_side_do_not_touch_each_other,
        a_full_disk_is_a_clear_error_and_loses_nothing,
        a_daemon_uses_the_configured_external_buildkitd,
        a_second_daemon_on_the_same_state_is_refused,
        wrong_options_of_the_daemon_exit_before_anything_opens,
    ];
    Group::new("faults", cases).in_sequence()
}

/// Asserts that every tag's manifest, config and layers can be read and are complete.
#[track_caller]
fn every_tag_is_whole(daemon: &Daemon) {
    let list = daemon.hearth_ok(&["images", "list", "--json"]).json();
    let mut names = Vec::new();
    collect_references(&list, &mut names);
    for (repository, tag) in names {
        let image = daemon.image(&format!("{repository}:{tag}"));
        assert!(image.digest.starts_with("sha256:"), "{repository}:{tag}");
    }
}

/// Collects `repository` and `tag` of each object in the listing, at any depth.
fn collect_references(value: &Value, names: &mut Vec<(String, String)>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect_references(item, names)),
        Value::Object(fields) => {
            if let (Some(repository), Some(tag)) = (fields.get("repository"), fields.get("tag")) {
                names.push((repository.as_str().unwrap().to_owned(), tag.as_str().unwrap().to_owned()));
            }
            fields.values().for_each(|field| collect_references(field, names));
        }
        _ => {}
    }
}

fn slow(daemon: &Daemon, path: &str, argument: &str, after: &str) {
    daemon.base_image();
    let dockerfile = format!("FROM {BASE}\nRUN echo {path} starts; sleep {argument}; {after}\n");
    daemon.put(path, &Tree::new().dockerfile(&dockerfile));
}

fn running(argument: &str) -> bool {
    process::with_command(&format!("sleep {argument}"))
        .iter()
        .any(|process| !process.command.contains("sh -c"))
}

#[track_caller]
fn submit(daemon: &Daemon, tag: &str, path: &str) -> String {
    block_on(seconds(30), async { Api::of(daemon).await.submit(spec(tag, path)).await.unwrap() })
}

/// Waits for the end of a build, and returns its final state.
#[track_caller]
fn end_of(daemon: &Daemon, id: &str) -> BuildState {
    let found = wait::poll(seconds(90), || {
        let state = block_on(seconds(20), async { Api::of(daemon).await.state(id).await });
        (!matches!(state, BuildState::Queued | BuildState::Running)).then_some(state)
    });
    found.unwrap_or_else(|| panic!("build {id} has no end\n{}", daemon.log_tail(40)))
}

fn a_daemon_killed_in_the_middle_of_builds_brings_each_to_an_end() {
    let daemon = Daemon::start(Options::room("killed"));
    slow(&daemon, "slow", "6.4901", "echo done > /done");
    daemon.put("quick", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "q"));
    let before = daemon.build_ok("quick:1", "quick", &[]);
    let ids: Vec<String> = (1..=6).map(|n| submit(&daemon, &format!("slow:{n}"), "slow")).collect();
    wait::until(seconds(60), "a step runs", || running("6.4901"));
    let old_events =
        block_on(seconds(20), async { Api::of(&daemon).await.events_so_far(&ids[0], 0).await.unwrap() });

    daemon.kill9();
    daemon.restart();

    for (id, n) in ids.iter().zip(1..) {
        let state = end_of(&daemon, id);
        let digest = daemon.tag_digest("slow", &n.to_string());
        match state {
            BuildState::Succeeded => assert!(digest.is_some(), "slow:{n} is published"),
            BuildState::Failed | BuildState::Interrupted => assert_eq!(digest, None, "slow:{n}"),
            other => panic!("build {n} ended as {other:?}"),
        }
        let events = block_on(seconds(20), async { Api::of(&daemon).await.watch(id, 0).await.unwrap() });
        let numbers: Vec<u64> = events.iter().map(|event| event.sequence).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "events of build {n}");
        if n == 1 {
            assert!(
                events.len() >= old_events.len() && events[..old_events.len()] == old_events,
                "old events stay"
            );
        }
    }
    assert_eq!(daemon.tag_digest("quick", "1"), Some(before), "what was published before is there");
    every_tag_is_whole(&daemon);
    daemon.build_ok("quick:2", "quick", &["--no-cache"]);
    wait::until(seconds(20), "no step of the first life is left", || !running("6.4901"));
}

fn a_build_with_secrets_is_interrupted_by_a_restart() {
    let daemon = Daemon::start(Options::room("killed-secret"));
    daemon.base_image();
    let dockerfile =
        format!("FROM {BASE}\nRUN --mount=type=secret,id=s cat /run/secrets/s >/dev/null; sleep 30.4902\n");
    daemon.put("secret", &Tree::new().dockerfile(&dockerfile));
    let mut command = daemon.client();
    let arguments =
        daemon.build_arguments("secret:1", "secret:/context", &["--secret", "id=s,env=S", "--detach"]);
    let id = process::run(command.env("S", "canary").args(arguments), seconds(60))
        .expect_code(0)
        .line()
        .to_owned();
    wait::until(seconds(60), "the step runs", || running("30.4902"));
    daemon.kill9();
    daemon.restart();
    assert_eq!(
        end_of(&daemon, &id),
        BuildState::Interrupted,
        "the secret is gone, so the build cannot run again"
    );
    assert_eq!(daemon.tag_digest("secret", "1"), None);
    wait::until(seconds(20), "its step has ended", || !running("30.4902"));
}

fn sigkill_leaves_no_buildkitd_and_the_next_start_is_clean() {
    let daemon = Daemon::start(Options::room("orphans"));
    let first = daemon.buildkitd().expect("a buildkitd");
    daemon.kill9();
    wait::until(seconds(10), "buildkitd goes with its daemon", || {
        leftovers::processes(daemon.directory()).iter().all(|process| process.name != "buildkitd")
    });
    daemon.restart();
    let second = daemon.buildkitd().expect("a buildkitd");
    assert_ne!(first.pid, second.pid);
    let all = leftovers::processes(daemon.directory());
    assert_eq!(all.iter().filter(|process| process.name == "buildkitd").count(), 1, "{all:?}");
    daemon.put("x", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", ""));
    daemon.build_ok("x:1", "x", &[]);
}

fn buildkitd_killed_in_the_middle_of_a_build_is_a_typed_error_or_one_retry() {
    let daemon = Daemon::start(Options::room("bk-killed"));
    slow(&daemon, "slow", "5.4903", "echo done > /done");
    let id = submit(&daemon, "slow:1", "slow");
    wait::until(seconds(60), "the step runs", || running("5.4903"));
    process::signal(daemon.buildkitd().expect("buildkitd").pid, Signal::KILL);
    match end_of(&daemon, &id) {
        BuildState::Succeeded => assert_eq!(daemon.image("slow:1").file("done"), "done\n"),
        BuildState::Failed => {
            let build = block_on(seconds(20), async {
                let request =
                    ListBuildsRequest { tag: "room.meshagent.com/slow:1".to_owned(), ..Default::default() };
                Api::of(&daemon).await.builds().list(request).await.unwrap().into_inner().builds.remove(0)
            });
            let error = build.error.expect("a typed error");
            assert!(!error.code.is_empty() && error.retryable, "{error:?}");
            assert!(error.message.to_lowercase().contains("buildkit"), "{error:?}");
            assert_eq!(daemon.tag_digest("slow", "1"), None);
        }
        other => panic!("it ended as {other:?}"),
    }
    wait::until(seconds(30), "ready again", || daemon.status_of("/readyz") == Some(200));
    daemon.put("next", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", ""));
    daemon.build_ok("next:1", "next", &[]);
    every_tag_is_whole(&daemon);
}

fn sigterm_drains() {
    let daemon = Daemon::start(Options::room("drained"));
    slow(&daemon, "slow", "3.4904", "true");
    let id = submit(&daemon, "slow:1", "slow");
    wait::until(seconds(60), "the step runs", || running("3.4904"));
    let status = daemon.terminate();
    assert!(status.success(), "a drain is no failure: {status}\n{}", daemon.log_tail(40));
    wait::until(seconds(5), "nothing runs any more", || leftovers::processes(daemon.directory()).is_empty());
    assert!(!running("3.4904"));
    daemon.restart();
    match end_of(&daemon, &id) {
        BuildState::Succeeded => assert!(daemon.tag_digest("slow", "1").is_some()),
        BuildState::Interrupted | BuildState::Failed => assert_eq!(daemon.tag_digest("slow", "1"), None),
        other => panic!("it ended as {other:?}"),
    }
}

fn two_daemons_side_by_side_do_not_touch_each_other() {
    let (one, two) = (Daemon::start(Options::room("side-one")), Daemon::start(Options::room("side-two")));
    assert_ne!(one.listen(), two.listen());
    for (daemon, content) in [(&one, "one"), (&two, "two")] {
        daemon.put(
            "x",
            &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", content).at(1_700_000_000),
        );
        daemon.build_ok("x:1", "x", &[]);
    }
    assert_eq!(
        (one.image("x:1").file("a"), two.image("x:1").file("a")),
        ("one".to_owned(), "two".to_owned())
    );
    let (pid, survivor) = (two.pid(), two.buildkitd().expect("buildkitd").pid);
    one.kill9();
    one.restart();
    one.terminate();
    assert_eq!(two.pid(), pid);
    assert_eq!(two.buildkitd().expect("buildkitd").pid, survivor);
    two.build_ok("x:2", "x", &["--no-cache"]);
}

fn a_full_disk_is_a_clear_error_and_loses_nothing() {
    let daemon = Daemon::start(
        Options::room("full")
            .state_size("72m")
            .config("[builds]\nmin_free_bytes = 1048576\n[packs]\nmin_free_bytes = 1048576\n")
            .config("[uploads]\nmin_free_bytes = 1048576\n"),
    );
    daemon.put("x", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "kept"));
    let before = daemon.build_ok("x:1", "x", &[]);

    let large = daemon.directory().join("large");
    fs::write(&large, noise(71, 120_000_000)).unwrap();
    let output = daemon.hearth(&["storage", "put", large.to_str().unwrap(), "large"]);
    output.expect_code(1).says(&["space"]);
    assert!(!daemon.room_files().join("large").exists());

    let open = Request::new("POST", "/v2/large/blobs/uploads/").bearer(daemon.token()).send(&daemon.listen());
    let location = open.expect(202).header("location").unwrap().to_owned();
    let content = fs::read(&large).unwrap();
    let mark = if location.contains('?') { '&' } else { '?' };
    let put =
        Request::new("PUT", &format!("{location}{mark}digest={}", sha256(&content))).bearer(daemon.token());
    let answer = put.header("content-type", "application/octet-stream").body(content).send(&daemon.listen());
    assert!(matches!(answer.status, 500..=599 | 413), "{answer:?}");
    assert!(answer.text().to_lowercase().contains("space"), "{answer:?}");

    let tree = daemon.directory().join("tree");
    Tree::new().file("large", noise(72, 100_000_000)).write(&tree);
    let output = daemon.hearth(&["pack", tree.to_str().unwrap(), "--tag", "large:1"]);
    output.expect_code(1).says(&["space"]);
    assert_eq!(daemon.tag_digest("large", "1"), None);
    fs::remove_file(&large).unwrap();

    // The partial data of each build is removed, and the daemon works as before.
    wait::until(seconds(20), "the space is free again", || {
        let free = rustix::fs::statvfs(daemon.state()).unwrap();
        free.f_bavail * free.f_frsize > 20_000_000
    });
    assert_eq!(daemon.tag_digest("x", "1"), Some(before));
    daemon.build_ok("x:2", "x", &["--no-cache"]);
    assert_eq!(daemon.image("x:2").file("a"), "kept");
    every_tag_is_whole(&daemon);
}

fn a_daemon_uses_the_configured_external_buildkitd() {
    let owner = Daemon::start(Options::room("bk-owner"));
    let socket = owner.buildkit_socket().expect("the socket of the managed buildkitd");
    let address = format!("unix://{}", socket.display());
    let guest = Options::room("bk-guest").arguments(&["--buildkit", &address]);
    // The default is one minute; the test asserts what happens after the wait.
    let guest = Daemon::start(guest.config("[builds]\nbuilder_wait_seconds = 3\n"));
    assert!(guest.buildkitd().is_none(), "the daemon starts no buildkitd of its own");
    guest.put("x", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "guest"));
    guest.build_ok("x:1", "x", &[]);
    assert_eq!(guest.image("x:1").file("a"), "guest");
    owner.terminate();
    wait::until(seconds(15), "/readyz follows the one it uses", || guest.status_of("/readyz") == Some(503));
    let output = guest.build("x:2", "x", &[]);
    assert_ne!(output.code, 0, "{output}");
    output.says(&["buildkit"]);
}

fn a_second_daemon_on_the_same_state_is_refused() {
    let daemon = Daemon::start(Options::room("locked"));
    let mut command = std::process::Command::new(&integration_tests::binaries::binaries().hearthd);
    command.args(["--room", "locked", "--listen", "127.0.0.1:0", "--ingress", "127.0.0.1:0", "--state-dir"]);
    command.arg(daemon.state()).arg("--socket").arg(daemon.directory().join("second.sock"));
    let output = process::run(&mut command, seconds(30));
    assert_ne!(output.code, 0, "{output}");
    let said = format!("{}{}", output.stdout, output.stderr);
    assert!(said.contains("state"), "the error names what is in use\n{output}");
    assert_eq!(daemon.status_of("/readyz"), Some(200), "the first one is unharmed");
    daemon.hearth_ok(&["images", "list"]);
}

fn wrong_options_of_the_daemon_exit_before_anything_opens() {
    let work = tempfile::tempdir().unwrap();
    let hearthd = |arguments: &[&str]| {
        let mut command = std::process::Command::new(&integration_tests::binaries::binaries().hearthd);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/bin").args(arguments);
        process::run(command.current_dir(work.path()), seconds(30))
    };
    let state = work.path().join("state");
    let state = state.to_str().unwrap();
    for (arguments, word) in [
        (vec!["--no-such-flag"], "--no-such-flag"),
        (vec!["--state-dir", state, "--listen", "nonsense"], "nonsense"),
        (vec!["--state-dir", state, "--room", ""], "room"),
        (vec!["--config", "/no/such/file.toml"], "/no/such/file.toml"),
    ] {
        let output = hearthd(&arguments);
        assert!(output.code != 0 && output.code < 128, "{arguments:?}\n{output}");
        assert!(format!("{}{}", output.stdout, output.stderr).contains(word), "{arguments:?}\n{output}");
    }
    let config = work.path().join("typo.toml");
    fs::write(&config, "rooom = \"x\"\n").unwrap();
    let output = hearthd(&["--config", config.to_str().unwrap(), "--check-config"]);
    assert!(output.code != 0, "{output}");
    output.says(&["rooom"]);
    let dumped = hearthd(&["--state-dir", state, "--room", "shown", "--dump-config"]);
    assert!(dumped.expect_code(0).stdout.contains("shown"), "{dumped}");
    assert!(!std::path::Path::new(state).exists(), "nothing was made");
}
