//! Control over running builds: the resources of their steps, their logs, and their cancellation at every point.

use std::sync::Arc;
use std::time::Duration;

use hearth_proto::v1::build_event::Event;
use hearth_proto::v1::{BuildEvent, BuildState, CancelBuildRequest, WatchBuildRequest};
use integration_tests::daemon::{BASE, Daemon, Options};
use integration_tests::grpc::{Api, block_on, spec};
use integration_tests::runner::Group;
use integration_tests::scripted::{Asked, Scripted};
use integration_tests::small_image::SmallRegistry;
use integration_tests::soak;
use integration_tests::sources::{Tree, noise};
use integration_tests::wait::{self, seconds};
use integration_tests::{lone_cases, process, shared_cases};

pub fn group() -> Group {
    Group::new(
        "build_control",
        shared_cases![
            each_step_has_the_memory_and_processors_that_the_build_gives_it,
            a_log_is_narrowed_by_all_its_filters_together,
            the_steps_of_a_tag_have_a_history,
        ]
        .into_iter()
        .chain(lone_cases![
            a_build_is_cancelled_at_every_point_without_a_trace,
            a_waiting_build_tells_when_it_is_expected_to_start,
            builds_of_several_callers_survive_kills_of_the_daemon_and_its_builders,
        ])
        .collect(),
    )
}

