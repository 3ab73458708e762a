//! The life of a build: submitted, watched by any caller at any time, ended exactly once.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use hearth_proto::v1::build_event::Event;
use hearth_proto::v1::{
    BuildEvent, BuildState, CancelBuildRequest, GetBuildRequest, ListBuildsRequest, LogStream,
    ReadBuildLogRequest, RemoveBuildRequest, SubmitBuildRequest, WatchBuildRequest,
};
use integration_tests::daemon::{BASE, Daemon};
use integration_tests::grpc::{Api, block_on, detail, spec};
use integration_tests::process;
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::sources::Tree;
use integration_tests::wait::{self, seconds};
use tonic::Code;

pub fn group() -> Group {
    Group::new(
        "builds",
        shared_cases![
            submit_answers_at_once_with_an_id,
            events_are_numbered_without_a_gap_and_the_same_for_every_watcher,
            watching_can_begin_anywhere,
            a_dropped_watcher_harms_nothing,
            a_client_that_is_killed_harms_nothing,
            cancel_ends_the_processes_and_publishes_nothing,
            cancelling_a_build_that_has_ended_changes_nothing,
            an_interrupted_client_cancels,
            a_timeout_fails_the_build,
            builds_are_listed_shown_read_and_removed,
            a_detached_build_is_followed_later,
            the_same_idempotency_key_is_the_same_build,
            concurrent_builds_have_whole_logs,
            stdout_and_stderr_are_kept_apart,
            the_failed_steps_exit_code_is_the_clients,
            json_errors_are_typed,
            json_progress_is_one_object_a_line,
            the_log_is_read_in_small_parts,
            following_a_build_that_has_ended_ends_at_once,
            damage_in_a_log_is_shown_and_the_rest_follows,
            a_build_without_network_has_none,
            digest_and_metadata_go_to_files,
        ],
    )
}

/// Prepares a build whose step runs until it is killed, and can be found in /proc by its argument.
fn sleeper(daemon: &Daemon, path: &str, argument: &str) {
    daemon.base_image();
    // The step's shell must not be found by the same argument.
    let dockerfile = format!("FROM {BASE}\nRUN echo sleeping; exec sleep {argument}\n");
    daemon.put(path, &Tree::new().dockerfile(&dockerfile));
}

#[track_caller]
fn wait_for_sleep(argument: &str) {
    wait::until(seconds(60), "the step runs", || !sleeps(argument).is_empty());
}

fn sleeps(argument: &str) -> Vec<process::Process> {
    let mut found = process::with_command(&format!("sleep {argument}"));
    found.retain(|process| process.name == "sleep" || process.name == "busybox");
    found
}

