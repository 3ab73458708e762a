//! Build service of the room: options -> [`Service`] -> [`Handle`].
//!
//! ```text
//! submit --reserve--> stored as queued --slot--> driver task --> ended
//!                          |                         |
//!                       cancel: ended at once     cancel: ended when the solve has stopped
//! ```
//!
//! The sets of waiting and running builds are one value under one lock ([`BuildSchedule`]). The record of a build is
//! in the store, and its events are in its event log. A build that waits or runs has an [`ActiveBuild`], shared by its
//! driver, its watchers and the requests that cancel it.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::admission::{AdmissionLimits, BuildAdmission, QueuePlace};
use super::credentials::RegistryCredentialMinter;
use super::driver::{self, ContextPrefetch};
use super::event_log::EventLog;
use super::log_text::{self, BuildLogQuery, BuildLogText};
use super::mask::SecretMask;
use super::port::{
    BuildInputsStore, BuildQuery, BuildStore, ContextSource, Downloader, RoomImages, RoomSecretReader,
    Solver, StoreError,
};
use super::publisher::EventPublisher;
use super::verdict::{BuildVerdict, VerdictCell};
use super::{estimate, recovery, retention};
use crate::disk::SpaceWatch;
use crate::model::RoomRegistries;
use crate::model::build::{BuildOutcome, BuildRecord, BuildSecrets};
use crate::model::id::{BuildId, PackId};
use crate::model::secret::Secret;
use crate::model::share_owner::ShareOwnerResolver;
use crate::task;

#[derive(Clone)]
pub struct Options {
    pub limits: AdmissionLimits,
    /// Maximum bytes of log kept for one build.
    pub log_quota: u64,
    /// Maximum bytes of logs kept for all ended builds of one owner.
    pub logs_per_owner: u64,
    /// Time limit of builds that do not set one.
    pub default_timeout: Duration,
    /// Maximum time limit of a build.
    pub max_timeout: Duration,
    /// Time limit for a build to stop after it was told to.
    pub stop_timeout: Duration,
    /// Time limit for waiting for an unavailable solver.
    pub solver_wait: Duration,
    /// Number of ended builds kept, newest first.
    pub keep_ended: usize,
    /// Maximum age of ended builds.
    pub keep_for: Duration,
    /// Directory with one file of events per build; created when missing.
    pub log_dir: PathBuf,
    /// Minimum free bytes on the file system of `log_dir`; new builds are refused below it.
    pub min_free_space: u64,
    /// Free space of the disk: step output is not kept while it is low.
    pub space: SpaceWatch,
    /// Room registry as BuildKit reaches it (`host:port`).
    pub registry: String,
    pub room_registries: RoomRegistries,
    pub registry_credential: RegistryCredentialMinter,
    /// Owners under which the builds of callers count in the queue.
    pub share_owners: ShareOwnerResolver,
}

/// Ports of the build service to the rest of the daemon.
#[derive(Clone)]
pub struct BuildPorts {
    pub store: Arc<dyn BuildStore>,
    pub inputs: Arc<dyn BuildInputsStore>,
    pub solver: Arc<dyn Solver>,
    pub contexts: Arc<dyn ContextSource>,
    pub images: Arc<dyn RoomImages>,
    pub downloads: Arc<dyn Downloader>,
    pub secrets: Arc<dyn RoomSecretReader>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("directory of build logs {}: {source}", path.display())]
    Logs { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reason why a request about a build fails.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("there is no build `{given}`")]
    NotFound { given: String },
    #[error("`{given}` is the beginning of several builds' ids; write more characters of it")]
    Ambiguous { given: String },
    #[error("build `{id}` has not ended; wait for its end, or cancel it first")]
    NotEnded { id: BuildId },
    #[error("a caller pins at most {limit} builds; unpin one first")]
    TooManyPinned { limit: usize },
    #[error(
        "the inputs of build `{id}` are not recorded: it ended before its steps began, or an older daemon ran it"
    )]
    NoInputs { id: BuildId },
    /// Nothing is lost: the daemon stores the state as soon as it can.
    #[error(
        "the state of build `{id}` cannot be stored at the moment, and the daemon keeps trying: {failure}"
    )]
    Unstored { id: BuildId, failure: StoreFailure },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("log of build `{id}`: {source}")]
    Log { id: BuildId, source: std::io::Error },
}

