//! Supervision loop of one child.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::leftover::{self, ProcessMarker};
use super::log;
use super::port::{ChildLimits, ChildSpec, ChildStatus, DescendantPolicy, ProbeError};
use super::spawn::{self, ChildProcess};

/// Minimum number of failed probes in a row after which a child no longer answers.
const MISSED_PROBES: u32 = 3;
/// Time limit for one probe of a child that is starting.
const START_PROBE_LIMIT: Duration = Duration::from_secs(5);
/// Pause after a failed probe of a child that was ready.
const MISSED_PAUSE: Duration = Duration::from_millis(500);
/// Interval between probes of a child that has not answered yet.
const START_POLL: Duration = Duration::from_millis(20);
/// Time limit for an exit after SIGKILL. A process in an uninterruptible wait may take longer, and is left to the next
/// start.
const KILL_LIMIT: Duration = Duration::from_secs(5);

pub(super) struct ChildSupervisor {
    pub(super) child: ChildSpec,
    pub(super) root: PathBuf,
    pub(super) mark: ProcessMarker,
    pub(super) status: watch::Sender<ChildStatus>,
    pub(super) stop: CancellationToken,
    /// Set if the stop is to be without a grace period.
    pub(super) kill: Arc<AtomicBool>,
    pub(super) restart: Arc<Notify>,
    /// Process id of the running child; 0 while none runs.
    pub(super) pid: Arc<AtomicU32>,
    pub(super) _lock: File,
}

/// Result of one run of the child.
enum ChildRunEnd {
    Stopped,
    /// The child is to be started again at once.
    Restarted,
    Failed(String),
    /// The child runs and no longer answers.
    Silent(String),
}

/// Pause before the next start of a child that has exited.
struct RestartPause<'l> {
    limits: &'l ChildLimits,
    next: Duration,
}

impl<'l> RestartPause<'l> {
    const fn new(limits: &'l ChildLimits) -> Self {
        Self { limits, next: limits.restart_first }
    }

    /// Returns the pause after a run of this length.
    fn after(&mut self, lived: Duration) -> Duration {
        if lived >= self.limits.restart_reset {
            self.next = self.limits.restart_first;
        }
        let wait = self.next.min(self.limits.restart_most);
        self.next = wait.saturating_mul(2);
        wait
    }
}

impl ChildSupervisor {
    pub(super) async fn run(self) {
        let mut pause = RestartPause::new(&self.child.limits);
        loop {
            let started = Instant::now();
            let end = self.run_once().await;
            self.remove_leftovers().await;
            match end {
                ChildRunEnd::Stopped => break,
                ChildRunEnd::Restarted => {}
                ChildRunEnd::Failed(reason) | ChildRunEnd::Silent(reason) => {
                    let wait = pause.after(started.elapsed());
                    tracing::warn!(child = self.child.name, error = %reason, pause = ?wait, "child went down; restarting it");
                    self.status.send_replace(ChildStatus::Down { reason });
                    if timeout(wait, self.stop.cancelled()).await.is_ok() {
                        break;
                    }
                }
            }
        }
        self.status.send_replace(ChildStatus::Down { reason: format!("{} was stopped", self.child.name) });
    }