fn log_of(events: &[BuildEvent]) -> String {
    let mut bytes = Vec::new();
    for event in events {
        if let Some(Event::StepLog(log)) = &event.event {
            bytes.extend_from_slice(&log.data);
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}

#[track_caller]
fn finished(events: &[BuildEvent]) -> hearth_proto::v1::Build {
    match events.last().and_then(|event| event.event.clone()) {
        Some(Event::Finished(build)) => build,
        other => panic!("the last event is `finished`, not {other:?}"),
    }
}

fn submit_answers_at_once_with_an_id(daemon: &Daemon) {
    sleeper(daemon, "at-once", "4801.25");
    block_on(seconds(60), async {
        let api = Api::of(daemon).await;
        let start = Instant::now();
        let id = api.submit(spec("at-once:1", "at-once")).await.unwrap();
        assert!(start.elapsed() < seconds(2), "{:?}", start.elapsed());
        assert!(matches!(api.state(&id).await, BuildState::Queued | BuildState::Running));
        api.builds().cancel(CancelBuildRequest { build_id: id.clone() }).await.unwrap();
        assert_eq!(api.state(&id).await, BuildState::Cancelled);
    });
}

fn three_lines(daemon: &Daemon, path: &str) {
    daemon.base_image();
    let script = format!("for i in 1 2 3; do echo {path} $i; sleep 0.4; done");
    daemon.put(path, &Tree::new().dockerfile(&format!("FROM {BASE}\nRUN {script}\n")));
}

fn events_are_numbered_without_a_gap_and_the_same_for_every_watcher(daemon: &Daemon) {
    three_lines(daemon, "numbered");
    block_on(seconds(90), async {
        let api = Api::of(daemon).await;
        let id = api.submit(spec("numbered:1", "numbered")).await.unwrap();
        // Two callers watch while it runs, one after its end.
        let (one, two) = tokio::join!(api.watch(&id, 0), api.watch(&id, 1));
        let (one, two, after) = (one.unwrap(), two.unwrap(), api.watch(&id, 0).await.unwrap());
        assert_eq!(
            one.iter().map(|event| event.sequence).collect::<Vec<_>>(),
            (1..=one.len() as u64).collect::<Vec<_>>()
        );
        assert_eq!(one, two);
        assert_eq!(one, after, "a replay is the same");
        let build = finished(&one);
        assert_eq!(build.state(), BuildState::Succeeded);
        assert_eq!(build.last_sequence, one.len() as u64);
        assert_eq!(log_of(&one).matches("numbered ").count(), 3);
        assert_eq!(Some(build.result.unwrap().digest), daemon.tag_digest("numbered", "1"));
    });
}

fn watching_can_begin_anywhere(daemon: &Daemon) {
    three_lines(daemon, "anywhere");
    block_on(seconds(90), async {
        let api = Api::of(daemon).await;
        let id = api.submit(spec("anywhere:1", "anywhere")).await.unwrap();
        let all = api.watch(&id, 0).await.unwrap();
        for from in [2, all.len() as u64 / 2, all.len() as u64] {
            assert_eq!(api.watch(&id, from).await.unwrap(), all[from as usize - 1..], "from {from}");
        }
        assert_eq!(api.events_so_far(&id, 3).await.unwrap(), all[2..]);
        let beyond = api.watch(&id, all.len() as u64 + 1).await.unwrap();
        assert!(beyond.is_empty(), "nothing comes after the last one: {beyond:?}");
        let status = api.watch("zzzzzzzzzzzz", 0).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
    });
}

fn a_dropped_watcher_harms_nothing(daemon: &Daemon) {
    three_lines(daemon, "dropped-watcher");
    block_on(seconds(90), async {
        let api = Api::of(daemon).await;
        let id = api.submit(spec("dropped-watcher:1", "dropped-watcher")).await.unwrap();
        for _ in 0..3 {
            let request = WatchBuildRequest { build_id: id.clone(), ..Default::default() };
            let mut stream = api.builds().watch(request).await.unwrap().into_inner();
            stream.message().await.unwrap();
        }
        assert_eq!(finished(&api.watch(&id, 0).await.unwrap()).state(), BuildState::Succeeded);
    });
}

fn a_client_that_is_killed_harms_nothing(daemon: &Daemon) {
    three_lines(daemon, "killed-client");
    let mut command = daemon.client();
    command.args(daemon.build_arguments("killed-client:1", "killed-client:/context", &[]));
    let client = process::start(&mut command);
    wait::until(seconds(60), "the build is there", || {
        daemon.hearth_ok(&["builds", "list"]).stdout.contains("killed-client")
    });
    client.signal(rustix::process::Signal::KILL);
    drop(client);
    wait::until(seconds(60), "the tag is published", || daemon.tag_digest("killed-client", "1").is_some());
}

fn cancel_ends_the_processes_and_publishes_nothing(daemon: &Daemon) {
    sleeper(daemon, "cancelled", "4802.25");
    let id = daemon.build_ok_detached("cancelled:1", "cancelled");
    wait_for_sleep("4802.25");
    daemon.hearth_ok(&["builds", "cancel", &id, "--timeout", "2m"]);
    // Cancel returns after the processes have ended: no waiting here.
    assert!(sleeps("4802.25").is_empty(), "{:?}", sleeps("4802.25"));
    assert_eq!(daemon.tag_digest("cancelled", "1"), None);
    let shown = daemon.hearth_ok(&["builds", "show", &id]);
    assert!(shown.stdout.to_lowercase().contains("cancelled"), "{shown}");
    block_on(seconds(20), async {
        let events = Api::of(daemon).await.watch(&id, 0).await.unwrap();
        assert_eq!(finished(&events).state(), BuildState::Cancelled);
        assert!(log_of(&events).contains("sleeping"), "its log is kept");
    });
}

fn cancelling_a_build_that_has_ended_changes_nothing(daemon: &Daemon) {
    daemon.put("too-late", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "too late"));
    let digest = daemon.build_ok("too-late:1", "too-late", &[]);
    block_on(seconds(20), async {
        let api = Api::of(daemon).await;
        let request =
            ListBuildsRequest { tag: "room.meshagent.com/too-late:1".to_owned(), ..Default::default() };
        let id = api.builds().list(request).await.unwrap().into_inner().builds[0].build_id.clone();
        let answer = api.builds().cancel(CancelBuildRequest { build_id: id }).await.unwrap().into_inner();
        assert_eq!(answer.state(), BuildState::Succeeded);
    });
    assert_eq!(daemon.tag_digest("too-late", "1"), Some(digest));
}

fn an_interrupted_client_cancels(daemon: &Daemon) {
    sleeper(daemon, "interrupted", "4803.25");
    let mut command = daemon.client();
    command.args(daemon.build_arguments("interrupted:1", "interrupted:/context", &[]));
    let client = process::start(&mut command);
    wait_for_sleep("4803.25");
    client.signal(rustix::process::Signal::INT);
    let output = client.finish(seconds(60)).expect("the client ends");
    output.expect_code(130);
    wait::until(seconds(10), "the step has ended", || sleeps("4803.25").is_empty());
    assert_eq!(daemon.tag_digest("interrupted", "1"), None);
}

fn a_timeout_fails_the_build(daemon: &Daemon) {
    sleeper(daemon, "timed", "4804.25");
    let output = daemon.build("timed:1", "timed", &["--timeout", "4s"]);
    output.expect_code(1).says(&["timeout"]);
    wait::until(seconds(10), "the step has ended", || sleeps("4804.25").is_empty());
    assert_eq!(daemon.tag_digest("timed", "1"), None);
}

fn builds_are_listed_shown_read_and_removed(daemon: &Daemon) {
    three_lines(daemon, "verbs");
    let output = daemon.build("verbs:1", "verbs", &["--json"]);
    output.expect_code(0);
    let listed = daemon.hearth_ok(&["builds", "list", "--json"]);
    let id = id_of(daemon, "verbs:1");
    assert!(listed.stdout.contains(&id), "{listed}");
    let shown = daemon.hearth_ok(&["builds", "show", &id]);
    assert!(shown.stdout.contains("verbs:1") && shown.stdout.to_lowercase().contains("succeeded"), "{shown}");
    let logs = daemon.hearth_ok(&["builds", "logs", &id]);
    assert!((1..=3).all(|n| logs.stdout.contains(&format!("verbs {n}"))), "{logs}");
    let tail = daemon.hearth_ok(&["builds", "logs", &id, "--tail", "1"]);
    assert_eq!(tail.stdout.lines().count(), 1, "{tail}");
    daemon.hearth_ok(&["builds", "rm", &id]);
    daemon.hearth(&["builds", "show", &id]).expect_code(1).says(&[&id]);
    assert!(daemon.tag_digest("verbs", "1").is_some(), "its image stays");
    block_on(seconds(20), async {
        let api = Api::of(daemon).await;
        let gone = api.builds().get(GetBuildRequest { build_id: id.clone() }).await.unwrap_err();
        assert_eq!(gone.code(), Code::NotFound);
        let again = api.builds().remove(RemoveBuildRequest { build_id: id.clone() }).await.unwrap_err();
        assert_eq!(again.code(), Code::NotFound);
    });
}

/// Returns the id of the newest build of a tag of the room.
fn id_of(daemon: &Daemon, tag: &str) -> String {
    block_on(seconds(20), async {
        let request = ListBuildsRequest { tag: format!("room.meshagent.com/{tag}"), ..Default::default() };
        let list = Api::of(daemon).await.builds().list(request).await.unwrap().into_inner();
        list.builds.first().unwrap_or_else(|| panic!("no build of {tag}")).build_id.clone()
    })
}

trait Detached {
    fn build_ok_detached(&self, tag: &str, path: &str) -> String;
}

impl Detached for Daemon {
    #[track_caller]
    fn build_ok_detached(&self, tag: &str, path: &str) -> String {
        let output = self.build(tag, path, &["--detach"]);
        output.expect_code(0).line().to_owned()
    }
}

fn a_detached_build_is_followed_later(daemon: &Daemon) {
    three_lines(daemon, "detached");
    let id = daemon.build_ok_detached("detached:1", "detached");
    let logs = daemon.hearth_ok(&["builds", "logs", &id, "--follow"]);
    assert!((1..=3).all(|n| logs.stdout.contains(&format!("detached {n}"))), "{logs}");
    assert!(daemon.tag_digest("detached", "1").is_some(), "--follow ends with the build");
}

fn the_same_idempotency_key_is_the_same_build(daemon: &Daemon) {
    daemon.put("keyed", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "keyed"));
    block_on(seconds(60), async {
        let api = Api::of(daemon).await;
        let submit = |tag: &str| {
            let request =
                SubmitBuildRequest { spec: Some(spec(tag, "keyed")), idempotency_key: "deploy-1".to_owned() };
            let api = api.clone();
            async move { api.builds().submit(request).await.map(tonic::Response::into_inner) }
        };
        let (first, second) = tokio::join!(submit("keyed:1"), submit("keyed:1"));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!(first.build_id, second.build_id);
        assert_ne!(first.created, second.created, "one of them made it");
        api.watch(&first.build_id, 0).await.unwrap();
        assert_eq!(submit("keyed:1").await.unwrap().build_id, first.build_id, "after its end too");
        let other = submit("keyed:2").await.unwrap_err();
        assert!(
            matches!(other.code(), Code::AlreadyExists | Code::FailedPrecondition | Code::InvalidArgument),
            "{other:?}"
        );
        assert!(!detail(&other).code.is_empty());
    });
    let id = daemon
        .build("keyed:3", "keyed", &["--detach", "--idempotency-key", "k3"])
        .expect_code(0)
        .line()
        .to_owned();
    let again = daemon.build("keyed:3", "keyed", &["--detach", "--idempotency-key", "k3"]);
    assert_eq!(again.expect_code(0).line(), id);
    // Each pack has an id of its own, and the same files are the same request.
    let packed = tempfile::tempdir_in(daemon.directory()).unwrap();
    fs::write(packed.path().join("Dockerfile"), "FROM scratch\nCOPY a /\n").unwrap();
    fs::write(packed.path().join("a"), "keyed").unwrap();
    let directory = packed.path().to_str().unwrap();
    let pack = || {
        let arguments = ["build", "--tag", "keyed:4", "--detach", "--idempotency-key", "k4", directory];
        daemon.hearth(&arguments)
    };
    let id = pack().expect_code(0).line().to_owned();
    assert_eq!(pack().expect_code(0).line(), id);
    daemon.hearth_ok(&["builds", "logs", &id, "--follow"]);
    assert_eq!(pack().expect_code(0).line(), id, "after its end too");
    fs::write(packed.path().join("a"), "other").unwrap();
    pack().expect_code(1).says(&["idempotency key", &id]);
}

