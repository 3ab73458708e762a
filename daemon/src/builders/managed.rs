//! The task that owns the managed builders: it executes the decisions of [`BuilderPolicy`](super::policy).
//!
//! ```text
//! lease request, drop of a lease --.                                     .--> start: directory, buildkitd, connection
//! status change of a builder ------+--> BuilderEvent --> BuilderPolicy --+--> stop: close sessions, measure, end child
//! end of an action ----------------'          ^                          +--> prune, measure: over its own API
//!                                             |                          '--> remove: rename directory, then empty it
//!                                             '--------------------------'
//! ```
//!
//! The task never waits for an action: each one runs in a task of its own and reports its end as an event. There is at
//! most one event for each lease and each running action, so the queue needs no bound of its own.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::directory::{self, BuilderDirectories, BuilderRecord};
use super::policy::{BuilderAction, BuilderLimits, BuilderPolicy, LeaseTicket};
use crate::buildkit::{BuildKitClient, ReadinessStatus, managed};
use crate::disk::SpaceWatch;
use crate::git_proxy::GitProxy;
use crate::model::builder::BuilderStatus;
use crate::model::share_owner::ShareOwnerResolver;
use crate::model::trust::TrustDomain;
use crate::network::steps::StepNetwork;
use crate::supervise;
use crate::task;

mod reclaim;
mod status;

use reclaim::DiskUseSuspect;
use status::describe_metrics;

/// Delay from the end of a build until its builder's cache is measured; one measurement covers all builds that end in
/// between.
const MEASURE_DELAY: Duration = Duration::from_secs(2);
/// Time limit for the last measurement of a builder that is being stopped.
const FINAL_MEASURE_LIMIT: Duration = Duration::from_secs(2);
/// Maximum interval between two checks for idle builders.
const LONGEST_TICK: Duration = Duration::from_secs(15);
const SHORTEST_TICK: Duration = Duration::from_millis(100);
/// Pause before a builder that could not be started is tried again.
const START_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct Options {
    pub state_dir: PathBuf,
    pub limits: BuilderLimits,
    /// Owners to which the trust domains of services belong.
    pub owners: ShareOwnerResolver,
    /// Template of the options of each builder, without its directory, control group, step network and git access.
    pub builder: managed::Options,
    /// Network of the steps of all builders. When it is `None`, the options of the builder contain the reason.
    pub network: Option<StepNetwork>,
    /// Proxy by which the builders' git reaches repositories.
    pub git: Option<GitProxy>,
    /// Free space of the disk: builds that use it up are ended.
    pub space: SpaceWatch,
}

/// Permission of one build to use a builder; dropping it releases the builder.
pub(super) struct BuilderLease {
    pub(super) client: BuildKitClient,
    /// Cancelled when the build must end because the builds of its builder used up the disk.
    pub(super) no_space: CancellationToken,
    /// Number of the start of the builder that granted the lease.
    domain: TrustDomain,
    generation: u64,
    events: mpsc::UnboundedSender<BuilderEvent>,
}

impl Drop for BuilderLease {
    fn drop(&mut self) {
        // Sending fails only when the owner task has ended.
        let _ = self.events.send(BuilderEvent::Released(self.domain.clone(), self.generation));
    }
}

type LeaseSender = oneshot::Sender<Result<BuilderLease, String>>;

/// Connection and process of a running builder.
type RunningBuilder = (BuildKitClient, supervise::Handle);

enum BuilderEvent {
    Requested(LeaseTicket, TrustDomain, LeaseSender),
    RequestWithdrawn(LeaseTicket),
    Released(TrustDomain, u64),
    Started(TrustDomain, Box<Result<RunningBuilder, String>>),
    /// The pause after a failed start is over.
    StartPauseEnded(TrustDomain),
    Stopped(TrustDomain, Option<u64>),
    Removed(TrustDomain),
    Measured {
        domain: TrustDomain,
        disk: Option<u64>,
        pruned: bool,
    },
    StatusChanged,
    /// Request for the builders that may have used up the disk.
    ListSuspects(oneshot::Sender<Vec<DiskUseSuspect>>),
    /// The builds of a builder used up the disk and must end.
    EndBuilds(TrustDomain),
    /// A builder did not release the disk space: kill it and remove its cache.
    DiscardBuilder(TrustDomain),
    /// Whether the room has no images.
    RoomEmpty(bool),
    CloseSessions,
    Shutdown(oneshot::Sender<()>),
}

