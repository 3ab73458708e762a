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

use super::directory::{self, Directories, Record};
use super::policy::{Action, Limits, Policy, Ticket};
use crate::buildkit::{BuildKit, Status, managed};
use crate::disk::SpaceWatch;
use crate::git_proxy::GitProxy;
use crate::model::builder::BuilderStatus;
use crate::model::share_owner::ShareOwners;
use crate::model::trust::TrustDomain;
use crate::network::steps::StepNetwork;
use crate::supervise;
use crate::task;

mod reclaim;
mod status;

use reclaim::Suspect;
use status::describe_metrics;

/// Delay from the end of a build until its builder's cache is measured; one measurement covers all builds that end in
/// between.
const MEASURE_AFTER: Duration = Duration::from_secs(2);
/// Time limit for the last measurement of a builder that is being stopped.
const LAST_MEASURE: Duration = Duration::from_secs(2);
/// Maximum interval between two checks for idle builders.
const LONGEST_TICK: Duration = Duration::from_secs(15);
const SHORTEST_TICK: Duration = Duration::from_millis(100);
/// Pause before a builder that could not be started is tried again.
const START_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct Options {
    pub state_dir: PathBuf,
    pub limits: Limits,
    /// Owners to which the trust domains of services belong.
    pub owners: ShareOwners,
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
pub(super) struct Lease {
    pub(super) kit: BuildKit,
    /// Cancelled when the build must end because the builds of its builder used up the disk.
    pub(super) no_space: CancellationToken,
    /// Number of the start of the builder that granted the lease.
    domain: TrustDomain,
    generation: u64,
    events: mpsc::UnboundedSender<Event>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Sending fails only when the owner task has ended.
        let _ = self.events.send(Event::Released(self.domain.clone(), self.generation));
    }
}

type Answer = oneshot::Sender<Result<Lease, String>>;

/// Connection and process of a running builder.
type Running = (BuildKit, supervise::Handle);

enum Event {
    Requested(Ticket, TrustDomain, Answer),
    Withdrawn(Ticket),
    Released(TrustDomain, u64),
    Started(TrustDomain, Box<Result<Running, String>>),
    /// The pause after a failed start is over.
    Rested(TrustDomain),
    Stopped(TrustDomain, Option<u64>),
    Removed(TrustDomain),
    Measured {
        domain: TrustDomain,
        disk: Option<u64>,
        pruned: bool,
    },
    StatusChanged,
    /// Request for the builders that may have used up the disk.
    Suspects(oneshot::Sender<Vec<Suspect>>),
    /// The builds of a builder used up the disk and must end.
    EndBuilds(TrustDomain),
    /// A builder did not release the disk space: kill it and remove its cache.
    Discard(TrustDomain),
    CloseSessions,
    End(oneshot::Sender<()>),
}

/// Sends requests to the owner task. Cheap to clone.
#[derive(Clone)]
pub(super) struct Handle {
    events: mpsc::UnboundedSender<Event>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) builders: watch::Receiver<Vec<BuilderStatus>>,
    tickets: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

/// A waiting request for a builder; dropping it withdraws the request.
pub(super) struct Request {
    ticket: Ticket,
    answer: oneshot::Receiver<Result<Lease, String>>,
    events: mpsc::UnboundedSender<Event>,
}

impl Request {
    pub(super) async fn granted(&mut self) -> Result<Lease, String> {
        (&mut self.answer).await.unwrap_or_else(|_| Err("the daemon is ending".to_owned()))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let _ = self.events.send(Event::Withdrawn(self.ticket));
    }
}

