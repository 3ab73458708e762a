//! What the supervisor is told of a child, and what it tells of one.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

/// A program that the daemon owns and keeps running.
pub struct Child {
    /// For logs and errors, such as `buildkitd`.
    pub name: &'static str,
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// Added to the daemon's own environment.
    pub env: Vec<(OsString, OsString)>,
    /// Directory that belongs to this child alone. It is made when missing (mode 0700). Processes
    /// of the child carry its identity, and mounts below it are the child's.
    pub root: PathBuf,
    /// Where stdout and stderr go; one older file is kept beside it, with `.1` added.
    pub log: PathBuf,
    pub offspring: Offspring,
    /// Files to which the child writes `0` before its program begins, to enter control groups. Missing ones are passed
    /// over.
    pub groups: Vec<PathBuf>,
    pub limits: Limits,
    pub kind: Arc<dyn Kind>,
}

/// What becomes of what a child started and mounted when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offspring {
    /// It ends with it, in pid and mount namespaces of their own. Needs CAP_SYS_ADMIN.
    Contained,
    /// It is ended after it.
    Ended,
    /// It lives on and is taken back by the child's next life, as instances are by containerd: only processes of
    /// the program itself are ended.
    Lasting,
}

/// Times and sizes, each with the default that suits a build daemon.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the start of the process to its first answer.
    pub start: Duration,
    /// Between SIGTERM and SIGKILL.
    pub stop: Duration,
    /// First wait before a restart; doubles with every further one.
    pub restart_first: Duration,
    pub restart_most: Duration,
    /// A child that ran this long starts again with the first wait.
    pub restart_reset: Duration,
    /// Between two questions whether it still answers; also how often the log's size is looked at.
    pub probe_every: Duration,
    pub log_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(30),
            stop: Duration::from_secs(10),
            restart_first: Duration::from_millis(200),
            restart_most: Duration::from_secs(30),
            restart_reset: Duration::from_secs(60),
            probe_every: Duration::from_secs(5),
            log_bytes: 16 << 20,
        }
    }
}

/// What differs between one kind of child and another.
#[async_trait]
pub trait Kind: Send + Sync + 'static {
    /// What must be there before a start, checked each time: the program, capabilities, its
    /// settings file. Blocking. An error is the reason that is shown.
    fn prepare(&self) -> Result<(), String>;

    /// Asks a running child for its version.
    async fn probe(&self) -> Result<String, ProbeError>;

    /// The reason of an exit, from the end of the log.
    fn explain(&self, log_tail: &str) -> Option<String>;

    /// Ends what a killed child left behind and the supervisor cannot know of. Blocking; runs
    /// before every start and after every end, and must not fail where there is nothing.
    fn sweep(&self) -> Result<(), String>;
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// No answer yet, or not any more.
    #[error("{0}")]
    NoAnswer(String),
    /// It answers and must not be used, such as for its version.
    #[error("{0}")]
    Refused(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    Starting,
    Ready { version: String },
    Down { reason: String },
}