/// Sends requests to the owner task. Cheap to clone.
#[derive(Clone)]
pub(super) struct Handle {
    events: mpsc::UnboundedSender<BuilderEvent>,
    pub(super) status: watch::Receiver<ReadinessStatus>,
    pub(super) builders: watch::Receiver<Vec<BuilderStatus>>,
    tickets: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

/// A waiting request for a builder; dropping it withdraws the request.
pub(super) struct LeaseRequest {
    ticket: LeaseTicket,
    answer: oneshot::Receiver<Result<BuilderLease, String>>,
    events: mpsc::UnboundedSender<BuilderEvent>,
}

impl LeaseRequest {
    pub(super) async fn wait_for_lease(&mut self) -> Result<BuilderLease, String> {
        (&mut self.answer).await.unwrap_or_else(|_| Err("the daemon is ending".to_owned()))
    }
}

impl Drop for LeaseRequest {
    fn drop(&mut self) {
        let _ = self.events.send(BuilderEvent::RequestWithdrawn(self.ticket));
    }
}

impl Handle {
    pub(super) fn request_lease(&self, domain: &TrustDomain) -> LeaseRequest {
        let ticket = LeaseTicket(self.tickets.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let (sender, answer) = oneshot::channel();
        // If the task has ended, the dropped sender answers the request.
        let _ = self.events.send(BuilderEvent::Requested(ticket, domain.clone(), sender));
        LeaseRequest { ticket, answer, events: self.events.clone() }
    }

    pub(super) fn close_sessions(&self) {
        let _ = self.events.send(BuilderEvent::CloseSessions);
    }

    pub(super) fn set_room_empty(&self, empty: bool) {
        let _ = self.events.send(BuilderEvent::RoomEmpty(empty));
    }

    /// Stops every builder.
    pub(super) async fn shutdown(&self) {
        let (sender, ended) = oneshot::channel();
        if self.events.send(BuilderEvent::Shutdown(sender)).is_ok() {
            let _ = ended.await;
        }
    }
}

/// State of a builder beyond what the policy knows of it.
#[derive(Default)]
struct BuilderSlot {
    running: Option<RunningBuilder>,
    /// Leases that were granted before the builder had started.
    pending_leases: Vec<LeaseSender>,
    pending_stop: Option<StopMode>,
    stopping: bool,
    measuring: bool,
    /// Number of this start of the builder; leases of earlier starts do not count.
    generation: u64,
    disk_use: reclaim::DiskUse,
    /// Reason why the builder could not be started.
    failure: Option<String>,
}

/// Manner of stopping a builder.
#[derive(Clone, Copy)]
enum StopMode {
    /// Let buildkitd exit within its grace period.
    Drain,
    /// Kill it at once, without a grace period.
    Kill,
}

impl BuilderSlot {
    fn lease(
        &self,
        kit: &BuildKitClient,
        domain: &TrustDomain,
        events: &mpsc::UnboundedSender<BuilderEvent>,
    ) -> BuilderLease {
        BuilderLease {
            client: kit.clone(),
            no_space: self.disk_use.out_of_space.clone(),
            domain: domain.clone(),
            generation: self.generation,
            events: events.clone(),
        }
    }
}

struct BuilderOwner {
    options: Options,
    directories: BuilderDirectories,
    policy: BuilderPolicy,
    slots: BTreeMap<TrustDomain, BuilderSlot>,
    lease_senders: HashMap<LeaseTicket, LeaseSender>,
    events: mpsc::UnboundedSender<BuilderEvent>,
    status: watch::Sender<ReadinessStatus>,
    builders: watch::Sender<Vec<BuilderStatus>>,
    last_generation: u64,
    ending: Option<oneshot::Sender<()>>,
}

/// Restores the builders of earlier runs of the daemon, and starts the one that was used last.
pub(super) async fn start(options: Options) -> std::io::Result<Handle> {
    let (state, template) = (options.state_dir.clone(), options.builder.clone());
    let opened = task::blocking("builders", move || {
        let (mut directories, records) = BuilderDirectories::open(&state)?;
        for record in records.iter().filter(|record| record.running) {
            options_in(directories.path_of(&record.domain), &template).clean_up();
        }
        let strays = directories.orphaned_directories()?;
        Ok::<_, std::io::Error>((directories, records, strays))
    });
    let (directories, records, strays) = opened.await.map_err(std::io::Error::other)??;
    for stray in strays {
        let removal = task::blocking("stray builder", move || {
            directory::remove_directory(&stray).inspect_err(|error| log_removal_failure(&stray, error))
        });
        drop(task::spawn("stray builder", removal));
    }
    let mut policy = BuilderPolicy::new(options.limits, options.owners.clone());
    if records.is_empty() {
        policy.restore(TrustDomain::local(), Timestamp::now(), 0);
    }
    for record in records {
        policy.restore(record.domain, record.last_used, record.disk);
    }
    let (events, queue) = mpsc::unbounded_channel();
    let starting =
        ReadinessStatus { detail: Some("buildkitd is starting".to_owned()), ..ReadinessStatus::default() };
    let (status, status_seen) = watch::channel(starting);
    let (builders, builders_seen) = watch::channel(Vec::new());
    describe_metrics();
    let owner = BuilderOwner {
        options,
        directories,
        policy,
        slots: BTreeMap::new(),
        lease_senders: HashMap::new(),
        events: events.clone(),
        status,
        builders,
        last_generation: 0,
        ending: None,
    };
    drop(task::spawn("reclaim disk", reclaim::reclaim_loop(owner.options.space.clone(), events.clone())));
    drop(task::spawn("builders", owner.run(queue)));
    Ok(Handle { events, status: status_seen, builders: builders_seen, tickets: std::sync::Arc::default() })
}

impl BuilderOwner {
    async fn run(mut self, mut queue: mpsc::UnboundedReceiver<BuilderEvent>) {
        let mut tick = interval((self.options.limits.idle_timeout / 4).clamp(SHORTEST_TICK, LONGEST_TICK));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = queue.recv() => match event {
                    Some(event) => self.handle_event(event),
                    None => return,
                },
                _ = tick.tick() => self.restart_large(),
            }
            while let Some(action) = self.policy.next_action(Timestamp::now()) {
                self.execute(action);
            }
            self.publish();
            if self.ending.is_some() && self.slots.is_empty() {
                // Dropping the rest of the state answers the waiting requests.
                self.ending.take().map(|ended| ended.send(()));
                return;
            }
        }
    }

