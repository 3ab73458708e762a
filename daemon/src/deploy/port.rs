//! What deploys need from the outside.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use futures::Stream;
use tokio::sync::{mpsc, watch};

use crate::model::confinement::AddedCapability;
use crate::model::deploy::{ImageFacts, LogLine, LogQuery};
use crate::model::fault::Fault;
use crate::model::id::{InstanceId, ServiceId};
use crate::model::image::PinnedImage;
use crate::model::secret::{Credential, Secret};
use crate::model::service::{Domain, Exit, InstanceLabel, ResourceLimits, Service, ServiceName};
use crate::model::{Digest, MountSpec, MountTarget, Reference, Repository};

/// Runs instances: one container each. The real one is containerd.
///
/// Instances outlive the daemon and the runtime's own process. Nothing is remembered here: what runs
/// is what [`list`](Self::list) finds, by the labels that [`start`](Self::start) gave.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Brings the image's files to where instances start from them. May take long; a later start of the
    /// same image does not. They stay while an instance uses them or [`keep_images`](Self::keep_images) names them.
    async fn prepare(&self, image: &InstanceImage) -> Result<(), RuntimeError>;

    /// Names all images that are wanted; files of others may go.
    async fn keep_images(&self, wanted: &BTreeSet<Digest>) -> Result<(), RuntimeError>;

    /// Starts an instance of a prepared image. When this fails, nothing of the instance is left.
    async fn start(&self, spec: InstanceSpec) -> Result<(), RuntimeError>;

    /// The image's stop signal, or SIGTERM; `grace` later SIGKILL. Its record, log and exit stay. Nothing to do for
    /// one that has ended.
    async fn stop(&self, instance: &InstanceId, grace: Duration) -> Result<(), RuntimeError>;

    /// Takes away all that there is of an instance but its log, killing it where it runs. Nothing to do for one that is
    /// not there.
    async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError>;

    /// Every instance of this daemon that there is something of, running or not.
    async fn list(&self) -> Result<Vec<Observed>, RuntimeError>;

    /// Changes whenever something may have happened: an instance ended, the runtime came back. Only
    /// to wake who compares; [`list`](Self::list) is the truth.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Runs one more process in an instance.
    async fn exec(&self, instance: &InstanceId, exec: ExecSpec) -> Result<Exec, RuntimeError>;
}

/// The image of one platform: a manifest in the room's registry, its config and its layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceImage {
    pub repository: Repository,
    /// Of the manifest of the platform, never of an index.
    pub manifest: Digest,
}

/// All that an instance is started with.
#[derive(Clone, Debug)]
pub struct InstanceSpec {
    pub label: InstanceLabel,
    pub image: InstanceImage,
    /// In place of the image's entrypoint and command.
    pub command: Option<Vec<String>>,
    /// Over the image's own. Tokens and secrets among it: shown nowhere.
    pub env: BTreeMap<String, Secret<String>>,
    /// Names of those variables whose values the runtime does not keep once the process runs.
    pub confidential: BTreeSet<String>,
    pub workdir: Option<MountTarget>,
    pub mounts: Vec<BindMount>,
    pub limits: ResourceLimits,
    /// Beside those that every instance has.
    pub capabilities: BTreeSet<AddedCapability>,
    pub network: Attached,
    /// Directory of its log, made by whoever starts it.
    pub log: PathBuf,
}

/// A directory or file of the host that an instance sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindMount {
    pub source: PathBuf,
    pub target: MountTarget,
    pub read_only: bool,
    /// An empty directory that first gets what the image has at the target: files, owner and mode.
    pub fill: bool,
}

/// What there is of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub label: InstanceLabel,
    pub state: InstanceState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceState {
    /// Parts of it are there, and no process: a start that was cut short.
    Incomplete,
    Running {
        pid: u32,
    },
    Ended(Exit),
}