fn each_step_has_the_memory_and_processors_that_the_build_gives_it(daemon: &Daemon) {
    let base = daemon.base_image();
    let hog = format!("FROM {base}\nRUN awk 'BEGIN {{ s = \"0123456789\"; while (1) s = s s }}'\n");
    daemon.put("hog", &Tree::new().dockerfile(&hog));
    let output = daemon.build("hog:1", "hog", &["--memory", "48m", "--json"]);
    let error = &output.expect_code(137).json()["error"];
    assert_eq!(error["code"], "out_of_memory", "{output}");
    assert!(error["step"].as_str().is_some_and(|step| step.contains("RUN awk")), "{output}");
    let hint = error["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("48 MiB") && hint.contains("--memory"), "{output}");

    // The quota of a control group of version 1 or 2, as the step sees it.
    let files = "/sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us";
    let quota = format!("FROM {base}\nRUN echo quota $(cat {files} 2>/dev/null)\n");
    daemon.put("quota", &Tree::new().dockerfile(&quota));
    let limited = daemon.build("quota:1", "quota", &["--cpus", "0.5", "--progress", "plain"]);
    limited.expect_code(0).says(&["quota 50000"]);
    let cached = daemon.build("quota:2", "quota", &["--cpus", "1.5", "--memory", "256m", "--json"]);
    let result = cached.expect_code(0).json();
    assert_eq!(result["cached_steps"], 1, "limits are not part of the cache: {result}");

    for (flag, value, word) in
        [("--memory", "1m", "8 MiB"), ("--cpus", "0.001", "0.01"), ("--memory", "x", "512m")]
    {
        let refused = daemon.build("quota:3", "quota", &[flag, value]);
        assert_ne!(refused.code, 0, "{refused}");
        refused.says(&[word]);
    }
}

fn a_log_is_narrowed_by_all_its_filters_together(daemon: &Daemon) {
    let base = daemon.base_image();
    let ticks = "for i in 1 2 3 4 5 6; do echo tick $i; echo noise $i; sleep 0.5; done";
    let dockerfile = format!("FROM {base}\nRUN echo tick before\nRUN {ticks}\n");
    daemon.put("ticks", &Tree::new().dockerfile(&dockerfile));
    let id = daemon.build("ticks:1", "ticks", &["--detach"]);
    let id = id.expect_code(0).line();
    let log = |more: &[&str]| daemon.hearth_ok(&[&["builds", "logs", id], more].concat()).stdout;
    let step = wait::poll(seconds(60), || {
        let shown = log(&["--from", "1"]);
        let line = shown.lines().find(|line| line.ends_with("| tick 2"))?;
        Some(line.trim_start_matches('#').split(' ').next()?.to_owned())
    });
    let step = step.expect("the second step prints");
    let since =
        process::run(std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"]), seconds(5));
    let since = since.expect_code(0).line().to_owned();
    let filters = ["--grep", "^tick", "--step", &step, "--from", "2", "--follow"];
    let followed = log(&[&filters[..], &["--tail", "2"]].concat());
    let lines: Vec<&str> = followed.lines().filter_map(|line| line.split(" | ").nth(1)).collect();
    let expected = ["tick 1", "tick 2", "tick 3", "tick 4", "tick 5", "tick 6"];
    assert!(lines.len() < 6 || lines[0] == "tick 1", "at most two lines of the past: {followed}");
    assert!(expected.ends_with(&lines) && lines.len() >= 2, "{followed}");

    let later = log(&[&filters[..], &["--since", &since]].concat());
    let lines: Vec<&str> = later.lines().filter_map(|line| line.split(" | ").nth(1)).collect();
    assert!(expected.ends_with(&lines) && !lines.contains(&"tick 1") && !lines.is_empty(), "{later}");
    let same = log(&["--grep", "^tick", "--step", &step, "--since", &since, "--tail", "50"]);
    assert_eq!(same, later, "the daemon and the client choose the same lines");
    assert_eq!(log(&["--since", "1s", "--from", "1", "--grep", "before"]), "");
}

/// A moment of a build at which it is cancelled.
struct CancelPoint {
    name: &'static str,
    dockerfile: String,
    /// Tag of the build, instead of one in the room.
    tag: Option<String>,
    reached: Box<dyn Fn(&BuildEvent) -> bool>,
}

fn at_event(
    name: &'static str,
    dockerfile: impl Into<String>,
    reached: impl Fn(&Event) -> bool + 'static,
) -> CancelPoint {
    let reached = move |event: &BuildEvent| event.event.as_ref().is_some_and(&reached);
    CancelPoint { name, dockerfile: dockerfile.into(), tag: None, reached: Box::new(reached) }
}

fn step_starts(event: &Event, words: &str) -> bool {
    matches!(event, Event::StepStarted(step) if step.name.contains(words))
}

fn prints(event: &Event, words: &str) -> bool {
    matches!(event, Event::StepLog(log) if String::from_utf8_lossy(&log.data).contains(words))
}

fn a_build_is_cancelled_at_every_point_without_a_trace() {
    let mut images = SmallRegistry::default();
    let digest = images.image("amd64", ("file", "content"), &serde_json::json!({}));
    images.tag("slow:1", &digest);
    let registry = Arc::new(Scripted::start(move |asked: &Asked| {
        if asked.method != "GET" || asked.path.contains("/blobs/") {
            std::thread::sleep(Duration::from_secs(3));
        }
        images.answer(asked)
    }));
    let host = registry.host();
    let daemon =
        Daemon::start(Options::room("cancelled").config("[builds]\nconcurrency = 1\n").registries(&[&host]));
    daemon.base_image();
    let large: String = format!("FROM {BASE}\nCOPY large /\nRUN echo exported\n");
    let sleep = format!("FROM {BASE}\nRUN echo one\nRUN echo ready; exec sleep 4831.5\n");
    let deaf = format!("FROM {BASE}\nRUN trap '' TERM INT; echo ready; while :; do sleep 4831.5; done\n");
    let loud = format!("FROM {BASE}\nRUN while :; do echo ready ready ready; done\n");
    let parallel = format!(
        "FROM {BASE} AS a\nRUN echo ready a; sleep 4831.5\nFROM {BASE} AS b\nRUN echo ready b; sleep 4831.5\n\
         FROM scratch\nCOPY --from=a / /\nCOPY --from=b / /\n"
    );
    let points = vec![
        at_event(
            "running",
            sleep.clone(),
            |event| matches!(event, Event::StateChanged(state) if *state == BuildState::Running as i32),
        ),
        at_event("image fetched", format!("FROM {host}/slow:1\nCOPY a /\n"), {
            let host = host.clone();
            move |event| step_starts(event, &host)
        }),
        at_event("first step starts", sleep.clone(), |event| step_starts(event, "RUN echo one")),
        at_event(
            "between steps",
            sleep.clone(),
            |event| matches!(event, Event::StepFinished(step) if step.step > 2),
        ),
        at_event("process runs", sleep, |event| prints(event, "ready")),
        at_event("process ignores signals", deaf, |event| prints(event, "ready")),
        at_event("endless output", loud, |event| prints(event, "ready")),
        at_event("parallel stages", parallel, |event| prints(event, "ready b")),
        at_event("export", large.clone(), |event| step_starts(event, "export")),
        at_event("layers pushed", large, |event| {
            matches!(event, Event::StepProgress(progress) if progress.name.contains("layer"))
                || step_starts(event, "pushing")
        }),
        CancelPoint {
            tag: Some(format!("{host}/other:1")),
            ..at_event("push to another registry", format!("FROM {BASE}\nRUN echo pushed\n"), |event| {
                step_starts(event, "export")
            })
        },
    ];
    let large = noise(7, 120_000_000);
    for (number, point) in points.into_iter().enumerate() {
        let path = format!("point{number}");
        let mut tree = Tree::new().dockerfile(&point.dockerfile).file("a", point.name);
        if point.dockerfile.contains("large") {
            let mut own = large.clone();
            own.push(u8::try_from(number).expect("a small number"));
            tree = tree.file("large", own);
        }
        daemon.put(&path, &tree);
        cancel_at(&daemon, &path, &point);
    }
    cancel_in_queue(&daemon);
    let ok = format!("FROM {BASE}\nRUN echo fine\n");
    daemon.put("after", &Tree::new().dockerfile(&ok));
    daemon.build_ok("after:1", "after", &[]);
}

/// Submits a build, cancels it when it has reached the point, and checks that nothing of it is left.
fn cancel_at(daemon: &Daemon, path: &str, point: &CancelPoint) {
    let CancelPoint { name, tag, reached, .. } = point;
    let tag = tag.clone().unwrap_or_else(|| format!("{path}:1"));
    let state = block_on(seconds(90), async {
        let api = Api::of(daemon).await;
        let build_id = api.submit(spec(&tag, path)).await.unwrap();
        let request = WatchBuildRequest { build_id: build_id.clone(), from_sequence: 0, no_follow: false };
        let mut events = api.builds().watch(request).await.unwrap().into_inner();
        loop {
            let event = events.message().await.unwrap().unwrap_or_else(|| panic!("{name}: not reached"));
            assert!(!matches!(event.event, Some(Event::Finished(_))), "{name}: not reached: {event:?}");
            if reached(&event) {
                break;
            }
        }
        api.builds().cancel(CancelBuildRequest { build_id }).await.unwrap().into_inner().state()
    });
    assert_eq!(state, BuildState::Cancelled, "{name}");
    // Cancel answers after the processes have ended: no waiting here.
    let left: Vec<_> =
        process::with_command("4831.5").into_iter().filter(|found| found.name == "sleep").collect();
    assert!(left.is_empty(), "{name}: {left:?}");
    assert_eq!(daemon.tag_digest(path, "1"), None, "{name}");
}

fn cancel_in_queue(daemon: &Daemon) {
    let dockerfile = format!("FROM {BASE}\nRUN echo ready; exec sleep 4831.5\n");
    daemon.put("holder", &Tree::new().dockerfile(&dockerfile));
    let (first, second) = block_on(seconds(90), async {
        let api = Api::of(daemon).await;
        let first = api.submit(spec("holder:1", "holder")).await.unwrap();
        let second = api.submit(spec("waiter:1", "holder")).await.unwrap();
        for build_id in [second.clone(), first.clone()] {
            let ended = api.builds().cancel(CancelBuildRequest { build_id }).await.unwrap().into_inner();
            assert_eq!(ended.state(), BuildState::Cancelled);
        }
        (first, second)
    });
    assert_ne!(first, second);
    assert!(["holder", "waiter"].iter().all(|name| daemon.tag_digest(name, "1").is_none()));
}

fn builds_of_several_callers_survive_kills_of_the_daemon_and_its_builders() {
    // `make soak` does the same for longer.
    let summary = soak::run(seconds(12), 1);
    assert!(summary.submitted > 20 && summary.daemon_kills + summary.builder_kills > 1, "{summary:?}");
}

fn the_steps_of_a_tag_have_a_history(daemon: &Daemon) {
    let base = daemon.base_image();
    let dockerfile = format!(
        "FROM {base} AS parts\nRUN sleep 0.3; echo part > /part\nFROM {base}\nARG N\nCOPY large /\n\
         COPY --from=parts /part /\nRUN echo $N > /n\n"
    );
    daemon.put("history", &Tree::new().dockerfile(&dockerfile).file("large", noise(5, 100_000)));
    for n in ["N=1", "N=2", "N=3"] {
        daemon.build_ok("history:1", "history", &["--build-arg", n]);
    }
    let builds = daemon.hearth_ok(&["builds", "stats", "history:1", "--json"]).json();
    let builds = builds.as_array().expect("an array of builds");
    assert_eq!(builds.len(), 3);
    let step = |build: usize, words: &str| {
        let steps = builds[build]["steps"].as_array().expect("steps");
        steps
            .iter()
            .find(|step| step["name"].as_str().is_some_and(|name| name.contains(words)))
            .unwrap_or_else(|| panic!("no {words} in {steps:?}"))
    };
    // The newest build comes first: only the step that uses the argument ran again.
    assert_eq!(step(0, "RUN echo 3")["cached"], false);
    for words in ["COPY large", "RUN sleep", "COPY --from"] {
        assert_eq!(
            (&step(2, words)["cached"], &step(0, words)["cached"]),
            (&false.into(), &true.into()),
            "{words}"
        );
    }
    assert!(step(2, "RUN sleep")["duration_seconds"].as_f64().is_some_and(|time| time > 0.25));
    for build in 0..3 {
        let large = &step(build, "COPY large")["layer_bytes"];
        assert!(large.as_u64().is_some_and(|size| (100_000..110_000).contains(&size)), "{large}");
        assert!(step(build, "COPY --from")["layer_bytes"].as_u64().is_some_and(|size| size < 1000));
        assert!(step(build, "RUN sleep")["layer_bytes"].is_null(), "its stage is not in the image");
    }
    let table = daemon.hearth_ok(&["builds", "stats", "history:1"]).stdout;
    let row = |words: &str| table.lines().find(|line| line.ends_with(words)).expect("a row");
    assert!(row("RUN echo 3 > /n").starts_with("3     0 "), "{table}");
    assert!(row("COPY large /").starts_with("1     2 ") && row("COPY large /").contains("kB"), "{table}");
    let empty = daemon.hearth_ok(&["builds", "stats", "nothing:1"]);
    empty.says(&["no build of nothing:1 has ended"]);
    let other = daemon.mint(&["--name", "other", "--scope", "agentDefault"]);
    let mut client = daemon.client();
    client.env("HEARTH_TOKEN", other).args(["builds", "stats", "history:1", "--json"]);
    assert_eq!(process::run(&mut client, seconds(20)).expect_code(0).json(), serde_json::json!([]));
}

fn a_waiting_build_tells_when_it_is_expected_to_start() {
    let daemon = Daemon::start(Options::room("expected").config("[builds]\nconcurrency = 1\n"));
    let dockerfile = format!("FROM {}\nARG N\nRUN sleep 4; echo $N\n", daemon.base_image());
    daemon.put("four", &Tree::new().dockerfile(&dockerfile));
    let submit = |n: &str| {
        let mut spec = spec("four:1", "four");
        spec.build_args = [("N".to_owned(), n.to_owned())].into();
        block_on(seconds(20), async { Api::of(&daemon).await.submit(spec).await.unwrap() })
    };
    let wait_of = |id: &str| {
        let request = hearth_proto::v1::GetBuildRequest { build_id: id.to_owned() };
        block_on(seconds(20), async {
            let build = Api::of(&daemon).await.builds().get(request).await.unwrap().into_inner();
            build.queue.expect("the build waits").expected_wait
        })
    };
    let (first, second) = (submit("1"), submit("2"));
    assert_eq!(wait_of(&second), None, "no build has ended yet");
    daemon.hearth_ok(&["builds", "logs", &first, "--follow"]);
    let (third, fourth) = (submit("3"), submit("4"));
    let (third, fourth) = (wait_of(&third).expect("an estimate"), wait_of(&fourth).expect("an estimate"));
    // A build takes 4 s and what a busy machine adds.
    assert!((1..=12).contains(&third.seconds), "{third:?}");
    assert!((third.seconds + 3..=third.seconds + 12).contains(&fourth.seconds), "{fourth:?} after {third:?}");
    let mount = ["--mount-room-path", "four", "--progress", "plain"];
    let shown = daemon.hearth_ok(&[&["build", "--tag", "four:1", "--build-arg", "N=5"], &mount[..]].concat());
    shown.says(&["expected to start in"]);
}
