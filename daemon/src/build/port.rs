//! What builds need from the outside.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::context::port::ContextFiles;
use crate::image::{SuppliedImage, Transfer};
use crate::model::build::{BuildRecord, BuildSpec, BuildState, ContextIdentity, EventKind, Network, NoCache};
use crate::model::fault::Fault;
use crate::model::id::{BuildId, PackId};
use crate::model::image::{Platform, VerifiedImage};
use crate::model::secret::{Credential, Secret};
use crate::model::trust::TrustDomain;
use crate::model::{Digest, MountTarget, Reference, Repository};

/// Runs Dockerfiles. The real one is BuildKit.
#[async_trait]
pub trait Solver: Send + Sync + 'static {
    /// Runs one build and pushes the result by digest, with no tag.
    ///
    /// Events are sent as they happen; a full channel makes the solve wait. When `cancel` fires, the
    /// solve is ended, and this returns [`SolveError::Cancelled`] once its processes are gone.
    async fn solve(
        &self,
        request: SolveRequest,
        events: mpsc::Sender<EventKind>,
        cancel: CancellationToken,
    ) -> Result<SolveOutcome, SolveError>;
}

pub struct SolveRequest {
    pub build: BuildId,
    /// Whose builder runs it: nothing of the build reaches another domain.
    pub domain: TrustDomain,
    pub files: ContextFiles,
    pub build_args: BTreeMap<String, String>,
    pub target: Option<String>,
    pub platform: Option<Platform>,
    pub labels: BTreeMap<String, String>,
    pub no_cache: NoCache,
    pub network: Network,
    pub secrets: BTreeMap<String, Secret<Vec<u8>>>,
    /// All images that the build may use, files that ADD may fetch, and repositories (`host/path`). Whatever else it
    /// names is denied.
    pub images: Vec<PinnedSource>,
    pub downloads: Vec<PinnedDownload>,
    pub repositories: Vec<String>,
    /// `host:port` of the room's registry as BuildKit reaches it, and where the result goes.
    pub registry: String,
    pub repository: Repository,
    pub credentials: Arc<dyn Credentials>,
}

/// A URL in ADD means this content, which the daemon offers to the builder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedDownload {
    /// As the Dockerfile has it.
    pub url: String,
    /// Where the builder gets it.
    pub place: String,
    pub digest: Digest,
}

/// A name of an image means this image of the room's registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PinnedSource {
    /// As BuildKit spells names: `docker.io/library/alpine:3`.
    pub name: String,
    pub repository: Repository,
    pub digest: Digest,
}

/// An image that a Dockerfile names.
pub struct ImageRequest {
    pub reference: Reference,
    /// It names this room's registry, whatever the name.
    pub is_own: bool,
    /// At least one.
    pub platforms: Vec<Platform>,
    pub caller: String,
    /// Credentials that came with the build, by registry.
    pub given: BTreeMap<String, Credential>,
    /// The image's registry must be asked what the name means now.
    pub ask_registry: bool,
    /// How far its content has come.
    pub transfer: Arc<Transfer>,
}

/// Credentials for registries, asked at the moment they are needed: tokens expire during long builds.
pub trait Credentials: Send + Sync + 'static {
    fn for_registry(&self, host: &str) -> Option<Credential>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SolveOutcome {
    /// Manifest (or index) that was pushed.
    pub digest: Digest,
}

#[derive(Debug, thiserror::Error)]
pub enum SolveError {
    #[error("cancelled")]
    Cancelled,
    /// The solver went away or could not be reached; the same build may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The build itself failed.
    #[error("{}", .0.message)]
    Failed(Box<Fault>),
}

/// Makes a build's mounts one tree. The real one is the context module.
#[async_trait]
pub trait ContextSource: Send + Sync + 'static {
    /// Opens the mounts of `spec` for `caller` and finds the Dockerfile. `given` are the credentials that
    /// came with the build, by registry.
    async fn prepare(
        &self,
        spec: &BuildSpec,
        caller: &str,
        given: &BTreeMap<String, Credential>,
    ) -> Result<Box<dyn PreparedContext>, Fault>;
}

/// A context whose Dockerfile has been read and whose trees are not yet fixed.
pub trait PreparedContext: Send {
    /// Where the Dockerfile is among the mounts.
    fn dockerfile_path(&self) -> &MountTarget;
    fn dockerfile(&self) -> &[u8];
    /// What the files are known by.
    fn identity(&self) -> ContextIdentity;
    /// The files for BuildKit, with this Dockerfile in place of the one that was read.
    fn into_files(self: Box<Self>, dockerfile: Vec<u8>) -> ContextFiles;
}