    fn handle_event(&mut self, event: BuilderEvent) {
        let now = Timestamp::now();
        match event {
            BuilderEvent::Requested(ticket, domain, answer) => {
                if self.ending.is_none() {
                    self.lease_senders.insert(ticket, answer);
                    self.policy.request(ticket, domain);
                }
            }
            BuilderEvent::RequestWithdrawn(ticket) => {
                self.policy.withdraw(ticket);
                self.lease_senders.remove(&ticket);
            }
            BuilderEvent::Released(domain, generation) => {
                if let Some(slot) = self.slots.get_mut(&domain).filter(|slot| slot.generation == generation) {
                    slot.disk_use.record_release();
                    self.policy.release(&domain, now);
                    self.measure_later(&domain);
                }
            }
            BuilderEvent::Started(domain, started) => self.handle_started(domain, *started),
            BuilderEvent::StartPauseEnded(domain) => {
                self.slots.remove(&domain);
                self.policy.mark_stopped(&domain);
            }
            BuilderEvent::Stopped(domain, disk) => {
                self.slots.remove(&domain);
                self.policy.mark_stopped(&domain);
                if let Some(disk) = disk {
                    self.policy.record_measurement(&domain, disk, false);
                }
                self.store_record(&domain, false);
            }
            BuilderEvent::Removed(domain) => self.policy.mark_removed(&domain),
            BuilderEvent::Measured { domain, disk, pruned } => {
                if let Some(slot) = self.slots.get_mut(&domain) {
                    slot.measuring &= pruned;
                    let known = self
                        .policy
                        .domain_builders()
                        .find(|(of, _)| **of == domain)
                        .map_or(0, |(_, s)| s.disk);
                    self.policy.record_measurement(&domain, disk.unwrap_or(known), pruned);
                    self.store_record(&domain, true);
                }
            }
            BuilderEvent::StatusChanged => {}
            // Sending fails only when the requester is gone.
            BuilderEvent::ListSuspects(answer) => drop(answer.send(self.suspects())),
            BuilderEvent::EndBuilds(domain) => self.end_builds(&domain),
            BuilderEvent::DiscardBuilder(domain) => {
                if self.policy.discard(&domain) {
                    self.stop(&domain, StopMode::Kill);
                }
            }
            BuilderEvent::RoomEmpty(empty) => self.policy.set_room_empty(empty),
            BuilderEvent::CloseSessions => {
                for (kit, _) in self.slots.values().filter_map(|slot| slot.running.as_ref()) {
                    kit.close_sessions();
                }
            }
            BuilderEvent::Shutdown(ended) => {
                self.ending = Some(ended);
                self.policy.drain();
                self.lease_senders.clear();
                let all: Vec<_> = self.slots.keys().cloned().collect();
                all.iter().for_each(|domain| self.stop(domain, StopMode::Drain));
            }
        }
    }

