//! Options -> [`Service`] -> [`Handle`]: the services of the room.
//!
//! ```text
//! deploy, restart, rollback, remove --stored--> entry --wake--> its loop --plan--> steps
//!                                                 ^                                  |
//!            ContainerRuntime::changes, monitors -'------------- their results <----'
//! ```
//!
//! Each service has a [`ServiceEntry`](super::entry::ServiceEntry) and one loop. The store holds the desired state and
//! the runtime knows the actual state; the entry holds what must not outlive the daemon: health, backoff, and steps in
//! progress.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::entry::ServiceEntry;
use super::merge::MergeError;
use super::port::{
    ContainerRuntime, InstanceLogs, InstanceMounter, InstanceNetwork, LogError, ObservedInstance,
    RuntimeError, SecretReader, ServiceImages, ServiceStore, ServiceStoreError, TokenMinter, TrafficRouter,
};
use super::share::ServiceLimit;
use super::{reconcile, startup};
use crate::access::policy::AccessDenied;
use crate::model::confinement::AddedCapability;
use crate::model::fault::{Fault, FaultStage};
use crate::model::id::{InstanceId, ServiceId};
use crate::model::service::{self, ServiceDomain, ServiceName, ServiceOrigin, ServiceSpec};
use crate::model::share_owner::ShareOwnerResolver;

/// Maximum time that a deploy waits for the first reconciliation after the start of the daemon.
const READY_LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
pub struct Options {
    pub room: String,
    /// Address of this daemon for instances: `http://address:port`, with the address of [`InstanceNetwork::gateway`].
    pub address: String,
    /// Root directory of the logs: one directory per service with one subdirectory per instance. Created if missing.
    pub log_dir: PathBuf,
    /// Time between the stop signal of an instance and SIGKILL.
    pub stop_grace: Duration,
    /// Time limit for requests in flight before an instance is stopped.
    pub drain_limit: Duration,
    /// Time limit for [`ContainerRuntime::prepare`].
    pub prepare_limit: Duration,
    /// Time limit for every other call to the runtime, the network or the mounter.
    pub call_limit: Duration,
    /// Mapping from callers to the owners whose share a service counts against.
    pub owners: ShareOwnerResolver,
    /// Maximum number of services per owner.
    pub max_per_owner: usize,
    /// Memory limit in bytes for an instance whose deploy asks for none; `None` means no limit.
    pub default_memory: Option<u64>,
    /// Capabilities that a service may be given.
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
            owners: ShareOwnerResolver::default(),
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
        Self::new(FaultStage::Deploy, CapabilityNotAllowed::CODE, refused.to_string()).hint(refused.hint())
    }
}

/// The parts of the daemon that deploys depend on.
#[derive(Clone)]
pub struct DeployDependencies {
    pub runtime: Arc<dyn ContainerRuntime>,
    pub network: Arc<dyn InstanceNetwork>,
    pub router: Arc<dyn TrafficRouter>,
    pub mounts: Arc<dyn InstanceMounter>,
    pub store: Arc<dyn ServiceStore>,
    pub images: Arc<dyn ServiceImages>,
    pub logs: Arc<dyn InstanceLogs>,
    pub tokens: Arc<dyn TokenMinter>,
    pub secrets: Arc<dyn SecretReader>,
}

#[derive(Debug, thiserror::Error)]
pub enum DeployStartError {
    #[error("directory of service logs {}: {source}", path.display())]
    Logs { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Store(#[from] ServiceStoreError),
}

/// Permissions of a caller on services. They apply to the contents of earlier revisions as well.
pub trait CallerPermissions: Send + Sync + 'static {
    /// Checks that the caller may run this specification, or execute a process in an instance of it.
    fn check_run(&self, spec: &ServiceSpec) -> Result<(), AccessDenied>;
    /// Checks that the caller may remove this service, take a domain from it, or read its log. `what` is a verb with
    /// its object, for the error message.
    fn check_change(&self, service: &service::ServiceRecord, what: &str) -> Result<(), AccessDenied>;
}

/// The caller of a request, with its permissions.
#[derive(Clone)]
pub struct Actor {
    pub name: String,
    permits: Arc<dyn CallerPermissions>,
}

impl Actor {
    pub fn new(name: String, permits: impl CallerPermissions) -> Self {
        Self { name, permits: Arc::new(permits) }
    }

