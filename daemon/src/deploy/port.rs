//! Traits and types that deploys need from the rest of the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use futures::Stream;
use tokio::sync::{mpsc, watch};

use crate::model::confinement::AddedCapability;
use crate::model::deploy::{ImageFacts, LogLine, ServiceLogQuery};
use crate::model::fault::{ErrorCode, Fault};
use crate::model::id::{InstanceId, ServiceId};
use crate::model::image::PinnedImage;
use crate::model::secret::{RegistryCredential, Secret};
use crate::model::service::{
    InstanceLabel, ProcessExit, ResourceLimits, ServiceDomain, ServiceName, ServiceRecord,
};
use crate::model::{Digest, MountTarget, Reference, Repository, ServiceMount};

/// Runs instances, one container each. The production implementation uses containerd.
///
/// Instances outlive the daemon and the runtime's own process. The daemon keeps no record of them: [`list`](Self::list)
/// finds the existing ones by the labels that [`start`](Self::start) set.
#[async_trait]
pub trait ContainerRuntime: Send + Sync + 'static {
    /// Unpacks the image's files for instances. This may take long; a later start of the same image does not. The files
    /// stay while an instance uses them or [`keep_images`](Self::keep_images) names them.
    async fn prepare(&self, image: &InstanceImage) -> Result<(), RuntimeError>;

    /// Sets the manifests of all wanted images; the files of other images may be deleted.
    async fn keep_images(&self, wanted: &BTreeSet<Digest>) -> Result<(), RuntimeError>;

    /// Starts an instance of a prepared image. On failure, no part of the instance is left behind.
    async fn start(&self, spec: InstanceSpec) -> Result<(), RuntimeError>;

    /// Sends the image's stop signal, or SIGTERM, and SIGKILL after `grace`. The instance's record, log and exit status
    /// stay. Does nothing for an instance that has exited.
    async fn stop(&self, instance: &InstanceId, grace: Duration) -> Result<(), RuntimeError>;

    /// Removes every part of an instance except its log, and kills it if it is running. Does nothing if the instance
    /// does not exist.
    async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError>;

    /// Lists every instance of this daemon of which any part exists, running or not.
    async fn list(&self) -> Result<Vec<ObservedInstance>, RuntimeError>;

    /// Changes whenever an instance may have changed state, such as an exit or a reconnection to the runtime. It only
    /// wakes the reconciliation; [`list`](Self::list) has the actual state.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Runs an additional process in an instance.
    async fn exec(&self, instance: &InstanceId, exec: ExecSpec) -> Result<ExecStreams, RuntimeError>;
}

/// The image of one platform: a manifest in the room's registry, its config and its layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceImage {
    pub repository: Repository,
    /// Digest of the platform manifest, never of an index.
    pub manifest: Digest,
}

/// The inputs for the start of one instance.
#[derive(Clone, Debug)]
pub struct InstanceSpec {
    pub label: InstanceLabel,
    pub image: InstanceImage,
    /// Replacement for the image's entrypoint and command.
    pub command: Option<Vec<String>>,
    /// Environment variables that override those of the image. They include tokens and secrets and must not be shown
    /// anywhere.
    pub env: BTreeMap<String, Secret<String>>,
    /// Names of the variables whose values the runtime must not keep once the process runs.
    pub confidential: BTreeSet<String>,
    pub workdir: Option<MountTarget>,
    pub mounts: Vec<BindMount>,
    pub limits: ResourceLimits,
    /// Capabilities in addition to the default set of every instance.
    pub capabilities: BTreeSet<AddedCapability>,
    pub network: NetworkAttachment,
    /// Directory of the instance's log, created by the caller.
    pub log: PathBuf,
}

/// A directory or file of the host that is bind-mounted into an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindMount {
    pub source: PathBuf,
    pub target: MountTarget,
    pub read_only: bool,
    /// Set for an empty directory into which the image's content at the target is copied first: files, owner and mode.
    pub fill: bool,
}

/// An instance as listed by the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedInstance {
    pub label: InstanceLabel,
    pub state: InstanceState,
}

/// State of an instance as the runtime sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceState {
    /// Parts of the instance exist but no process: its start was interrupted.
    Incomplete,
    Running {
        pid: u32,
    },
    Exited(ProcessExit),
}

