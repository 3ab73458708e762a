//! Deploy requests, and the events and states that deploys produce.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use hearth_value::{Digest, LinePattern, MountTarget, Reference, Repository, ServiceMount};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::build::LogStream;
use super::confinement::AddedCapability;
use super::fault::Fault;
use super::id::{InstanceId, ServiceId};
use super::service::{
    DeployStrategy, EnvValue, ProcessExit, ServiceDomain, ServiceName, ServicePort, ServiceRecord,
};

/// Deploy request as received. `None`, and absence from a list or map, means "not mentioned".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeployRequest {
    pub image: Reference,
    /// Service name; overrides the one that is derived from the repository.
    pub name: Option<ServiceName>,
    /// Variables that are merged over the existing ones by name.
    pub env: BTreeMap<String, EnvValue>,
    /// Mounts. If any mount of a kind is given, the given ones replace all existing mounts of that kind.
    pub mounts: Vec<ServiceMount>,
    pub ports: Option<Vec<ServicePort>>,
    pub command: Option<Vec<String>>,
    pub workdir: Option<MountTarget>,
    pub identity: Option<String>,
    pub memory_bytes: Option<u64>,
    pub cpu_millis: Option<u32>,
    /// HTTP path of the health check.
    pub liveness: Option<String>,
    /// Time limit for the first healthy answer.
    pub start_limit: Option<Duration>,
    pub strategy: Option<DeployStrategy>,
    pub domains: Option<Vec<ServiceDomain>>,
    pub public: Option<bool>,
    pub description: Option<String>,
    pub annotations: Option<BTreeMap<String, String>>,
    pub isolated: Option<bool>,
    pub capabilities: Option<BTreeSet<AddedCapability>>,
    /// True if the request describes the whole service: settings that it does not mention are reset, except the
    /// identity.
    pub replace: bool,
    /// Names of variables that are not kept.
    pub unset_env: BTreeSet<String>,
    /// Settings that are not kept.
    pub unset: BTreeSet<ServiceSetting>,
}

/// Setting that a deploy can take away, so that it has its default again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceSetting {
    Liveness,
    Command,
    WorkingDir,
    Memory,
    Cpus,
    Ports,
    RoomMounts,
    ProjectMounts,
    ImageMounts,
    EmptyDirMounts,
    FileMounts,
}

impl DeployRequest {
    pub fn new(image: Reference) -> Self {
        Self {
            image,
            name: None,
            env: BTreeMap::new(),
            mounts: Vec::new(),
            ports: None,
            command: None,
            workdir: None,
            identity: None,
            memory_bytes: None,
            cpu_millis: None,
            liveness: None,
            start_limit: None,
            strategy: None,
            domains: None,
            public: None,
            description: None,
            annotations: None,
            isolated: None,
            capabilities: None,
            replace: false,
            unset_env: BTreeSet::new(),
            unset: BTreeSet::new(),
        }
    }
}

/// Properties of an image that a deploy needs, and its location in the room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFacts {
    /// Repository under which services know the image: the room's repository, or the host of the other registry
    /// followed by its repository.
    pub repository: Repository,
    /// Cached-images repository that holds the content of an image of another registry.
    pub kept_in: Option<Repository>,
    /// Digest of the manifest or index.
    pub digest: Digest,
    /// Digest of the platform manifest for this machine.
    pub manifest: Digest,
    /// TCP ports of `EXPOSE`, ascending.
    pub exposed: Vec<u16>,
    pub volumes: Vec<MountTarget>,
}

