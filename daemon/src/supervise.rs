//! Supervisor for child programs: the daemon starts, probes, restarts and stops them.
//!
//! ```text
//!            +------------------------------------------------------------+
//!            v                                                            |
//! sweep -> prepare -> start -> Starting --probe--> Ready                  |
//!                       |          |                 |                    |
//!                       |          '----- exit ------+--- no answer for   |
//!                       '-> Down(reason) <-----------'    8 s: ended      |
//!                               '------- wait, doubling 0.2 s..30 s ------'
//! ```
//!
//! A child that no longer answers is reported as down first, so that whoever keeps it from its exit lets go of it (see
//! [`ChildStatus`]), and then ended with SIGTERM and soon SIGKILL.
//!
//! No child outlives the daemon, and no process is killed by a number alone:
//!
//! - The kernel kills the child when the thread that started it ends, so each child is started from a thread of its
//!   own that lives as long as the child does.
//! - A contained child ([`port::DescendantPolicy::Contained`]) takes all its processes and mounts with it.
//! - Every process of a child carries a marker in its environment: the child's name and the device and inode of its
//!   root directory. At each start and stop, every process with the marker is killed through a pidfd, so that a reused
//!   pid is never hit, nor the child of a daemon with another state directory, nor one of the same path in another
//!   container.
//! - Mounts below the root that a killed child left are unmounted, and [`port::ChildDriver::sweep`] removes what the
//!   marker does not reach (containers).
//! - A lock on the root directory identifies its owner: a second daemon is refused and kills nothing.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub mod leftover;
pub mod log;
pub mod owner;
pub mod port;
pub mod program;
pub mod readiness;
mod run;
pub mod settings_file;
mod spawn;

use port::{ChildSpec, ChildStatus};

#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    #[error("{name} directory `{path}`: {source}")]
    Root { name: &'static str, path: PathBuf, source: io::Error },
    #[error("{name} directory `{path}` is in use by another daemon; give each its own state directory")]
    InUse { name: &'static str, path: PathBuf },
}

/// Handle of a supervised child.
#[derive(Debug)]
pub struct Handle {
    status: watch::Receiver<ChildStatus>,
    stop: CancellationToken,
    kill: Arc<AtomicBool>,
    restart: Arc<Notify>,
    pid: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

/// Locks the child's root directory and starts the supervision. Returns at once: [`Handle::status`] reports when the
/// child is ready.
pub fn start(child: ChildSpec) -> Result<Handle, SuperviseError> {
    let name = child.name;
    let failed = |source| SuperviseError::Root { name, path: child.root.clone(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&child.root).map_err(failed)?;
    let root = child.root.canonicalize().map_err(failed)?;
    let lock = owner::lock(&root.join("owner.lock")).map_err(failed)?;
    let lock = lock.ok_or_else(|| SuperviseError::InUse { name, path: root.clone() })?;
    let mark = leftover::ProcessMarker::of(name, &root).map_err(failed)?;
    let (sender, status) = watch::channel(ChildStatus::Starting);
    let stop = CancellationToken::new();
    let kill = Arc::<AtomicBool>::default();
    let (restart, pid) = (Arc::<Notify>::default(), Arc::<AtomicU32>::default());
    let service = run::ChildSupervisor {
        child,
        root,
        mark,
        status: sender,
        stop: stop.clone(),
        kill: Arc::clone(&kill),
        restart: Arc::clone(&restart),
        pid: Arc::clone(&pid),
        _lock: lock,
    };
    // The caller's span identifies the child.
    let task = crate::task::spawn("supervise", service.run().in_current_span());
    Ok(Handle { status, stop, kill, restart, pid, task })
}

impl Handle {
    /// Returns the status of the child; only the newest value is kept.
    pub fn status(&self) -> watch::Receiver<ChildStatus> {
        self.status.clone()
    }

    /// Stops the child when it is between two probes, and starts it again without a pause.
    pub fn restart(&self) {
        self.restart.notify_one();
    }

    /// Returns the resident memory of the child's process in bytes; `None` while none runs.
    pub fn resident_memory(&self) -> Option<u64> {
        let pid = self.pid.load(Ordering::Acquire);
        let pages = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let pages: u64 = pages.split(' ').nth(1)?.parse().ok()?;
        Some(pages.saturating_mul(rustix::param::page_size() as u64))
    }

    /// Stops the child: SIGTERM, the stop limit, SIGKILL; then removes its leftovers.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "supervision task panicked");
        }
    }

    /// Kills the child with SIGKILL, without a grace period; then removes its leftovers.
    pub async fn kill(self) {
        self.kill.store(true, Ordering::Release);
        self.stop().await;
    }
}

#[cfg(test)]
mod tests;