fn concurrent_builds_have_whole_logs(daemon: &Daemon) {
    const LINES: usize = 20_000;
    daemon.base_image();
    // Two builds of the same content at the same time: BuildKit runs their step once, and both logs are complete. The
    // pause lets the second build begin before the step ends; later it would come from the cache, without a log.
    let names = ["whole-a", "whole-a", "whole-b"];
    for name in ["whole-a", "whole-b"] {
        let script =
            format!("sleep 2; i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo \"{name} $i\"; done");
        daemon.put(name, &Tree::new().dockerfile(&format!("FROM {BASE}\nRUN {script}\n")));
    }
    block_on(seconds(200), async {
        let api = Api::of(daemon).await;
        let mut ids = Vec::new();
        for (at, name) in names.iter().enumerate() {
            ids.push(api.submit(spec(&format!("whole:{at}"), name)).await.unwrap());
        }
        for (id, name) in ids.iter().zip(names) {
            let events = api.watch(id, 0).await.unwrap();
            assert_eq!(finished(&events).state(), BuildState::Succeeded);
            let log = log_of(&events);
            let lines: Vec<&str> = log.lines().filter(|line| line.starts_with("whole-")).collect();
            assert_eq!(lines.len(), LINES, "lines of {name}");
            for (at, line) in lines.iter().enumerate() {
                assert_eq!(*line, format!("{name} {}", at + 1), "in order");
            }
        }
    });
}

