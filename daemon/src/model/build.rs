//! A build as values: what is asked ([`BuildSpec`]), how it stands ([`BuildRecord`]), and what
//! happened ([`BuildEvent`]).
//!
//! ```text
//! queued --> running --> succeeded
//!    |          |------> failed
//!    |          |------> cancelled
//!    |          '------> interrupted   (daemon ended; could not be run again)
//!    '---------------->  cancelled
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_pack::identity::TreeDigest;
use hearth_proto::value::{Digest, MountSpec, MountTarget, Reference};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::access::{PathLinks, Patterns};
use super::fault::{DockerfileRange, Fault};
use super::id::BuildId;
use super::image::Platform;
use super::secret::{Credential, Secret};
use super::trust::TrustDomain;

/// A checked request for a build. Holds nothing secret: it is stored and shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildSpec {
    /// Names for the result, each with a tag, in the room's registry or in another; at least one.
    pub tags: Vec<Reference>,
    /// At least one, targets distinct.
    pub mounts: Vec<MountSpec>,
    /// Of the mounts' paths in storage.
    #[serde(default)]
    pub path_links: PathLinks,
    pub context_path: MountTarget,
    pub dockerfile: DockerfilePath,
    #[serde(default)]
    pub build_args: BTreeMap<String, String>,
    #[serde(default)]
    pub target: Option<String>,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub no_cache: NoCache,
    #[serde(default)]
    pub pull: bool,
    #[serde(default)]
    pub network: Network,
    #[serde(default)]
    pub timeout: Option<Duration>,
    /// Ids of the secrets that came with the request; their values are in [`BuildSecrets`].
    #[serde(default)]
    pub secret_ids: Vec<String>,
}

/// Where the Dockerfile is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DockerfilePath {
    /// `Containerfile`, then `Dockerfile`, at the context path.
    Search,
    At(MountTarget),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoCache {
    #[default]
    Nothing,
    Stages(Vec<String>),
    Everything,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    #[default]
    Default,
    None,
}

/// What came with a request and is held in memory only.
#[derive(Clone, Debug, Default)]
pub struct BuildSecrets {
    /// By secret id.
    pub values: BTreeMap<String, Secret<Vec<u8>>>,
    /// By registry host.
    pub credentials: BTreeMap<String, Credential>,
}

impl BuildSecrets {
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.credentials.is_empty()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildState {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
    Interrupted,
}

impl BuildState {
    /// Whether the build has ended; an ended build never changes again.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A build as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRecord {
    pub id: BuildId,
    pub spec: BuildSpec,
    pub submitted_by: String,
    /// Of whoever submitted it; builds that were stored before there were domains have none.
    #[serde(default)]
    pub domain: Option<TrustDomain>,
    /// Images of the room that the Dockerfile may name: what the caller may pull.
    #[serde(default)]
    pub may_pull: Patterns,
    /// Images of other registries that the caller may pull, with the daemon's own credentials where the call
    /// brings none.
    #[serde(default)]
    pub may_pull_from: Patterns,
    pub state: BuildState,
    pub created_at: Timestamp,
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
    /// How often the build was started; above one after a restart of the daemon.
    #[serde(default)]
    pub attempts: u32,
    /// Whether values came with the request that are lost with the daemon's memory.
    #[serde(default)]
    pub has_secrets: bool,
    /// What the files of its context were known by, once they were looked at.
    #[serde(default)]
    pub context: Option<ContextIdentity>,
    /// What its Dockerfile named, and what that was.
    #[serde(default)]
    pub sources: Vec<BuildSource>,
    #[serde(default)]
    pub result: Option<BuildResult>,
    #[serde(default)]
    pub fault: Option<Fault>,
    /// Sequence number of the newest event.
    #[serde(default)]
    pub last_sequence: u64,
}

impl BuildRecord {
    /// Whose builder runs the build. The name alone does not tell what kind of caller submitted an old one: a
    /// participant could be named `uid:0` then. Such a build shares a builder with nobody who calls now.
    pub fn trust_domain(&self) -> TrustDomain {
        self.domain.clone().unwrap_or_else(|| TrustDomain::of_caller(&self.submitted_by))
    }
}

/// Something that a build was given for a name in its Dockerfile: an image, a file by its URL, a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildSource {
    pub name: String,
    /// None where only the builder saw it.
    pub digest: Option<Digest>,
}

/// Digests of what a build could read: files that its ignore file hides, and those beside what its
/// Dockerfile copies, play no part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextIdentity {
    #[serde(with = "tree_digest")]
    pub digest: TreeDigest,
    /// For each mount that gave anything, by target.
    pub mounts: Vec<MountIdentity>,
}

/// Of what a mount gave to the context; its paths are relative to the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountIdentity {
    pub target: MountTarget,
    #[serde(with = "tree_digest")]
    pub digest: TreeDigest,
}

/// As text.
mod tree_digest {
    use hearth_pack::identity::TreeDigest;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(digest: &TreeDigest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(digest)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TreeDigest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildResult {
    pub digest: Digest,
    pub size_bytes: u64,
    pub cached_steps: u32,
    pub total_steps: u32,
    pub duration: Duration,
}

/// How one build ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildOutcome {
    Succeeded(BuildResult),
    Failed(Fault),
    Cancelled,
    Interrupted(Fault),
}

/// A numbered, stored event: 1, 2, 3, ... without a gap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildEvent {
    pub sequence: u64,
    pub time: Timestamp,
    pub kind: EventKind,
}

/// Steps are numbered from 1 in the order they were first seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventKind {
    StateChanged {
        state: BuildState,
    },
    StepStarted {
        step: u32,
        name: String,
    },
    StepLog {
        step: u32,
        stream: LogStream,
        #[serde(with = "log_bytes")]
        data: Vec<u8>,
        #[serde(default)]
        dropped_bytes: u64,
    },
    StepProgress {
        step: u32,
        name: String,
        current: u64,
        total: u64,
    },
    StepFinished {
        step: u32,
        cached: bool,
        duration: Duration,
        #[serde(default)]
        error: Option<String>,
    },
    Warning {
        message: String,
        #[serde(default)]
        url: Option<String>,
        #[serde(default)]
        dockerfile: Option<DockerfileRange>,
    },
    /// The last event; what the build came to is in its record.
    Finished {
        state: BuildState,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    Stdout,
    Stderr,
}

/// Log bytes in JSON: text where they are UTF-8, else base64 behind a marker.
mod log_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Form<'a> {
        Text(std::borrow::Cow<'a, str>),
        Base64 { base64: String },
    }

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Form::Text(text.into()),
            Err(_) => Form::Base64 { base64: STANDARD.encode(bytes) },
        }
        .serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Text(text) => Ok(text.into_owned().into_bytes()),
            Form::Base64 { base64 } => STANDARD.decode(base64).map_err(serde::de::Error::custom),
        }
    }
}