    fn execute(&mut self, action: BuilderAction) {
        match action {
            BuilderAction::Start(domain) => self.start(domain),
            BuilderAction::Grant(ticket, domain) => {
                let Some(answer) = self.lease_senders.remove(&ticket) else {
                    return self.policy.release(&domain, Timestamp::now());
                };
                let slot = self.slots.entry(domain.clone()).or_default();
                slot.disk_use.record_grant();
                match &slot.running {
                    None if slot.failure.is_some() => {
                        let _ = answer.send(Err(slot.failure.clone().unwrap_or_default()));
                    }
                    Some((kit, _)) => {
                        let lease = slot.lease(kit, &domain, &self.events);
                        // A lease that is not received is dropped, which releases the builder.
                        let _ = answer.send(Ok(lease));
                    }
                    None => slot.pending_leases.push(answer),
                }
            }
            BuilderAction::Stop(domain) => self.stop(&domain, StopMode::Drain),
            BuilderAction::Prune { domain, keep } => self.prune(domain, keep),
            BuilderAction::Remove(domain) => self.remove(domain),
        }
    }

    fn start(&mut self, domain: TrustDomain) {
        let directory = self.directories.path_of(&domain);
        let slot = self.slots.entry(domain.clone()).or_default();
        self.last_generation += 1;
        let promised = std::mem::take(&mut slot.pending_leases);
        *slot = BuilderSlot {
            pending_leases: promised,
            generation: self.last_generation,
            ..BuilderSlot::default()
        };
        let record = self.record(&domain, true);
        tracing::info!(builder.domain = %domain, directory = %directory.display(), "builder start requested");
        let options = options_in(directory, &self.options.builder);
        metrics::counter!("hearth_builders_started_total").increment(1);
        let events = self.events.clone();
        let span = tracing::info_span!("builder", builder.domain = %domain);
        let (network, git) = (self.options.network.clone(), self.options.git.clone());
        let start = move || span.in_scope(|| start_builder(options, network.as_ref(), git.as_ref(), &record));
        let started = task::blocking("start builder", start);
        drop(task::spawn("start builder", async move {
            let started = started.await.unwrap_or_else(|error| Err(error.to_string()));
            if let Ok((kit, _)) = &started {
                forward_status_changes(kit, events.clone());
            }
            let _ = events.send(BuilderEvent::Started(domain, Box::new(started)));
        }));
    }

