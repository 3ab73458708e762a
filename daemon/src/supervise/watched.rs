//! Whether a service answers that others build on: a child of ours, or one that somebody else runs.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::port::{self, ProbeError};

const POLL_READY: Duration = Duration::from_secs(5);
const POLL_DOWN: Duration = Duration::from_millis(500);

/// Whether the service can be used, for `/readyz`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub ready: bool,
    pub version: Option<String>,
    /// Why not ready.
    pub detail: Option<String>,
}

/// What is watched.
pub struct Watched {
    /// In the log, such as `buildkit`.
    pub name: &'static str,
    /// In what people read, such as `BuildKit at unix:///run/x.sock`.
    pub place: String,
    /// Name of the program, and how our own child stands; none for a service that is not ours.
    pub child: Option<(&'static str, watch::Receiver<port::Status>)>,
    pub sender: watch::Sender<Status>,
}

impl Watched {
    /// Keeps the status at the truth, for ever. `ask` asks the service for its version; `told` is called after each
    /// look, with whether the status changed.
    pub async fn run<F>(mut self, ask: impl Fn() -> F, told: impl Fn(bool))
    where
        F: Future<Output = Result<String, ProbeError>>,
    {
        loop {
            let status = self.look(&ask).await;
            let pause = if status.ready { POLL_READY } else { POLL_DOWN };
            let changed = self.sender.send_if_modified(|now| {
                let changed = *now != status;
                if changed {
                    let Status { ready, version, detail } = &status;
                    tracing::info!(ready, version, detail, "{}", self.name);
                    *now = status;
                }
                changed
            });
            told(changed);
            match &mut self.child {
                None => sleep(pause).await,
                Some((_, child)) => {
                    // The supervisor's word comes at once; a closed channel means it has ended.
                    if let Ok(Err(_)) = timeout(pause, child.changed()).await {
                        sleep(pause).await;
                    }
                }
            }
        }
    }

    async fn look<F>(&mut self, ask: &impl Fn() -> F) -> Status
    where
        F: Future<Output = Result<String, ProbeError>>,
    {
        let down = |detail| Status { ready: false, version: None, detail: Some(detail) };
        if let Some((program, child)) = &mut self.child {
            match &*child.borrow_and_update() {
                port::Status::Ready { .. } => {}
                port::Status::Starting => return down(format!("{program} is starting")),
                port::Status::Down { reason } => return down(reason.clone()),
            }
        }
        match ask().await {
            Ok(version) => Status { ready: true, version: Some(version), detail: None },
            Err(error) => down(format!("{}: {error}", self.place)),
        }
    }
}
