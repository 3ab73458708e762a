//! Build driver: one task per build takes it from its spec to its outcome. Each stage consumes the result of the one
//! before.
//!
//! ```text
//! BuildSpec --prepare--> PreparedContext --images--> BuildImages --solve--> SolveOutcome --verify--> VerifiedImage
//!               ^                                         |  ^                                             |
//!               |                                         |  |                                          publish
//!               |                                         |  |                                             v
//!               |                                         |  |                                        BuildOutcome
//!               |                                         '--'  once more when the solver became unavailable
//!               '-----------------------------------------'     again when files changed during the build
//!
//! cancel, time limit, shutdown:  the verdict is decided, then the stop token cancelled; the solve ends, then the build
//! publish:                       the verdict is decided first; nothing is published after another verdict
//! ```
//!
//! From the moment a build has a slot, its task is the only writer of its record.

mod caches;
mod context;
mod downloads;
mod ending;
mod faults;
mod images;
mod inspect;
mod layer_sizes;
mod layers;
mod network;
mod prefetch;
mod secrets;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::Span;

use super::credentials::{BuildCredentials, RegistryAccess};
use super::mask::SecretMask;
use super::port::{PreparedContext, SolveError, SolveOutcome, SolveRequest};
use super::provenance::{DockerfileSource, statements};
use super::publisher::EventPublisher;
use super::recipe::RunningRecipe;
use super::service::{ActiveBuild, BuildRuntime};
use super::verdict::BuildVerdict;
use crate::model::build::{BuildEventKind, BuildOutcome, BuildRecord, BuildResult, BuildState};
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::id::BuildId;
use crate::model::image::Platform;
use crate::model::{Reference, Repository};
use crate::task;

use caches::SuppliedCaches;
use context::settled_spec;
use downloads::BuildDownloads;
use faults::{
    is_context_change, log_fault, logged_log_fault, push_fault, stopped_fault, store_fault,
    with_dockerfile_path,
};
use images::BuildImages;

pub(super) use images::normalized_name;

pub(super) use faults::interrupted_fault;
pub(super) use inspect::CONCURRENT_QUESTIONS;
pub(super) use prefetch::ContextPrefetch;

/// The inputs of one solve.
struct SolveInputs<'a> {
    recipe: &'a RunningRecipe<'a>,
    context: &'a PreparedContext,
    images: &'a BuildImages,
    downloads: &'a BuildDownloads,
    caches: &'a SuppliedCaches,
}

/// Capacity of the event channel from the solver to the log.
const EVENT_CHANNEL_CAPACITY: usize = 256;
/// Time limit for draining the solver's remaining events after it has answered.
const EVENT_DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two attempts to reach an unavailable solver.
const SOLVER_PAUSE: Duration = Duration::from_millis(500);
/// Maximum number of attempts to build files that change during the build.
const CONTEXT_TRIES: u32 = 3;

/// Span of a build. It has no parent, because a build starts when another one ends.
pub(super) fn build_span(id: &BuildId) -> Span {
    tracing::info_span!(parent: None, "build", build.id = %id)
}

/// Runs a build that has a slot until it ends.
pub(super) async fn run(shared: Arc<BuildRuntime>, active: Arc<ActiveBuild>) {
    let Err(error) = task::spawn("build", Arc::clone(&shared).run_build(Arc::clone(&active))).await else {
        return;
    };
    // The task panicked: the build still needs a final state.
    tracing::error!(%error, "build task panicked");
    let Some(record) = shared.stored_record(&active).await else { return shared.release(&active) };
    let fault = Fault::new(
        FaultStage::Solve,
        ErrorCode::Internal,
        "the daemon failed while it ran this build; its log has the cause",
    );
    let publisher = EventPublisher::new(Arc::clone(&active.log), SecretMask::default(), 0);
    shared.finish(&active, record, BuildOutcome::Failed(fault), publisher).await;
}

