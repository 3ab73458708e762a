use super::*;

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

fn vertex(digest: &str, started: Option<i64>, completed: Option<i64>) -> api::Vertex {
    api::Vertex {
        digest: digest.to_owned(),
        name: format!("[1/2] RUN {digest}"),
        started: started.and_then(at),
        completed: completed.and_then(at),
        ..api::Vertex::default()
    }
}

fn log(digest: &str, text: &[u8], stream: i64) -> api::VertexLog {
    api::VertexLog { vertex: digest.to_owned(), stream, msg: text.to_vec(), ..api::VertexLog::default() }
}

fn message(vertexes: Vec<api::Vertex>, logs: Vec<api::VertexLog>) -> api::StatusResponse {
    api::StatusResponse { vertexes, logs, ..api::StatusResponse::default() }
}

fn words(events: &[BuildEventKind]) -> Vec<String> {
    let word = |event: &BuildEventKind| match event {
        BuildEventKind::StepStarted { step, .. } => format!("start {step}"),
        BuildEventKind::StepFinished { step, duration, .. } => format!("end {step} {}s", duration.as_secs()),
        BuildEventKind::StepLog { step, stream, data, .. } => format!("log {step} {stream:?} {}", data.len()),
        BuildEventKind::StepProgress { step, current, .. } => format!("progress {step} {current}"),
        other => format!("{other:?}"),
    };
    events.iter().map(word).collect()
}

#[test]
fn steps_are_numbered_as_first_seen_and_end_after_their_log() {
    let mut progress = SolveProgress::new("Dockerfile");
    let now = Instant::now();
    let update = message(
        vec![vertex("waiting", None, None), vertex("a", Some(10), Some(13)), vertex("b", Some(11), None)],
        vec![log("a", b"out", 1), log("b", b"error", 2)],
    );
    let events = progress.process_update(update, now);
    assert_eq!(words(&events), ["start 1", "start 2", "log 1 Stdout 3", "log 2 Stderr 5", "end 1 3s"]);
    assert_eq!(progress.running_commands(), 1);
    // A repeated message causes no event.
    assert!(progress.process_update(message(vec![vertex("a", Some(10), Some(13))], vec![]), now).is_empty());
    // A step that starts again keeps its number.
    let events = progress.process_update(message(vec![vertex("a", Some(20), None)], vec![]), now);
    assert_eq!(words(&events), ["start 1"]);
}

#[test]
fn the_end_of_a_step_waits_for_a_log_that_was_cut() {
    let mut progress = SolveProgress::new("Dockerfile");
    let now = Instant::now();
    let big = vec![b'x'; CUT + 1];
    let events =
        progress.process_update(message(vec![vertex("a", Some(1), Some(2))], vec![log("a", &big, 1)]), now);
    assert_eq!(words(&events), ["start 1".to_owned(), format!("log 1 Stdout {}", CUT + 1)]);
    let events = progress.process_update(message(vec![], vec![log("a", b"rest", 1)]), now);
    assert_eq!(words(&events), ["log 1 Stdout 4", "end 1 1s"]);
    assert!(progress.finish().is_empty());
}

#[test]
fn progress_lines_are_thinned_and_the_last_one_is_kept() {
    let mut progress = SolveProgress::new("Dockerfile");
    let now = Instant::now();
    let mut status = |current: i64, completed: bool, after: u64| {
        let status = api::VertexStatus {
            id: "transferring".to_owned(),
            vertex: "a".to_owned(),
            current,
            completed: if completed { at(1) } else { None },
            ..api::VertexStatus::default()
        };
        let update = api::StatusResponse { statuses: vec![status], ..api::StatusResponse::default() };
        words(&progress.process_update(update, now + Duration::from_millis(after)))
    };
    assert_eq!(status(1, false, 0), ["progress 1 1"]);
    assert!(status(2, false, 100).is_empty());
    assert_eq!(status(3, false, 300), ["progress 1 3"]);
    assert_eq!(status(4, true, 310), ["progress 1 4"]);
}

#[test]
fn a_warning_shows_the_lines_it_is_about() {
    let mut progress = SolveProgress::new("sub/Dockerfile");
    let position = |line| Some(pb::Position { line, character: 0 });
    let warning = api::VertexWarning {
        short: b"MaintainerDeprecated".to_vec(),
        url: "https://docs.docker.com/go/x".to_owned(),
        info: Some(pb::SourceInfo {
            data: b"FROM a\nMAINTAINER \\\n me\n".to_vec(),
            ..pb::SourceInfo::default()
        }),
        ranges: vec![pb::Range { start: position(2), end: position(3) }],
        ..api::VertexWarning::default()
    };
    let update = api::StatusResponse { warnings: vec![warning], ..api::StatusResponse::default() };
    let events = progress.process_update(update, Instant::now());
    let [BuildEventKind::Warning { message, dockerfile: Some(range), .. }] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!(message, "MaintainerDeprecated");
    assert_eq!(
        (range.path.to_string().as_str(), range.start_line, range.end_line),
        ("/sub/Dockerfile", 2, 3)
    );
    assert_eq!(range.text, "MAINTAINER \\\n me");
}

#[test]
fn parallel_steps_are_distinguished_from_sequential_ones() {
    let mut progress = SolveProgress::new("Dockerfile");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let ago = |seconds: u64| Some(i64::try_from(now - seconds).unwrap());
    let cached = api::Vertex { cached: true, ..vertex("cached", ago(10), ago(10)) };
    let update =
        message(vec![vertex("first", ago(90), ago(60)), vertex("second", ago(50), ago(10)), cached], vec![]);
    progress.process_update(update, Instant::now());
    assert!(!progress.ran_beside_another("second"));
    progress.process_update(message(vec![vertex("beside", ago(20), None)], vec![]), Instant::now());
    assert!(progress.ran_beside_another("second"));
}

#[test]
fn the_commit_of_a_repository_is_the_one_that_buildkit_takes() {
    let (a, b) = ("a".repeat(40), "b".repeat(64));
    for (log, expected) in [
        (format!("{a}\trefs/tags/v1\n{b}\trefs/tags/v1^{{}}\n"), Some(&b)),
        (format!("{b}\trefs/tags/main\n{a}\trefs/heads/main\n"), Some(&a)),
        (format!("{b}\trefs/heads/x/main\n{a}\trefs/heads/main\n"), Some(&a)),
        (format!("ref: refs/heads/main\tHEAD\n{a}\tHEAD\n"), Some(&a)),
        ("c0ffee\trefs/heads/main\n".to_owned(), None),
        ("\u{0}\t".to_owned(), None),
    ] {
        assert_eq!(listed_commit(log.as_bytes()).as_ref(), expected, "{log}");
    }
}
