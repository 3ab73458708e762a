//! Options -> [`Service`] -> [`Handle`]: the services of the room.
//!
//! ```text
//! deploy, restart, rollback, remove --stored--> Entry --wake--> its loop --plan--> steps
//!                                                 ^                                  |
//!                     Runtime::changes, monitors -'------------- what they find <----'
//! ```
//!
//! Each service has an [`Entry`] and one loop. What shall be lies in the store; what is, the runtime knows; the entry
//! holds what must not outlive the daemon: health, backoff, steps under way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::entry::Entry;
use super::merge::MergeError;
use super::port::{
    InstanceLogs, LogError, MountSource, Network, Observed, Router, Runtime, RuntimeError, Secrets,
    ServiceImages, ServiceStore, StoreError, Tokens,
};
use super::share::ServiceLimit;
use super::{reconcile, start};
use crate::access::policy::Denied;
use crate::model::confinement::AddedCapability;
use crate::model::fault::{Fault, Stage};
use crate::model::id::{InstanceId, ServiceId};
use crate::model::service::{self, Domain, ServiceName, ServiceOrigin, ServiceSpec};
use crate::model::share_owner::ShareOwners;

/// How long a deploy waits for the comparison of what runs with what shall run.
const READY_LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
pub struct Options {
    pub room: String,
    /// Where instances reach this daemon: `http://address:port`, the address being [`Network::gateway`].
    pub address: String,
    /// A directory per service, and in it one per instance; made where it is missing.
    pub log_dir: PathBuf,
    /// From an instance's stop signal to SIGKILL.
    pub stop_grace: Duration,
    /// What requests in flight get before an instance is stopped.
    pub drain_limit: Duration,
    /// For [`Runtime::prepare`].
    pub prepare_limit: Duration,
    /// For each other call of a neighbour.
    pub call_limit: Duration,
    /// Whose share a service takes.
    pub owners: ShareOwners,
    /// Services of one owner.
    pub max_per_owner: usize,
    /// Memory of an instance whose deploy asks for no limit; none is no limit.
    pub default_memory: Option<u64>,
    /// Those that a service may be given.
    pub allowed_capabilities: BTreeSet<AddedCapability>,
}

impl Options {
    pub fn new(room: String, address: String, log_dir: PathBuf) -> Self {
        Self {
            room,
            address,
            log_dir,
            stop_grace: Duration::from_secs(10),
            drain_limit: Duration::from_secs(30),
            prepare_limit: Duration::from_secs(1800),
            call_limit: Duration::from_secs(60),
            owners: ShareOwners::default(),
            max_per_owner: 64,
            default_memory: None,
            allowed_capabilities: BTreeSet::new(),
        }
    }

