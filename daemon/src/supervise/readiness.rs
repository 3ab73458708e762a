//! Readiness of a program that other parts of the daemon depend on: a supervised child, or one that somebody else runs.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::port::{self, ProbeError};

const POLL_READY: Duration = Duration::from_secs(5);
const POLL_DOWN: Duration = Duration::from_millis(500);

/// Readiness of the program, for `/readyz`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadinessStatus {
    pub ready: bool,
    pub version: Option<String>,
    /// Reason why it is not ready.
    pub detail: Option<String>,
}

/// The program to be watched.
pub struct ReadinessWatcher {
    /// Name in the log, such as `buildkit`.
    pub name: &'static str,
    /// Description in messages to users, such as `BuildKit at unix:///run/x.sock`.
    pub description: String,
    /// Name of the program and status of the supervised child; `None` for a program that the daemon does not run.
    pub child: Option<(&'static str, watch::Receiver<port::ChildStatus>)>,
    pub sender: watch::Sender<ReadinessStatus>,
}

impl ReadinessWatcher {
    /// Keeps the status up to date, forever. `query` asks the program for its version; `on_query` is called after
    /// each query with whether the program is ready, and whether the status changed.
    pub async fn run<F>(mut self, query: impl Fn() -> F, on_query: impl Fn(bool, bool))
    where
        F: Future<Output = Result<String, ProbeError>>,
    {
        loop {
            let status = self.query(&query).await;
            let ready = status.ready;
            let pause = if ready { POLL_READY } else { POLL_DOWN };
            let changed = self.sender.send_if_modified(|now| {
                let changed = *now != status;
                if changed {
                    let ReadinessStatus { ready, version, detail } = &status;
                    tracing::info!(component = self.name, ready, version, detail, "readiness changed");
                    *now = status;
                }
                changed
            });
            on_query(ready, changed);
            match &mut self.child {
                None => sleep(pause).await,
                Some((_, child)) => {
                    // A status change of the supervisor ends the pause at once; a closed channel means that the
                    // supervisor has ended.
                    if let Ok(Err(_)) = timeout(pause, child.changed()).await {
                        sleep(pause).await;
                    }
                }
            }
        }
    }

    async fn query<F>(&mut self, query_version: &impl Fn() -> F) -> ReadinessStatus
    where
        F: Future<Output = Result<String, ProbeError>>,
    {
        let not_ready = |detail| ReadinessStatus { ready: false, version: None, detail: Some(detail) };
        if let Some((program, child)) = &mut self.child {
            match &*child.borrow_and_update() {
                port::ChildStatus::Ready { .. } => {}
                port::ChildStatus::Starting => return not_ready(format!("{program} is starting")),
                port::ChildStatus::Down { reason } => return not_ready(reason.clone()),
            }
        }
        match query_version().await {
            Ok(version) => ReadinessStatus { ready: true, version: Some(version), detail: None },
            Err(error) => not_ready(format!("{}: {error}", self.description)),
        }
    }
}
