//! Types with which a child is described to the supervisor, and its status.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

/// A program that the daemon owns and keeps running.
pub struct ChildSpec {
    /// Name for logs and errors, such as `buildkitd`.
    pub name: &'static str,
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// Variables added to the daemon's own environment.
    pub env: Vec<(OsString, OsString)>,
    /// Directory that belongs to this child alone, created if missing (mode 0700). Processes of the child carry its
    /// identity, and mounts below it are the child's.
    pub root: PathBuf,
    /// File for stdout and stderr; one older file is kept beside it, with `.1` appended.
    pub log: PathBuf,
    pub descendants: DescendantPolicy,
    /// Files to which the child writes `0` before its program begins, to enter control groups. Missing files are
    /// skipped.
    pub groups: Vec<PathBuf>,
    pub limits: ChildLimits,
    pub driver: Arc<dyn ChildDriver>,
}

/// Treatment of a child's descendants and mounts when the child exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescendantPolicy {
    /// They end with the child, in pid and mount namespaces of their own. Needs CAP_SYS_ADMIN.
    Contained,
    /// They are killed after the child's exit.
    Killed,
    /// They keep running and are taken over by the next run of the child, as containerd does with instances: only
    /// processes of the program itself are killed.
    Surviving,
}

/// Times and sizes, each with the default that suits a build daemon.
#[derive(Clone, Debug)]
pub struct ChildLimits {
    /// Time limit from the start of the process to its first successful probe.
    pub start: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub stop: Duration,
    /// First pause before a restart; doubles with every further one up to `restart_most`.
    pub restart_first: Duration,
    pub restart_most: Duration,
    /// Run time after which the pause is reset to the first one.
    pub restart_reset: Duration,
    /// Interval between probes of a ready child, and between checks of the log's size.
    pub probe_every: Duration,
    /// Time limit for one probe of a child that was ready.
    pub probe: Duration,
    /// Time without an answer after which a child that was ready is ended and started again. At least three probes
    /// have failed by then, so that a child is not ended because the daemon itself stood still.
    pub silence: Duration,
    /// Time between SIGTERM and SIGKILL for a child that no longer answers.
    pub stop_silent: Duration,
    pub log_bytes: u64,
}

impl Default for ChildLimits {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(30),
            stop: Duration::from_secs(10),
            restart_first: Duration::from_millis(200),
            restart_most: Duration::from_secs(30),
            restart_reset: Duration::from_secs(60),
            // A child that no longer answers is running again 15 s later: 2 s to the next probe, 8 s of silence with
            // the last probe, 3 s to its end, and its start.
            probe_every: Duration::from_secs(2),
            probe: Duration::from_secs(2),
            silence: Duration::from_secs(8),
            stop_silent: Duration::from_secs(3),
            log_bytes: 16 << 20,
        }
    }
}

/// The parts of supervision that are specific to a program.
#[async_trait]
pub trait ChildDriver: Send + Sync + 'static {
    /// Checks the preconditions of a start, each time: the program, capabilities, its settings file. Blocking. An error
    /// is the reason that is shown.
    fn prepare(&self) -> Result<(), String>;

    /// Queries a running child for its version.
    async fn probe(&self) -> Result<String, ProbeError>;

    /// Extracts the reason of an exit from the end of the log.
    fn explain(&self, log_tail: &str) -> Option<String>;

    /// Removes leftovers of a killed child that the supervisor does not know about. Blocking; runs before every start
    /// and after every exit, and must succeed if there is nothing to remove.
    fn sweep(&self) -> Result<(), String>;
}

/// Reason of a failed probe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The child does not answer, or not yet.
    #[error("{0}")]
    NoAnswer(String),
    /// The child answers but must not be used, for example because of its version.
    #[error("{0}")]
    Refused(String),
}

/// Status of a supervised child. On `Down`, whoever holds connections that keep the child from its exit closes them: the
/// child may still run, and is ended then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChildStatus {
    Starting,
    Ready { version: String },
    Down { reason: String },
}