/// Owns the background loops; builds have tasks of their own.
pub struct Service {
    handle: Handle,
    retention: JoinHandle<()>,
}

/// Requests to the build service. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<BuildRuntime>,
}

pub(super) struct BuildRuntime {
    pub(super) options: Options,
    pub(super) ports: BuildPorts,
    state: Mutex<BuildSchedule>,
    /// Permits of questions about Dockerfiles that are answered at the same time.
    pub(super) questions: tokio::sync::Semaphore,
    /// Held while builds are selected and removed, or pinned, so that no build is removed that has just been pinned.
    pub(super) removals: tokio::sync::Mutex<()>,
    /// Notified when a build with a log that is not small has ended.
    pub(super) large_log: Notify,
}

pub(super) struct BuildSchedule {
    pub(super) admission: BuildAdmission,
    pub(super) active: HashMap<BuildId, Arc<ActiveBuild>>,
}

/// A build that waits or runs.
pub(super) struct ActiveBuild {
    pub(super) id: BuildId,
    pub(super) submitted_by: String,
    pub(super) log: Arc<EventLog>,
    pub(super) secrets: BuildSecrets,
    /// Values of the room's secrets that the build uses, by secret id, once it has started.
    room_secrets: Mutex<BTreeMap<String, Secret<Vec<u8>>>>,
    /// Packs that are held until the build ends.
    pub(super) packs: Vec<PackId>,
    /// Context prefetch, if it could start before the build was stored.
    prefetch: Mutex<Option<ContextPrefetch>>,
    pub(super) verdict: VerdictCell,
    /// Tells the driver to stop.
    pub(super) stop: CancellationToken,
    /// Cancelled when the final state is recorded.
    pub(super) ended: CancellationToken,
    /// Set while the state of the build cannot be stored or read.
    pub(super) store_failure: watch::Sender<Option<StoreFailure>>,
}

/// Failure of the store that lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFailure {
    pub message: String,
    pub disk_full: bool,
}

impl std::fmt::Display for StoreFailure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl ActiveBuild {
    pub(super) fn new(id: BuildId, submitted_by: String, log: Arc<EventLog>, packs: Vec<PackId>) -> Self {
        Self {
            id,
            submitted_by,
            log,
            secrets: BuildSecrets::default(),
            room_secrets: Mutex::default(),
            packs,
            prefetch: Mutex::default(),
            verdict: VerdictCell::default(),
            stop: CancellationToken::new(),
            ended: CancellationToken::new(),
            store_failure: watch::Sender::new(None),
        }
    }

    #[must_use]
    pub(super) fn with_secrets(self, secrets: BuildSecrets) -> Self {
        Self { secrets, ..self }
    }

    #[must_use]
    pub(super) fn with_prefetch(self, prefetch: Option<ContextPrefetch>) -> Self {
        Self { prefetch: Mutex::new(prefetch), ..self }
    }

    /// Returns when the final state is recorded, or with an error while it cannot be.
    pub(super) async fn wait_ended(&self) -> Result<(), BuildError> {
        let mut failures = self.store_failure.subscribe();
        tokio::select! {
            biased;
            () = self.ended.cancelled() => Ok(()),
            // The sender is in `self`, so the wait does not end early.
            failed = failures.wait_for(Option::is_some) => match failed.ok().and_then(|failed| failed.clone()) {
                Some(failure) => Err(BuildError::Unstored { id: self.id.clone(), failure }),
                None => Ok(()),
            },
        }
    }

    pub(super) fn add_room_secret(&self, id: &str, value: Secret<Vec<u8>>) {
        self.room_secrets.lock().insert(id.to_owned(), value);
    }

    /// Returns the secrets that came with the build, and those of the room that it uses, by secret id.
    pub(super) fn secret_values(&self) -> BTreeMap<String, Secret<Vec<u8>>> {
        let mut values = self.room_secrets.lock().clone();
        values.extend(self.secrets.values.clone());
        values
    }

