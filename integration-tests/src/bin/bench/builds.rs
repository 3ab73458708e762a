//! Chapter `builds`: what a long history, many followers and many builds cost those who submit, list and read.

use std::process::Command;
use std::time::{Duration, Instant};

use hearth_proto::v1::build_event::Event;
use hearth_proto::v1::{ListBuildsRequest, WatchBuildRequest};
use integration_tests::daemon::{Daemon, Options};
use integration_tests::grpc::{Api, block_on, spec};
use integration_tests::process;
use integration_tests::sources::Tree;
use integration_tests::wait::seconds;

use super::figures::Figure;
use super::side::Bench;
use super::turns::in_turns_by;

const LIMIT: Duration = seconds(300);
/// Builds in the history.
const HISTORY: u32 = 10_000;
const FOLLOWERS: usize = 64;
/// Builds that run while the delay of lines is measured.
const RUNNING: usize = 8;
/// Lines of the build whose delay is measured.
const TICKS: usize = 200;

pub fn chapter(_bench: &Bench) -> Vec<Figure> {
    let mut figures = history();
    let daemon = Daemon::start(Options::room("bench-followers").config("[builds]\nconcurrency = 10\n"));
    daemon.base_image();
    figures.push(followers(&daemon));
    figures.push(line_delay(&daemon));
    figures
}

/// Copies the record of one build `HISTORY` times into the state of a stopped daemon, then submits and lists.
fn history() -> Vec<Figure> {
    let daemon =
        Daemon::start(Options::room("bench-history").config("[builds]\nkeep = 20000\nper_caller = 100\n"));
    daemon.put("tiny", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "a"));
    daemon.build_ok("tiny:1", "tiny", &[]);
    assert!(daemon.terminate().success(), "SIGTERM ends hearthd");
    let script = "import sqlite3, sys\n\
                  db = sqlite3.connect(sys.argv[1])\n\
                  id, state, tag, record = db.execute('SELECT id, state, tag, record FROM builds').fetchone()\n\
                  rows = ((new, state, tag, record.replace(id, new)) for new in ('%012x' % n for n in range(1, int(sys.argv[2]))))\n\
                  db.executemany('INSERT INTO builds (id, state, tag, record) VALUES (?, ?, ?, ?)', rows)\n\
                  db.commit()\n";
    let database = daemon.state().join("state.db");
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(&database).arg(HISTORY.to_string());
    process::run(&mut python, seconds(60)).expect_code(0);
    daemon.restart();
    // A participant with few builds of their own among those of others.
    let token = daemon.mint(&["--name", "reader", "--scope", "agentDefault"]);
    let (submits, pages, own) = block_on(LIMIT, async {
        let api = Api::of(&daemon).await;
        let reader = Api::connect(&daemon.listen(), Some(token)).await;
        let (mut submits, mut pages, mut own) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..50 {
            let begun = Instant::now();
            let build_id = api.submit(spec("tiny:1", "tiny")).await.expect("a build");
            submits.push(begun.elapsed());
            api.watch(&build_id, 0).await.expect("its end");
        }
        for _ in 0..3 {
            let build_id = reader.submit(spec("tiny:2", "tiny")).await.expect("a build");
            reader.watch(&build_id, 0).await.expect("its end");
        }
        let mut page_token = String::new();
        for _ in 0..50 {
            let request = ListBuildsRequest { page_token, ..ListBuildsRequest::default() };
            let begun = Instant::now();
            let page = api.builds().list(request).await.expect("a page").into_inner();
            pages.push(begun.elapsed());
            assert_eq!(page.builds.len(), 50);
            page_token = page.next_page_token;
            let begun = Instant::now();
            let page = reader.builds().list(ListBuildsRequest::default()).await.expect("a page").into_inner();
            own.push(begun.elapsed());
            assert_eq!(page.builds.len(), 3);
        }
        (submits, pages, own)
    });
    vec![
        Figure::time(
            format!("submit with {HISTORY} builds in the history, until its answer"),
            &submits,
            Duration::from_millis(20),
        ),
        Figure::time("a page of 50 builds of that history", &pages, Duration::from_millis(50)),
        Figure::time("the 3 builds of one participant in that history", &own, Duration::from_millis(50)),
    ]
}