fn stdout_and_stderr_are_kept_apart(daemon: &Daemon) {
    daemon.base_image();
    daemon
        .put("streams", &Tree::new().dockerfile(&format!("FROM {BASE}\nRUN echo to-out; echo to-err >&2\n")));
    block_on(seconds(60), async {
        let api = Api::of(daemon).await;
        let id = api.submit(spec("streams:1", "streams")).await.unwrap();
        let mut streams: BTreeMap<LogStream, Vec<u8>> = BTreeMap::new();
        for event in api.watch(&id, 0).await.unwrap() {
            if let Some(Event::StepLog(log)) = event.event {
                streams.entry(log.stream()).or_default().extend(log.data);
            }
        }
        assert_eq!(streams[&LogStream::Stdout], b"to-out\n");
        assert_eq!(streams[&LogStream::Stderr], b"to-err\n");
    });
}

fn the_failed_steps_exit_code_is_the_clients(daemon: &Daemon) {
    daemon.base_image();
    let dockerfile = format!("FROM {BASE}\nRUN echo before\nRUN echo last-words; exit 7\n");
    daemon.put("seven", &Tree::new().dockerfile(&dockerfile));
    let output = daemon.build("seven:1", "seven", &[]);
    output.expect_code(7).says(&["last-words", "exit 7", "RUN echo last-words"]);
    assert!(output.stdout.is_empty(), "{output}");
    assert_eq!(daemon.tag_digest("seven", "1"), None);
}

