//! End of a build. It is stored first; only then do watchers and callers learn of it.
//!
//! ```text
//! outcome --> rest of the log and record stored --> last event --> slot free
//!                   ^       |
//!                   '-------'  again while the store fails, as long as the daemon lives
//! ```
//!
//! Until its record is stored, the build stays active: it keeps its slot, its watchers wait, and a request to cancel or
//! to remove it is refused with the failure of the store. A daemon that ends meanwhile leaves a running build whose log
//! has no end, which the next start recovers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::faults::interrupted_fault;
use super::layer_sizes;
use crate::build::port::StoreError;
use crate::build::publisher::EventPublisher;
use crate::build::service::{ActiveBuild, BuildRuntime, StoreFailure};
use crate::disk::is_disk_full;
use crate::model::build::{BuildEventKind, BuildOutcome, BuildRecord, BuildState};

/// Number of small logs (at most their share of `logs_per_owner`) that wait for the next periodic check of the sum of
/// log sizes.
const SMALL_LOG_COUNT: u64 = 256;
/// Pause after a failure of the store; doubled up to `LONGEST_PAUSE`.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Time for which the store has to fail before callers who wait for the build get the failure.
const TOLD_AFTER: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(3) };
/// Time limit for reading the layers of a built image, before its end is stored.
const LAYERS_LIMIT: Duration = Duration::from_secs(5);
/// Number of attempts to store the rest of the log. A log without it is complete but for the last output.
const LOG_TRIES: u32 = 3;

/// Retries of one access to the store.
struct StoreRetry<'b> {
    active: &'b ActiveBuild,
    since: Instant,
    pause: Duration,
}

impl<'b> StoreRetry<'b> {
    fn new(active: &'b ActiveBuild) -> Self {
        Self { active, since: Instant::now(), pause: FIRST_PAUSE }
    }