    fn handle_started(&mut self, domain: TrustDomain, started: Result<RunningBuilder, String>) {
        let slot = self.slots.entry(domain.clone()).or_default();
        let promised = std::mem::take(&mut slot.pending_leases);
        match started {
            Ok((kit, child)) => {
                for answer in promised {
                    let _ = answer.send(Ok(slot.lease(&kit, &domain, &self.events)));
                }
                slot.running = Some((kit, child));
                if let Some(how) = slot.pending_stop.take() {
                    self.stop(&domain, how);
                }
            }
            Err(reason) => {
                tracing::error!(builder.domain = %domain, error = reason, "failed to start a builder");
                let waiting = self.policy.withdraw_all(&domain);
                let waiting = waiting.into_iter().filter_map(|ticket| self.lease_senders.remove(&ticket));
                for answer in promised.into_iter().chain(waiting) {
                    let _ = answer.send(Err(reason.clone()));
                }
                slot.failure = Some(reason);
                let events = self.events.clone();
                let pause = if self.ending.is_some() { Duration::ZERO } else { START_PAUSE };
                drop(task::spawn("builder rests", async move {
                    sleep(pause).await;
                    let _ = events.send(BuilderEvent::StartPauseEnded(domain));
                }));
            }
        }
    }

    fn stop(&mut self, domain: &TrustDomain, how: StopMode) {
        let Some(slot) = self.slots.get_mut(domain) else { return };
        let Some((kit, child)) = slot.running.take() else {
            slot.pending_stop = (!slot.stopping).then_some(how);
            return;
        };
        slot.stopping = true;
        tracing::info!(builder.domain = %domain, "builder stop requested");
        let (events, domain) = (self.events.clone(), domain.clone());
        drop(task::spawn("stop builder", async move {
            // BuildKit waits for open sessions before it exits.
            kit.close_sessions();
            let disk = match how {
                StopMode::Drain => {
                    timeout(FINAL_MEASURE_LIMIT, kit.disk_usage()).await.ok().and_then(Result::ok)
                }
                StopMode::Kill => None,
            };
            drop(kit);
            match how {
                StopMode::Drain => child.stop().await,
                StopMode::Kill => child.kill().await,
            }
            let _ = events.send(BuilderEvent::Stopped(domain, disk));
        }));
    }

    /// Restarts builders that are idle and have more memory than they should. Builds that come meanwhile wait.
    fn restart_large(&mut self) {
        for (domain, slot) in &self.slots {
            let Some((kit, child)) = &slot.running else { continue };
            let memory = child.resident_memory().unwrap_or(0);
            if self.policy.takes_restart(domain, memory, Timestamp::now()) {
                tracing::info!(builder.domain = %domain, memory, "builder is idle and large; restarting it");
                kit.close_sessions();
                child.restart();
            }
        }
    }

    fn measure_later(&mut self, domain: &TrustDomain) {
        let Some(slot) = self.slots.get_mut(domain) else { return };
        let Some((kit, _)) = slot.running.as_ref().filter(|_| !slot.measuring) else { return };
        slot.measuring = true;
        let (kit, events, domain) = (kit.clone(), self.events.clone(), domain.clone());
        drop(task::spawn("measure builder", async move {
            sleep(MEASURE_DELAY).await;
            let disk = kit.disk_usage().await.inspect_err(
                |error| tracing::warn!(builder.domain = %domain, %error, "failed to measure a builder cache"),
            );
            let _ = events.send(BuilderEvent::Measured { domain, disk: disk.ok(), pruned: false });
        }));
    }

