//! Build values: the request ([`BuildSpec`]), the stored state ([`BuildRecord`]) and the history ([`BuildEvent`]).
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

use hearth_oci::Descriptor;
use hearth_pack::identity::TreeDigest;
use hearth_pack::image::ConfigFlags;
use hearth_value::{
    AnnotationScope, BuildCompression, BuildMount, CacheExport, CacheImport, Digest, MountTarget,
    ProvenanceMode, Reference,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::access::{NamePatterns, SymlinkPolicy};
use super::fault::{DockerfileRange, Fault};
use super::id::BuildId;
use super::image::{ImageAnnotation, Platform};
use super::secret::{RegistryCredential, Secret, SecretName};
use super::trust::TrustDomain;

/// Validated build request. It contains no secrets, because it is stored and shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildSpec {
    /// References for the result, each with a tag, in the room's registry or another one; at least one.
    pub tags: Vec<Reference>,
    /// Mounts of the build context; at least one, with distinct targets.
    pub mounts: Vec<BuildMount>,
    /// Symbolic link policy for the storage paths of the mounts.
    #[serde(default)]
    pub path_links: SymlinkPolicy,
    pub context_path: MountTarget,
    pub dockerfile: DockerfilePath,
    #[serde(default)]
    pub build_args: BTreeMap<String, String>,
    #[serde(default)]
    pub target: Option<String>,
    /// Platforms of the result; empty means the daemon's own. With several, the result is an index.
    #[serde(default, alias = "platform", deserialize_with = "platforms")]
    pub platforms: Vec<Platform>,
    #[serde(default)]
    pub annotations: Vec<ImageAnnotation>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub no_cache: NoCache,
    #[serde(default)]
    pub pull: bool,
    #[serde(default)]
    pub network: BuildNetwork,
    #[serde(default)]
    pub compression: BuildCompression,
    #[serde(default)]
    pub provenance: ProvenanceMode,
    /// The image gets a list of its packages.
    #[serde(default)]
    pub sbom: bool,
    #[serde(default)]
    pub timeout: Option<Duration>,
    /// Ids of the secrets that came with the request; their values are in [`BuildSecrets`].
    #[serde(default)]
    pub secret_ids: Vec<String>,
    /// Secrets of the room by secret id; their values are read when the build starts.
    #[serde(default)]
    pub room_secrets: BTreeMap<String, SecretName>,
    #[serde(default)]
    pub step_limits: StepLimits,
    /// Caches of build steps that the builder may use, and those that the build writes.
    #[serde(default)]
    pub cache_from: Vec<CacheImport>,
    #[serde(default)]
    pub cache_to: Vec<CacheExport>,
    #[serde(default)]
    pub recipe: BuildRecipe,
}

/// What is done with the files of a build.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildRecipe {
    #[default]
    Dockerfile,
    /// An encoded definition of LLB, which was checked when it was submitted.
    Llb(#[serde(with = "log_bytes")] Vec<u8>),
    TreeImage(Box<TreeImage>),
}

/// The files as one layer on a base image, and commands that run on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeImage {
    pub base: Option<Reference>,
    pub commands: Vec<String>,
    pub config: ConfigFlags,
}

/// Resource limits of each step. Without one, only the limits that the steps of a builder share apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepLimits {
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Processor time in thousandths of one processor.
    #[serde(default)]
    pub cpu_millis: Option<u32>,
}

/// Reads a list of platforms, or the one platform (or `null`) that earlier versions stored.
fn platforms<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Platform>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum StoredPlatforms {
        Many(Vec<Platform>),
        One(Platform),
    }
    Ok(match Option::deserialize(deserializer)? {
        None => Vec::new(),
        Some(StoredPlatforms::One(platform)) => vec![platform],
        Some(StoredPlatforms::Many(platforms)) => platforms,
    })
}

impl BuildSpec {
    /// Returns the platforms for which the build makes an image, at least one.
    pub fn result_platforms(&self) -> Vec<Platform> {
        if self.platforms.is_empty() { vec![Platform::host()] } else { self.platforms.clone() }
    }

    /// Returns the descriptor of the result with the annotations that the spec has for it.
    pub fn described(&self, manifest: &Descriptor) -> Descriptor {
        let platforms = self.result_platforms();
        let (scope, platform) = match manifest.is_index() {
            true => (AnnotationScope::IndexDescriptor, None),
            false => (AnnotationScope::ManifestDescriptor, platforms.first()),
        };
        let annotations = ImageAnnotation::of_place(&self.annotations, scope, platform);
        Descriptor { annotations, ..manifest.bare() }
    }
}

/// Location of the Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DockerfilePath {
    /// `Containerfile`, then `Dockerfile`, in the directory of the context path.
    Search,
    At(MountTarget),
    /// The recipe of the build is no Dockerfile.
    Absent,
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
pub enum BuildNetwork {
    #[default]
    Default,
    None,
}

/// Confidential values of a request; held in memory only.
#[derive(Clone, Debug, Default)]
pub struct BuildSecrets {
    /// Secret values by secret id.
    pub values: BTreeMap<String, Secret<Vec<u8>>>,
    /// Registry credentials by registry host.
    pub credentials: BTreeMap<String, RegistryCredential>,
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
    /// States of builds that have ended.
    pub const FINAL: [Self; 4] = [Self::Succeeded, Self::Failed, Self::Cancelled, Self::Interrupted];