    /// Reports a failure, and returns when it is time for the next attempt.
    async fn failed(&mut self, error: &StoreError) {
        tracing::warn!(%error, pause = ?self.pause, "cannot read or store the record of this build; trying again after the pause");
        if self.since.elapsed() >= TOLD_AFTER {
            let failure = StoreFailure { message: error.to_string(), disk_full: is_disk_full(&error.0) };
            self.active.store_failure.send_replace(Some(failure));
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    fn succeeded(&self) {
        self.active.store_failure.send_if_modified(|failure| failure.take().is_some());
    }
}

impl BuildRuntime {
    /// Reads the record of an active build, again until the store answers. Returns `None` if there is none.
    pub(in crate::build) async fn stored_record(&self, active: &ActiveBuild) -> Option<BuildRecord> {
        let mut retry = StoreRetry::new(active);
        loop {
            match self.ports.store.get(&active.id).await {
                Ok(record) => {
                    retry.succeeded();
                    return record;
                }
                Err(error) => retry.failed(&error).await,
            }
        }
    }

    /// Records how a build ended, notifies its watchers, and frees its slot for the next build.
    pub(in crate::build) async fn finish(
        self: &Arc<Self>,
        active: &ActiveBuild,
        mut record: BuildRecord,
        outcome: BuildOutcome,
        mut publisher: EventPublisher,
    ) {
        (record.state, record.result, record.fault) = match outcome {
            BuildOutcome::Succeeded(result) => (BuildState::Succeeded, Some(result), None),
            BuildOutcome::Failed(fault) => (BuildState::Failed, None, Some(fault)),
            BuildOutcome::Cancelled => (BuildState::Cancelled, None, None),
            BuildOutcome::Interrupted(fault) => (BuildState::Interrupted, None, Some(fault)),
        };
        let now = Timestamp::now();
        record.finished_at = Some(now);
        record.steps = publisher.step_summaries();
        if record.state == BuildState::Succeeded {
            self.add_layer_sizes(&mut record).await;
        }
        let (state, started) = (record.state, record.started_at);
        tracing::info!(
            state = state.as_str(),
            error.code = record.fault.as_ref().map(|fault| fault.code.as_str()),
            "build ended"
        );
        self.store_end(active, record, &mut publisher).await;
        if let Err(error) = publisher.finish(state).await {
            // Readers derive the last event from the record when the log lacks it.
            tracing::warn!(%error, "failed to store the last event of a build");
        }
        metrics::counter!("hearth_builds_total", "state" => state.as_str()).increment(1);
        if let Some(started) = started {
            let seconds = now.duration_since(started).as_secs_f64();
            metrics::histogram!("hearth_build_duration_seconds").record(seconds);
        }
        self.release_packs(&active.packs).await;
        self.release(active);
        if active.log.len() >= self.options.logs_per_owner / SMALL_LOG_COUNT {
            self.large_log.notify_one();
        }
    }

    /// Adds the sizes of the layers to the steps that made them. They are for people only, so a build does not fail
    /// without them.
    async fn add_layer_sizes(&self, record: &mut BuildRecord) {
        let (Some(result), Some(tag)) = (&record.result, record.spec.tags.first()) else { return };
        let reading = self.ports.images.instructions(&tag.repository, result.digest);
        match tokio::time::timeout(LAYERS_LIMIT, reading).await {
            Ok(Ok(instructions)) => layer_sizes::add(&mut record.steps, &instructions),
            Ok(Err(fault)) => {
                tracing::warn!(error = fault.message, "failed to read the layers of a built image");
            }
            Err(_) => tracing::warn!(limit = ?LAYERS_LIMIT, "gave up reading the layers of a built image"),
        }
    }

    /// Stores the rest of the log and the record, and returns when the record is stored.
    async fn store_end(&self, active: &ActiveBuild, mut record: BuildRecord, publisher: &mut EventPublisher) {
        let mut retry = StoreRetry::new(active);
        let (mut sealed, mut log_tries) = (false, 0);
        loop {
            if !sealed && log_tries < LOG_TRIES {
                log_tries += 1;
                match publisher.seal().await {
                    Ok(()) => sealed = true,
                    Err(error) => tracing::warn!(%error, "failed to store the rest of a build log"),
                }
            }
            // The last event of an ended build is not among those of the log yet.
            record.last_sequence = publisher.last_sequence() + u64::from(record.state.is_final());
            // The next start of the daemon repairs either half without the other.
            let (stored, synced) = tokio::join!(self.ports.store.update(record.clone()), publisher.sync());
            if let Err(error) = synced {
                tracing::warn!(%error, "failed to make the end of a build log durable");
            }
            match stored {
                Ok(()) => return retry.succeeded(),
                Err(error) => retry.failed(&error).await,
            }
        }
    }

    /// Stores a build whose log already has its end.
    pub(in crate::build) async fn store_logged_end(
        self: &Arc<Self>,
        active: &ActiveBuild,
        record: BuildRecord,
    ) {
        let mut retry = StoreRetry::new(active);
        while let Err(error) = self.ports.store.update(record.clone()).await {
            retry.failed(&error).await;
        }
        retry.succeeded();
        self.release(active);
    }

    /// Called when the daemon shuts down before the build has ended: queues the build for the next run, or interrupts
    /// it if the next run cannot build it.
    pub(super) async fn requeue_or_interrupt(
        self: &Arc<Self>,
        active: &ActiveBuild,
        mut record: BuildRecord,
        mut publisher: EventPublisher,
    ) {
        if record.has_secrets {
            let fault = interrupted_fault("and its secrets were held in memory only");
            return self.finish(active, record, BuildOutcome::Interrupted(fault), publisher).await;
        }
        let queued = BuildEventKind::StateChanged { state: BuildState::Queued };
        if let Err(error) = publisher.publish(queued).await {
            tracing::warn!(%error, "failed to store the end of a build log");
        }
        record.state = BuildState::Queued;
        self.store_end(active, record, &mut publisher).await;
        // The packs stay held because the next run needs them.
        self.release(active);
    }
}
