//! Long-running actions of a plan, each in its own task: the start and the stop of an instance.
//!
//! A start that fails or is cancelled removes everything that it created. A start interrupted by the shutdown of the
//! daemon leaves it to the reconciliation at the next start.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::context::DeployContext;
use super::entry::ServiceEntry;
use super::failure::{StartFault, StartFaultKind};
use super::plan::{MAX_EXTERNAL_EXITS, after};
use super::port::{InstanceImage, InstanceSpec, RuntimeError};
use super::progress::DeployProgress;
use super::routes::backend_of;
use super::tracked_instance::TrackedInstance;
use super::{health, service_logs};
use crate::model::deploy::{DeployAction, DeployEventKind, ServiceLogQuery};
use crate::model::fault::Fault;
use crate::model::id::InstanceId;
use crate::model::service::{InstanceLabel, ResourceLimits, RevisionOutcome, ServiceRevision};

/// Pause before the next start or stop request while the runtime is unavailable.
const UNAVAILABLE_PAUSE: Duration = Duration::from_millis(500);
/// Pause between attempts to remove an instance; doubled up to `LONGEST_PAUSE`.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Parameters for stopping an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StopOptions {
    /// Set if requests in flight are drained first.
    pub(super) drain: bool,
    /// Time between the stop signal and SIGKILL; zero kills at once.
    pub(super) grace: Duration,
}

impl DeployContext {
    /// Starts an instance in a new task.
    pub(super) fn begin_start(self: &Arc<Self>, entry: &Arc<ServiceEntry>, revision: u32, generation: u32) {
        let (label, revision, stop, progress) = {
            let mut state = entry.state();
            let Some(found) = state.service.revision(revision).cloned() else { return };
            let label = InstanceLabel {
                instance: InstanceId::random(),
                service: entry.id.clone(),
                name: state.service.name.clone(),
                revision,
                generation,
            };
            let known = TrackedInstance::starting(label.clone());
            let stop = known.stop_token();
            state.instances.insert(label.instance.clone(), known);
            (label, found, stop, state.progress(revision))
        };
        // No parent: the loop's span `service` says no more.
        let span = tracing::info_span!(
            parent: None, "deploy",
            service.name = %label.name, revision = label.revision, instance.id = %label.instance,
        );
        let (shared, entry) = (Arc::clone(self), Arc::clone(entry));
        let start = async move { shared.start(&entry, label, &revision, &stop, progress).await };
        span.in_scope(|| self.spawn("start instance", start));
    }

    async fn start(
        self: &Arc<Self>,
        entry: &Arc<ServiceEntry>,
        label: InstanceLabel,
        revision: &ServiceRevision,
        stop: &CancellationToken,
        progress: Option<Arc<DeployProgress>>,
    ) {
        let started_at = Instant::now();
        let action = DeployAction::Start { revision: label.revision, generation: label.generation };
        let progress = progress.as_deref();
        publish(progress, DeployEventKind::Started(action.clone()));
        let started = self.start_steps(&label, revision, stop, progress).await;
        let error = match &started {
            Some(Ok(_)) => None,
            Some(Err(fault)) => Some(fault.fault.message.clone()),
            None => Some("cancelled".to_owned()),
        };
        publish(progress, DeployEventKind::Ended { action, took: started_at.elapsed(), error });
        match started {
            Some(Ok(address)) if self.on_started(entry, &label.instance, address) => {
                return entry.wake.notify_one();
            }
            Some(Err(fault)) => {
                let error = fault.fault.message.as_str();
                if fault.kind == StartFaultKind::Permanent {
                    // The cause is in what was deployed, and its owner is told.
                    tracing::info!(error, "failed to start an instance");
                } else {
                    tracing::warn!(error, "failed to start an instance; retrying");
                }
                self.on_start_failed(entry, &label, fault);
                if let Some(known) = entry.state().instances.get_mut(&label.instance) {
                    known.abort();
                }
                entry.wake.notify_one();
            }
            // Aborted, at the latest while the process was being started.
            None | Some(Ok(_)) => {}
        }
        self.finish_stop(entry, &label.instance).await;
    }

    /// Returns `None` when the start was cancelled.
    async fn start_steps(
        &self,
        label: &InstanceLabel,
        revision: &ServiceRevision,
        stop: &CancellationToken,
        progress: Option<&DeployProgress>,
    ) -> Option<Result<Ipv4Addr, StartFault>> {
        let mut clock = StepTimer { progress, since: Instant::now() };
        // Keeps the image's files from being released until the instance uses them.
        let _images = self.image_lock.read().await;
        let spec = match stop.run_until_cancelled(self.prepare_instance(label, revision, &mut clock)).await? {
            Ok(spec) => spec,
            Err(fault) => return Some(Err(fault)),
        };
        let (address, log) = (spec.network.address, spec.log.clone());
        if let Err(error) = service_logs::create_log_directory(&log, revision.number).await {
            let error = RuntimeError::Other(format!("log directory: {error}"));
            return Some(Err(error.into()));
        }
        // Runs to completion even when the start is cancelled: the runtime would continue with an abandoned call, and
        // nobody would remove what it creates after that.
        let call = self.ports.runtime.start(spec);
        let started = with_limit("starting the process", self.options.call_limit, call).await;
        clock.lap("start");
        if started.is_err() {
            service_logs::remove_unused_log(&log).await;
        }
        Some(started.map(|()| address))
    }

