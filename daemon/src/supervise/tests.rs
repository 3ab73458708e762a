mod lives;
mod replaced;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;

use super::port::{ChildDriver, ChildLimits, ChildSpec, ChildStatus, DescendantPolicy, ProbeError};
use super::{Handle, SuperviseError};

/// A shell script that is ready when it has written its pid.
struct Script {
    pid_file: std::path::PathBuf,
    sweeps: AtomicUsize,
}

#[async_trait]
impl ChildDriver for Script {
    fn prepare(&self) -> Result<(), String> {
        Ok(())
    }
    async fn probe(&self) -> Result<String, ProbeError> {
        let text = std::fs::read_to_string(&self.pid_file).unwrap_or_default();
        match text.trim() {
            "too old" => Err(ProbeError::Refused("it is too old".to_owned())),
            pid if pid.parse::<u32>().is_ok() => Ok(pid.to_owned()),
            _ => Err(ProbeError::NoAnswer("no pid yet".to_owned())),
        }
    }
    fn explain(&self, _log_tail: &str) -> Option<String> {
        None
    }
    fn sweep(&self) -> Result<(), String> {
        let _ = std::fs::remove_file(&self.pid_file);
        self.sweeps.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn child(dir: &Path, script: &str) -> ChildSpec {
    let limits = ChildLimits {
        stop: Duration::from_millis(500),
        restart_first: Duration::from_millis(10),
        probe_every: Duration::from_millis(20),
        log_bytes: 4096,
        ..ChildLimits::default()
    };
    ChildSpec {
        name: "script",
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![("PID_FILE".into(), dir.join("pid").into())],
        root: dir.join("root"),
        log: dir.join("log"),
        descendants: DescendantPolicy::Killed,
        groups: Vec::new(),
        limits,
        driver: Arc::new(Script { pid_file: dir.join("pid"), sweeps: AtomicUsize::new(0) }),
    }
}

async fn ready(handle: &Handle) -> u32 {
    let mut status = handle.status();
    let wait = status.wait_for(|status| matches!(status, ChildStatus::Ready { .. }));
    match timeout(Duration::from_secs(10), wait).await.unwrap().unwrap().clone() {
        ChildStatus::Ready { version } => version.parse().unwrap(),
        _ => unreachable!(),
    }
}

fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

const WAITS: &str = "sleep 600 & sleep 600 & echo $$ > $PID_FILE; wait";

#[tokio::test]
async fn stopping_ends_the_child_and_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let handle = super::start(child(dir.path(), WAITS)).unwrap();
    let pid = ready(&handle).await;
    assert!(alive(pid));
    let group = children(pid);
    assert_eq!(group.len(), 2);
    handle.stop().await;
    assert!(!alive(pid) && !group.iter().any(|pid| alive(*pid)));
}

#[tokio::test]
async fn a_child_that_ignores_sigterm_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let script = "trap '' TERM; echo $$ > $PID_FILE; while :; do sleep 600; done";
    let handle = super::start(child(dir.path(), script)).unwrap();
    let pid = ready(&handle).await;
    timeout(Duration::from_secs(5), handle.stop()).await.unwrap();
    assert!(!alive(pid));
}

#[tokio::test]
async fn a_killed_child_is_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let handle = super::start(child(dir.path(), WAITS)).unwrap();
    let first = ready(&handle).await;
    let left = children(first);
    kill(first);
    let mut status = handle.status();
    let down = status.wait_for(|status| matches!(status, ChildStatus::Down { .. }));
    timeout(Duration::from_secs(10), down).await.unwrap().unwrap();
    let second = ready(&handle).await;
    assert_ne!(first, second);
    assert!(!left.iter().any(|pid| alive(*pid)), "the first life's processes were ended");
    handle.stop().await;
}

