//! Runs one Dockerfile build through `Control.Solve`.
//!
//! ```text
//! open sessions -> Solve -----------------------> answer: digest, or status with details
//!                  Status -> progress.rs -> events (in order; a full channel makes BuildKit wait)
//! ```
//!
//! The answer is used only after the status stream has ended, so that no log line is lost. Cancellation drops the
//! Solve call, which signals it to BuildKit, and then waits for the status stream and for the processes of the build's
//! steps.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bollard_buildkit_proto::moby::buildkit::v1 as api;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use hearth_proto::status::root_cause_message;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::session::trees::TreeLease;
use super::session::{BuildKitSession, SecretValues};
use super::{BuildKitClient, channel};
use crate::build::port::{SolveAnswer, SolveError, SolveOutcome, SolveQuestion, SolveRequest, Solver};
use crate::model::Digest;
use crate::model::build::BuildEventKind;
use crate::model::fault::{ErrorCode, Fault};

pub(super) mod attributes;
mod caches;
mod details;
mod egress;
mod emulation;
pub(super) mod failure;
mod policy;
pub(super) mod progress;
mod step_hints;
mod tail;

use progress::SolveProgress;

/// Time limit between the answer to Solve and the end of the status stream.
const STATUS_END_LIMIT: Duration = Duration::from_secs(30);
/// Time limit for a cancelled build to end.
const CANCEL_LIMIT: Duration = Duration::from_secs(30);
/// Time limit for the bundles of a cancelled build's steps to disappear after BuildKit has ended the build.
const BUNDLE_LIMIT: Duration = Duration::from_secs(5);
/// Exit code of a process that was killed.
const KILLED: i32 = 128 + 9;
/// Time for which BuildKit may be unresponsive before its builds fail as unavailable.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

#[async_trait]
impl Solver for BuildKitClient {
    async fn solve(
        &self,
        request: SolveRequest,
        events: mpsc::Sender<BuildEventKind>,
        cancel: CancellationToken,
    ) -> Result<SolveOutcome, SolveError> {
        if let Some(fault) = attributes::reserved_argument_fault(&request) {
            return Err(SolveError::Failed(Box::new(fault)));
        }
        if self.shared && !request.caches.imports.is_empty() {
            return Err(SolveError::Failed(Box::new(caches::shared_builder_fault())));
        }
        let opened = tokio::select! {
            () = cancel.cancelled() => return Err(SolveError::Cancelled),
            opened = self.open_sessions(&request) => opened,
        };
        let (trees, own) = opened.map_err(|status| unavailable(&status))?;
        if let Some(fault) = self.emulation_fault(&request).await? {
            return Err(SolveError::Failed(Box::new(fault)));
        }
        let solve = attributes::solve_request(&request, own.id(), self.shared);
        let mut run = SolveRun {
            client: self,
            reference: solve.r#ref.clone(),
            progress: SolveProgress::new(&request.files.dockerfile_name),
            events,
            cancel,
            started_system_time: SystemTime::now(),
            started_at: Instant::now(),
            out_of_memory: self.out_of_memory(),
            step_memory: request.spec.step_limits.memory_bytes,
        };
        // The sessions stay open until the build has ended completely.
        let result = Box::pin(run.run_to_end(solve)).await;
        drop((trees, own));
        result
    }

    async fn ask(
        &self,
        request: SolveRequest,
        question: SolveQuestion,
        cancel: CancellationToken,
    ) -> Result<SolveAnswer, SolveError> {
        self.answer(&request, question, &cancel).await
    }
}

impl BuildKitClient {
    fn out_of_memory(&self) -> u64 {
        self.groups.as_ref().map_or(0, |groups| groups.out_of_memory())
    }

    pub(super) async fn open_sessions(
        &self,
        request: &SolveRequest,
    ) -> Result<(TreeLease, BuildKitSession), tonic::Status> {
        futures::try_join!(
            self.tree_sessions.lease(&request.files),
            BuildKitSession::open_build(
                &self.address,
                std::sync::Arc::clone(&request.credentials),
                SecretValues(request.secrets.clone()),
            ),
        )
    }
}