impl Handle {
    pub(super) fn request(&self, domain: &TrustDomain) -> Request {
        let ticket = Ticket(self.tickets.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let (sender, answer) = oneshot::channel();
        // If the task has ended, the dropped sender answers the request.
        let _ = self.events.send(Event::Requested(ticket, domain.clone(), sender));
        Request { ticket, answer, events: self.events.clone() }
    }

    pub(super) fn close_sessions(&self) {
        let _ = self.events.send(Event::CloseSessions);
    }

    /// Stops every builder.
    pub(super) async fn end(&self) {
        let (sender, ended) = oneshot::channel();
        if self.events.send(Event::End(sender)).is_ok() {
            let _ = ended.await;
        }
    }
}

/// State of a builder beyond what the policy knows of it.
#[derive(Default)]
struct Slot {
    running: Option<Running>,
    /// Leases that were granted before the builder had started.
    promised: Vec<Answer>,
    stop_wanted: Option<Stop>,
    stopping: bool,
    measuring: bool,
    /// Number of this start of the builder; leases of earlier starts do not count.
    generation: u64,
    use_of_disk: reclaim::DiskUse,
    /// Reason why the builder could not be started.
    failure: Option<String>,
}

/// Manner of stopping a builder.
#[derive(Clone, Copy)]
enum Stop {
    /// Let buildkitd exit within its grace period.
    Drain,
    /// Kill it at once, without a grace period.
    Kill,
}

impl Slot {
    fn lease(&self, kit: &BuildKit, domain: &TrustDomain, events: &mpsc::UnboundedSender<Event>) -> Lease {
        Lease {
            kit: kit.clone(),
            no_space: self.use_of_disk.ended.clone(),
            domain: domain.clone(),
            generation: self.generation,
            events: events.clone(),
        }
    }
}

struct Owner {
    options: Options,
    directories: Directories,
    policy: Policy,
    slots: BTreeMap<TrustDomain, Slot>,
    answers: HashMap<Ticket, Answer>,
    events: mpsc::UnboundedSender<Event>,
    status: watch::Sender<Status>,
    builders: watch::Sender<Vec<BuilderStatus>>,
    generations: u64,
    ending: Option<oneshot::Sender<()>>,
}

/// Restores the builders of earlier runs of the daemon, and starts the one that was used last.
pub(super) async fn start(options: Options) -> std::io::Result<Handle> {
    let (state, template) = (options.state_dir.clone(), options.builder.clone());
    let opened = task::blocking("builders", move || {
        let (mut directories, records) = Directories::open(&state)?;
        for record in records.iter().filter(|record| record.running) {
            options_in(directories.of(&record.domain), &template).sweep();
        }
        let strays = directories.strays()?;
        Ok::<_, std::io::Error>((directories, records, strays))
    });
    let (directories, records, strays) = opened.await.map_err(std::io::Error::other)??;
    for stray in strays {
        let removal = task::blocking("stray builder", move || {
            directory::remove(&stray).inspect_err(|error| cannot_remove(&stray, error))
        });
        drop(task::spawn("stray builder", removal));
    }
    let mut policy = Policy::new(options.limits, options.owners.clone());
    if records.is_empty() {
        policy.restore(TrustDomain::local(), Timestamp::now(), 0);
    }
    for record in records {
        policy.restore(record.domain, record.last_used, record.disk);
    }
    let (events, queue) = mpsc::unbounded_channel();
    let starting = Status { detail: Some("buildkitd is starting".to_owned()), ..Status::default() };
    let (status, status_seen) = watch::channel(starting);
    let (builders, builders_seen) = watch::channel(Vec::new());
    describe_metrics();
    let owner = Owner {
        options,
        directories,
        policy,
        slots: BTreeMap::new(),
        answers: HashMap::new(),
        events: events.clone(),
        status,
        builders,
        generations: 0,
        ending: None,
    };
    drop(task::spawn("reclaim disk", reclaim::reclaim_loop(owner.options.space.clone(), events.clone())));
    drop(task::spawn("builders", owner.run(queue)));
    Ok(Handle { events, status: status_seen, builders: builders_seen, tickets: std::sync::Arc::default() })
}

impl Owner {
    async fn run(mut self, mut queue: mpsc::UnboundedReceiver<Event>) {
        let mut tick = interval((self.options.limits.idle / 4).clamp(SHORTEST_TICK, LONGEST_TICK));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = queue.recv() => match event {
                    Some(event) => self.take(event),
                    None => return,
                },
                _ = tick.tick() => {}
            }
            while let Some(action) = self.policy.next(Timestamp::now()) {
                self.act(action);
            }
            self.publish();
            if self.ending.is_some() && self.slots.is_empty() {
                // Dropping the rest of the state answers the waiting requests.
                self.ending.take().map(|ended| ended.send(()));
                return;
            }
        }
    }

    fn take(&mut self, event: Event) {
        let now = Timestamp::now();
        match event {
            Event::Requested(ticket, domain, answer) => {
                if self.ending.is_none() {
                    self.answers.insert(ticket, answer);
                    self.policy.request(ticket, domain);
                }
            }
            Event::Withdrawn(ticket) => {
                self.policy.withdraw(ticket);
                self.answers.remove(&ticket);
            }
            Event::Released(domain, generation) => {
                if let Some(slot) = self.slots.get_mut(&domain).filter(|slot| slot.generation == generation) {
                    slot.use_of_disk.released();
                    self.policy.release(&domain, now);
                    self.measure_later(&domain);
                }
            }
            Event::Started(domain, started) => self.started(domain, *started),
            Event::Rested(domain) => {
                self.slots.remove(&domain);
                self.policy.stopped(&domain);
            }
            Event::Stopped(domain, disk) => {
                self.slots.remove(&domain);
                self.policy.stopped(&domain);
                if let Some(disk) = disk {
                    self.policy.measured(&domain, disk, false);
                }
                self.store(&domain, false);
            }
            Event::Removed(domain) => self.policy.removed(&domain),
            Event::Measured { domain, disk, pruned } => {
                if let Some(slot) = self.slots.get_mut(&domain) {
                    slot.measuring &= pruned;
                    let known =
                        self.policy.standings().find(|(of, _)| **of == domain).map_or(0, |(_, s)| s.disk);
                    self.policy.measured(&domain, disk.unwrap_or(known), pruned);
                    self.store(&domain, true);
                }
            }
            Event::StatusChanged => {}
            // Sending fails only when the requester is gone.
            Event::Suspects(answer) => drop(answer.send(self.suspects())),
            Event::EndBuilds(domain) => self.end_builds(&domain),
            Event::Discard(domain) => {
                if self.policy.discard(&domain) {
                    self.stop(&domain, Stop::Kill);
                }
            }
            Event::CloseSessions => {
                for (kit, _) in self.slots.values().filter_map(|slot| slot.running.as_ref()) {
                    kit.close_sessions();
                }
            }
            Event::End(ended) => {
                self.ending = Some(ended);
                self.policy.drain();
                self.answers.clear();
                let all: Vec<_> = self.slots.keys().cloned().collect();
                all.iter().for_each(|domain| self.stop(domain, Stop::Drain));
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start(domain) => self.start(domain),
            Action::Grant(ticket, domain) => {
                let Some(answer) = self.answers.remove(&ticket) else {
                    return self.policy.release(&domain, Timestamp::now());
                };
                let slot = self.slots.entry(domain.clone()).or_default();
                slot.use_of_disk.granted();
                match &slot.running {
                    None if slot.failure.is_some() => {
                        let _ = answer.send(Err(slot.failure.clone().unwrap_or_default()));
                    }
                    Some((kit, _)) => {
                        let lease = slot.lease(kit, &domain, &self.events);
                        // A lease that is not received is dropped, which releases the builder.
                        let _ = answer.send(Ok(lease));
                    }
                    None => slot.promised.push(answer),
                }
            }
            Action::Stop(domain) => self.stop(&domain, Stop::Drain),
            Action::Prune { domain, keep } => self.prune(domain, keep),
            Action::Remove(domain) => self.remove(domain),
        }
    }

    fn start(&mut self, domain: TrustDomain) {
        let directory = self.directories.of(&domain);
        let slot = self.slots.entry(domain.clone()).or_default();
        self.generations += 1;
        let promised = std::mem::take(&mut slot.promised);
        *slot = Slot { promised, generation: self.generations, ..Slot::default() };
        let record = self.record(&domain, true);
        tracing::info!(builder.domain = %domain, directory = %directory.display(), "starting a builder");
        let options = options_in(directory, &self.options.builder);
        metrics::counter!("hearth_builders_started_total").increment(1);
        let events = self.events.clone();
        let span = tracing::info_span!("builder", builder.domain = %domain);
        let (network, git) = (self.options.network.clone(), self.options.git.clone());
        let start = move || span.in_scope(|| start_one(options, network.as_ref(), git.as_ref(), &record));
        let started = task::blocking("start builder", start);
        drop(task::spawn("start builder", async move {
            let started = started.await.unwrap_or_else(|error| Err(error.to_string()));
            if let Ok((kit, _)) = &started {
                follow(kit, events.clone());
            }
            let _ = events.send(Event::Started(domain, Box::new(started)));
        }));
    }

    fn started(&mut self, domain: TrustDomain, started: Result<Running, String>) {
        let slot = self.slots.entry(domain.clone()).or_default();
        let promised = std::mem::take(&mut slot.promised);
        match started {
            Ok((kit, child)) => {
                for answer in promised {
                    let _ = answer.send(Ok(slot.lease(&kit, &domain, &self.events)));
                }
                slot.running = Some((kit, child));
                if let Some(how) = slot.stop_wanted.take() {
                    self.stop(&domain, how);
                }
            }
            Err(reason) => {
                tracing::error!(builder.domain = %domain, reason, "failed to start a builder");
                let waiting = self.policy.withdraw_all(&domain);
                let waiting = waiting.into_iter().filter_map(|ticket| self.answers.remove(&ticket));
                for answer in promised.into_iter().chain(waiting) {
                    let _ = answer.send(Err(reason.clone()));
                }
                slot.failure = Some(reason);
                let events = self.events.clone();
                let pause = if self.ending.is_some() { Duration::ZERO } else { START_PAUSE };
                drop(task::spawn("builder rests", async move {
                    sleep(pause).await;
                    let _ = events.send(Event::Rested(domain));
                }));
            }
        }
    }

    fn stop(&mut self, domain: &TrustDomain, how: Stop) {
        let Some(slot) = self.slots.get_mut(domain) else { return };
        let Some((kit, child)) = slot.running.take() else {
            slot.stop_wanted = (!slot.stopping).then_some(how);
            return;
        };
        slot.stopping = true;
        tracing::info!(builder.domain = %domain, "stopping a builder");
        let (events, domain) = (self.events.clone(), domain.clone());
        drop(task::spawn("stop builder", async move {
            // BuildKit waits for open sessions before it exits.
            kit.close_sessions();
            let disk = match how {
                Stop::Drain => timeout(LAST_MEASURE, kit.disk_usage()).await.ok().and_then(Result::ok),
                Stop::Kill => None,
            };
            drop(kit);
            match how {
                Stop::Drain => child.stop().await,
                Stop::Kill => child.kill().await,
            }
            let _ = events.send(Event::Stopped(domain, disk));
        }));
    }

    fn measure_later(&mut self, domain: &TrustDomain) {
        let Some(slot) = self.slots.get_mut(domain) else { return };
        let Some((kit, _)) = slot.running.as_ref().filter(|_| !slot.measuring) else { return };
        slot.measuring = true;
        let (kit, events, domain) = (kit.clone(), self.events.clone(), domain.clone());
        drop(task::spawn("measure builder", async move {
            sleep(MEASURE_AFTER).await;
            let disk = kit.disk_usage().await.inspect_err(
                |error| tracing::warn!(builder.domain = %domain, %error, "failed to measure a builder cache"),
            );
            let _ = events.send(Event::Measured { domain, disk: disk.ok(), pruned: false });
        }));
    }

    fn prune(&self, domain: TrustDomain, keep: u64) {
        let running = self.slots.get(&domain).and_then(|slot| slot.running.as_ref());
        let kit = running.map(|(kit, _)| kit.clone());
        let events = self.events.clone();
        drop(task::spawn("prune builder", async move {
            let mut disk = None;
            if let Some(kit) = kit {
                tracing::info!(builder.domain = %domain, keep, "caches of the builders exceed their quota; pruning");
                if let Err(error) = kit.prune(keep).await {
                    tracing::warn!(builder.domain = %domain, %error, "failed to prune the cache of a builder");
                }
                disk = kit.disk_usage().await.ok();
            }
            let _ = events.send(Event::Measured { domain, disk, pruned: true });
        }));
    }

    fn remove(&mut self, domain: TrustDomain) {
        tracing::info!(builder.domain = %domain, "removing the cache of a builder");
        metrics::counter!("hearth_builders_removed_total").increment(1);
        let directory = self.directories.forget(&domain).unwrap_or_else(|error| {
            tracing::error!(builder.domain = %domain, %error, "failed to detach the directory of a builder");
            None
        });
        let events = self.events.clone();
        drop(task::spawn("remove builder", async move {
            if let Some(directory) = directory {
                let removal = task::blocking("remove builder", move || {
                    directory::remove(&directory).inspect_err(|error| cannot_remove(&directory, error))
                });
                drop(removal.await);
            }
            let _ = events.send(Event::Removed(domain));
        }));
    }

    fn record(&self, domain: &TrustDomain, running: bool) -> Record {
        let standing = self.policy.standings().find(|(of, _)| *of == domain).map(|(_, standing)| *standing);
        Record {
            domain: domain.clone(),
            last_used: standing.map_or_else(Timestamp::now, |standing| standing.last_used),
            disk: standing.map_or(0, |standing| standing.disk),
            running,
        }
    }

    /// Stores the record of a builder. It is written on this task because it is small and on a local disk.
    fn store(&mut self, domain: &TrustDomain, running: bool) {
        let record = self.record(domain, running);
        let directory = self.directories.of(domain);
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
fn start_one(
    mut options: managed::Options,
    network: Option<&StepNetwork>,
    git: Option<&GitProxy>,
    record: &Record,
) -> Result<Running, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    std::fs::create_dir_all(&options.dir).map_err(|error| text(&error))?;
    record.store(&options.dir).map_err(|error| text(&error))?;
    if let Some(network) = network {
        options.network = network.builder(&options.dir).map_err(|error| text(&error));
    }
    options.git = git.map(GitProxy::admit);
    let (child, mut connect) = options.plan().map_err(|error| text(&error))?;
    let child = supervise::start(child).map_err(|error| text(&error))?;
    connect.child = Some(child.status());
    Ok((BuildKit::connect(connect), child))
}

/// Sends an event to the owner task whenever the status of a builder changes.
fn follow(kit: &BuildKit, events: mpsc::UnboundedSender<Event>) {
    let mut status = kit.status();
    drop(task::spawn("follow builder", async move {
        while status.changed().await.is_ok() && events.send(Event::StatusChanged).is_ok() {}
    }));
}

fn cannot_remove(directory: &Path, error: &std::io::Error) {
    tracing::error!(
        directory = %directory.display(),
        %error,
        "failed to remove a builder cache; retrying at the next start"
    );
}