    pub(super) fn take_prefetch(&self) -> Option<ContextPrefetch> {
        self.prefetch.lock().take()
    }
}

impl Service {
    /// Starts the service and recovers the builds of an earlier run: queued builds wait again, running ones are run
    /// again or interrupted.
    pub async fn start(options: Options, ports: BuildPorts) -> Result<Self, StartError> {
        let directory = options.log_dir.clone();
        let made = task::blocking("build logs", move || std::fs::create_dir_all(directory)).await;
        made.map_err(std::io::Error::other)
            .flatten()
            .map_err(|source| StartError::Logs { path: options.log_dir.clone(), source })?;
        metrics::describe_counter!("hearth_builds_total", "Builds that ended, by state.");
        metrics::describe_histogram!(
            "hearth_build_duration_seconds",
            "Duration of builds, from their slot to their end."
        );
        metrics::describe_gauge!("hearth_builds_running", "Builds that have a slot.");
        metrics::describe_gauge!("hearth_builds_queued", "Builds that wait for a slot.");
        let state = BuildSchedule { admission: BuildAdmission::new(options.limits), active: HashMap::new() };
        let shared = Arc::new(BuildRuntime {
            options,
            ports,
            state: Mutex::new(state),
            questions: tokio::sync::Semaphore::new(driver::CONCURRENT_QUESTIONS),
            removals: tokio::sync::Mutex::default(),
            large_log: Notify::new(),
        });
        recovery::recover(&shared).await?;
        shared.start_waiting_builds();
        let retention = task::spawn("build retention", retention::retention_loop(Arc::clone(&shared)));
        Ok(Self { handle: Handle { shared }, retention })
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.retention.abort();
    }
}

impl Handle {
    /// Returns one build, by its whole id or a unique prefix of it.
    pub async fn get(&self, id: &str) -> Result<BuildRecord, BuildError> {
        self.find(id, None).await
    }

    /// Returns the place of a build in the queue. `None` when it does not wait.
    pub fn queue_place(&self, id: &BuildId) -> Option<QueuePlace> {
        self.shared.schedule().admission.place(id)
    }

    /// Returns the expected time until a waiting build starts. `None` when too little is known of earlier builds.
    pub async fn expected_wait(&self, place: &QueuePlace) -> Result<Option<Duration>, StoreError> {
        estimate::expected_wait(&*self.shared.ports.store, place).await
    }

    /// Returns a function that names the submitter of an active build, by its whole id, while the daemon runs.
    pub fn submitters(&self) -> impl Fn(&str) -> Option<String> + Send + Sync + use<> {
        let shared = Arc::downgrade(&self.shared);
        move |build| {
            let id = build.parse::<BuildId>().ok()?;
            let active = shared.upgrade()?.schedule().active.get(&id).cloned()?;
            Some(active.submitted_by.clone())
        }
    }

    /// Like [`get`](Self::get), but looks up a prefix only among the builds of `owner`, if one is given.
    pub async fn find(&self, id: &str, owner: Option<&str>) -> Result<BuildRecord, BuildError> {
        let id = self.resolve(id, owner).await?;
        self.record(&id).await
    }

    /// Lists builds, newest first.
    pub async fn list(&self, query: BuildQuery) -> Result<Vec<BuildRecord>, BuildError> {
        let mut records = self.shared.ports.store.list(query).await?;
        let state = self.shared.schedule();
        for record in &mut records {
            if let Some(active) = state.active.get(&record.id) {
                record.last_sequence = active.log.last_sequence();
            }
        }
        Ok(records)
    }

    /// Returns the bytes of logs by submitter.
    pub async fn log_bytes(&self) -> Result<BTreeMap<String, u64>, BuildError> {
        let records = self.list(BuildQuery { limit: usize::MAX, ..BuildQuery::default() }).await?;
        let directory = self.shared.options.log_dir.clone();
        let add = task::blocking("build logs", move || {
            let mut bytes: BTreeMap<String, u64> = BTreeMap::new();
            for record in records {
                // An unreadable log counts as 0; reading it reports the error.
                *bytes.entry(record.submitted_by).or_default() +=
                    EventLog::size(&directory, &record.id).unwrap_or_default();
            }
            bytes
        });
        add.await.map_err(|_| StoreError(std::io::Error::other("the daemon is ending")).into())
    }

