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

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::context::DeployContext;
use super::entry::ServiceEntry;
use super::merge::MergeError;
use super::options::{CapabilityNotAllowed, DeployDependencies, Options};
use super::port::{LogError, MountFault, MountFaultKind, RuntimeError, ServiceStoreError};
use super::share::ServiceLimit;
use super::startup;
use crate::access::policy::AccessDenied;
use crate::model::fault::{ErrorCode, Fault};
use crate::model::id::{InstanceId, ServiceId};
use crate::model::service::{self, ServiceDomain, ServiceName, ServiceOrigin, ServiceSpec};

/// Maximum time that a deploy waits for the first reconciliation after the start of the daemon.
const READY_LIMIT: Duration = Duration::from_secs(20);

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
    /// The source of a mount is missing or cannot be used. The message names the mount target.
    #[error(transparent)]
    Mount(#[from] MountFault),
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
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::ServiceNotFound,
            Self::NoRevision { .. } | Self::NoEarlierRevision { .. } => ErrorCode::RevisionNotFound,
            Self::NoRoute(_) => ErrorCode::RouteNotFound,
            Self::Removing { .. } => ErrorCode::ServiceRemoving,
            Self::NoInstance { .. } => ErrorCode::InstanceNotFound,
            Self::NotRunning { .. } | Self::Runtime(RuntimeError::NotRunning(_)) => ErrorCode::NotRunning,
            Self::Runtime(RuntimeError::StartFailed { code, .. }) => *code,
            Self::Denied(_) => ErrorCode::Denied,
            Self::Merge(error) => error.code(),
            Self::Limit(limit) => limit.code(),
            Self::Capability(_) => CapabilityNotAllowed::CODE,
            Self::DomainTaken { .. } => ErrorCode::DomainTaken,
            Self::PublicSuffix { .. } => ErrorCode::PublicSuffix,
            Self::InvalidScope { .. } => ErrorCode::InvalidScope,
            Self::UnknownSecret { .. } => ErrorCode::SecretNotFound,
            Self::Image(fault) | Self::MountedImage(fault) => {
                fault.code.known().unwrap_or(ErrorCode::Internal)
            }
            Self::Mount(fault) => fault.code,
            Self::Runtime(RuntimeError::Unavailable(_)) => ErrorCode::RuntimeUnavailable,
            Self::NotReady(_) | Self::ShuttingDown => ErrorCode::Unavailable,
            Self::Runtime(RuntimeError::DiskFull) => ErrorCode::NoSpace,
            Self::Secret { .. } | Self::Store(_) | Self::Runtime(_) | Self::Log(_) => ErrorCode::Internal,
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
            Self::Mount(fault) => fault.kind != MountFaultKind::Permanent,
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
        let shared = Arc::new(DeployContext::new(options, ports));
        for service in services {
            shared.entries.add(Arc::new(ServiceEntry::new(service)));
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
            let entry = shared.upgrade()?.entries.get(&id)?;
            Some(entry.state().service.origin())
        }
    }

    /// Returns a lookup from a service id to the share owner of that service, for as long as the service exists. The
    /// lookup does not accept names: a service may be named like the id of a removed service.
    pub fn share_owner_lookup(&self) -> impl Fn(&str) -> Option<String> + Send + Sync + use<> {
        let shared = Arc::downgrade(&self.shared);
        move |service| {
            let id = service.parse::<ServiceId>().ok()?;
            let entry = shared.upgrade()?.entries.get(&id)?;
            let owner = entry.state().service.share_owner().to_owned();
            Some(owner)
        }
    }

    /// Finds a service by its name or its id.
    pub(super) fn find_entry(&self, given: &str) -> Result<Arc<ServiceEntry>, DeployError> {
        let found = self.shared.entries.find(given);
        found.ok_or_else(|| DeployError::NotFound { given: given.chars().take(100).collect() })
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
            tracing::warn!("failed to end deploy steps before the shutdown; the next start recovers them");
        }
    }
}