    pub(super) fn check_capabilities(&self, spec: &ServiceSpec) -> Result<(), CapabilityNotAllowed> {
        let asked = &spec.confinement.capabilities;
        match asked.difference(&self.allowed_capabilities).next() {
            Some(capability) => Err(CapabilityNotAllowed(*capability)),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operator of this room allows no service the capability {0}")]
pub struct CapabilityNotAllowed(AddedCapability);

impl CapabilityNotAllowed {
    pub(super) const CODE: &str = "capability_not_allowed";

    pub(super) fn hint(self) -> String {
        format!(
            "deploy it with --cap-add none, or allow the capability with allow_capabilities = [\"{}\"] in [services] of hearthd's configuration",
            self.0
        )
    }
}

impl From<CapabilityNotAllowed> for Fault {
    fn from(refused: CapabilityNotAllowed) -> Self {
        Self::new(Stage::Deploy, CapabilityNotAllowed::CODE, refused.to_string()).hint(refused.hint())
    }
}

/// What deploys need of the rest of the daemon.
#[derive(Clone)]
pub struct Ports {
    pub runtime: Arc<dyn Runtime>,
    pub network: Arc<dyn Network>,
    pub router: Arc<dyn Router>,
    pub mounts: Arc<dyn MountSource>,
    pub store: Arc<dyn ServiceStore>,
    pub images: Arc<dyn ServiceImages>,
    pub logs: Arc<dyn InstanceLogs>,
    pub tokens: Arc<dyn Tokens>,
    pub secrets: Arc<dyn Secrets>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("directory of service logs {}: {source}", path.display())]
    Logs { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a caller may do to services. What is kept of an earlier revision is theirs to answer for as well.
pub trait Permits: Send + Sync + 'static {
    /// Has this run, or gets into what runs it.
    fn run(&self, spec: &ServiceSpec) -> Result<(), Denied>;
    /// Removes this service, takes a domain from it, or reads its log. `what` is a verb with its object.
    fn change(&self, service: &service::Service, what: &str) -> Result<(), Denied>;
}

/// Who asks, and what they may do.
#[derive(Clone)]
pub struct By {
    pub name: String,
    permits: Arc<dyn Permits>,
}

impl By {
    pub fn new(name: String, permits: impl Permits) -> Self {
        Self { name, permits: Arc::new(permits) }
    }

    pub(super) fn may_run(&self, spec: &ServiceSpec) -> Result<(), Denied> {
        self.permits.run(spec)
    }

    pub(super) fn may_change(&self, service: &service::Service, verb: &str) -> Result<(), Denied> {
        self.permits.change(service, &format!("{verb} service `{}`", service.name))
    }
}

/// Why a request about a service was not taken.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    #[error("there is no service `{given}`")]
    NotFound { given: String },
    #[error("service `{name}` has no revision {revision}; it has {}", in_words(.kept))]
    NoRevision { name: ServiceName, revision: u32, kept: Vec<u32> },
    #[error("service `{name}` has no earlier revision that was live")]
    NothingBefore { name: ServiceName },
    #[error("no service has the domain `{0}`")]
    NoRoute(Domain),
    #[error("service `{name}` is being removed")]
    Removing { name: ServiceName },
    #[error("service `{name}` has no instance `{instance}` whose log is kept")]
    NoInstance { name: ServiceName, instance: InstanceId },
    #[error("no instance of service `{name}` runs")]
    NotRunning { name: ServiceName },
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Merge(#[from] MergeError),
    #[error(transparent)]
    Limit(#[from] ServiceLimit),
    #[error(transparent)]
    Capability(#[from] CapabilityNotAllowed),
    #[error("domain `{domain}` belongs to service `{holder}`{}", through(.domain, .taken))]
    DomainTaken { domain: Domain, taken: Domain, holder: ServiceName },
    #[error("domain `{domain}` is a public suffix, or all names below one: no service can have it")]
    PublicSuffix { domain: Domain },
    #[error("variable `{variable}`: the scope of its token is not valid: {reason}")]
    Scope { variable: String, reason: String },
    #[error("variable `{variable}`: the room has no secret `{secret}`")]
    UnknownSecret { variable: String, secret: String },
    #[error("secret `{secret}`: {reason}")]
    Secret { secret: String, reason: String },
    /// The image cannot be had.
    #[error("{}", .0.message)]
    Image(Box<Fault>),
    /// An image that is to be mounted cannot be had. The message names the target.
    #[error("{}", .0.message)]
    MountedImage(Box<Fault>),
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("services cannot be run yet: {0}")]
    NotReady(String),
    #[error("the daemon is ending")]
    Ending,
}

fn through(domain: &Domain, taken: &Domain) -> String {
    if domain == taken { String::new() } else { format!(", which has `{taken}`") }
}

fn in_words(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

impl From<StoreError> for DeployError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::DomainTaken { domain, holder } => {
                Self::DomainTaken { taken: domain.clone(), domain, holder }
            }
            error => Self::Store(error),
        }
    }
}

impl DeployError {
    /// Stable word for the cause.
    pub fn code(&self) -> &str {
        match self {
            Self::NotFound { .. } => "service_not_found",
            Self::NoRevision { .. } | Self::NothingBefore { .. } => "revision_not_found",
            Self::NoRoute(_) => "route_not_found",
            Self::Removing { .. } => "service_removing",
            Self::NoInstance { .. } => "instance_not_found",
            Self::NotRunning { .. } | Self::Runtime(RuntimeError::NotRunning(_)) => "not_running",
            Self::Runtime(RuntimeError::Start { code, .. }) => code,
            Self::Denied(_) => "denied",
            Self::Merge(error) => error.code(),
            Self::Limit(limit) => limit.code(),
            Self::Capability(_) => CapabilityNotAllowed::CODE,
            Self::DomainTaken { .. } => "domain_taken",
            Self::PublicSuffix { .. } => "public_suffix",
            Self::Scope { .. } => "invalid_scope",
            Self::UnknownSecret { .. } => "secret_not_found",
            Self::Image(fault) | Self::MountedImage(fault) => &fault.code,
            Self::Runtime(RuntimeError::Unavailable(_)) => "runtime_unavailable",
            Self::NotReady(_) | Self::Ending => "unavailable",
            Self::Secret { .. } | Self::Store(_) | Self::Runtime(_) | Self::Log(_) => "internal",
        }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotFound { .. } => "see: hearth services list".to_owned(),
            Self::NoRevision { name, .. } | Self::NothingBefore { name } => {
                format!("see its revisions with: hearth services show {name}")
            }
            Self::NoRoute(_) => "see: hearth routes list".to_owned(),
            Self::Removing { .. } => "try again in a moment".to_owned(),
            Self::NoInstance { name, .. } => {
                format!("see those that there are with: hearth services show {name}")
            }
            Self::NotRunning { name } => format!("see why with: hearth services show {name}"),
            Self::Merge(error) => return error.hint(),
            Self::Limit(limit) => limit.hint(),
            Self::Capability(refused) => refused.hint(),
            Self::DomainTaken { taken, .. } => {
                format!("take another domain, or free it with: hearth routes rm '{taken}'")
            }
            Self::PublicSuffix { .. } => "take a domain below it, such as app.example.com".to_owned(),
            Self::Scope { .. } => "write userDefault, agentDefault, full or a JSON object".to_owned(),
            Self::UnknownSecret { secret, .. } => format!("set it with: hearth secrets set {secret}"),
            Self::Image(fault) | Self::MountedImage(fault) => return fault.hint.clone(),
            _ => return None,
        })
    }

