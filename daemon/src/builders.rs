//! Builder pool: one builder for each trust domain, so that nothing of a build reaches another domain.
//!
//! ```text
//! build::port::Solver::solve(domain, ...)
//!    |-- managed builders:  policy.rs decides, managed.rs executes: a supervised buildkitd for each domain in use,
//!    |                      the caches of the other domains on disk (directory.rs)
//!    '-- external builders: external.rs: each domain uses one of the configured addresses
//! ```
//!
//! A builder holds everything that builds leave behind: cached steps and their output, cache mounts, contexts, logs in
//! memory. The only state that domains share on purpose is the room's registry, where the caller's rights are checked
//! for each image.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::build::port::{SolveAnswer, SolveError, SolveOutcome, SolveQuestion, SolveRequest, Solver};
use crate::buildkit::{BuildKitAddress, BuildKitClient, ReadinessStatus};
use crate::model::build::BuildEventKind;
use crate::model::builder::BuilderStatus;
use crate::model::fault::{ErrorCode, Fault, FaultStage};

mod directory;
mod external;
mod growth;
mod leftover;
mod managed;
mod policy;

pub use leftover::remove_leftovers;
pub use managed::Options;
pub use policy::BuilderLimits;

/// Delay after which a build that waits for its builder gets a warning event.
const WAIT_NOTICE_DELAY: Duration = Duration::from_secs(1);
/// Time limit of one attempt for the builder to become ready; the caller tries again.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

/// The builders of a room. Cheap to clone.
#[derive(Clone)]
pub struct BuilderPool(BuilderPoolKind);

#[derive(Clone)]
enum BuilderPoolKind {
    Managed(managed::Handle),
    External(external::ExternalBuilders),
}

impl BuilderPool {
    /// Starts the pool of managed builders, and at once the builder that was used last.
    pub async fn start(options: Options) -> std::io::Result<Self> {
        Ok(Self(BuilderPoolKind::Managed(managed::start(options).await?)))
    }

    /// Connects to external builders; at least one. Builders whose steps share the network of their machine are
    /// refused, unless `allow_host_network` is set.
    pub fn connect(addresses: Vec<BuildKitAddress>, allow_host_network: bool) -> Self {
        Self(BuilderPoolKind::External(external::ExternalBuilders::connect(addresses, allow_host_network)))
    }

    /// Reports whether a build could run now, for `/readyz`.
    pub fn status(&self) -> watch::Receiver<ReadinessStatus> {
        match &self.0 {
            BuilderPoolKind::Managed(own) => own.status.clone(),
            BuilderPoolKind::External(external) => external.status(),
        }
    }

    /// Returns the state of each builder.
    pub fn list(&self) -> Vec<BuilderStatus> {
        match &self.0 {
            BuilderPoolKind::Managed(own) => own.builders.borrow().clone(),
            BuilderPoolKind::External(external) => external.list(),
        }
    }

    /// Closes the sessions that are kept for later builds.
    pub fn close_sessions(&self) {
        match &self.0 {
            BuilderPoolKind::Managed(own) => own.close_sessions(),
            BuilderPoolKind::External(external) => external.close_sessions(),
        }
    }

    /// Tells the managed builders whether the room has images: nothing needs their caches for long without any.
    pub fn set_room_empty(&self, empty: bool) {
        if let BuilderPoolKind::Managed(own) = &self.0 {
            own.set_room_empty(empty);
        }
    }

    /// Stops the managed builders.
    pub async fn shutdown(&self) {
        if let BuilderPoolKind::Managed(own) = &self.0 {
            own.shutdown().await;
        }
    }
}

