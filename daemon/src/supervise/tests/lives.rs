//! Successive runs of a child: growing pauses, missing answers, and children that must not be used.

use std::time::Instant;

use super::*;

/// Time limit for expected events.
const PATIENCE: Duration = Duration::from_secs(30);

async fn down(handle: &Handle, why: &str) -> String {
    let mut status = handle.status();
    let is_it = |status: &ChildStatus| matches!(status, ChildStatus::Down { reason } if reason.contains(why));
    match timeout(PATIENCE, status.wait_for(is_it)).await.unwrap().unwrap().clone() {
        ChildStatus::Down { reason } => reason,
        _ => unreachable!(),
    }
}

/// Returns the start times of the runs of a script that appends a line to `starts` at each start, once there are
/// `count`. Nanoseconds.
async fn starts(dir: &Path, count: usize) -> Vec<u64> {
    let begun = Instant::now();
    loop {
        let text = std::fs::read_to_string(dir.join("starts")).unwrap_or_default();
        let starts: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
        if starts.len() >= count {
            return starts;
        }
        assert!(begun.elapsed() < PATIENCE, "{} of {count} starts", starts.len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_child_that_ends_again_and_again_is_started_ever_more_seldom() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = child(dir.path(), "date +%s%N >> ../starts; exit 1");
    child.limits.restart_first = Duration::from_millis(20);
    child.limits.restart_most = Duration::from_millis(160);
    let handle = super::super::start(child).unwrap();
    // Doubled without a limit, the last of these pauses would take 41 s.
    let starts = starts(dir.path(), 13).await;
    handle.stop().await;
    let pauses: Vec<u64> = starts.windows(2).map(|pair| (pair[1] - pair[0]) / 1_000_000).collect();
    for (pause, least) in pauses.iter().zip([20, 40, 80, 160, 160, 160, 160]) {
        assert!(*pause >= least, "{least} ms at least: {pauses:?}");
    }
}

#[tokio::test]
async fn a_child_that_no_longer_answers_is_ended_and_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = child(
        dir.path(),
        "trap '' TERM; echo $$ >> ../pids; echo $$ > $PID_FILE; while :; do sleep 600; done",
    );
    child.limits.silence = Duration::from_millis(300);
    child.limits.stop_silent = Duration::from_millis(300);
    child.limits.stop = Duration::from_secs(120);
    let handle = super::super::start(child).unwrap();
    let pid = ready(&handle).await;
    let begun = Instant::now();
    std::fs::remove_file(dir.path().join("pid")).unwrap();
    let reason = down(&handle, "no pid yet").await;
    assert!(reason.contains("script runs, but no longer answers"), "{reason}");
    assert!(alive(pid), "those who hold it are told before it is ended");
    let next = ready(&handle).await;
    assert!(next != pid && !alive(pid) && begun.elapsed() < PATIENCE / 2);
    handle.kill().await;
}

#[tokio::test]
async fn a_restart_that_was_asked_for_has_no_pause() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = child(dir.path(), WAITS);
    child.limits.restart_first = Duration::from_secs(60);
    let handle = super::super::start(child).unwrap();
    let pid = ready(&handle).await;
    assert!(handle.resident_memory().unwrap() > 0);
    let mut status = handle.status();
    handle.restart();
    let other = |status: &ChildStatus| *status != ChildStatus::Ready { version: pid.to_string() };
    timeout(PATIENCE, status.wait_for(other)).await.unwrap().unwrap();
    assert!(ready(&handle).await != pid && !alive(pid));
    handle.stop().await;
}

#[tokio::test]
async fn one_answer_that_stays_away_is_no_news() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = child(dir.path(), WAITS);
    child.limits.probe_every = Duration::from_millis(300);
    let handle = super::super::start(child).unwrap();
    let pid = ready(&handle).await;
    let mut status = handle.status();
    status.borrow_and_update();
    std::fs::remove_file(dir.path().join("pid")).unwrap();
    tokio::time::sleep(Duration::from_millis(350)).await;
    std::fs::write(dir.path().join("pid"), pid.to_string()).unwrap();
    assert!(timeout(Duration::from_millis(700), status.changed()).await.is_err(), "{:?}", *status.borrow());
    handle.stop().await;
}

#[tokio::test]
async fn a_child_that_must_not_be_used_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = child(dir.path(), "echo $$ > ../real; echo too old > $PID_FILE; sleep 600");
    child.limits.restart_first = Duration::from_secs(60);
    let handle = super::super::start(child).unwrap();
    assert_eq!(down(&handle, "").await, "it is too old");
    let pid = std::fs::read_to_string(dir.path().join("real")).unwrap().trim().parse().unwrap();
    assert!(!alive(pid));
    handle.stop().await;
}

#[tokio::test]
async fn a_child_that_never_answers_is_ended_and_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = child(dir.path(), "date +%s%N >> ../starts; echo $$ > ../real; sleep 600");
    child.limits.start = Duration::from_millis(200);
    child.limits.restart_first = Duration::from_secs(1);
    let handle = super::super::start(child).unwrap();
    let reason = down(&handle, "did not answer").await;
    assert!(reason.contains("no pid yet"), "{reason}");
    let pid = std::fs::read_to_string(dir.path().join("real")).unwrap().trim().parse().unwrap();
    assert!(!alive(pid));
    starts(dir.path(), 2).await;
    handle.stop().await;
}
