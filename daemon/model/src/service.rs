//! Services: images of the room that run as containers, and their stored state.
//!
//! ```text
//! Service --has--> Revision (numbered, what to run) --runs as--> Instance (one container)
//!    '--- live: the revision that receives traffic; desired: the revision that should be live
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hearth_value::{Digest, MountTarget, Reference, Repository, ServiceMount};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::access::RESERVED_NAMES;
use super::confinement::ServiceConfinement;
use super::fault::Fault;
use super::id::{InstanceId, ServiceId};
use super::image::PinnedImage;

/// Reserved port of a service: it cannot be published.
pub const RESERVED_PORT: u16 = 8078;
/// Number of revisions of a service that are kept, with their images.
pub(crate) const KEPT_REVISIONS: usize = 10;
/// Maximum length of a host name label (RFC 1035).
const MAX_NAME: usize = 63;

/// Service name, which is also its host name for the other services of the room: a DNS label.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceNameError {
    #[error("service name `{given}` has {length} letters, more than the {MAX_NAME} of a host name's label")]
    TooLong { given: String, length: usize },
    #[error(
        "service name `{given}`: expected lower-case letters, digits and dashes, with a letter or digit at both ends"
    )]
    Malformed { given: String },
}

/// Host names that machines resolve to their own addresses. A service with such a name would receive connections that
/// other services make to themselves.
const OWN_HOST_NAMES: [&str; 8] = [
    "localhost",
    "localhost4",
    "localhost6",
    "ip6-localhost",
    "ip6-loopback",
    "ip6-allnodes",
    "ip6-allrouters",
    "broadcasthost",
];

impl ServiceName {
    /// Reports whether machines resolve this name to their own addresses. A new service with such a name is refused. A
    /// service that an earlier version of the daemon created with such a name keeps it, but other services cannot
    /// resolve it.
    pub fn is_own_host_name(&self) -> bool {
        OWN_HOST_NAMES.contains(&self.0.as_str())
    }