/// The room's images as builds use them. The real one is the image module.
#[async_trait]
pub trait RoomImages: Send + Sync + 'static {
    /// Has an image in the room, fetched from its registry where that is another one.
    async fn supply(&self, request: ImageRequest) -> Result<SuppliedImage, Fault>;
    /// Checks that a pushed manifest and everything it names are there.
    async fn verify(&self, repository: &Repository, digest: Digest) -> Result<VerifiedImage, Fault>;
    /// Sets the tags, whichever repositories of the room they are in.
    async fn publish(&self, image: &VerifiedImage, tags: &[Reference]) -> Result<(), Fault>;
    /// Brings an image to other registries, all but its names, with the credentials given and the
    /// daemon's own.
    async fn push_content(
        &self,
        image: &VerifiedImage,
        tags: &[Reference],
        given: &BTreeMap<String, Credential>,
    ) -> Result<(), Fault>;
    /// Sets its names there.
    async fn push_names(
        &self,
        image: &VerifiedImage,
        tags: &[Reference],
        given: &BTreeMap<String, Credential>,
    ) -> Result<(), Fault>;
    /// Keeps a pack of `caller` until it is released as often as it was held.
    async fn hold_pack(&self, id: &PackId, caller: &str) -> Result<(), Fault>;
    async fn release_pack(&self, id: &PackId);
}

/// A file that ADD names by URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownloadRequest {
    pub url: String,
    /// As `--checksum` gives it.
    pub checksum: Option<String>,
}

/// A file on offer to the builder, for as long as this is kept.
pub struct Downloaded {
    /// Where the builder gets it.
    pub url: String,
    pub digest: Digest,
    pub size: u64,
    /// It was here, and has not changed.
    pub cached: bool,
    pub offer: Box<dyn std::any::Any + Send + Sync>,
}

/// Fetches what builds name by URL. The real one is the module of downloads.
#[async_trait]
pub trait Downloader: Send + Sync + 'static {
    async fn download(&self, request: DownloadRequest) -> Result<Downloaded, Fault>;
    /// Whether the builder may fetch a repository from a host by itself.
    async fn allows_repository(&self, host: &str) -> Result<(), Fault>;
}

/// Where builds are kept. The real one is SQLite.
#[async_trait]
pub trait BuildStore: Send + Sync + 'static {
    /// Stores a new build. With a key that an earlier build has, stores nothing and returns that build.
    async fn insert(&self, record: BuildRecord, key: Option<IdempotencyKey>) -> Result<Inserted, StoreError>;
    async fn get(&self, id: &BuildId) -> Result<Option<BuildRecord>, StoreError>;
    /// The build that an earlier call with this key made.
    async fn find(&self, key: &IdempotencyKey) -> Result<Option<Inserted>, StoreError>;
    /// Ids that begin with `prefix`, at most `limit`.
    /// Ids of builds that begin with `prefix`, in order; of those that `owner` submitted, if one is named.
    async fn ids_with_prefix(
        &self,
        prefix: &str,
        owner: Option<&str>,
        limit: usize,
    ) -> Result<Vec<BuildId>, StoreError>;
    async fn list(&self, query: BuildQuery) -> Result<Vec<BuildRecord>, StoreError>;
    /// Replaces what is stored of a build; durable when this returns.
    async fn update(&self, record: BuildRecord) -> Result<(), StoreError>;
    async fn remove(&self, id: &BuildId) -> Result<(), StoreError>;
}

/// Keys are per caller, so that one cannot meet another's build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    pub caller: String,
    pub key: String,
    /// Hash of the request: the same key with another request is refused.
    pub request: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inserted {
    New,
    Existing(BuildId),
    /// The key was used for another request.
    Conflict(BuildId),
}

/// Newest first.
#[derive(Clone, Debug, Default)]
pub struct BuildQuery {
    /// Empty is all.
    pub states: Vec<BuildState>,
    pub tag: Option<String>,
    /// Only builds of this participant.
    pub submitted_by: Option<String>,
    /// Only builds older than this one.
    pub after: Option<BuildId>,
    pub limit: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("state database: {0}")]
pub struct StoreError(pub String);