#[tokio::test]
async fn a_contained_child_takes_everything_with_it_when_it_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mark = format!("6{:07}", rand::random::<u32>() % 10_000_000);
    // The child sees itself as process 1; its descendant cleared its environment and left its process group.
    let script = format!("env -i setsid sleep {mark} & mount -t tmpfs t $PWD && echo $$ > $PID_FILE; wait");
    let mut child = child(dir.path(), &script);
    child.descendants = DescendantPolicy::Contained;
    child.limits.restart_first = Duration::from_secs(60);
    let handle = super::start(child).unwrap();
    assert_eq!(ready(&handle).await, 1);
    let sleeps = || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = all
            .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok().map(|line| (entry, line)));
        lines
            .filter(|(_, line)| *line == format!("sleep\0{mark}\0").into_bytes())
            .map(|(entry, _)| entry.file_name().to_str().unwrap().parse::<u32>().unwrap())
            .collect::<Vec<u32>>()
    };
    let begun = std::time::Instant::now();
    let sleep = loop {
        let found = sleeps();
        // The process becomes `sleep` after some time.
        if !found.is_empty() || begun.elapsed() > Duration::from_secs(10) {
            break found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(sleep.len(), 1);
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", sleep[0])).unwrap();
    kill(stat.split(' ').nth(3).unwrap().parse().unwrap());
    let mut status = handle.status();
    let down = status.wait_for(|status| matches!(status, ChildStatus::Down { .. }));
    timeout(Duration::from_secs(10), down).await.unwrap().unwrap();
    assert!(sleeps().is_empty());
    handle.stop().await;
}

#[tokio::test]
async fn a_root_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let handle = super::start(child(dir.path(), WAITS)).unwrap();
    let pid = ready(&handle).await;
    let second = super::start(child(dir.path(), WAITS));
    assert!(matches!(second, Err(SuperviseError::InUse { .. })));
    assert!(alive(pid));
    handle.stop().await;
}

#[tokio::test]
async fn a_dropped_runtime_leaves_no_child() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let pid = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async { ready(&super::start(child(&path, WAITS)).unwrap()).await })
    })
    .join()
    .unwrap();
    for _ in 0..100 {
        if !alive(pid) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!alive(pid));
    // Its descendants carry the marker and are killed at the next start.
    let handle = super::start(child(dir.path(), WAITS)).unwrap();
    ready(&handle).await;
    handle.stop().await;
}

#[tokio::test]
async fn a_stale_child_is_ended_before_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let mark = super::leftover::ProcessMarker::of("script", &root).unwrap();
    let (variable, value) = mark.variable();
    let mut stale = std::process::Command::new("sleep").arg("600").env(variable, value).spawn().unwrap();
    let mut other =
        std::process::Command::new("sleep").arg("600").env(variable, "script:0:0").spawn().unwrap();
    // Both processes show their own environment by now: spawning returns when the program is executed.
    let reaper = std::thread::spawn(move || stale.wait());
    let handle = super::start(child(dir.path(), WAITS)).unwrap();
    ready(&handle).await;
    assert!(!reaper.join().unwrap().unwrap().success(), "killed");
    assert!(other.try_wait().unwrap().is_none(), "another root's process lives");
    other.kill().unwrap();
    other.wait().unwrap();
    handle.stop().await;
}

#[tokio::test]
async fn the_reason_of_an_exit_is_its_last_line_and_the_log_stays_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let script = "for i in 1 2 3 4 5 6 7 8 9; do echo 'many words that fill the log of this child, line by line, until it is \
                  cut, again and again and again and again and again and again and again and again and again'; done; \
                  echo 'no such device' >&2; exit 3";
    let handle = super::start(child(dir.path(), script)).unwrap();
    let mut status = handle.status();
    let down = status.wait_for(|status| matches!(status, ChildStatus::Down { .. }));
    let ChildStatus::Down { reason } = timeout(Duration::from_secs(10), down).await.unwrap().unwrap().clone()
    else {
        unreachable!()
    };
    assert!(reason.contains("exit status: 3") && reason.contains("no such device"), "{reason}");
    tokio::time::sleep(Duration::from_millis(400)).await;
    handle.stop().await;
    assert!(std::fs::metadata(dir.path().join("log")).unwrap().len() < 4096 + 2048);
}

fn children(pid: u32) -> Vec<u32> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap()
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