/// The inputs for an additional process in an instance.
#[derive(Clone, Debug)]
pub struct ExecSpec {
    pub command: Vec<String>,
    /// Environment variables that override those of the instance.
    pub env: BTreeMap<String, String>,
    /// The instance's confidential variables, which the runtime no longer knows.
    pub confidential: BTreeMap<String, Secret<String>>,
    pub workdir: Option<MountTarget>,
    pub terminal: Option<TerminalSize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// An additional process in an instance. Dropping this kills the process.
pub struct ExecStreams {
    pub input: mpsc::Sender<ExecInput>,
    /// Output of the process; the last item is [`ExecOutput::Exited`] or [`ExecOutput::Lost`].
    pub output: mpsc::Receiver<ExecOutput>,
}

/// Message from the caller to a process.
#[derive(Clone, Debug)]
pub enum ExecInput {
    Stdin(bytes::Bytes),
    StdinEnd,
    Resize(TerminalSize),
    Signal(i32),
}

/// Message from a process to its caller.
#[derive(Clone, Debug)]
pub enum ExecOutput {
    Stdout(bytes::Bytes),
    Stderr(bytes::Bytes),
    Exited(ProcessExit),
    /// The connection to the runtime was lost.
    Lost(String),
}

/// Reason of a failed call to the container runtime.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The runtime cannot be reached; the same call may succeed later.
    #[error("the container runtime is away: {0}")]
    Unavailable(String),
    #[error("there is no instance `{0}`")]
    NotFound(InstanceId),
    #[error("instance `{0}` does not run")]
    NotRunning(InstanceId),
    #[error("the image is not usable: {0}")]
    UnusableImage(String),
    /// The image's content contradicts its digests or metadata; the image is never used.
    #[error("the image is not usable: {reason}")]
    CorruptImage { code: ErrorCode, reason: String },
    /// The process cannot be started, for example because the program, user or directory does not exist. The code
    /// `StartFailed` stands for a reason that is not known; another start may succeed.
    #[error("{message}")]
    StartFailed { code: ErrorCode, message: String },
    #[error("no space is left for the image's files")]
    DiskFull,
    #[error("{0}")]
    Other(String),
}

/// Gives each instance a network address. The production implementation uses netlink and one nftables table.
#[async_trait]
pub trait InstanceNetwork: Send + Sync + 'static {
    /// Creates the network of an instance, or returns the existing one. An isolated instance reaches no other instance
    /// and is reached by none.
    async fn attach(
        &self,
        instance: &InstanceId,
        name: &ServiceName,
        isolated: bool,
    ) -> Result<NetworkAttachment, NetworkError>;

    /// Removes the network of an instance. Does nothing if the instance has none.
    async fn detach(&self, instance: &InstanceId) -> Result<(), NetworkError>;

    /// Replaces the name records of the room's services, in the hosts files of all instances at once.
    async fn set_names(&self, names: BTreeMap<ServiceName, Ipv4Addr>) -> Result<(), NetworkError>;

    /// Repairs the networks of these instances and removes every other network of this daemon.
    async fn reconcile(&self, instances: &BTreeSet<InstanceId>) -> Result<(), NetworkError>;

    /// Returns the maximum number of instance addresses.
    fn max_addresses(&self) -> usize;

    /// Returns the address at which instances reach this daemon.
    fn gateway(&self) -> Ipv4Addr;
}

/// The network of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkAttachment {
    pub address: Ipv4Addr,
    /// File on which the network namespace is bind-mounted.
    pub namespace: PathBuf,
    pub hostname: String,
    /// Files to be mounted as `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`.
    pub hosts: PathBuf,
    pub resolv_conf: PathBuf,
    pub hostname_file: PathBuf,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("no address is left in {subnet}")]
    Exhausted { subnet: String },
    #[error("network: no space is left on the disk: {0}")]
    DiskFull(String),
    #[error("network: {0}")]
    Other(String),
}

/// Routes traffic to instances. The production implementation is the ingress.
#[async_trait]
pub trait TrafficRouter: Send + Sync + 'static {
    /// Replaces all routes at once. Requests in flight continue on their current backend.
    fn set_routes(&self, routes: Vec<DomainRoute>);

    /// Waits until no request to this backend is in flight, at most `limit`; then closes the remaining ones (a
    /// WebSocket with code 1001). Returns the number of connections that were cut. May be called only for a backend
    /// without a route.
    async fn drain(&self, backend: SocketAddr, limit: Duration) -> usize;
}

/// Route of one domain to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainRoute {
    pub domain: ServiceDomain,
    pub service: ServiceName,
    pub revision: u32,
    /// `None` while no instance of the service receives traffic: requests are held for a short time and then answered
    /// with 503.
    pub backend: Option<SocketAddr>,
    /// Set if the backend speaks only HTTP/2, with prior knowledge.
    pub http2: bool,
    /// Set if requests need a participant token, which is not passed on to the service.
    pub private: bool,
}