impl BuildRuntime {
    async fn run_build(self: Arc<Self>, active: Arc<ActiveBuild>) {
        // A build that an earlier run accepted waits here for space, like the builds that are refused meanwhile.
        tokio::select! {
            () = self.options.space.not_full() => {}
            () = active.stop.cancelled() => {}
        }
        let Some(mut record) = self.stored_record(&active).await else { return self.release(&active) };
        let revealed = self.reveal_room_secrets(&active, &record.spec).await;
        let secrets = active.secret_values();
        let mask = SecretMask::new(secrets.values().map(|secret| secret.reveal().as_slice()));
        let resumed =
            EventPublisher::resume(Arc::clone(&active.log), mask.clone(), self.options.log_quota).await;
        let (mut publisher, log_fault) = match resumed {
            Ok(publisher) => (publisher.with_space_watch(self.options.space.clone()), None),
            Err(error) => (EventPublisher::new(Arc::clone(&active.log), mask, 0), Some(log_fault(&error))),
        };
        record.state = BuildState::Running;
        record.attempts += 1;
        record.started_at.get_or_insert_with(Timestamp::now);
        record.last_sequence = publisher.last_sequence();
        let prefetch = active.take_prefetch().filter(ContextPrefetch::is_fresh);
        let prefetch = prefetch.unwrap_or_else(|| self.start_prefetch(&active, &record));
        let start_recorded = match (log_fault, self.ports.store.update(record.clone()).await) {
            (Some(fault), _) => Err(fault),
            (None, Err(error)) => Err(store_fault(&error)),
            (None, Ok(())) => {
                let running = BuildEventKind::StateChanged { state: BuildState::Running };
                publisher.publish(running).await.map_err(|error| logged_log_fault(&error))
            }
        };
        tracing::info!(caller = record.submitted_by, attempt = record.attempts, "build started");
        let result = match start_recorded.and(revealed) {
            Ok(()) => self.run_within_time_limit(&active, &mut record, prefetch, &mut publisher).await,
            Err(fault) => Err(fault),
        };
        let outcome = match result {
            Ok(result) => BuildOutcome::Succeeded(result),
            Err(fault) => match active.verdict.decide(BuildVerdict::Fault) {
                BuildVerdict::Cancel => BuildOutcome::Cancelled,
                BuildVerdict::Drain => return self.requeue_or_interrupt(&active, record, publisher).await,
                BuildVerdict::TimeLimit => BuildOutcome::Failed(self.time_limit_fault(&record)),
                BuildVerdict::Fault | BuildVerdict::Publish => {
                    BuildOutcome::Failed(publisher.mask_fault(fault))
                }
            },
        };
        self.finish(&active, record, outcome, publisher).await;
    }

    fn time_limit(&self, record: &BuildRecord) -> Duration {
        record.spec.timeout.unwrap_or(self.options.default_timeout).min(self.options.max_timeout)
    }

    fn time_limit_fault(&self, record: &BuildRecord) -> Fault {
        let seconds = self.time_limit(record).as_secs_f64();
        Fault::new(
            FaultStage::Solve,
            ErrorCode::Timeout,
            format!("the build took longer than its limit of {seconds} s"),
        )
        .hint("allow more time with the build's timeout, or make its slow step faster")
    }

    /// Runs the stages within the time limit. Stages that do not stop when told to are abandoned.
    async fn run_within_time_limit(
        &self,
        active: &ActiveBuild,
        record: &mut BuildRecord,
        prefetch: ContextPrefetch,
        publisher: &mut EventPublisher,
    ) -> Result<BuildResult, Fault> {
        let limit = self.time_limit(record);
        let guard = async {
            tokio::select! {
                () = active.stop.cancelled() => {}
                () = tokio::time::sleep(limit) => {
                    if active.verdict.decide(BuildVerdict::TimeLimit) == BuildVerdict::TimeLimit {
                        active.stop.cancel();
                    }
                }
            }
            tokio::time::sleep(self.options.stop_timeout).await;
        };
        tokio::select! {
            result = self.run_stages(active, record, prefetch, publisher) => result,
            () = guard => {
                tracing::error!("abandoned a build that did not stop when told to");
                Err(Fault::new(FaultStage::Solve, ErrorCode::Stuck, "the build did not stop when it was told to"))
            }
        }
    }