fn json_errors_are_typed(daemon: &Daemon) {
    daemon.base_image();
    let dockerfile = format!("FROM {BASE}\nRUN echo last-words-of-json; exit 9\n");
    daemon.put("typed", &Tree::new().dockerfile(&dockerfile));
    let output = daemon.build("typed:1", "typed", &["--json"]);
    output.expect_code(9);
    let error = output.json()["error"].clone();
    assert_eq!(
        (error["code"].as_str(), error["exit_code"].as_i64()),
        (Some("step_failed"), Some(9)),
        "{error}"
    );
    assert_eq!(error["stage"], "solve");
    assert!(error["step"].as_str().unwrap().contains("RUN echo last-words-of-json"), "{error}");
    assert!(error["log_tail"].to_string().contains("last-words-of-json"), "{error}");
    assert!(error["dockerfile"].to_string().contains("RUN echo last-words-of-json"), "{error}");
    assert_eq!(error["retryable"], false);
    let output = daemon.hearth(&["build", "--tag", "UPPER", "--mount-room-path", "typed", "--json"]);
    let error = output.expect_code(2).json()["error"].clone();
    assert!(error["code"].is_string(), "{error}");
}

fn json_progress_is_one_object_a_line(daemon: &Daemon) {
    three_lines(daemon, "progress");
    let output = daemon.build("progress:1", "progress", &["--progress", "json"]);
    output.expect_code(0);
    assert!(output.line().starts_with("sha256:"), "{output}");
    let lines: Vec<serde_json::Value> = output
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert!(lines.len() > 3 && output.stderr.contains("progress 2"), "{output}");
}

fn the_log_is_read_in_small_parts(daemon: &Daemon) {
    daemon.base_image();
    let script = "i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo part-$i; done; echo needle-one";
    daemon.put("parts", &Tree::new().dockerfile(&format!("FROM {BASE}\nRUN {script}\n")));
    daemon.build_ok("parts:1", "parts", &[]);
    let build_id = id_of(daemon, "parts:1");
    block_on(seconds(30), async {
        let api = Api::of(daemon).await;
        let read = |request: ReadBuildLogRequest| {
            let (api, request) = (api.clone(), ReadBuildLogRequest { build_id: build_id.clone(), ..request });
            async move { api.builds().read_log(request).await.unwrap().into_inner() }
        };
        let small = read(ReadBuildLogRequest::default()).await;
        assert!(
            small.lines.len() <= 200 && small.omitted_lines >= 4800,
            "{} {}",
            small.lines.len(),
            small.omitted_lines
        );
        let tail =
            read(ReadBuildLogRequest { tail: 3, contains: "part-".to_owned(), ..Default::default() }).await;
        assert_eq!(tail.lines.len(), 3);
        assert!(tail.lines[2].ends_with("part-5000") && tail.lines[2].starts_with('#'), "{:?}", tail.lines);
        let found =
            read(ReadBuildLogRequest { contains: "needle-one".to_owned(), tail: 10, ..Default::default() })
                .await;
        assert!(found.lines.iter().any(|line| line.ends_with("needle-one")), "{:?}", found.lines);
        let cut = read(ReadBuildLogRequest { tail: 5000, max_bytes: 1000, ..Default::default() }).await;
        let bytes: usize = cut.lines.iter().map(String::len).sum();
        assert!(bytes <= 1000 && cut.omitted_lines > 4000, "{bytes} bytes, {} omitted", cut.omitted_lines);
    });
}