    async fn run_once(&self) -> ChildRunEnd {
        self.remove_leftovers().await;
        let kind = self.child.driver.clone();
        let ready = crate::task::blocking("prepare", move || kind.prepare()).await;
        if let Err(reason) = ready.unwrap_or_else(|error| Err(error.to_string())) {
            return ChildRunEnd::Failed(reason);
        }
        if self.stop.is_cancelled() {
            return ChildRunEnd::Stopped;
        }
        let log_start = log::length(&self.child.log);
        let mut process = match self.spawn().await {
            Ok(process) => process,
            Err(error) => {
                return ChildRunEnd::Failed(format!(
                    "cannot start `{}`: {error}",
                    self.child.program.display()
                ));
            }
        };
        tracing::info!(child = self.child.name, pid = process.pid, "child started");
        self.pid.store(process.pid, Ordering::Release);
        let end = tokio::select! {
            exit = process.wait() => Err(exit),
            end = self.probe_until_stop() => Ok(end),
        };
        self.pid.store(0, Ordering::Release);
        let end = match end {
            Ok(end) => end,
            Err(exit) => return ChildRunEnd::Failed(self.exit_reason(&exit, log_start).await),
        };
        if matches!(end, ChildRunEnd::Restarted) {
            // Nobody begins to use a child that is about to end.
            self.publish(ChildStatus::Starting);
        }
        if let ChildRunEnd::Silent(reason) = &end {
            tracing::error!(child = self.child.name, pid = process.pid, error = %reason, "child no longer answers; ending it");
            // Whoever keeps the child from its exit, such as open sessions, lets go of it now.
            self.publish(ChildStatus::Down { reason: reason.clone() });
            self.stop_process(&mut process, self.child.limits.stop_silent).await;
        } else {
            self.stop_process(&mut process, self.child.limits.stop).await;
        }
        end
    }

    async fn spawn(&self) -> io::Result<ChildProcess> {
        log::truncate(&self.child.log, self.child.limits.log_bytes)?;
        let out = log::open(&self.child.log)?;
        let (variable, value) = self.mark.variable();
        let mut command = Command::new(&self.child.program);
        command
            .args(&self.child.args)
            .envs(self.child.env.iter().map(|(key, value)| (key, value)))
            .env(variable, value)
            .current_dir(&self.root)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        let contained = self.child.descendants == DescendantPolicy::Contained;
        let groups = open_groups(&self.child.groups)?;
        let spawn = spawn::spawn(self.child.name, command, contained, groups);
        let spawned = timeout(self.child.limits.start, spawn).await;
        spawned.unwrap_or_else(|_| Err(io::Error::other("it did not start in time")))
    }

    /// Probes a running child; returns when it must be stopped.
    async fn probe_until_stop(&self) -> ChildRunEnd {
        let limits = &self.child.limits;
        let born = Instant::now();
        let mut last_answer = None;
        let mut misses = 0;
        loop {
            let limit = if last_answer.is_some() { limits.probe } else { START_PROBE_LIMIT };
            let probe = timeout(limit, self.child.driver.probe());
            let answer = tokio::select! {
                () = self.stop.cancelled() => return ChildRunEnd::Stopped,
                answer = probe => answer.unwrap_or_else(|_| Err(ProbeError::NoAnswer("no answer in time".to_owned()))),
            };
            let mut pause = limits.probe_every;
            match answer {
                Ok(version) => {
                    if last_answer.is_none() {
                        tracing::info!(child = self.child.name, %version, after = ?born.elapsed(), "child became ready");
                    }
                    last_answer = Some(Instant::now());
                    misses = 0;
                    self.publish(ChildStatus::Ready { version });
                }
                Err(ProbeError::Refused(reason)) => return ChildRunEnd::Failed(reason),
                Err(ProbeError::NoAnswer(reason)) => match last_answer {
                    Some(last) => {
                        misses += 1;
                        if misses >= MISSED_PROBES && last.elapsed() >= limits.silence {
                            let name = self.child.name;
                            return ChildRunEnd::Silent(format!(
                                "{name} runs, but no longer answers: {reason}"
                            ));
                        }
                        pause = MISSED_PAUSE.min(limits.probe_every);
                    }
                    None => {
                        if born.elapsed() > limits.start {
                            return ChildRunEnd::Failed(format!(
                                "{} did not answer after its start: {reason}",
                                self.child.name
                            ));
                        }
                        self.publish(ChildStatus::Starting);
                        pause = START_POLL;
                    }
                },
            }
            if let Err(error) = log::truncate(&self.child.log, limits.log_bytes) {
                tracing::warn!(child = self.child.name, %error, "failed to truncate the log of a child");
            }
            tokio::select! {
                () = self.stop.cancelled() => return ChildRunEnd::Stopped,
                () = self.restart.notified() => return ChildRunEnd::Restarted,
                () = sleep(pause) => {}
            }
        }
    }