    async fn run_stages(
        &self,
        active: &ActiveBuild,
        record: &mut BuildRecord,
        prefetch: ContextPrefetch,
        publisher: &mut EventPublisher,
    ) -> Result<BuildResult, Fault> {
        let started = Instant::now();
        let Some(tag) = record.spec.tags.first().cloned() else {
            return Err(Fault::new(FaultStage::Request, ErrorCode::InvalidTag, "the build has no tag"));
        };
        let (outcome, dockerfile) =
            self.solve_until_stable(active, record, prefetch, &tag, publisher).await?;
        let image = self.ports.images.verify(&tag.repository, outcome.digest).await?;
        // Attached before the tags are set, so that no end of the daemon leaves a tag without it.
        let statements = statements(record, &dockerfile, &outcome);
        let image = tokio::select! {
            attached = self.ports.images.attach(image, &statements) => attached?,
            () = active.stop.cancelled() => return Err(stopped_fault()),
        };
        let solved_cache = (&tag.repository, outcome.cache);
        let cache = self.write_cache(active, record, solved_cache, publisher).await?;
        let rooms = &self.options.room_registries;
        let (room_tags, remote_tags): (Vec<Reference>, Vec<Reference>) =
            record.spec.tags.iter().cloned().partition(|tag| rooms.owns_tag(tag));
        let credentials = &active.secrets.credentials;
        if !remote_tags.is_empty() {
            // Content without a name is not published yet, so the build can still be cancelled.
            tokio::select! {
                pushed = self.ports.images.push_content(&image, &remote_tags, credentials) => {
                    pushed.map_err(|fault| push_fault(fault, &image, &remote_tags))?;
                }
                () = active.stop.cancelled() => return Err(stopped_fault()),
            }
        }
        // Publishing and cancellation exclude each other at this decision only.
        if active.verdict.decide(BuildVerdict::Publish) != BuildVerdict::Publish {
            return Err(stopped_fault());
        }
        self.name_cache(active, cache, publisher).await?;
        if !remote_tags.is_empty() {
            let named = self.ports.images.push_names(&image, &remote_tags, credentials).await;
            named.map_err(|fault| push_fault(fault, &image, &remote_tags))?;
        }
        if !room_tags.is_empty() {
            self.ports.images.publish(&image, &room_tags).await?;
        }
        let steps = publisher.step_counts();
        Ok(BuildResult {
            digest: image.manifest.digest,
            descriptor: Some(record.spec.described(&image.manifest)),
            size_bytes: image.size_bytes,
            cached_steps: steps.cached,
            total_steps: steps.total,
            duration: started.elapsed(),
        })
    }

    /// Prepares the context and solves it, again when files changed in between.
    async fn solve_until_stable(
        &self,
        active: &ActiveBuild,
        record: &mut BuildRecord,
        prefetch: ContextPrefetch,
        tag: &Reference,
        publisher: &mut EventPublisher,
    ) -> Result<(SolveOutcome, DockerfileSource), Fault> {
        let mut prefetch = Some(prefetch);
        let mut tries = 1;
        let spec = record.spec.clone();
        let recipe = RunningRecipe::of(&spec).map_err(|fault| *fault)?;
        loop {
            let prefetch = prefetch.take().unwrap_or_else(|| self.start_prefetch(active, record));
            let context = tokio::select! {
                context = self.prepared_context(prefetch, record) => context?,
                () = active.stop.cancelled() => return Err(stopped_fault()),
            };
            record.context = Some(context.identity.clone());
            let images = self
                .supply_images(
                    active,
                    record,
                    (&recipe, &context.dockerfile),
                    &context.dockerfile_path,
                    publisher,
                )
                .await
                .map_err(|fault| recipe.fault(fault))?;
            let (files, repositories) = (images.downloads.clone(), images.repositories.clone());
            let downloads = self
                .fetch_downloads(active, files, repositories, &context.dockerfile_path, publisher)
                .await
                .map_err(|fault| recipe.fault(fault))?;
            record.sources =
                images.recorded_sources().into_iter().chain(downloads.recorded_sources()).collect();
            let caches = self.supply_caches(active, record, publisher).await?;
            let given = SolveInputs {
                recipe: &recipe,
                context: &context,
                images: &images,
                downloads: &downloads,
                caches: &caches,
            };
            // The inputs are recorded beside the solve, so that a build does not wait for them.
            let recorded = self.record_inputs(record, &context);
            let (solved, ()) = tokio::join!(self.solve(active, record, tag, &given, publisher), recorded);
            let fault = match solved {
                Ok(outcome) => {
                    let PreparedContext { dockerfile, dockerfile_path: path, .. } = context;
                    return Ok((outcome, DockerfileSource { dockerfile, path }));
                }
                Err(fault) if is_context_change(&fault) && tries < CONTEXT_TRIES => fault,
                Err(fault) => return Err(fault),
            };
            tries += 1;
            tracing::info!(error = fault.message, "context changed during a build; running it again");
            let message = format!("{}; the build is run again", fault.message);
            let warning = BuildEventKind::Warning { message, url: None, dockerfile: None };
            publisher.publish(warning).await.map_err(|error| logged_log_fault(&error))?;
        }
    }