    fn prune(&self, domain: TrustDomain, keep: u64) {
        let running = self.slots.get(&domain).and_then(|slot| slot.running.as_ref());
        let kit = running.map(|(kit, _)| kit.clone());
        let events = self.events.clone();
        drop(task::spawn("prune builder", async move {
            let mut disk = None;
            if let Some(kit) = kit {
                tracing::info!(builder.domain = %domain, keep, "pruning the cache of a builder");
                if let Err(error) = kit.prune(keep).await {
                    tracing::warn!(builder.domain = %domain, %error, "failed to prune the cache of a builder");
                }
                disk = kit.disk_usage().await.ok();
            }
            let _ = events.send(BuilderEvent::Measured { domain, disk, pruned: true });
        }));
    }

    fn remove(&mut self, domain: TrustDomain) {
        tracing::info!(builder.domain = %domain, "builder cache removal requested");
        metrics::counter!("hearth_builders_removed_total").increment(1);
        let directory = self.directories.detach(&domain).unwrap_or_else(|error| {
            tracing::error!(builder.domain = %domain, %error, "failed to detach the directory of a builder");
            None
        });
        let events = self.events.clone();
        drop(task::spawn("remove builder", async move {
            if let Some(directory) = directory {
                let removal = task::blocking("remove builder", move || {
                    directory::remove_directory(&directory)
                        .inspect_err(|error| log_removal_failure(&directory, error))
                });
                drop(removal.await);
            }
            let _ = events.send(BuilderEvent::Removed(domain));
        }));
    }

    fn record(&self, domain: &TrustDomain, running: bool) -> BuilderRecord {
        let standing =
            self.policy.domain_builders().find(|(of, _)| *of == domain).map(|(_, standing)| *standing);
        BuilderRecord {
            domain: domain.clone(),
            last_used: standing.map_or_else(Timestamp::now, |standing| standing.last_used),
            disk: standing.map_or(0, |standing| standing.disk),
            running,
        }
    }

    /// Stores the record of a builder. It is written on this task because it is small and on a local disk.
    fn store_record(&mut self, domain: &TrustDomain, running: bool) {
        let record = self.record(domain, running);
        let directory = self.directories.path_of(domain);
        if let Err(error) = record.store(&directory) {
            tracing::warn!(builder.domain = %domain, %error, "failed to store the record of a builder");
        }
    }
}

/// Returns the options of the builder in a directory.
fn options_in(directory: PathBuf, template: &managed::Options) -> managed::Options {
    let mut options = template.clone();
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    options.bounds.group = options.bounds.group.map(|all| format!("{all}/{name}"));
    options.dir = directory;
    options
}

/// Starts buildkitd and connects to it. Blocking.
fn start_builder(
    mut options: managed::Options,
    network: Option<&StepNetwork>,
    git: Option<&GitProxy>,
    record: &BuilderRecord,
) -> Result<RunningBuilder, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    std::fs::create_dir_all(&options.dir).map_err(|error| text(&error))?;
    record.store(&options.dir).map_err(|error| text(&error))?;
    if let Some(network) = network {
        options.network = network.builder(&options.dir).map_err(|error| text(&error));
    }
    options.git = git.map(GitProxy::grant_access);
    let (child, mut connect) = options.child_and_connection().map_err(|error| text(&error))?;
    let child = supervise::start(child).map_err(|error| text(&error))?;
    connect.child = Some(child.status());
    Ok((BuildKitClient::connect(connect), child))
}

/// Sends an event to the owner task whenever the status of a builder changes.
fn forward_status_changes(kit: &BuildKitClient, events: mpsc::UnboundedSender<BuilderEvent>) {
    let mut status = kit.status();
    drop(task::spawn("follow builder", async move {
        while status.changed().await.is_ok() && events.send(BuilderEvent::StatusChanged).is_ok() {}
    }));
}

fn log_removal_failure(directory: &Path, error: &std::io::Error) {
    tracing::error!(
        directory = %directory.display(),
        %error,
        "failed to remove a builder cache; retrying at the next start"
    );
}