#[derive(Clone, Debug)]
pub struct ExecSpec {
    pub command: Vec<String>,
    /// Over the instance's own.
    pub env: BTreeMap<String, String>,
    /// The instance's confidential variables, which the runtime does not know any more.
    pub confidential: BTreeMap<String, Secret<String>>,
    pub workdir: Option<MountTarget>,
    pub terminal: Option<TerminalSize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// A process that runs beside an instance's own. Dropping this kills it.
pub struct Exec {
    pub input: mpsc::Sender<ExecInput>,
    /// Ends with [`ExecOutput::Exited`].
    pub output: mpsc::Receiver<ExecOutput>,
}

#[derive(Clone, Debug)]
pub enum ExecInput {
    Stdin(bytes::Bytes),
    StdinEnd,
    Resize(TerminalSize),
    Signal(i32),
}

#[derive(Clone, Debug)]
pub enum ExecOutput {
    Stdout(bytes::Bytes),
    Stderr(bytes::Bytes),
    Exited(Exit),
    /// The runtime went away.
    Lost(String),
}

/// The code of a start that failed for a reason that the runtime does not know: another may succeed.
pub const UNKNOWN_START: &str = "start_failed";

#[derive(Clone, Debug, thiserror::Error)]
pub enum RuntimeError {
    /// It cannot be reached; the same call may succeed later.
    #[error("the container runtime is away: {0}")]
    Unavailable(String),
    #[error("there is no instance `{0}`")]
    NotFound(InstanceId),
    #[error("instance `{0}` does not run")]
    NotRunning(InstanceId),
    #[error("the image is not usable: {0}")]
    Image(String),
    /// The image is not what it says, and is never used.
    #[error("the image is not usable: {reason}")]
    UnsoundImage { code: &'static str, reason: String },
    /// The process cannot be started: no such program, not executable, no such user or directory.
    #[error("{message}")]
    Start { code: &'static str, message: String },
    #[error("no space is left for the image's files")]
    DiskFull,
    #[error("{0}")]
    Other(String),
}

/// Gives each instance an address. The real one is netlink and one nft table.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// A network of its own for an instance; for one that has it already, the same again. One that is isolated reaches
    /// no other instance, and none reaches it.
    async fn attach(
        &self,
        instance: &InstanceId,
        name: &ServiceName,
        isolated: bool,
    ) -> Result<Attached, NetworkError>;

    /// Takes it away. Nothing to do for one that has none.
    async fn detach(&self, instance: &InstanceId) -> Result<(), NetworkError>;

    /// What the room's services are called by each other: in the hosts files of all instances, at once.
    async fn set_names(&self, names: BTreeMap<ServiceName, Ipv4Addr>) -> Result<(), NetworkError>;

    /// Mends the networks of these instances and takes away every other one that is this daemon's.
    async fn reconcile(&self, instances: &BTreeSet<InstanceId>) -> Result<(), NetworkError>;

    /// How many instances have an address at most.
    fn addresses(&self) -> usize;

    /// Where instances reach this daemon.
    fn gateway(&self) -> Ipv4Addr;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub address: Ipv4Addr,
    /// The network namespace, bound to a file.
    pub namespace: PathBuf,
    pub hostname: String,
    /// Files to be seen as `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`.
    pub hosts: PathBuf,
    pub resolv_conf: PathBuf,
    pub hostname_file: PathBuf,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("no address is left in {subnet}")]
    Exhausted { subnet: String },
    #[error("network: {0}")]
    Other(String),
}

/// Leads traffic to instances. The real one is the ingress.
#[async_trait]
pub trait Router: Send + Sync + 'static {
    /// Replaces all routes at once. Requests in flight go on where they are.
    fn set(&self, routes: Vec<Route>);

    /// Returns when no request to this backend is in flight, or `limit` later, when what is left has
    /// been closed (a WebSocket with 1001). Gives how many were cut. Only for one that no route leads to.
    async fn drain(&self, backend: SocketAddr, limit: Duration) -> usize;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub domain: Domain,
    pub service: ServiceName,
    pub revision: u32,
    /// None while no instance of the service has the traffic: requests are held for a moment, then told 503.
    pub backend: Option<SocketAddr>,
    /// Whether a participant token is asked for, and kept from the service.
    pub private: bool,
}