/// Creates the mounts of an instance. The production implementation opens storage beneath its root and mounts images.
#[async_trait]
pub trait InstanceMounter: Send + Sync + 'static {
    /// Checks that each storage source of `mounts` exists or asks to be made. Nothing changes.
    async fn check_sources(&self, mounts: &[ServiceMount]) -> Result<(), MountFault>;
    /// Creates the missing sources that ask to be made.
    async fn make_sources(&self, mounts: &[ServiceMount]) -> Result<(), MountFault>;
    /// Opens the sources of `mounts` below a directory of the instance. `images` holds the images by target: none is
    /// resolved or fetched here.
    async fn open(
        &self,
        instance: &InstanceLabel,
        mounts: &[ServiceMount],
        images: &BTreeMap<MountTarget, PinnedImage>,
    ) -> Result<Vec<BindMount>, MountFault>;
    /// Removes the mounts of an instance, with everything written to empty directories and writable images.
    async fn close(&self, instance: &InstanceId) -> Result<(), MountFault>;
    /// Removes the mounts of all other instances, and returns those of `instances` whose mounts are dead: these
    /// instances must be replaced.
    async fn reconcile(&self, instances: &BTreeSet<InstanceId>) -> Result<BTreeSet<InstanceId>, MountFault>;
}

/// Reason for which a mount cannot be created or removed; `code` is the stable error code.
#[derive(Clone, Debug, thiserror::Error)]
#[error("mount at `{target}`: {reason}")]
pub struct MountFault {
    pub target: String,
    pub code: ErrorCode,
    pub reason: String,
    pub kind: MountFaultKind,
}

/// Prospects of another attempt after a failed mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountFaultKind {
    /// The same mount fails again until somebody changes the request or the machine.
    Permanent,
    /// The next attempt may succeed: a read failed, or the machine was short of a resource.
    Transient,
    /// The source cannot be reached at present, such as storage on another machine.
    Unavailable,
}

/// Persistent store of services. The production implementation is SQLite.
///
/// A stored service pins the images of all its revisions: the registry deletes none of them.
#[async_trait]
pub trait ServiceStore: Send + Sync + 'static {
    async fn services(&self) -> Result<Vec<ServiceRecord>, ServiceStoreError>;
    /// Stores a service, replacing an earlier version; durable on return. Returns [`ServiceStoreError::DomainTaken`]
    /// and stores nothing if another service has one of the domains.
    async fn put(&self, service: &ServiceRecord) -> Result<(), ServiceStoreError>;
    async fn remove(&self, service: &ServiceRecord) -> Result<(), ServiceStoreError>;
}

#[derive(Debug, thiserror::Error)]
pub enum ServiceStoreError {
    #[error("domain `{domain}` belongs to service `{holder}`")]
    DomainTaken { domain: ServiceDomain, holder: ServiceName },
    #[error("service name `{0}` is taken")]
    NameTaken(ServiceName),
    #[error("state database: {0}")]
    Database(#[source] std::io::Error),
}

/// Reads the logs of instances. The production implementation reads the files that the log keepers write.
#[async_trait]
pub trait InstanceLogs: Send + Sync + 'static {
    /// Returns the lines of the log in this directory, oldest first; a missing log has no lines. With `follow` the
    /// stream may not end: the caller must know when the instance is gone.
    async fn read(&self, directory: &Path, query: ServiceLogQuery) -> Result<LogLines, LogError>;
}

pub type LogLines = Pin<Box<dyn Stream<Item = Result<LogLine, LogError>> + Send>>;

#[derive(Clone, Debug, thiserror::Error)]
#[error("log of the instance: {0}")]
pub struct LogError(pub String);

/// Images that services run and mount. The production implementation is [`crate::image::Images`] combined with the
/// remote registries.
#[async_trait]
pub trait ServiceImages: Send + Sync + 'static {
    /// Resolves a reference to the current image for this platform. An image of a remote registry is fetched into the
    /// room first, with the permissions of `caller`.
    async fn resolve(
        &self,
        reference: &Reference,
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<ImageFacts, Fault>;

    /// Resolves an image to be mounted, which may be any image with files for this platform.
    async fn resolve_mounted(
        &self,
        reference: &Reference,
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<PinnedImage, Fault>;
}

/// Mints participant tokens for instances. The production implementation is [`crate::access::Access`].
pub trait TokenMinter: Send + Sync + 'static {
    /// Mints a token. `scope` is a word or JSON, as accepted by `--env-token`.
    fn mint(&self, service: &ServiceId, name: &str, scope: &str) -> Result<Secret<String>, String>;
}

/// Read access to the secrets of the room.
#[async_trait]
pub trait SecretReader: Send + Sync + 'static {
    /// Returns the value of a secret, or `None` if no secret has that name.
    async fn reveal(&self, name: &str) -> Result<Option<Secret<String>>, String>;
}
