//! What is asked of deploys, and what is told of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use hearth_proto::value::{Digest, MountSpec, MountTarget, Reference, Repository};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::build::LogStream;
use super::confinement::AddedCapability;
use super::fault::Fault;
use super::id::{InstanceId, ServiceId};
use super::service::{Domain, EnvValue, Exit, Port, Service, ServiceName, Strategy};

/// A deploy as it was asked for. `None`, and what is not in a list or map, means "not mentioned".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeployRequest {
    pub image: Reference,
    /// In place of the one that the repository gives.
    pub name: Option<ServiceName>,
    /// Over what is there, name by name.
    pub env: BTreeMap<String, EnvValue>,
    /// A kind that is among them replaces all of that kind.
    pub mounts: Vec<MountSpec>,
    pub ports: Option<Vec<Port>>,
    pub command: Option<Vec<String>>,
    pub workdir: Option<MountTarget>,
    pub identity: Option<String>,
    pub memory_bytes: Option<u64>,
    pub cpu_millis: Option<u32>,
    /// Path of the health check.
    pub liveness: Option<String>,
    /// For the first healthy answer.
    pub start_limit: Option<Duration>,
    pub strategy: Option<Strategy>,
    pub domains: Option<Vec<Domain>>,
    pub public: Option<bool>,
    pub description: Option<String>,
    pub annotations: Option<BTreeMap<String, String>>,
    pub isolated: Option<bool>,
    pub capabilities: Option<BTreeSet<AddedCapability>>,
    /// For a whole manifest: what is not mentioned is not kept, but for the identity.
    pub replace: bool,
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
        }
    }
}

/// What an image says of itself, and where it lies in the room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFacts {
    /// By which services know it: the room's repository, or the name of the other registry with that of its repository.
    pub repository: Repository,
    /// Repository of cached images that has the content of an image of another registry.
    pub kept_in: Option<Repository>,
    /// Manifest or index.
    pub digest: Digest,
    /// The manifest for this machine.
    pub manifest: Digest,
    /// TCP ports of `EXPOSE`, in order.
    pub exposed: Vec<u16>,
    pub volumes: Vec<MountTarget>,
}

/// One step towards what shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Bring the image's files, attach the network, open the mounts and start an instance.
    Start {
        revision: u32,
        generation: u32,
    },
    /// Give up a start that is under way, and take away what there is of it.
    Abort {
        instance: InstanceId,
        revision: u32,
    },
    /// Until it is healthy, or `limit` has passed.
    AwaitHealthy {
        instance: InstanceId,
        revision: u32,
    },
    /// Until the new instance has been healthy for long enough to trust it.
    Settle {
        instance: InstanceId,
        revision: u32,
        until: Timestamp,
    },
    /// Lead the traffic to it.
    Route {
        instance: InstanceId,
        revision: u32,
    },
    /// Lead the traffic nowhere.
    Unroute,
    /// See the last requests out, stop it and take it away.
    Retire {
        instance: InstanceId,
        revision: u32,
    },
    /// Take away one that does not serve.
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
    /// The next start comes later: earlier ones ended too soon.
    Backoff {
        until: Timestamp,
    },
    /// Nothing of the service is left.
    Forget,
}

/// Why a revision will not be live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailCause {
    /// It could not be started.
    NotStarted,
    Ended {
        instance: InstanceId,
    },
    NeverHealthy {
        instance: InstanceId,
    },
    /// It was healthy, and then was not, before it took traffic.
    Unhealthy {
        instance: InstanceId,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { revision, .. } => write!(f, "start an instance of revision {revision}"),
            Self::Abort { revision, .. } => write!(f, "give up the start of revision {revision}"),
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

/// Something that happened in a deploy. Numbered from 1 without gaps; what was left out is told by [`DeployEventKind::Skipped`].
#[derive(Clone, Debug, PartialEq)]
pub struct DeployEvent {
    pub sequence: u64,
    pub at: Timestamp,
    pub kind: DeployEventKind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum DeployEventKind {
    Started(Action),
    Ended {
        action: Action,
        took: Duration,
        error: Option<String>,
    },
    /// A part of a start, such as `network`.
    Step {
        name: String,
        took: Duration,
    },
    Probed(ProbeResult),
    Log {
        instance: InstanceId,
        line: LogLine,
    },
    /// So many lines of the service's log are not told here.
    Skipped {
        lines: u64,
    },
    /// Something that is tried again, such as a runtime that is away.
    Trouble {
        message: String,
    },
    /// The last event is one of these three.
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

/// A line of an instance's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    pub at: Timestamp,
    pub stream: LogStream,
    pub text: String,
    /// Bytes of log that were dropped right before this line.
    pub dropped_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Only so many of the last lines.
    pub tail: Option<usize>,
    pub since: Option<Timestamp>,
    /// Only lines that have this text in them.
    pub grep: Option<String>,
    /// Waits for more.
    pub follow: bool,
}

/// Whose log is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogSource {
    /// The newest instance of the service.
    Newest,
    /// The newest instance of a revision.
    Revision(u32),
    /// One that is gone too, while its log is kept.
    Instance(InstanceId),
}

/// One look from outside at whether an instance serves.
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
    /// Bytes of another protocol than HTTP.
    Other,
    Connected,
    /// There is no port to ask: the process runs.
    Running,
    Refused,
    Timeout,
    /// It closed the connection and answered nothing.
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

/// What a deploy came to, before it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployed {
    pub service: Service,
    pub revision: u32,
    pub created: bool,
    /// What was chosen where nothing was said, such as ports and volumes.
    pub notes: Vec<String>,
}

/// What a deploy would come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forecast {
    pub deployed: Deployed,
    pub actions: Vec<Action>,
}

/// A service as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceState {
    pub service: Service,
    pub status: ServiceStatus,
    pub instances: Vec<InstanceView>,
    /// Starts since it last ran for a minute, without the first.
    pub restarts: u32,
    pub last_exit: Option<Exit>,
    /// Why it is not as it should be.
    pub reason: Option<String>,
    /// When it is started again.
    pub next_start: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceStatus {
    /// Nothing serves yet.
    Starting,
    /// The revision that shall be serves.
    Live,
    /// One serves while another is on its way.
    Updating,
    /// It runs, and its health check fails.
    Unhealthy,
    /// It ended and waits for its next start.
    CrashLoop,
    /// No revision of it ever was live.
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
    /// Traffic goes there.
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

/// A domain and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteView {
    pub domain: Domain,
    pub service: ServiceId,
    pub name: ServiceName,
    /// None while nothing serves.
    pub revision: Option<u32>,
    pub private: bool,
}