    /// Ends the child: SIGTERM, `grace`, SIGKILL.
    async fn stop_process(&self, process: &mut ChildProcess, grace: Duration) {
        if !self.kill.load(Ordering::Acquire) {
            process.signal(Signal::TERM);
            if timeout(grace, process.wait()).await.is_ok() {
                return;
            }
            tracing::warn!(child = self.child.name, limit = ?grace, "child ignored SIGTERM; killed");
        }
        process.signal(Signal::KILL);
        if timeout(KILL_LIMIT, process.wait()).await.is_err() {
            tracing::error!(child = self.child.name, pid = process.pid, "child did not exit after SIGKILL");
        }
    }

    /// Removes the leftovers of an earlier run. A failure is only logged: it shows again at the start.
    async fn remove_leftovers(&self) {
        let (mark, root, kind, name) =
            (self.mark.clone(), self.root.clone(), self.child.driver.clone(), self.child.name);
        let only =
            (self.child.descendants == DescendantPolicy::Surviving).then(|| self.child.program.clone());
        let done = crate::task::blocking("clean-up", move || {
            match leftover::kill_marked_processes(&mark, only.as_deref()) {
                Ok(0) => {}
                Ok(count) => tracing::info!(child = name, count, "killed processes of an earlier run"),
                Err(error) => tracing::error!(child = name, %error, "failed to kill leftover processes"),
            }
            if let Err(error) = kind.sweep() {
                tracing::error!(child = name, %error, "failed to remove leftovers of an earlier run");
            }
            if only.is_some() {
                return;
            }
            match leftover::unmount_below(&root) {
                Ok(0) => {}
                Ok(count) => tracing::info!(child = name, count, "unmounted leftovers of an earlier run"),
                Err(error) => tracing::error!(child = name, %error, "failed to unmount leftovers"),
            }
        });
        if let Err(error) = done.await {
            tracing::error!(child = name, %error, "clean-up task panicked");
        }
    }

    async fn exit_reason(&self, exit: &str, log_start: u64) -> String {
        let path = self.child.log.clone();
        let tail = crate::task::blocking("log-tail", move || log::tail(&path, log_start)).await;
        let tail = tail.ok().and_then(Result::ok).unwrap_or_default();
        let reason = self
            .child
            .driver
            .explain(&tail)
            .or_else(|| tail.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned));
        let log = self.child.log.display();
        match reason {
            Some(reason) => format!("{} ended ({exit}): {reason} (log: {log})", self.child.name),
            None => format!("{} ended ({exit}); its log is {log}", self.child.name),
        }
    }

    fn publish(&self, status: ChildStatus) {
        self.status.send_if_modified(|now| {
            let changed = *now != status;
            if changed {
                *now = status;
            }
            changed
        });
    }
}

/// Opens the control group files that exist.
fn open_groups(paths: &[PathBuf]) -> io::Result<Vec<OwnedFd>> {
    let mut files = Vec::new();
    for path in paths {
        match File::options().write(true).open(path) {
            Ok(file) => files.push(file.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_a_limit_and_is_short_again_after_a_long_life() {
        let limits = ChildLimits::default();
        let mut pause = RestartPause::new(&limits);
        let moment = Duration::from_millis(1);
        let waits: Vec<u128> = (0..10).map(|_| pause.after(moment).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        assert_eq!(pause.after(limits.restart_reset - moment), limits.restart_most);
        assert_eq!(pause.after(limits.restart_reset), limits.restart_first);
        assert_eq!(pause.after(moment), limits.restart_first * 2);
    }
}