#[async_trait]
impl Solver for BuilderPool {
    async fn solve(
        &self,
        request: SolveRequest,
        events: mpsc::Sender<BuildEventKind>,
        cancel: CancellationToken,
    ) -> Result<SolveOutcome, SolveError> {
        match &self.0 {
            BuilderPoolKind::External(external) => {
                let kit = external.builder_of(&request.domain);
                wait_until_ready(&kit, &cancel).await?;
                kit.solve(request, events, cancel).await
            }
            BuilderPoolKind::Managed(own) => {
                let mut waiting = own.request_lease(&request.domain);
                let lease = tokio::select! {
                    () = cancel.cancelled() => return Err(SolveError::Cancelled),
                    lease = wait_for_lease(&mut waiting, &events) => lease.map_err(SolveError::Unavailable)?,
                };
                wait_until_ready(&lease.client, &cancel).await?;
                solve_until_out_of_space(&lease, request, events, &cancel).await
            }
        }
    }

    async fn ask(
        &self,
        request: SolveRequest,
        question: SolveQuestion,
        cancel: CancellationToken,
    ) -> Result<SolveAnswer, SolveError> {
        match &self.0 {
            BuilderPoolKind::External(external) => {
                let kit = external.builder_of(&request.domain);
                wait_until_ready(&kit, &cancel).await?;
                kit.ask(request, question, cancel).await
            }
            BuilderPoolKind::Managed(own) => {
                let mut waiting = own.request_lease(&request.domain);
                let lease = tokio::select! {
                    () = cancel.cancelled() => return Err(SolveError::Cancelled),
                    lease = waiting.wait_for_lease() => lease.map_err(SolveError::Unavailable)?,
                };
                wait_until_ready(&lease.client, &cancel).await?;
                lease.client.ask(request, question, cancel).await
            }
        }
    }
}

/// Solves until the builds of this builder have used up the disk; then the build fails with `no_space`.
async fn solve_until_out_of_space(
    lease: &managed::BuilderLease,
    request: SolveRequest,
    events: mpsc::Sender<BuildEventKind>,
    cancel: &CancellationToken,
) -> Result<SolveOutcome, SolveError> {
    let stop = cancel.child_token();
    let solve = lease.client.solve(request, events, stop.clone());
    tokio::pin!(solve);
    let ended = tokio::select! {
        biased;
        ended = &mut solve => ended,
        () = lease.no_space.cancelled() => {
            stop.cancel();
            solve.await
        }
    };
    match ended {
        Err(_) if lease.no_space.is_cancelled() && !cancel.is_cancelled() => {
            Err(SolveError::Failed(Box::new(no_space_fault())))
        }
        ended => ended,
    }
}

fn no_space_fault() -> Fault {
    let message = "the build was ended because it, or another build of its trust domain, used up the disk of the room \
                   down to the space that must stay free";
    Fault::new(FaultStage::Solve, ErrorCode::NoSpace, message)
        .hint("write less in the steps of the build, or ask the operator for a larger disk")
        .retryable()
}

async fn wait_for_lease(
    waiting: &mut managed::LeaseRequest,
    events: &mpsc::Sender<BuildEventKind>,
) -> Result<managed::BuilderLease, String> {
    if let Ok(lease) = timeout(WAIT_NOTICE_DELAY, waiting.wait_for_lease()).await {
        return lease;
    }
    let message =
        "all builders are busy with builds of other trust domains; the build waits for one".to_owned();
    // Sending fails only when the receiver is gone and needs no events.
    let _ = events.send(BuildEventKind::Warning { message, url: None, dockerfile: None }).await;
    waiting.wait_for_lease().await
}

async fn wait_until_ready(kit: &BuildKitClient, cancel: &CancellationToken) -> Result<(), SolveError> {
    let mut status = kit.status();
    let answers = tokio::select! {
        () = cancel.cancelled() => return Err(SolveError::Cancelled),
        answers = status.wait_for(|status| status.ready) => answers.is_ok(),
        () = sleep(READY_TIMEOUT) => false,
    };
    if answers {
        return Ok(());
    }
    let detail = status.borrow().detail.clone();
    Err(SolveError::Unavailable(detail.unwrap_or_else(|| "BuildKit does not answer".to_owned())))
}