    pub(super) fn may_run(&self, spec: &ServiceSpec) -> Result<(), AccessDenied> {
        self.permits.check_run(spec)
    }

    pub(super) fn may_change(
        &self,
        service: &service::ServiceRecord,
        verb: &str,
    ) -> Result<(), AccessDenied> {
        self.permits.check_change(service, &format!("{verb} service `{}`", service.name))
    }
}

/// Reason for which a request about a service was rejected.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    #[error("there is no service `{given}`")]
    NotFound { given: String },
    #[error("service `{name}` has no revision {revision}; it has {}", in_words(.kept))]
    NoRevision { name: ServiceName, revision: u32, kept: Vec<u32> },
    #[error("service `{name}` has no earlier revision that was live")]
    NoEarlierRevision { name: ServiceName },
    #[error("no service has the domain `{0}`")]
    NoRoute(ServiceDomain),
    #[error("service `{name}` is being removed")]
    Removing { name: ServiceName },
    #[error("service `{name}` has no instance `{instance}` whose log is kept")]
    NoInstance { name: ServiceName, instance: InstanceId },
    #[error("no instance of service `{name}` runs")]
    NotRunning { name: ServiceName },
    #[error(transparent)]
    Denied(#[from] AccessDenied),
    #[error(transparent)]
    Merge(#[from] MergeError),
    #[error(transparent)]
    Limit(#[from] ServiceLimit),
    #[error(transparent)]
    Capability(#[from] CapabilityNotAllowed),
    #[error("domain `{domain}` belongs to service `{holder}`{}", through(.domain, .taken))]
    DomainTaken { domain: ServiceDomain, taken: ServiceDomain, holder: ServiceName },
    #[error("domain `{domain}` is a public suffix, or all names below one: no service can have it")]
    PublicSuffix { domain: ServiceDomain },
    #[error("variable `{variable}`: the scope of its token is not valid: {reason}")]
    InvalidScope { variable: String, reason: String },
    #[error("variable `{variable}`: the room has no secret `{secret}`")]
    UnknownSecret { variable: String, secret: String },
    #[error("secret `{secret}`: {reason}")]
    Secret { secret: String, reason: String },
    /// The image cannot be resolved or fetched.
    #[error("{}", .0.message)]
    Image(Box<Fault>),
    /// An image to be mounted cannot be resolved or fetched. The message names the mount target.
    #[error("{}", .0.message)]
    MountedImage(Box<Fault>),
    #[error(transparent)]
    Store(ServiceStoreError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("services cannot be run yet: {0}")]
    NotReady(String),
    #[error("the daemon is ending")]
    ShuttingDown,
}

fn through(domain: &ServiceDomain, taken: &ServiceDomain) -> String {
    if domain == taken { String::new() } else { format!(", which has `{taken}`") }
}

fn in_words(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

impl From<ServiceStoreError> for DeployError {
    fn from(error: ServiceStoreError) -> Self {
        match error {
            ServiceStoreError::DomainTaken { domain, holder } => {
                Self::DomainTaken { taken: domain.clone(), domain, holder }
            }
            error => Self::Store(error),
        }
    }
}

impl DeployError {
    /// Returns the stable error code.
    pub fn code(&self) -> &str {
        match self {
            Self::NotFound { .. } => "service_not_found",
            Self::NoRevision { .. } | Self::NoEarlierRevision { .. } => "revision_not_found",
            Self::NoRoute(_) => "route_not_found",
            Self::Removing { .. } => "service_removing",
            Self::NoInstance { .. } => "instance_not_found",
            Self::NotRunning { .. } | Self::Runtime(RuntimeError::NotRunning(_)) => "not_running",
            Self::Runtime(RuntimeError::StartFailed { code, .. }) => code,
            Self::Denied(_) => "denied",
            Self::Merge(error) => error.code(),
            Self::Limit(limit) => limit.code(),
            Self::Capability(_) => CapabilityNotAllowed::CODE,
            Self::DomainTaken { .. } => "domain_taken",
            Self::PublicSuffix { .. } => "public_suffix",
            Self::InvalidScope { .. } => "invalid_scope",
            Self::UnknownSecret { .. } => "secret_not_found",
            Self::Image(fault) | Self::MountedImage(fault) => &fault.code,
            Self::Runtime(RuntimeError::Unavailable(_)) => "runtime_unavailable",
            Self::NotReady(_) | Self::ShuttingDown => "unavailable",
            Self::Secret { .. } | Self::Store(_) | Self::Runtime(_) | Self::Log(_) => "internal",
        }
    }

    /// Returns a suggestion for the next action of the user.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotFound { .. } => "see: hearth services list".to_owned(),
            Self::NoRevision { name, .. } | Self::NoEarlierRevision { name } => {
                format!("see its revisions with: hearth services show {name}")
            }
            Self::NoRoute(_) => "see: hearth routes list".to_owned(),
            Self::Removing { .. } => "try again in a moment".to_owned(),
            Self::NoInstance { name, .. } => {
                format!("list the existing instances with: hearth services show {name}")
            }
            Self::NotRunning { name } => format!("see why with: hearth services show {name}"),
            Self::Merge(error) => return error.hint(),
            Self::Limit(limit) => limit.hint(),
            Self::Capability(refused) => refused.hint(),
            Self::DomainTaken { taken, .. } => {
                format!("take another domain, or free it with: hearth routes rm '{taken}'")
            }
            Self::PublicSuffix { .. } => "take a domain below it, such as app.example.com".to_owned(),
            Self::InvalidScope { .. } => "write userDefault, agentDefault, full or a JSON object".to_owned(),
            Self::UnknownSecret { secret, .. } => format!("set it with: hearth secrets set {secret}"),
            Self::Image(fault) | Self::MountedImage(fault) => return fault.hint.clone(),
            _ => return None,
        })
    }

    pub fn retryable(&self) -> bool {
        match self {
            Self::Removing { .. }
            | Self::NotReady(_)
            | Self::ShuttingDown
            | Self::Runtime(RuntimeError::Unavailable(_)) => true,
            Self::Image(fault) | Self::MountedImage(fault) => fault.retryable,
            _ => false,
        }
    }
}

/// Owner of the service loops. Dropping it stops the loops; instances keep running.
pub struct Service {
    handle: Handle,
}

/// Cheaply cloneable access to the services.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<DeployContext>,
}

/// State shared by all service loops and requests.
pub(super) struct DeployContext {
    pub(super) options: Options,
    pub(super) ports: DeployDependencies,
    entries: Mutex<BTreeMap<ServiceId, Arc<ServiceEntry>>>,
    /// Serializes requests that take a service name or a domain.
    pub(super) submit_lock: tokio::sync::Mutex<()>,
    /// Serializes route updates, so that the last one published is the newest.
    pub(super) route_lock: tokio::sync::Mutex<()>,
    /// The last listing of the runtime, with the time at which it was requested.
    pub(super) last_listing: tokio::sync::Mutex<Option<(Instant, Arc<Vec<ObservedInstance>>)>>,
    /// Held for reading from the preparation of an image until an instance uses its files.
    pub(super) image_lock: tokio::sync::RwLock<()>,
    /// Set while the last update of the service name records has failed.
    pub(super) names_stale: AtomicBool,
    /// `Ok` once the running instances have been reconciled with the stored services, otherwise the reason why not yet.
    pub(super) reconciled: watch::Sender<Result<(), String>>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

impl Service {
    /// Reads the stored services. The first reconciliation runs in the background and is retried while the runtime is
    /// unavailable; requests are accepted meanwhile.
    pub async fn start(options: Options, ports: DeployDependencies) -> Result<Self, DeployStartError> {
        let directory = options.log_dir.clone();
        let made = crate::task::blocking("service logs", move || std::fs::create_dir_all(directory)).await;
        made.map_err(std::io::Error::other)
            .flatten()
            .map_err(|source| DeployStartError::Logs { path: options.log_dir.clone(), source })?;
        metrics::describe_counter!(
            "hearth_deploys_total",
            "Revisions by outcome: live, failed or superseded."
        );
        metrics::describe_histogram!(
            "hearth_deploy_duration_seconds",
            "Time from a deploy request to its live revision."
        );
        metrics::describe_counter!(
            "hearth_instance_ends_total",
            "Instances that exited while they should run."
        );
        let services = ports.store.services().await?;
        let shared = Arc::new(DeployContext {
            options,
            ports,
            entries: Mutex::default(),
            submit_lock: tokio::sync::Mutex::default(),
            route_lock: tokio::sync::Mutex::default(),
            last_listing: tokio::sync::Mutex::default(),
            image_lock: tokio::sync::RwLock::default(),
            names_stale: AtomicBool::new(false),
            reconciled: watch::Sender::new(Err("running instances are being reconciled".to_owned())),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        for service in services {
            shared.add_entry(Arc::new(ServiceEntry::new(service)));
        }
        shared.spawn("reconcile services", startup::startup_loop(Arc::clone(&shared)));
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
    /// Reports whether the first reconciliation since the start is complete, or why not yet. Deploys are accepted from
    /// then on.
    pub fn ready(&self) -> watch::Receiver<Result<(), String>> {
        self.shared.reconciled.subscribe()
    }

    /// Returns a lookup from a service id to the origin of that service. The lookup works for as long as the daemon
    /// runs and keeps nothing alive.
    pub fn origin_lookup(&self) -> impl Fn(&str) -> Option<ServiceOrigin> + Send + Sync + use<> {
        let shared = Arc::downgrade(&self.shared);
        move |id| {
            let id = id.parse::<ServiceId>().ok()?;
            let entry = shared.upgrade()?.entries().get(&id).cloned()?;
            Some(entry.state().service.origin())
        }
    }

    /// Returns a lookup from a service id to the share owner of that service, for as long as the service exists. The
    /// lookup does not accept names: a service may be named like the id of a removed service.
    pub fn share_owner_lookup(&self) -> impl Fn(&str) -> Option<String> + Send + Sync + use<> {
        let shared = Arc::downgrade(&self.shared);
        move |service| {
            let id = service.parse::<ServiceId>().ok()?;
            let entry = shared.upgrade()?.entries().get(&id).cloned()?;
            let owner = entry.state().service.share_owner().to_owned();
            Some(owner)
        }
    }

    /// Waits for the first reconciliation, at most [`READY_LIMIT`].
    pub(super) async fn wait_until_ready(&self) -> Result<(), DeployError> {
        let mut ready = self.ready();
        let limit = self.shared.options.call_limit.min(READY_LIMIT);
        let waited = tokio::time::timeout(limit, ready.wait_for(Result::is_ok)).await;
        match waited.map(|ready| ready.map(drop)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(DeployError::ShuttingDown),
            Err(_) => Err(DeployError::NotReady(ready.borrow().clone().err().unwrap_or_default())),
        }
    }

    /// Stops all loops and waits for them; the next run of the daemon finishes what they began. Instances and routes
    /// stay.
    pub async fn drain(&self, limit: Duration) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(limit, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("deploy steps interrupted by the shutdown; the next start recovers them");
        }
    }
}

impl DeployContext {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<ServiceId, Arc<ServiceEntry>>> {
        // No code under this lock leaves the map half changed.
        self.entries.lock()
    }

    pub(super) fn all_entries(&self) -> Vec<Arc<ServiceEntry>> {
        self.entries().values().cloned().collect()
    }

    pub(super) fn add_entry(&self, entry: Arc<ServiceEntry>) {
        self.entries().insert(entry.id.clone(), entry);
    }

    pub(super) fn forget_entry(&self, id: &ServiceId) {
        self.entries().remove(id);
    }

    pub(super) fn has_entry(&self, id: &ServiceId) -> bool {
        self.entries().contains_key(id)
    }

    pub(super) fn entry_by_name(&self, name: &ServiceName) -> Option<Arc<ServiceEntry>> {
        self.entries().values().find(|entry| entry.state().service.name == *name).cloned()
    }

    /// Finds a service by its name or its id.
    pub(super) fn find_entry(&self, given: &str) -> Result<Arc<ServiceEntry>, DeployError> {
        let found = {
            let entries = self.entries();
            let by_id = given.parse::<ServiceId>().ok().and_then(|id| entries.get(&id).cloned());
            by_id.or_else(|| {
                entries.values().find(|entry| entry.state().service.name.as_str() == given).cloned()
            })
        };
        found.ok_or_else(|| DeployError::NotFound { given: given.chars().take(100).collect() })
    }

    /// Spawns a task that is cancelled when the service loops stop.
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

    /// Starts the loop of a reconciled or new service, at most once.
    pub(super) fn start_loop(self: &Arc<Self>, entry: Arc<ServiceEntry>) {
        if !entry.loop_started.swap(true, Ordering::AcqRel) {
            self.spawn("service", reconcile::service_loop(Arc::clone(self), entry));
        }
    }
}