    /// Prepares everything that the start of the process needs: environment, image, network and mounts.
    async fn prepare_instance(
        &self,
        label: &InstanceLabel,
        revision: &ServiceRevision,
        clock: &mut StepTimer<'_>,
    ) -> Result<InstanceSpec, StartFault> {
        let limit = self.options.call_limit;
        let spec = &revision.spec;
        let image = InstanceImage { repository: spec.repository.clone(), manifest: spec.manifest };
        // The operator may have removed a capability from the allowed ones since the deploy.
        self.options.check_capabilities(spec).map_err(Fault::from)?;
        let env = self.environment.variables(label, revision).await?;
        let prepare_limit = self.options.prepare_limit;
        with_limit("bringing the image's files", prepare_limit, self.ports.runtime.prepare(&image)).await?;
        clock.lap("image");
        let attach = self.ports.network.attach(&label.instance, &label.name, spec.confinement.isolated);
        let network = with_limit("the network", limit, attach).await?;
        clock.lap("network");
        let mounts = self.ports.mounts.open(label, &spec.mounts, &spec.mounted);
        let mounts = with_limit("opening the mounts", prepare_limit, mounts).await?;
        clock.lap("mounts");
        Ok(InstanceSpec {
            label: label.clone(),
            image,
            command: spec.command.clone(),
            env,
            confidential: spec.confidential().map(|(variable, _)| variable.clone()).collect(),
            workdir: spec.workdir.clone(),
            mounts,
            limits: ResourceLimits {
                memory_bytes: spec.limits.memory_bytes.or(self.options.default_memory),
                ..spec.limits
            },
            capabilities: spec.confinement.capabilities.clone(),
            network,
            log: self.logs.instance_directory(&label.service, &label.instance),
        })
    }

    /// Returns false if the start was aborted at this very moment.
    fn on_started(
        self: &Arc<Self>,
        entry: &Arc<ServiceEntry>,
        instance: &InstanceId,
        address: Ipv4Addr,
    ) -> bool {
        let progress = {
            let mut state = entry.state();
            let Some(known) = state.instances.get_mut(instance) else { return false };
            if !known.started(address, Timestamp::now()) {
                return false;
            }
            let revision = known.label.revision;
            state.progress(revision)
        };
        self.start_monitor(entry, instance);
        if let Some(progress) = progress.filter(|progress| !progress.is_ended()) {
            self.publish_log(entry, instance, progress);
        }
        true
    }

    /// Spawns the health monitor of an instance.
    pub(super) fn start_monitor(self: &Arc<Self>, entry: &Arc<ServiceEntry>, instance: &InstanceId) {
        let span = tracing::info_span!(
            parent: None, "health",
            service.name = %entry.name(), instance.id = %instance,
        );
        let monitor = health::monitor(Arc::clone(entry), instance.clone());
        span.in_scope(|| self.spawn("health", monitor));
    }

    /// Publishes the log of a new instance to the watchers of its deploy.
    fn publish_log(
        self: &Arc<Self>,
        entry: &Arc<ServiceEntry>,
        instance: &InstanceId,
        progress: Arc<DeployProgress>,
    ) {
        let (logs, service, instance) = (Arc::clone(&self.logs), entry.id.clone(), instance.clone());
        self.spawn("deploy log", async move {
            let query = ServiceLogQuery { follow: true, ..ServiceLogQuery::default() };
            let tell = async {
                let mut lines = match logs.read(&service, &instance, query).await {
                    Ok(lines) => lines,
                    Err(error) => return tracing::warn!(%error, "failed to read the log of a new instance"),
                };
                while let Some(Ok(line)) = lines.next().await {
                    progress.publish_log_line(instance.clone(), line);
                }
            };
            tokio::select! {
                () = tell => {}
                () = progress.ended.cancelled() => {}
            }
        });
    }