    /// Reports whether the build has ended; an ended build never changes again.
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

/// Build as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRecord {
    pub id: BuildId,
    pub spec: BuildSpec,
    pub submitted_by: String,
    /// Trust domain of the submitter; `None` for builds that were stored before trust domains existed.
    #[serde(default)]
    pub domain: Option<TrustDomain>,
    /// Images of the room that the Dockerfile may use: those that the caller may pull.
    #[serde(default)]
    pub may_pull: NamePatterns,
    /// Images of other registries that the caller may pull, with the daemon's own credentials if the request brings
    /// none.
    #[serde(default)]
    pub may_pull_from: NamePatterns,
    pub state: BuildState,
    pub created_at: Timestamp,
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
    /// Number of times the build was started; above one after a restart of the daemon.
    #[serde(default)]
    pub attempts: u32,
    /// True if the request brought confidential values, which a restart of the daemon loses.
    #[serde(default)]
    pub has_secrets: bool,
    /// The build is kept whatever its age.
    #[serde(default)]
    pub pinned: bool,
    /// Identity of the build context; set once the context has been scanned.
    #[serde(default)]
    pub context: Option<ContextIdentity>,
    /// External content that the Dockerfile names, with its digests.
    #[serde(default)]
    pub sources: Vec<BuildSource>,
    /// Steps of the last attempt; set when the build has ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepSummary>,
    #[serde(default)]
    pub result: Option<BuildResult>,
    #[serde(default)]
    pub fault: Option<Fault>,
    /// Sequence number of the newest event.
    #[serde(default)]
    pub last_sequence: u64,
}

impl BuildRecord {
    /// Returns the trust domain whose builder runs the build. A record without a domain is treated as if a participant
    /// had submitted it, because its name alone does not show the kind of caller: participants could once be named
    /// `uid:0`. Such an ambiguous name yields a domain that no current caller has.
    pub fn trust_domain(&self) -> TrustDomain {
        self.domain.clone().unwrap_or_else(|| TrustDomain::of_caller(&self.submitted_by))
    }
}

/// External content that a Dockerfile names and the build received: an image, a file from a URL, a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildSource {
    pub name: String,
    /// Digest of the content; `None` if only the builder saw it.
    pub digest: Option<Digest>,
}

/// Digests of the files that a build could read. Files that the ignore file excludes, and files beside those that the
/// Dockerfile copies, are not included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextIdentity {
    #[serde(with = "tree_digest")]
    pub digest: TreeDigest,
    /// Identities of the mounts that contributed files, ordered by target.
    pub mounts: Vec<MountIdentity>,
}

/// Digest of the files that one mount contributed to the context; their paths are relative to the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountIdentity {
    pub target: MountTarget,
    #[serde(with = "tree_digest")]
    pub digest: TreeDigest,
}

/// Serialization of tree digests as text.
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

/// A step of an ended build.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepSummary {
    /// Number of the step in the log; 0 in a record of an earlier version.
    #[serde(default)]
    pub step: u32,
    pub name: String,
    pub duration: Duration,
    pub cached: bool,
    /// The step ended without an error.
    #[serde(default)]
    pub succeeded: bool,
    /// Compressed size of the layer that the step added to the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildResult {
    pub digest: Digest,
    /// Descriptor of the manifest or index; `None` for builds of earlier versions.
    #[serde(default)]
    pub descriptor: Option<Descriptor>,
    pub size_bytes: u64,
    pub cached_steps: u32,
    pub total_steps: u32,
    pub duration: Duration,
}

/// Final result of one build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildOutcome {
    Succeeded(BuildResult),
    Failed(Fault),
    Cancelled,
    Interrupted(Fault),
}

/// Numbered, stored event. Sequence numbers are 1, 2, 3, ... without gaps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildEvent {
    pub sequence: u64,
    pub time: Timestamp,
    pub kind: BuildEventKind,
}

/// Kind of a build event. Steps are numbered from 1 in the order of their first appearance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BuildEventKind {
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
    /// Stands for events that are damaged on the disk, beginning with the one of its own number. It is made when the
    /// log is read, and never stored.
    #[serde(skip)]
    Damaged {
        events: u64,
        bytes: u64,
    },
    /// Last event; the build's record has the result.
    Finished {
        state: BuildState,
    },
}

impl BuildEventKind {
    /// Number of events that this one stands for.
    pub fn count(&self) -> u64 {
        match self {
            Self::Damaged { events, .. } => *events,
            _ => 1,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    Stdout,
    Stderr,
}

/// Serialization of log bytes in JSON: a string if they are UTF-8, otherwise an object with a `base64` field.
mod log_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum LogBytesJson<'a> {
        Text(std::borrow::Cow<'a, str>),
        Base64 { base64: String },
    }

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => LogBytesJson::Text(text.into()),
            Err(_) => LogBytesJson::Base64 { base64: STANDARD.encode(bytes) },
        }
        .serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        match LogBytesJson::deserialize(deserializer)? {
            LogBytesJson::Text(text) => Ok(text.into_owned().into_bytes()),
            LogBytesJson::Base64 { base64 } => STANDARD.decode(base64).map_err(serde::de::Error::custom),
        }
    }
}