/// Times a build with much output with and without followers.
fn followers(daemon: &Daemon) -> Figure {
    let lines =
        "RUN i=0; while [ $i -lt 30000 ]; do echo line $i of the output of this step; i=$((i + 1)); done";
    daemon.put("lines", &Tree::new().dockerfile(&format!("FROM {}\nARG N\n{lines}\n", daemon.base_image())));
    let run = |side: &str, round: usize, followers: usize| {
        let mut spec = spec("lines:1", "lines");
        spec.build_args = [("N".to_owned(), format!("{side}-{round}"))].into();
        block_on(LIMIT, async {
            let api = Api::of(daemon).await;
            let build_id = api.submit(spec).await.expect("a build");
            let mut streams = Vec::new();
            for _ in 0..followers {
                let request =
                    WatchBuildRequest { build_id: build_id.clone(), from_sequence: 0, no_follow: false };
                let mut events = api.builds().watch(request).await.expect("its events").into_inner();
                streams.push(tokio::spawn(async move { while let Ok(Some(_)) = events.message().await {} }));
            }
            let build = loop {
                let request = hearth_proto::v1::GetBuildRequest { build_id: build_id.clone() };
                let build = api.builds().get(request).await.expect("the build").into_inner();
                if build.finished_at.is_some() {
                    break build;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            for stream in streams {
                stream.await.expect("a follower");
            }
            let result = build.result.expect("a success").duration.expect("a duration");
            Duration::try_from(result).expect("a duration")
        })
    };
    let times = in_turns_by(|round| run("followed", round, FOLLOWERS), |round| run("alone", round, 0));
    Figure::ratio(
        format!("build of 30,000 lines with {FOLLOWERS} followers"),
        times,
        "the same without",
        Some(1.05),
    )
}

/// Measures how long a line takes from the step's process to a follower while other builds run. The process prints the
/// time since the machine started, in hundredths of a second.
fn line_delay(daemon: &Daemon) -> Figure {
    let base = daemon.base_image();
    let busy = format!(
        "FROM {base}\nARG N\nRUN i=0; while [ $i -lt 300 ]; do echo busy $N $i; sleep 0.05; i=$((i + 1)); done\n"
    );
    let ticks = format!(
        "FROM {base}\nARG N\nRUN i=0; while [ $i -lt {TICKS} ]; do cat /proc/uptime; sleep 0.03; i=$((i + 1)); done\n"
    );
    daemon.put("busy", &Tree::new().dockerfile(&busy));
    daemon.put("ticks", &Tree::new().dockerfile(&ticks));
    let delays = block_on(LIMIT, async {
        let api = Api::of(daemon).await;
        let mut others = Vec::new();
        for number in 1..RUNNING {
            let mut spec = spec(&format!("busy:{number}"), "busy");
            spec.build_args = [("N".to_owned(), number.to_string())].into();
            others.push(api.submit(spec).await.expect("a build"));
        }
        let build_id = api.submit(spec("ticks:1", "ticks")).await.expect("a build");
        let request = WatchBuildRequest { build_id, from_sequence: 0, no_follow: false };
        let mut events = api.builds().watch(request).await.expect("its events").into_inner();
        let mut delays = Vec::new();
        while let Some(event) = events.message().await.expect("an event") {
            let Some(Event::StepLog(log)) = event.event else { continue };
            let now = uptime();
            for line in String::from_utf8_lossy(&log.data).lines() {
                if let Some(printed) = line.split(' ').next().and_then(|text| text.parse::<f64>().ok()) {
                    delays.push(Duration::from_secs_f64((now - printed).max(0.0)));
                }
            }
        }
        for build_id in others {
            api.builds().cancel(hearth_proto::v1::CancelBuildRequest { build_id }).await.expect("cancelled");
        }
        delays
    });
    assert_eq!(delays.len(), TICKS, "lines");
    let mut sorted = delays;
    sorted.sort();
    let late = sorted[TICKS * 99 / 100];
    Figure::time(
        format!("99th percentile of the time from a step's line to a follower, {RUNNING} builds running"),
        &[late],
        Duration::from_millis(100),
    )
}

/// Returns the time since the machine started, in seconds.
fn uptime() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").expect("/proc/uptime");
    text.split(' ').next().and_then(|text| text.parse().ok()).expect("a number")
}