/// One step of a deploy towards the target state of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum DeployAction {
    /// Fetch the image, attach the network, open the mounts and start an instance.
    Start {
        revision: u32,
        generation: u32,
    },
    /// Cancel a start that is in progress, and remove what it created.
    Abort {
        instance: InstanceId,
        revision: u32,
    },
    /// Wait until the instance is healthy or its time limit has passed.
    AwaitHealthy {
        instance: InstanceId,
        revision: u32,
    },
    /// Wait until the new instance has been healthy long enough to be trusted.
    Settle {
        instance: InstanceId,
        revision: u32,
        until: Timestamp,
    },
    /// Route the traffic to the instance.
    Route {
        instance: InstanceId,
        revision: u32,
    },
    /// Remove the route: no instance receives traffic.
    Unroute,
    /// Let the last requests finish, then stop and remove the instance.
    Retire {
        instance: InstanceId,
        revision: u32,
    },
    /// Remove an instance that receives no traffic.
    Remove {
        instance: InstanceId,
        revision: u32,
    },
    MarkLive {
        revision: u32,
    },
    MarkFailed {
        revision: u32,
        cause: FailCause,
    },
    /// Delay the next start, because earlier instances ended too soon.
    Backoff {
        until: Timestamp,
    },
    /// Delete the service record, because nothing of the service is left.
    Forget,
}

/// Reason why a revision did not become live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailCause {
    /// The instance could not be started.
    NotStarted,
    Ended {
        instance: InstanceId,
    },
    NeverHealthy {
        instance: InstanceId,
    },
    /// The instance became unhealthy before it received traffic.
    Unhealthy {
        instance: InstanceId,
    },
}

impl fmt::Display for DeployAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { revision, .. } => write!(f, "start an instance of revision {revision}"),
            Self::Abort { revision, .. } => write!(f, "cancel the start of revision {revision}"),
            Self::AwaitHealthy { revision, .. } => write!(f, "wait until revision {revision} is healthy"),
            Self::Settle { revision, .. } => write!(f, "watch that revision {revision} stays healthy"),
            Self::Route { revision, .. } => write!(f, "lead the traffic to revision {revision}"),
            Self::Unroute => f.write_str("lead the traffic nowhere"),
            Self::Retire { revision, .. } => write!(f, "drain and stop the instance of revision {revision}"),
            Self::Remove { revision, .. } => write!(f, "remove the instance of revision {revision}"),
            Self::MarkLive { revision } => write!(f, "revision {revision} is live"),
            Self::MarkFailed { revision, .. } => write!(f, "revision {revision} has failed"),
            Self::Backoff { until } => write!(f, "wait until {until} for the next start"),
            Self::Forget => f.write_str("forget the service"),
        }
    }
}

/// Event of a deploy. Numbered from 1 without gaps; [`DeployEventKind::Skipped`] reports omitted log lines.
#[derive(Clone, Debug, PartialEq)]
pub struct DeployEvent {
    pub sequence: u64,
    pub at: Timestamp,
    pub kind: DeployEventKind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum DeployEventKind {
    Started(DeployAction),
    Ended {
        action: DeployAction,
        took: Duration,
        error: Option<String>,
    },
    /// Completed part of a start, such as `network`.
    Step {
        name: String,
        took: Duration,
    },
    Probed(ProbeResult),
    Log {
        instance: InstanceId,
        line: LogLine,
    },
    /// Number of lines of the service's log that are omitted here.
    Skipped {
        lines: u64,
    },
    /// Temporary problem that is retried, such as an unavailable runtime.
    Trouble {
        message: String,
    },
    /// The last event is one of `Live`, `Failed` and `Superseded`.
    Live {
        took: Duration,
    },
    Failed(Box<Fault>),
    Superseded {
        by: u32,
    },
}

impl DeployEventKind {
    pub const fn is_last(&self) -> bool {
        matches!(self, Self::Live { .. } | Self::Failed(_) | Self::Superseded { .. })
    }
}

/// Line of an instance's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    pub at: Timestamp,
    pub stream: LogStream,
    /// Bytes as they were written, without their newline. Pieces of a line are cut between characters.
    pub text: Vec<u8>,
    /// Bytes of log that were dropped right before this line.
    pub dropped_bytes: u64,
    /// Set if no newline ended the text: the next line of the same stream continues it.
    pub unfinished: bool,
}

/// Line of a service's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceLogLine {
    pub instance: InstanceId,
    pub line: LogLine,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceLogQuery {
    /// Maximum number of lines, counted from the end.
    pub tail: Option<usize>,
    pub since: Option<Timestamp>,
    /// Pattern that a line must match.
    pub grep: Option<LinePattern>,
    /// True to wait for further lines.
    pub follow: bool,
}