/// Makes an instance's mounts. The real one opens storage beneath its root and mounts images.
#[async_trait]
pub trait MountSource: Send + Sync + 'static {
    /// Opens what `mounts` name, below a directory of the instance's own. Images are those of `images`, by target:
    /// none is looked up or fetched.
    async fn open(
        &self,
        instance: &InstanceLabel,
        mounts: &[MountSpec],
        images: &BTreeMap<MountTarget, PinnedImage>,
    ) -> Result<Vec<BindMount>, MountFault>;
    /// Takes them away, with what was written to empty directories and writable images.
    async fn close(&self, instance: &InstanceId) -> Result<(), MountFault>;
    /// Takes away those of all other instances, and gives those of these whose mounts are dead: they must be replaced.
    async fn reconcile(&self, instances: &BTreeSet<InstanceId>) -> Result<BTreeSet<InstanceId>, MountFault>;
}

#[derive(Clone, Debug, thiserror::Error)]
#[error("mount at `{target}`: {reason}")]
pub struct MountFault {
    pub target: String,
    pub code: &'static str,
    pub reason: String,
    pub kind: MountFaultKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountFaultKind {
    /// The same mount will fail again until somebody changes something.
    Lasting,
    /// The next try may succeed: a read failed, the machine was short of something.
    Passing,
    /// What is behind it cannot be reached for now, such as a storage on another machine.
    Away,
}

/// Where services are kept. The real one is SQLite.
///
/// What is stored pins the images of all revisions: the registry forgets and deletes none of them.
#[async_trait]
pub trait ServiceStore: Send + Sync + 'static {
    async fn services(&self) -> Result<Vec<Service>, StoreError>;
    /// Replaces what is stored of a service; durable when this returns. A domain that another service
    /// has is [`StoreError::DomainTaken`], and nothing is stored.
    async fn put(&self, service: &Service) -> Result<(), StoreError>;
    async fn remove(&self, service: &Service) -> Result<(), StoreError>;
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("domain `{domain}` belongs to service `{holder}`")]
    DomainTaken { domain: Domain, holder: ServiceName },
    #[error("service name `{0}` is taken")]
    NameTaken(ServiceName),
    #[error("state database: {0}")]
    Database(String),
}

/// Reads the logs of instances. The real one reads the files that the runtime writes.
#[async_trait]
pub trait InstanceLogs: Send + Sync + 'static {
    /// Lines of the log in this directory, oldest first. No log, or none yet, gives no lines.
    /// With `follow` it may go on for as long as somebody reads: who follows knows when the instance is gone.
    async fn read(&self, directory: &Path, query: LogQuery) -> Result<LogLines, LogError>;
}

pub type LogLines = Pin<Box<dyn Stream<Item = Result<LogLine, LogError>> + Send>>;

#[derive(Clone, Debug, thiserror::Error)]
#[error("log of the instance: {0}")]
pub struct LogError(pub String);

/// Images that services run and mount. The real one is [`crate::image::Images`] with the other registries behind it.
#[async_trait]
pub trait ServiceImages: Send + Sync + 'static {
    /// What a reference names now, for this machine. One of another registry is brought into the room first, by the
    /// right of `caller`.
    async fn resolve(
        &self,
        reference: &Reference,
        caller: &str,
        given: &BTreeMap<String, Credential>,
    ) -> Result<ImageFacts, Fault>;

    /// The same for an image that is to be mounted: any that has files for this machine.
    async fn resolve_mounted(
        &self,
        reference: &Reference,
        caller: &str,
        given: &BTreeMap<String, Credential>,
    ) -> Result<PinnedImage, Fault>;
}

/// Makes participant tokens for instances. The real one is [`crate::access::Access`].
pub trait Tokens: Send + Sync + 'static {
    /// `scope` is a word or JSON, as `--env-token` takes it.
    fn mint(&self, service: &ServiceId, name: &str, scope: &str) -> Result<Secret<String>, String>;
}

/// Secrets of the room.
#[async_trait]
pub trait Secrets: Send + Sync + 'static {
    /// None where there is no secret of that name.
    async fn reveal(&self, name: &str) -> Result<Option<Secret<String>>, String>;
}