    pub fn retryable(&self) -> bool {
        match self {
            Self::Removing { .. }
            | Self::NotReady(_)
            | Self::Ending
            | Self::Runtime(RuntimeError::Unavailable(_)) => true,
            Self::Image(fault) | Self::MountedImage(fault) => fault.retryable,
            _ => false,
        }
    }
}

/// Owns the loops. Dropping it ends them; instances run on.
pub struct Service {
    handle: Handle,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) ports: Ports,
    entries: Mutex<BTreeMap<ServiceId, Arc<Entry>>>,
    /// One request at a time makes a name or a domain taken.
    pub(super) submitting: tokio::sync::Mutex<()>,
    /// One change of the routes at a time, so that the last one is the newest.
    pub(super) routing: tokio::sync::Mutex<()>,
    /// What the runtime had, and when it was asked.
    pub(super) listed: tokio::sync::Mutex<Option<(Instant, Arc<Vec<Observed>>)>>,
    /// Held for reading from when an image's files are brought until an instance uses them.
    pub(super) images: tokio::sync::RwLock<()>,
    /// The names of services are not yet what they shall be.
    pub(super) names_stale: AtomicBool,
    /// Whether what runs has been compared with what shall run, or why not yet.
    pub(super) compared: watch::Sender<Result<(), String>>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