    fn on_start_failed(&self, entry: &ServiceEntry, label: &InstanceLabel, failed: StartFault) {
        let mut state = entry.state();
        let StartFault { fault, kind } = failed;
        if kind == StartFaultKind::Unavailable {
            // Not a failure of the service: the start is retried soon, for as long as the dependency is unavailable.
            state.attempts_mut(label).backoff.not_before = Some(after(Timestamp::now(), UNAVAILABLE_PAUSE));
        } else {
            state.count_exit(label, None, kind == StartFaultKind::Transient);
        }
        let lasts = match kind {
            StartFaultKind::Permanent => true,
            StartFaultKind::Transient => state.attempts_mut(label).external_exits >= MAX_EXTERNAL_EXITS,
            StartFaultKind::Unavailable => false,
        };
        if !lasts && let Some(progress) = state.progress(label.revision) {
            progress.publish(DeployEventKind::Trouble { message: fault.message.clone() });
        }
        state.last_fault = Some(fault.clone());
        if lasts {
            // A revision that was live before does not fail because of this and is started again without limit.
            // Watchers of its restart learn of the failure now.
            let revision = state.service.revision(label.revision);
            let live =
                revision.is_some_and(|revision| matches!(revision.outcome, RevisionOutcome::Live { .. }));
            if let Some(progress) = state.progress(label.revision).filter(|_| live) {
                progress.fail(fault.clone());
            }
            state.attempts_mut(label).start_failed = Some(fault);
        }
    }

    /// Stops and removes an instance in a new task.
    pub(super) fn begin_stop(
        self: &Arc<Self>,
        entry: &Arc<ServiceEntry>,
        instance: &InstanceId,
        end: StopOptions,
    ) {
        let runs = {
            let mut state = entry.state();
            let Some(known) = state.instances.get_mut(instance) else { return };
            let runs = known.is_running();
            if !known.stop() {
                return;
            }
            runs
        };
        let backend = backend_of(&entry.state(), instance).filter(|_| end.drain && runs);
        let (shared, entry, instance) = (Arc::clone(self), Arc::clone(entry), instance.clone());
        self.spawn("end instance", async move {
            if let Some(backend) = backend {
                let limit = shared.options.drain_limit;
                let cut = shared.ports.router.drain(backend, limit).await;
                if cut > 0 {
                    tracing::info!(instance.id = %instance, cut, "open connections were closed at the drain limit");
                }
            }
            if runs && !end.grace.is_zero() {
                shared.stop_gracefully(&instance, end.grace).await;
            }
            shared.finish_stop(&entry, &instance).await;
        });
    }

    /// Removes an instance in the stage `Stopping`, and forgets it.
    async fn finish_stop(&self, entry: &ServiceEntry, instance: &InstanceId) {
        self.remove_instance(instance).await;
        let left = {
            let mut state = entry.state();
            state.forget_instance(instance);
            state.instances.keys().cloned().collect()
        };
        entry.wake.notify_one();
        self.logs.prune(&entry.id, left, false).await;
    }

    /// Requests the stop of an instance and waits for it. The request is retried while the runtime is unavailable; the
    /// removal that follows kills the instance.
    async fn stop_gracefully(&self, instance: &InstanceId, grace: Duration) {
        let asked = async {
            loop {
                match self.ports.runtime.stop(instance, grace).await {
                    Err(RuntimeError::Unavailable(_)) => tokio::time::sleep(UNAVAILABLE_PAUSE).await,
                    other => return other,
                }
            }
        };
        match tokio::time::timeout(grace + self.options.call_limit, asked).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, instance.id = %instance, "failed to stop an instance");
            }
            Err(_) => tracing::warn!(instance.id = %instance, "failed to stop an instance in time"),
        }
    }

    /// Removes everything of an instance, retrying until it succeeds.
    pub(super) async fn remove_instance(&self, instance: &InstanceId) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.try_remove_instance(instance).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(error, instance.id = %instance, "failed to remove an instance; retrying");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Removes the process before its mounts and its network, which it may be using.
    pub(super) async fn try_remove_instance(&self, instance: &InstanceId) -> Result<(), String> {
        let limit = self.options.call_limit;
        let late = |_| "the call timed out".to_owned();
        let removed = tokio::time::timeout(limit, self.ports.runtime.remove(instance)).await;
        removed.map_err(late)?.map_err(|error| error.to_string())?;
        let closed = tokio::time::timeout(limit, self.ports.mounts.close(instance)).await;
        let closed = closed.map_err(late).and_then(|closed| closed.map_err(|error| error.to_string()));
        // The address is released even if a mount is stuck.
        let detached = tokio::time::timeout(limit, self.ports.network.detach(instance)).await;
        detached.map_err(late)?.map_err(|error| error.to_string())?;
        closed
    }
}

/// Measures and publishes the duration of each step of a start.
struct StepTimer<'a> {
    progress: Option<&'a DeployProgress>,
    since: Instant,
}

impl StepTimer<'_> {
    fn lap(&mut self, name: &str) {
        let took = self.since.elapsed();
        self.since = Instant::now();
        publish(self.progress, DeployEventKind::Step { name: name.to_owned(), took });
    }
}

fn publish(progress: Option<&DeployProgress>, kind: DeployEventKind) {
    if let Some(progress) = progress {
        progress.publish(kind);
    }
}

async fn with_limit<T, E: Into<StartFault>>(
    what: &str,
    limit: Duration,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, StartFault> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(StartFault::timeout(what, limit)),
    }
}
