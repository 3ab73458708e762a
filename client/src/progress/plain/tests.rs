use hearth_proto::v1::{BuildWarning, DockerfileRange, LogStream, StepLog, StepStarted};

use super::*;

fn shown(events: Vec<(i64, Event)>) -> String {
    let mut out = Vec::new();
    let mut plain = PlainBuildRenderer::new(&mut out);
    for (sequence, (milliseconds, event)) in (1..).zip(events) {
        let nanos = i32::try_from(milliseconds % 1000 * 1_000_000).unwrap();
        let time = Some(prost_types::Timestamp { seconds: 1000 + milliseconds / 1000, nanos });
        plain.event(&BuildEvent { sequence, time, event: Some(event) });
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
#1 [internal] load build context
#1 transferring context: 2.10 MB / 2.10 MB
#1 DONE 0.0s

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
    assert_eq!(text, "#1 a\n\n#2 b\n\n#1 a\n#1 1.000 one\n\n#2 b\n#2 1.500 two\n#2 ERROR: exit code 7\n");
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