impl Service {
    /// Reads what shall run. The comparison with what runs goes on behind this, and is repeated while the runtime is
    /// away; requests are taken meanwhile.
    pub async fn start(options: Options, ports: Ports) -> Result<Self, StartError> {
        let directory = options.log_dir.clone();
        let made = crate::task::blocking("service logs", move || std::fs::create_dir_all(directory)).await;
        made.map_err(std::io::Error::other)
            .flatten()
            .map_err(|source| StartError::Logs { path: options.log_dir.clone(), source })?;
        metrics::describe_counter!(
            "hearth_deploys_total",
            "Revisions that ended as live, failed or superseded."
        );
        metrics::describe_histogram!(
            "hearth_deploy_duration_seconds",
            "From a request to its live revision."
        );
        metrics::describe_counter!(
            "hearth_instance_ends_total",
            "Instances that ended when they should run."
        );
        let services = ports.store.services().await?;
        let shared = Arc::new(Shared {
            options,
            ports,
            entries: Mutex::default(),
            submitting: tokio::sync::Mutex::default(),
            routing: tokio::sync::Mutex::default(),
            listed: tokio::sync::Mutex::default(),
            images: tokio::sync::RwLock::default(),
            names_stale: AtomicBool::new(false),
            compared: watch::Sender::new(Err("what runs is being looked at".to_owned())),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        for service in services {
            shared.add(Arc::new(Entry::new(service)));
        }
        shared.spawn("compare services", start::compare_loop(Arc::clone(&shared)));
        Ok(Self { handle: Handle { shared } })
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.handle.shared.stop.cancel();
    }
}

impl Handle {
    /// Whether what runs has been compared with what shall run since the start, or why not yet. Deploys are taken
    /// from then on.
    pub fn ready(&self) -> watch::Receiver<Result<(), String>> {
        self.shared.compared.subscribe()
    }

    /// Tells who answers for the service of an id, if there is one, for as long as the daemon runs; holds nothing.
    pub fn origins(&self) -> impl Fn(&str) -> Option<ServiceOrigin> + Send + Sync + use<> {
        let shared = Arc::downgrade(&self.shared);
        move |id| {
            let id = id.parse::<ServiceId>().ok()?;
            let entry = shared.upgrade()?.entries().get(&id).cloned()?;
            Some(entry.state().service.origin())
        }
    }

    /// Tells who has made a service, by its id, for as long as it is there. A name would be that of another service:
    /// one may be named like the id of a service that is gone.
    pub fn creators(&self) -> impl Fn(&str) -> Option<String> + Send + Sync + use<> {
        let shared = Arc::downgrade(&self.shared);
        move |service| {
            let id = service.parse::<ServiceId>().ok()?;
            let entry = shared.upgrade()?.entries().get(&id).cloned()?;
            let owner = entry.state().service.share_owner().to_owned();
            Some(owner)
        }
    }

    /// Waits a while for that.
    pub(super) async fn become_ready(&self) -> Result<(), DeployError> {
        let mut ready = self.ready();
        let limit = self.shared.options.call_limit.min(READY_LIMIT);
        let waited = tokio::time::timeout(limit, ready.wait_for(Result::is_ok)).await;
        match waited.map(|ready| ready.map(drop)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(DeployError::Ending),
            Err(_) => Err(DeployError::NotReady(ready.borrow().clone().err().unwrap_or_default())),
        }
    }

    /// Ends all loops; what they began is left for the next run of the daemon. Instances and routes stay.
    pub async fn drain(&self, limit: Duration) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(limit, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("steps of deploys are cut short by the daemon's end; its next start heals them");
        }
    }
}

impl Shared {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<ServiceId, Arc<Entry>>> {
        // Nothing under this lock leaves the map half changed.
        self.entries.lock()
    }

    pub(super) fn all(&self) -> Vec<Arc<Entry>> {
        self.entries().values().cloned().collect()
    }

    pub(super) fn add(&self, entry: Arc<Entry>) {
        self.entries().insert(entry.id.clone(), entry);
    }

    pub(super) fn forget(&self, id: &ServiceId) {
        self.entries().remove(id);
    }

    pub(super) fn knows(&self, id: &ServiceId) -> bool {
        self.entries().contains_key(id)
    }

    pub(super) fn named(&self, name: &ServiceName) -> Option<Arc<Entry>> {
        self.entries().values().find(|entry| entry.state().service.name == *name).cloned()
    }

    /// A service by its name or its id.
    pub(super) fn find(&self, given: &str) -> Result<Arc<Entry>, DeployError> {
        let found = {
            let entries = self.entries();
            let by_id = given.parse::<ServiceId>().ok().and_then(|id| entries.get(&id).cloned());
            by_id.or_else(|| {
                entries.values().find(|entry| entry.state().service.name.as_str() == given).cloned()
            })
        };
        found.ok_or_else(|| DeployError::NotFound { given: given.chars().take(100).collect() })
    }

    /// A task that ends with the daemon's services at the latest.
    pub(super) fn spawn<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        let work = self.tasks.track_future(async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        });
        drop(crate::task::spawn(name, work));
    }

    /// Starts the loop of a service that was compared or is new; once.
    pub(super) fn run(self: &Arc<Self>, entry: Arc<Entry>) {
        if !entry.running.swap(true, Ordering::AcqRel) {
            self.spawn("service", reconcile::service_loop(Arc::clone(self), entry));
        }
    }
}