/// Selects the instances whose log is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogSource {
    /// All instances of the service.
    Service,
    /// All instances of a revision.
    Revision(u32),
    /// This instance, which may be gone as long as its log is kept.
    Instance(InstanceId),
}

/// Result of one health probe, which checks from outside the container whether an instance is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeResult {
    pub at: Timestamp,
    pub instance: InstanceId,
    /// `http://10.88.0.2:8000/` or `tcp://10.88.0.2:5432`.
    pub target: String,
    pub took: Duration,
    pub healthy: bool,
    pub answer: ProbeAnswer,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeAnswer {
    Http {
        status: u16,
        location: Option<String>,
        /// The first bytes of the body.
        body: String,
    },
    /// The instance answered in another protocol than HTTP.
    Other,
    Connected,
    /// The instance has no port to probe; its process runs.
    Running,
    Refused,
    Timeout,
    /// The instance closed the connection without an answer.
    Closed,
    Failed(String),
}

impl fmt::Display for ProbeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.target)?;
        match &self.answer {
            ProbeAnswer::Http { status, location, body } => {
                write!(f, "answered {status}")?;
                if let Some(location) = location {
                    write!(f, ", Location: {location}")?;
                }
                if !self.healthy && !body.is_empty() {
                    write!(f, ", body: {body:?}")?;
                }
                Ok(())
            }
            ProbeAnswer::Other => f.write_str("answered in another protocol"),
            ProbeAnswer::Connected => f.write_str("takes connections"),
            ProbeAnswer::Running => f.write_str("runs"),
            ProbeAnswer::Refused => f.write_str("refused the connection"),
            ProbeAnswer::Timeout => write!(f, "did not answer within {} ms", self.took.as_millis()),
            ProbeAnswer::Closed => f.write_str("closed the connection without an answer"),
            ProbeAnswer::Failed(reason) => write!(f, "failed: {reason}"),
        }
    }
}

/// Accepted deploy, before its actions run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedDeploy {
    pub service: ServiceRecord,
    pub revision: u32,
    pub created: bool,
    /// Defaults that were chosen for settings that were not mentioned, such as ports and volumes.
    pub notes: Vec<String>,
}

/// Result of a dry run: the deploy and the actions that it would start with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeployPreview {
    pub deployed: AcceptedDeploy,
    pub actions: Vec<DeployAction>,
}

/// Current state of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceState {
    pub service: ServiceRecord,
    pub status: ServiceStatus,
    pub instances: Vec<InstanceView>,
    /// Number of starts since an instance last ran for a minute, not counting the first.
    pub restarts: u32,
    /// Unexpected exits of this run of the daemon, newest first.
    pub last_exits: Vec<ProcessExit>,
    /// Reason why the service is not in its target state.
    pub reason: Option<String>,
    /// Time of the next start.
    pub next_start: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceStatus {
    /// The service has no ready instance yet.
    Starting,
    /// The desired revision receives traffic.
    Live,
    /// One revision receives traffic while another is being started.
    Updating,
    /// The instance runs, but its health check fails.
    Unhealthy,
    /// The instance exited, and the service waits for its next start.
    CrashLoop,
    /// The service never had a live revision.
    Failed,
    Removing,
}

impl ServiceStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Live => "live",
            Self::Updating => "updating",
            Self::Unhealthy => "unhealthy",
            Self::CrashLoop => "crash_loop",
            Self::Failed => "failed",
            Self::Removing => "removing",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceView {
    pub id: InstanceId,
    pub revision: u32,
    pub address: Option<Ipv4Addr>,
    pub phase: InstancePhase,
    /// True if the instance receives traffic.
    pub routed: bool,
    pub last_probe: Option<ProbeResult>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstancePhase {
    Starting,
    Healthy,
    Unhealthy,
    Retiring,
    Ended,
}

/// Domain and its destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteView {
    pub domain: ServiceDomain,
    pub service: ServiceId,
    pub name: ServiceName,
    /// Revision that receives the traffic; `None` while no instance is ready.
    pub revision: Option<u32>,
    pub private: bool,
}