    async fn solve(
        &self,
        active: &ActiveBuild,
        record: &BuildRecord,
        tag: &Reference,
        given: &SolveInputs<'_>,
        publisher: &mut EventPublisher,
    ) -> Result<SolveOutcome, Fault> {
        let SolveInputs { recipe, context, images, downloads, caches } = given;
        let pull: BTreeSet<Repository> = images
            .sources
            .iter()
            .map(|image| image.repository.clone())
            .chain(caches.repositories())
            .collect();
        let access = RegistryAccess { push: Some(tag.repository.clone()), pull: pull.into_iter().collect() };
        let credentials = Arc::new(BuildCredentials::new(
            record.id.clone(),
            self.options.registry.clone(),
            access,
            Arc::clone(&self.options.registry_credential),
        ));
        let host = Platform::host();
        let foreign_runs: Vec<_> =
            images.runs.iter().filter(|run| !run.platform.is_same(&host)).cloned().collect();
        let spec = settled_spec(&record.spec);
        let program = recipe.program(&spec, images.base_defaults.as_ref()).map_err(|fault| *fault)?;
        let request = || SolveRequest {
            build: record.id.clone(),
            program: program.clone(),
            domain: record.trust_domain(),
            spec: spec.clone(),
            files: context.files.clone(),
            secrets: active.secret_values(),
            converts_layers: false,
            images: images.sources.clone(),
            downloads: downloads.files.clone(),
            repositories: downloads.repositories.clone(),
            foreign_runs: foreign_runs.clone(),
            caches: caches.for_solve(record),
            registry: self.options.registry.clone(),
            repository: tag.repository.clone(),
            credentials: Arc::clone(&credentials) as Arc<dyn super::port::CredentialProvider>,
        };
        // A solver that died takes a moment to restart, so the solve is retried. Only a second death in the middle of
        // the build fails it.
        let (mut deaths, mut away_since) = (0, None);
        loop {
            publisher.begin_attempt().await.map_err(|error| logged_log_fault(&error))?;
            let (result, events) = self.solve_once(active, request(), publisher).await?;
            let result = match result {
                Ok(outcome) => {
                    self.settle_layers(active, outcome, images, (tag, &record.spec), &request).await
                }
                Err(error) => Err(error),
            };
            let reason = match result {
                Ok(outcome) => return Ok(outcome),
                Err(SolveError::Cancelled) => return Err(stopped_fault()),
                Err(SolveError::Failed(fault)) => {
                    let fault = downloads.with_line(*fault, &context.dockerfile_path);
                    return Err(recipe.fault(with_dockerfile_path(fault, &context.dockerfile_path)));
                }
                Err(SolveError::Unavailable(reason)) => reason,
            };
            if active.stop.is_cancelled() {
                return Err(stopped_fault());
            }
            let since = *away_since.get_or_insert_with(Instant::now);
            if events > 0 {
                deaths += 1;
            }
            if deaths > 1 || since.elapsed() >= self.options.solver_wait {
                return Err(Fault::new(
                    FaultStage::Solve,
                    ErrorCode::BuilderUnavailable,
                    format!("the builder went away: {reason}"),
                ));
            }
            if events > 0 {
                // The duration of the attempt itself is not waiting time.
                away_since = Some(Instant::now());
                tracing::warn!(error = reason, "solver became unavailable; running the build once more");
                let message = format!("the builder went away ({reason}); the build is run once more");
                let warning = BuildEventKind::Warning { message, url: None, dockerfile: None };
                publisher.publish(warning).await.map_err(|error| logged_log_fault(&error))?;
            }
            tokio::select! {
                () = tokio::time::sleep(SOLVER_PAUSE) => {}
                () = active.stop.cancelled() => return Err(stopped_fault()),
            }
        }
    }

    /// Runs one solve and forwards its events. Returns its result and the number of events.
    async fn solve_once(
        &self,
        active: &ActiveBuild,
        request: SolveRequest,
        publisher: &mut EventPublisher,
    ) -> Result<(Result<SolveOutcome, SolveError>, u64), Fault> {
        let (sender, mut events) = mpsc::channel(EVENT_CHANNEL_CAPACITY);
        let stop = active.stop.child_token();
        let solve = self.ports.solver.solve(request, sender, stop.clone());
        let forward = async {
            let forwarded = publisher.forward(&mut events).await;
            if forwarded.is_err() {
                // The events cannot be stored any more; the solve must not block on the channel.
                stop.cancel();
                events.close();
                while events.recv().await.is_some() {}
            }
            forwarded
        };
        tokio::pin!(solve, forward);
        tokio::select! {
            result = &mut solve => match tokio::time::timeout(EVENT_DRAIN_LIMIT, forward).await {
                Ok(forwarded) => Ok((result, forwarded.map_err(|error| logged_log_fault(&error))?)),
                Err(_) => {
                    tracing::warn!("solver kept its event channel open after its answer");
                    Ok((result, 1))
                }
            },
            // The solver may close the channel before it answers.
            forwarded = &mut forward => {
                let result = solve.await;
                Ok((result, forwarded.map_err(|error| logged_log_fault(&error))?))
            }
        }
    }
}