pub(super) fn unavailable(status: &tonic::Status) -> SolveError {
    SolveError::Unavailable(format!("BuildKit: {}", root_cause_message(status)))
}

struct SolveRun<'a> {
    client: &'a BuildKitClient,
    reference: String,
    progress: SolveProgress,
    events: mpsc::Sender<BuildEventKind>,
    cancel: CancellationToken,
    started_system_time: SystemTime,
    started_at: Instant,
    /// Out-of-memory count of the builder's steps before this solve.
    out_of_memory: u64,
    /// Memory limit of each step of this build, in bytes.
    step_memory: Option<u64>,
}

type SolveResponse = Result<HashMap<String, String>, tonic::Status>;

impl SolveRun<'_> {
    async fn run_to_end(&mut self, request: api::SolveRequest) -> Result<SolveOutcome, SolveError> {
        let mut control = self.client.control.clone();
        let mut answer =
            Box::pin(async move { control.solve(request).await.map(|r| r.into_inner().exporter_response) });
        let mut updates = self.updates();
        let cancel = self.cancel.clone();
        let mut silence = Box::pin(wait_for_silence(self.client.status()));
        let mut updates_ended = false;
        let answered: SolveResponse = loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break Err(tonic::Status::cancelled("cancelled")),
                answer = &mut answer => break answer,
                () = &mut silence => {
                    return Err(SolveError::Unavailable(format!("BuildKit has not answered for {SILENCE_LIMIT:?}")));
                }
                update = updates.recv(), if !updates_ended => match update {
                    Some(update) => self.publish_update(update).await,
                    None => updates_ended = true,
                },
            }
        };
        if cancel.is_cancelled() {
            drop(answer);
            self.drain_cancelled(updates).await;
            return Err(SolveError::Cancelled);
        }
        if let Err(status) = &answered
            && channel::is_connection_lost(status)
        {
            return Err(unavailable(status));
        }
        let rest = async {
            while let Some(update) = updates.recv().await {
                self.publish_update(update).await;
            }
        };
        if timeout(STATUS_END_LIMIT, rest).await.is_err() {
            tracing::warn!("BuildKit's status stream did not end with the build; the last lines may be lost");
        }
        for event in self.progress.finish() {
            self.send(event).await;
        }
        match answered {
            Ok(response) => Ok(SolveOutcome {
                cache: caches::written(&response),
                digest: pushed_digest(&response)?,
                builder_version: self.client.status().borrow().version.clone().unwrap_or_default(),
                commits: self.progress.commits(),
            }),
            Err(status) => Err(SolveError::Failed(Box::new(self.fault(&status).await))),
        }
    }

    async fn fault(&self, status: &tonic::Status) -> Fault {
        let out_of_memory = self.client.out_of_memory() > self.out_of_memory;
        let mut fault = failure::fault_of_status(status, &self.progress, out_of_memory);
        if let Some(limit) = self.step_memory {
            explain_step_memory(&mut fault, limit);
        }
        if let Some(network) = &self.client.network {
            let started_at = failure::failed_step_start(status, &self.progress).unwrap_or(self.started_at);
            let shared = failure::ran_beside_another(status, &self.progress);
            let executor = self.client.bundles_dir.as_deref();
            egress::explain_refused_connections(&mut fault, network, executor, started_at, shared).await;
        }
        if let Some(git) = &self.client.git
            && fault.code == ErrorCode::RepositoryNotFetched
        {
            egress::explain_refused_git(&mut fault, &git.refused_since(self.started_at));
        }
        fault
    }

    /// Reads the status messages in a task of their own, because they must be read while the answer is awaited.
    fn updates(&self) -> mpsc::Receiver<api::StatusResponse> {
        let (sender, receiver) = mpsc::channel(8);
        let (control, reference, cancel) =
            (self.client.control.clone(), self.reference.clone(), self.cancel.clone());
        crate::task::spawn("solve-status", async move {
            if let Err(status) = read_status_stream(control, reference, &sender).await
                && !cancel.is_cancelled()
                && !sender.is_closed()
            {
                tracing::debug!(error = %status, "status stream of a build ended early");
            }
        });
        receiver
    }

    async fn publish_update(&mut self, update: api::StatusResponse) {
        for event in self.progress.process_update(update, Instant::now()) {
            self.send(event).await;
        }
    }

    /// Sends an event and waits for the receiver, unless the build is being cancelled.
    async fn send(&self, event: BuildEventKind) {
        tokio::select! {
            biased;
            // Sending fails only when the receiver is gone and needs no events; the build continues.
            _ = self.events.send(event) => {}
            () = self.cancel.cancelled() => {}
        }
    }

    async fn drain_cancelled(&mut self, mut updates: mpsc::Receiver<api::StatusResponse>) {
        let bundles = self
            .client
            .bundles_dir
            .as_deref()
            .map(|dir| bundles_since(dir, self.started_system_time))
            .unwrap_or_default();
        let running = self.progress.running_commands();
        let rest = async {
            while let Some(update) = updates.recv().await {
                self.publish_update(update).await;
            }
        };
        if timeout(CANCEL_LIMIT, rest).await.is_err() {
            tracing::warn!(limit = ?CANCEL_LIMIT, "BuildKit did not end a cancelled build");
        }
        for event in self.progress.finish() {
            self.send(event).await;
        }
        // BuildKit ends the build before it has killed its processes. Each running step has one bundle. Other builds
        // may have started steps too, so it is enough that the same number of bundles is gone.
        let gone = || bundles.iter().filter(|bundle| !bundle.exists()).count();
        let deadline = Instant::now() + BUNDLE_LIMIT;
        while gone() < running.min(bundles.len()) && Instant::now() < deadline {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn read_status_stream(
    mut control: ControlClient<Channel>,
    reference: String,
    sender: &mpsc::Sender<api::StatusResponse>,
) -> Result<(), tonic::Status> {
    let mut stream = control.status(api::StatusRequest { r#ref: reference }).await?.into_inner();
    loop {
        tokio::select! {
            () = sender.closed() => return Ok(()),
            update = stream.message() => match update? {
                Some(update) => {
                    if sender.send(update).await.is_err() {
                        return Ok(());
                    }
                }
                None => return Ok(()),
            },
        }
    }
}

/// Explains the end of a step whose own memory limit was used up. Control groups of version 1 do not tell the group of all
/// steps about it, so a step that has a limit and was killed is assumed to have reached the limit.
fn explain_step_memory(fault: &mut Fault, limit: u64) {
    if fault.code == ErrorCode::StepFailed && fault.exit_code == Some(KILLED) {
        fault.code = ErrorCode::OutOfMemory.into();
    }
    if fault.code == ErrorCode::OutOfMemory {
        let limit = limit >> 20;
        fault.hint = Some(format!(
            "each step of this build may use {limit} MiB of memory; allow more with --memory, or let the step use less"
        ));
    }
}

/// Returns when BuildKit has not been ready for a while.
async fn wait_for_silence(mut status: tokio::sync::watch::Receiver<super::ReadinessStatus>) {
    loop {
        if status.wait_for(|status| !status.ready).await.is_err() {
            return std::future::pending().await;
        }
        if timeout(SILENCE_LIMIT, status.wait_for(|status| status.ready)).await.is_err() {
            return;
        }
    }
}

/// Returns the bundle directories of steps that were started since `since`; each is removed when its step has ended.
fn bundles_since(executor: &std::path::Path, since: SystemTime) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(executor).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            entry.metadata().is_ok_and(|stat| stat.is_dir() && stat.modified().is_ok_and(|m| m >= since))
        })
        .map(|entry| entry.path())
        .collect()
}

fn pushed_digest(response: &HashMap<String, String>) -> Result<Digest, SolveError> {
    let digest = response.get("containerimage.digest").and_then(|text| text.parse::<Digest>().ok());
    digest.ok_or_else(|| SolveError::Failed(Box::new(failure::no_digest())))
}