fn following_a_build_that_has_ended_ends_at_once(daemon: &Daemon) {
    daemon.base_image();
    let dockerfile = format!("FROM {BASE}\nRUN echo ended-$((0+1)); echo ended-$((1+1)); echo over\n");
    daemon.put("ended", &Tree::new().dockerfile(&dockerfile));
    daemon.build_ok("ended:1", "ended", &[]);
    let id = id_of(daemon, "ended:1");
    let logs = |more: &[&str]| daemon.hearth(&[&["builds", "logs", &id], more].concat());
    let began = Instant::now();
    let tail = logs(&["--tail", "2", "--follow"]);
    tail.expect_code(0);
    assert_eq!(tail.stdout.lines().count(), 2, "{tail}");
    for arguments in [&["--from", "100000", "--follow"][..], &["--from", "100000"]] {
        let output = logs(arguments);
        output.expect_code(0);
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""), "{arguments:?}");
    }
    assert!(began.elapsed() < seconds(20), "{:?}", began.elapsed());
    for arguments in [&[][..], &["--follow"], &["--from", "1"], &["--tail", "9", "--follow"]] {
        let output = logs(&[&["--grep", "^over$|ended-[1-9]$"], arguments].concat());
        let whole_lines = output.stdout.lines().filter(|line| line.contains("ended-")).count();
        assert!(whole_lines == 2, "{arguments:?}: {output}");
    }
    logs(&["--grep", "ended-("]).expect_code(2).says(&["--grep", "unclosed group"]);
}

fn damage_in_a_log_is_shown_and_the_rest_follows(daemon: &Daemon) {
    daemon.base_image();
    let dockerfile =
        format!("FROM {BASE}\nRUN echo before-$((0+1))\nRUN echo lost-$((0+1))\nRUN echo after-$((0+1))\n");
    daemon.put("damaged", &Tree::new().dockerfile(&dockerfile));
    daemon.build_ok("damaged:1", "damaged", &[]);
    let id = id_of(daemon, "damaged:1");
    let path = daemon.directory().join("state/builds").join(format!("{id}.jsonl"));
    let mut bytes = fs::read(&path).unwrap();
    let text = String::from_utf8(bytes.clone()).unwrap();
    let at = text.find("lost-1").unwrap();
    let (start, end) = (text[..at].rfind('\n').unwrap() + 1, at + text[at..].find('\n').unwrap());
    // The newline is damaged too, so the event after it is missing as well.
    bytes[start..=end].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let read = daemon.hearth_ok(&["builds", "logs", &id]).stdout;
    let lines: Vec<&str> = read.lines().collect();
    let found = |words: &str| lines.iter().position(|line| line.contains(words));
    assert_eq!(found("lost-1"), None, "{read}");
    let damage = found("bytes of this log are damaged on the disk").unwrap();
    assert!(found("before-1").unwrap() < damage && damage < found("after-1").unwrap(), "{read}");
    let replayed = daemon.hearth_ok(&["builds", "logs", &id, "--from", "1"]);
    replayed.says(&["damaged on the disk"]);
    assert!(replayed.stdout.contains("before-1") && replayed.stdout.contains("after-1"), "{replayed}");
    block_on(seconds(30), async {
        let events = Api::of(daemon).await.watch(&id, 0).await.unwrap();
        let mut next = 1;
        for event in &events {
            assert_eq!(event.sequence, next);
            next += event.damaged_events.max(1);
        }
        assert_eq!(finished(&events).last_sequence, next - 1, "{events:?}");
    });
}

fn a_build_without_network_has_none(daemon: &Daemon) {
    daemon.base_image();
    let script = "ls /sys/class/net > /net; cat /net";
    daemon.put("offline", &Tree::new().dockerfile(&format!("FROM {BASE}\nRUN {script}\n")));
    daemon.build_ok("offline:1", "offline", &["--network", "none"]);
    assert_eq!(daemon.image("offline:1").file("net").trim(), "lo");
    daemon.build("offline:2", "offline", &["--network", "host"]).expect_code(2).says(&["host"]);
}

fn digest_and_metadata_go_to_files(daemon: &Daemon) {
    daemon.put("files", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "files"));
    let (id, metadata) = (daemon.directory().join("iid"), daemon.directory().join("metadata.json"));
    let more = ["--iidfile", id.to_str().unwrap(), "--metadata-file", metadata.to_str().unwrap()];
    let digest = daemon.build_ok("files:1", "files", &more);
    assert_eq!(fs::read_to_string(&id).unwrap().trim(), digest);
    assert!(fs::read_to_string(&metadata).unwrap().contains(&digest));
}