    /// Returns a part of the log as lines.
    pub async fn read_log(&self, id: &str, query: BuildLogQuery) -> Result<BuildLogText, BuildError> {
        let id = self.resolve(id, None).await?;
        let active = self.shared.active_build(&id);
        let (directory, of) = (self.shared.options.log_dir.clone(), id.clone());
        let read = task::blocking("build log", move || match active {
            Some(active) => log_text::read_log_text(&active.log, &query),
            None => match EventLog::open(&directory, &of)? {
                Some(log) => log_text::read_log_text(&log, &query),
                None => {
                    Ok(BuildLogText { next_sequence: query.from_sequence.max(1), ..BuildLogText::default() })
                }
            },
        });
        read.await.map_err(std::io::Error::other).flatten().map_err(|source| BuildError::Log { id, source })
    }

    /// Cancels a build and returns when its processes have exited. A build that has ended, or already publishes its
    /// tags, is not affected.
    pub async fn cancel(&self, id: &str) -> Result<BuildRecord, BuildError> {
        let id = self.resolve(id, None).await?;
        let (active, was_waiting) = {
            let mut state = self.shared.schedule();
            match state.active.get(&id).cloned() {
                None => (None, false),
                Some(active) => {
                    let cancels = active.verdict.decide(BuildVerdict::Cancel) == BuildVerdict::Cancel;
                    let was_waiting = cancels && state.admission.withdraw(&id);
                    if cancels {
                        active.stop.cancel();
                    }
                    (Some(active), was_waiting)
                }
            }
        };
        if let Some(active) = active {
            if was_waiting {
                // A task of its own, because the cancelled build must end even if the caller disconnects.
                let shared = Arc::clone(&self.shared);
                let waiting = Arc::clone(&active);
                let end = async move { shared.end_cancelled_in_queue(&waiting).await };
                drop(driver::build_span(&id).in_scope(|| task::spawn("cancel build", end)));
            }
            active.wait_ended().await?;
        }
        self.record(&id).await
    }

    /// Removes a build that has ended.
    pub async fn remove(&self, id: &str) -> Result<(), BuildError> {
        let _turn = self.shared.removals.lock().await;
        let record = self.ended(id).await?;
        self.shared.remove(&record.id).await
    }

    /// Returns a build that has ended. Nothing else changes its record.
    pub(super) async fn ended(&self, id: &str) -> Result<BuildRecord, BuildError> {
        let record = self.get(id).await?;
        let active = self.shared.active_build(&record.id);
        if !record.state.is_final() {
            let failure = active.and_then(|active| active.store_failure.borrow().clone());
            let id = record.id;
            return Err(match failure {
                Some(failure) => BuildError::Unstored { id, failure },
                None => BuildError::NotEnded { id },
            });
        }
        // Its task may still be publishing the last event.
        if let Some(active) = active {
            active.wait_ended().await?;
        }
        self.record(&record.id).await
    }

    /// Stops accepting and starting builds, and returns when none runs. Running builds get the time `grace`; after
    /// that they are stopped and queued for the next run of the daemon.
    pub async fn drain(&self, grace: Duration) {
        let running = {
            let mut state = self.shared.schedule();
            state.admission.drain();
            let waiting = state.admission.waiting();
            let running = state.active.values().filter(|active| !waiting.contains(&active.id));
            running.cloned().collect::<Vec<_>>()
        };
        let all_ended = async {
            for active in &running {
                active.ended.cancelled().await;
            }
        };
        if tokio::time::timeout(grace, all_ended).await.is_ok() {
            return;
        }
        for active in &running {
            if active.verdict.decide(BuildVerdict::Drain) == BuildVerdict::Drain {
                active.stop.cancel();
            }
        }
        let limit = self.shared.options.stop_timeout + Duration::from_secs(5);
        let stopped = async {
            for active in &running {
                active.ended.cancelled().await;
            }
        };
        if tokio::time::timeout(limit, stopped).await.is_err() {
            tracing::warn!("failed to end all builds before the shutdown; the next start recovers them");
        }
    }