    /// Derives a service name from a repository: `repo/web` becomes `repo-web`.
    pub fn of_repository(repository: &Repository) -> Result<Self, ServiceNameError> {
        let dashed = |c: char| if matches!(c, '/' | '.' | '_') { '-' } else { c };
        repository.as_str().chars().map(dashed).collect::<String>().parse()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = ServiceNameError;

    fn from_str(text: &str) -> Result<Self, ServiceNameError> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let well_formed =
            !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-');
        if !well_formed {
            return Err(ServiceNameError::Malformed { given: text.chars().take(100).collect() });
        }
        if text.len() > MAX_NAME {
            let given = text.chars().take(100).collect();
            return Err(ServiceNameError::TooLong { given, length: text.len() });
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for ServiceName {
    type Error = ServiceNameError;
    fn try_from(text: String) -> Result<Self, ServiceNameError> {
        text.parse()
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Host name of incoming traffic: exact, or every name one label below another (`*.example.com`).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceDomain(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("domain `{given}`: expected a host name such as `www.example.com` or `*.example.com`")]
pub struct DomainError {
    given: String,
}

impl ServiceDomain {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the part after `*.`; `None` for an exact name.
    pub fn suffix(&self) -> Option<&str> {
        self.0.strip_prefix("*.")
    }

    /// Reports whether a host name exists that matches both domains.
    pub fn overlaps(&self, other: &Self) -> bool {
        let covers = |wide: &Self, exact: &Self| {
            let parent = exact.0.split_once('.').map(|(_, parent)| parent);
            exact.suffix().is_none() && wide.suffix().is_some_and(|suffix| parent == Some(suffix))
        };
        self == other || covers(self, other) || covers(other, self)
    }

    /// Reports whether the domain is too broad to belong to one owner: a public suffix such as `co.uk`, or all names
    /// below a public suffix or a top-level domain.
    pub fn is_public_suffix(&self) -> bool {
        let host = self.suffix().unwrap_or(&self.0);
        let known =
            psl::suffix(host.as_bytes()).is_some_and(|suffix| suffix.is_known() && suffix == host.as_bytes());
        known || (self.suffix().is_some() && !host.contains('.'))
    }
}

impl FromStr for ServiceDomain {
    type Err = DomainError;

    /// Parses a host name, and normalises it: lower case, without the trailing dot.
    fn from_str(text: &str) -> Result<Self, DomainError> {
        let lower = text.trim().trim_end_matches('.').to_ascii_lowercase();
        let host = lower.strip_prefix("*.").unwrap_or(&lower);
        let label = |label: &str| {
            (1..=MAX_NAME).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if host.len() <= 253 && host.split('.').all(label) {
            Ok(Self(lower))
        } else {
            Err(DomainError { given: text.chars().take(300).collect() })
        }
    }
}

impl TryFrom<String> for ServiceDomain {
    type Error = DomainError;
    fn try_from(text: String) -> Result<Self, DomainError> {
        text.parse()
    }
}

impl From<ServiceDomain> for String {
    fn from(domain: ServiceDomain) -> Self {
        domain.0
    }
}

impl fmt::Display for ServiceDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Service as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    pub id: ServiceId,
    pub name: ServiceName,
    /// Repository of its images; a deploy from another repository must use another service name.
    pub repository: Repository,
    pub created_at: Timestamp,
    pub created_by: String,
    /// Participant whose share of the daemon's resources the service uses. If another service created this one, it is
    /// the participant who deployed that service, even after its removal. `None` for services that earlier versions of
    /// the daemon stored; `created_by` is used for these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_owner: Option<String>,
    /// Revision that should run.
    pub desired: u32,
    /// Revision that receives traffic.
    pub live: Option<u32>,
    /// Revisions, newest last; at most [`KEPT_REVISIONS`].
    pub revisions: Vec<ServiceRevision>,
    /// True if the service is being removed: none of its instances should run.
    #[serde(default)]
    pub removing: bool,
}

/// Caller who is accountable for what a service does, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceOrigin {
    pub by: String,
    pub at: Timestamp,
}

impl ServiceRecord {
    /// Returns who is accountable for the service: the participant who deployed the desired revision. If a service
    /// deployed that revision, the creator of this service is accountable.
    pub fn origin(&self) -> ServiceOrigin {
        let is_participant = |revision: &&ServiceRevision| {
            !RESERVED_NAMES.iter().any(|prefix| revision.created_by.starts_with(prefix))
        };
        match self.revision(self.desired).filter(is_participant) {
            Some(revision) => ServiceOrigin { by: revision.created_by.clone(), at: revision.created_at },
            None => ServiceOrigin { by: self.created_by.clone(), at: self.created_at },
        }
    }

    /// Returns the participant whose share of the daemon's resources the service uses.
    pub fn share_owner(&self) -> &str {
        self.share_owner.as_deref().unwrap_or(&self.created_by)
    }

    pub fn revision(&self, number: u32) -> Option<&ServiceRevision> {
        self.revisions.iter().find(|revision| revision.number == number)
    }

    pub fn revision_mut(&mut self, number: u32) -> Option<&mut ServiceRevision> {
        self.revisions.iter_mut().find(|revision| revision.number == number)
    }

    /// Returns the revision that should run: the desired one, or, if that has failed, the live one.
    pub fn target_revision(&self) -> Option<&ServiceRevision> {
        let desired = self.revision(self.desired)?;
        match desired.outcome {
            RevisionOutcome::Failed(_) => self.live_revision(),
            _ => Some(desired),
        }
    }

    pub fn live_revision(&self) -> Option<&ServiceRevision> {
        self.live.and_then(|live| self.revision(live))
    }

    /// Returns the domains that no other service may use: those of the live revision and of the target revision.
    pub fn domains(&self) -> BTreeSet<&ServiceDomain> {
        let revisions = self.target_revision().into_iter().chain(self.live_revision());
        revisions.flat_map(|revision| &revision.spec.domains).collect()
    }

    /// Removes the oldest revisions beyond [`KEPT_REVISIONS`], but never the desired or live one.
    pub fn drop_old_revisions(&mut self) {
        let excess = self.revisions.len().saturating_sub(KEPT_REVISIONS);
        let mut to_remove = excess;
        let (desired, live) = (self.desired, self.live);
        self.revisions.retain(|revision| {
            let is_removed = to_remove > 0 && revision.number != desired && Some(revision.number) != live;
            to_remove -= usize::from(is_removed);
            !is_removed
        });
    }
}

/// Numbered version of what a service runs. It never changes, except for its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRevision {
    pub number: u32,
    pub spec: ServiceSpec,
    pub created_at: Timestamp,
    pub created_by: String,
    pub outcome: RevisionOutcome,
    /// Number of restarts that were requested; instances of an earlier generation are replaced.
    #[serde(default)]
    pub generation: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevisionOutcome {
    /// The revision is not live yet.
    Pending,
    /// The revision became live at this time.
    Live { at: Timestamp },
    /// The revision never received traffic.
    Failed(Box<Fault>),
    /// Another revision was deployed before this one became live.
    Superseded { by: u32 },
}

/// Runtime settings of one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Image reference as requested.
    pub image: Reference,
    /// Repository of the image: a repository of the room, or the host of another registry followed by a repository.
    pub repository: Repository,
    /// Repository of the image cache that holds the content of an image of another registry. `None` in records of
    /// earlier versions of the daemon, which stored this repository in `repository`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_in: Option<Repository>,
    /// Digest of the manifest or index. The service keeps it when the tag is moved.
    pub digest: Digest,
    /// Digest of the platform manifest: equal to `digest`, or an entry of its index.
    pub manifest: Digest,
    pub env: BTreeMap<String, EnvValue>,
    /// Mounts: room, project, image and empty directories. An image `VOLUME` without a mount gets an empty directory.
    pub mounts: Vec<ServiceMount>,
    /// Mounted images by target, with their digests at the time of the deploy. The service keeps them when tags are
    /// moved.
    #[serde(default)]
    pub mounted: BTreeMap<MountTarget, PinnedImage>,
    pub ports: Vec<ServicePort>,
    /// Command that replaces the image's entrypoint and command.
    pub command: Option<Vec<String>>,
    pub workdir: Option<MountTarget>,
    /// Participant name in the tokens that are issued to the service; if unset, the service's name.
    pub identity: Option<String>,
    pub limits: ResourceLimits,
    pub health: HealthCheck,
    pub strategy: DeployStrategy,
    pub domains: Vec<ServiceDomain>,
    /// True if requests to its domains need no participant token.
    pub public: bool,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub confinement: ServiceConfinement,
}

impl ServiceSpec {
    /// Returns the variables whose values are tokens or secrets.
    pub fn confidential(&self) -> impl Iterator<Item = (&String, &EnvValue)> {
        self.env.iter().filter(|(_, value)| !matches!(value, EnvValue::Plain(_)))
    }

    /// Returns all images that the revision needs to run: its own and the mounted ones.
    pub fn images(&self) -> impl Iterator<Item = (&Repository, &Digest)> {
        let mounted = self.mounted.values().map(|image| (&image.repository, &image.digest));
        std::iter::once((self.kept_in.as_ref().unwrap_or(&self.repository), &self.digest)).chain(mounted)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnvValue {
    Plain(String),
    /// Participant token with this scope, issued when an instance starts.
    Token {
        scope: String,
    },
    /// Room secret, read when an instance starts.
    Secret {
        name: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    pub number: u16,
    pub kind: PortKind,
    /// True if the ingress may route to it.
    pub published: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortKind {
    /// HTTP/1.1.
    Http,
    Tcp,
    /// HTTP/2 without TLS and with prior knowledge, as gRPC uses it.
    H2c,
}

impl PortKind {
    /// Reports whether the ingress can route requests to such a port.
    pub const fn is_routable(self) -> bool {
        match self {
            Self::Http | Self::H2c => true,
            Self::Tcp => false,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimits {
    pub memory_bytes: Option<u64>,
    /// CPU limit in thousandths of a processor.
    pub cpu_millis: Option<u32>,
}

/// Probe settings for checking from outside the container whether an instance is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Path on an HTTP port that must answer with a status from 200 to 399. If unset, an HTTP port is healthy if `/`
    /// answers with a status below 500 or with data that is not HTTP, and a TCP port if it accepts connections.
    pub path: Option<String>,
    /// Time limit for the first success.
    pub start_limit: Duration,
    /// Interval between probes of a healthy instance.
    pub interval: Duration,
    /// Timeout of one probe.
    pub timeout: Duration,
    /// Number of consecutive failures that make a healthy instance unhealthy.
    pub failures: u32,
    /// Time that a new instance must stay healthy before it receives the traffic of an older, ready one.
    pub settle: Duration,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            path: None,
            start_limit: Duration::from_secs(60),
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            failures: 3,
            settle: Duration::from_secs(2),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeployStrategy {
    /// The new instance becomes healthy before the old one is stopped.
    #[default]
    Rolling,
    /// The old instance is stopped before the new one starts.
    Recreate,
}

/// Identity of an instance, as stored in the labels of its container.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InstanceLabel {
    pub instance: InstanceId,
    pub service: ServiceId,
    pub name: ServiceName,
    pub revision: u32,
    pub generation: u32,
}

/// Exit of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessExit {
    /// Exit code; 128 plus the signal number if a signal ended the process, as in shells. `None` if the exit was not
    /// observed, because the runtime was down.
    pub code: Option<i32>,
    /// True if the kernel's OOM killer ended the process.
    pub out_of_memory: bool,
    pub at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_gives_a_name_that_dns_takes() {
        let name = |text: &str| ServiceName::of_repository(&text.parse().unwrap()).map(String::from);
        assert_eq!(name("repo/web").unwrap(), "repo-web");
        assert_eq!(name("a.b/c__d").unwrap(), "a-b-c--d");
        assert!(matches!(name(&"a".repeat(64)), Err(ServiceNameError::TooLong { length: 64, .. })));
        for bad in ["", "-a", "a-", "A", "a b", "a.b"] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn domains_overlap_where_a_host_is_both() {
        let overlap = |a: &str, b: &str| {
            let (a, b): (ServiceDomain, ServiceDomain) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(a.overlaps(&b), b.overlaps(&a));
            a.overlaps(&b)
        };
        assert!(overlap("a.example", "a.example") && overlap("*.a.example", "x.a.example"));
        assert!(overlap("*.a.example", "*.a.example"));
        for (a, b) in [
            ("*.a.example", "a.example"),
            ("*.a.example", "x.y.a.example"),
            ("*.a.example", "*.x.a.example"),
            ("*.a.example", "x.b.example"),
            ("*.a.example", "xa.example"),
        ] {
            assert!(!overlap(a, b), "{a} {b}");
        }
    }

    #[test]
    fn a_public_suffix_is_nobodys_domain() {
        let public = |text: &str| text.parse::<ServiceDomain>().unwrap().is_public_suffix();
        for text in
            ["com", "*.com", "co.uk", "*.co.uk", "github.io", "*.github.io", "*.internal", "*.localhost"]
        {
            assert!(public(text), "{text}");
        }
        for text in
            ["example.com", "*.example.com", "me.github.io", "a.co.uk", "web.test", "localhost", "intranet"]
        {
            assert!(!public(text), "{text}");
        }
    }

    #[test]
    fn a_domain_is_a_host_name_or_all_names_below_one() {
        let domain = |text: &str| text.parse::<ServiceDomain>().map(String::from);
        assert_eq!(domain(" WWW.Example.com. ").unwrap(), "www.example.com");
        assert_eq!("*.example.com".parse::<ServiceDomain>().unwrap().suffix(), Some("example.com"));
        for bad in ["", ".", "*", "*.", "a..b", "a*.b", "http://a", "a:80", "-a.b", "a/b"] {
            assert!(domain(bad).is_err(), "{bad}");
        }
    }
}
