use hearth_proto::v1::{BuildWarning, DockerfileRange, LogStream, StepLog, StepStarted};

use super::*;

fn shown(events: Vec<(i64, Event)>) -> String {
    let mut out = Vec::new();
    let mut plain = PlainBuildRenderer::new(&mut out);
    for (sequence, (milliseconds, event)) in (1..).zip(events) {
        let nanos = i32::try_from(milliseconds % 1000 * 1_000_000).unwrap();
        let time = Some(prost_types::Timestamp { seconds: 1000 + milliseconds / 1000, nanos });
        plain.event(&BuildEvent { sequence, time, event: Some(event), damaged_events: 0 });
    }
    drop(plain);
    String::from_utf8(out).unwrap()
}

fn started(step: u32, name: &str) -> Event {
    Event::StepStarted(StepStarted { step, name: name.into() })
}

fn log(step: u32, stream: LogStream, data: &str) -> Event {
    Event::StepLog(StepLog { step, stream: stream.into(), data: data.to_owned().into(), dropped_bytes: 0 })
}

fn finished(step: u32, milliseconds: i64, cached: bool, error: &str) -> Event {
    let duration = prost_types::Duration {
        seconds: milliseconds / 1000,
        nanos: i32::try_from(milliseconds % 1000 * 1_000_000).unwrap(),
    };
    Event::StepFinished(StepFinished { step, cached, duration: Some(duration), error: error.into() })
}

#[test]
fn a_build_reads_like_a_log() {
    let text = shown(vec![
        (0, Event::StateChanged(BuildState::Queued.into())),
        (1, Event::StateChanged(BuildState::Running.into())),
        (10, started(1, "[internal] load build context")),
        (
            20,
            Event::StepProgress(StepProgress {
                step: 1,
                name: "transferring context".into(),
                current: 500,
                total: 2_100_000,
            }),
        ),
        (
            30,
            Event::StepProgress(StepProgress {
                step: 1,
                name: "transferring context".into(),
                current: 2_100_000,
                total: 2_100_000,
            }),
        ),
        (40, finished(1, 30, false, "")),
        (50, started(2, "[1/3] FROM busybox")),
        (51, finished(2, 0, true, "")),
        (100, started(3, "[2/3] RUN make")),
        (512, log(3, LogStream::Stdout, "cc main.c\ncc un")),
        (600, log(3, LogStream::Stderr, "warning: x\n")),
        (700, log(3, LogStream::Stdout, "finished.c")),
        (1300, finished(3, 1200, false, "")),
    ]);
    assert_eq!(
        text,
        "\
queued
preparing
#2 [1/3] FROM busybox
#2 CACHED

#3 [2/3] RUN make
#3 0.412 cc main.c
#3 0.500 ! warning: x
#3 1.200 cc unfinished.c
#3 DONE 1.2s
"
    );
}

#[test]
fn the_output_of_parallel_steps_is_kept_apart() {
    let text = shown(vec![
        (0, started(1, "a")),
        (0, started(2, "b")),
        (1000, log(1, LogStream::Stdout, "one\n")),
        (1500, log(2, LogStream::Stdout, "two\n")),
        (2000, finished(2, 2000, false, "exit code 7")),
    ]);
    assert_eq!(text, "#1 a\n\n#2 b\n\n#1 a\n#1 1.000 one\n\n#2 b\n#2 1.500 two\n#2 FAILED 2.0s\n");
}

#[test]
fn warnings_and_gaps_are_printed() {
    let range = DockerfileRange { path: "/context/Dockerfile".into(), start_line: 3, ..Default::default() };
    let warning =
        BuildWarning { message: "bad case".into(), url: "https://d/x".into(), dockerfile: Some(range) };
    let gap = StepLog { step: 1, stream: 1, data: "x\n".into(), dropped_bytes: 2000 };
    let text = shown(vec![(0, Event::Warning(warning)), (0, started(1, "a")), (0, Event::StepLog(gap))]);
    assert_eq!(
        text,
        "warning: bad case (/context/Dockerfile:3, https://d/x)\n#1 a\n\
         #1 (2.00 kB of log left out: the build's quota is used up)\n#1 0.000 x\n"
    );
}

#[test]
fn a_long_transfer_of_the_context_is_shown_and_what_only_buildkit_sees_is_not() {
    let sent = |current| {
        Event::StepProgress(StepProgress {
            step: 2,
            name: "transferring context".into(),
            current,
            total: 200_000_000,
        })
    };
    let text = shown(vec![
        (0, started(1, "[internal] load metadata for 127.0.0.1:41015/busybox:1")),
        (10, finished(1, 10, false, "")),
        (20, started(2, "[internal] load build context")),
        (1000, sent(40_000_000)),
        (6000, sent(100_000_000)),
        (9000, sent(200_000_000)),
        (9010, finished(2, 8990, false, "")),
        (9020, started(3, "[1/2] FROM 127.0.0.1:41015/busybox:1@sha256:9b2c")),
        (9030, finished(3, 10, false, "")),
    ]);
    assert_eq!(
        text,
        "preparing\npreparing: transferring context: 100.00 MB / 200.00 MB\n#3 [1/2] FROM busybox:1\n#3 DONE 0.0s\n"
    );
}

#[test]
fn an_error_is_left_to_the_end_and_a_step_that_was_stopped_is_none() {
    let error = |step: &str| hearth_proto::v1::ErrorDetail { step: step.into(), ..Default::default() };
    let ended = |step: &str| {
        Event::Finished(hearth_proto::v1::Build { error: Some(error(step)), ..Default::default() })
    };
    let steps = || {
        vec![
            (0, started(1, "RUN a")),
            (0, started(2, "RUN b")),
            (0, started(3, "RUN c")),
            (10, finished(1, 10, false, "exit code: 1")),
            (10, finished(2, 10, false, "exit code: 2")),
            (10, finished(3, 10, false, "RUN c: context canceled: context canceled")),
        ]
    };
    let text = shown(steps().into_iter().chain([(20, ended("RUN a"))]).collect());
    assert_eq!(text.matches("exit code").count(), 1, "{text}");
    assert!(text.contains("#2 ERROR: exit code: 2") && text.contains("#3 STOPPED 0.0s"), "{text}");
    let one = vec![(0, started(1, "RUN a")), (10, finished(1, 10, false, "exit code: 1")), (20, ended(""))];
    assert_eq!(shown(one), "#1 RUN a\n#1 FAILED 0.0s\n");
}