    /// Returns the numbers of running and waiting builds.
    pub fn running_and_waiting(&self) -> (usize, usize) {
        let state = self.shared.schedule();
        (state.admission.running_count(), state.admission.waiting_count())
    }

    pub(super) async fn record(&self, id: &BuildId) -> Result<BuildRecord, BuildError> {
        // The log is read first; a record that is newer than the log is also correct.
        let last = self.shared.active_build(id).map(|active| active.log.last_sequence());
        let mut record = self
            .shared
            .ports
            .store
            .get(id)
            .await?
            .ok_or_else(|| BuildError::NotFound { given: id.to_string() })?;
        record.last_sequence = record.last_sequence.max(last.unwrap_or(0));
        Ok(record)
    }

    pub(super) async fn resolve(&self, given: &str, owner: Option<&str>) -> Result<BuildId, BuildError> {
        let not_found = || BuildError::NotFound { given: given.chars().take(40).collect() };
        if let Ok(id) = given.parse::<BuildId>() {
            return Ok(id);
        }
        if given.is_empty() || !given.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(not_found());
        }
        let mut ids = self.shared.ports.store.ids_with_prefix(given, owner, 2).await?;
        match (ids.pop(), ids.pop()) {
            (Some(_), Some(_)) => Err(BuildError::Ambiguous { given: given.to_owned() }),
            (Some(id), None) => Ok(id),
            _ => Err(not_found()),
        }
    }
}

impl BuildRuntime {
    pub(super) fn schedule(&self) -> MutexGuard<'_, BuildSchedule> {
        // No code under this lock leaves the state half changed.
        self.state.lock()
    }

    pub(super) fn active_build(&self, id: &BuildId) -> Option<Arc<ActiveBuild>> {
        self.schedule().active.get(id).cloned()
    }

    /// Assigns free slots to waiting builds.
    pub(super) fn start_waiting_builds(self: &Arc<Self>) {
        loop {
            let next = {
                let mut state = self.schedule();
                let next = state.admission.start_next();
                self.update_gauges(&state);
                match next {
                    None => return,
                    Some(id) => match state.active.get(&id).cloned() {
                        Some(active) => active,
                        None => {
                            state.admission.mark_ended(&id);
                            continue;
                        }
                    },
                }
            };
            // The task ends with its build; callers wait for `ActiveBuild::ended`.
            let run = || task::spawn("build slot", driver::run(Arc::clone(self), Arc::clone(&next)));
            drop(driver::build_span(&next.id).in_scope(run));
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge; builds are few")]
    fn update_gauges(&self, state: &BuildSchedule) {
        metrics::gauge!("hearth_builds_running").set(state.admission.running_count() as f64);
        metrics::gauge!("hearth_builds_queued").set(state.admission.waiting_count() as f64);
    }

    /// Removes a build that has ended and frees its slot.
    pub(super) fn release(self: &Arc<Self>, active: &ActiveBuild) {
        {
            let mut state = self.schedule();
            state.admission.mark_ended(&active.id);
            state.active.remove(&active.id);
        }
        active.ended.cancel();
        self.start_waiting_builds();
    }

    /// Ends a build that was cancelled before it had a slot.
    async fn end_cancelled_in_queue(self: &Arc<Self>, active: &ActiveBuild) {
        let Some(record) = self.stored_record(active).await else { return self.release(active) };
        let publisher = EventPublisher::new(Arc::clone(&active.log), SecretMask::default(), 0);
        self.finish(active, record, BuildOutcome::Cancelled, publisher).await;
    }

    pub(super) async fn remove(&self, id: &BuildId) -> Result<(), BuildError> {
        // The record is removed first: a log without a record is removed at the next start.
        self.ports.store.remove(id).await?;
        let (directory, of) = (self.options.log_dir.clone(), id.clone());
        let removed = task::blocking("build log", move || EventLog::remove(&directory, &of)).await;
        removed
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(|source| BuildError::Log { id: id.clone(), source })
    }
}
