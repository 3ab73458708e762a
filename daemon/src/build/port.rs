//! Ports of the build module: what builds need from other modules.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use hearth_llb::CheckedGraph;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::dockerfile::Dockerfile;
pub use super::dockerfile::{DockerfileExcerpt, PlatformRun};
use crate::context::ContextFiles;
use crate::image::{BuiltImage, ImageForm, SuppliedCache, SuppliedImage, TransferProgress};
use crate::model::attestation::Predicate;
use crate::model::build::{BuildEventKind, BuildRecord, BuildSpec, BuildState, ContextIdentity};
use crate::model::build_inputs::BuildInputs;
use crate::model::fault::Fault;
use crate::model::id::{BuildId, PackId};
use crate::model::image::{ImageInstruction, PinnedImage, Platform, VerifiedImage};
use crate::model::secret::{RegistryCredential, Secret, SecretName};
use crate::model::trust::TrustDomain;
use crate::model::{CacheFormat, CacheImport, CacheLocation, Digest, MountTarget, Reference, Repository};

/// Runs Dockerfiles. The implementation is BuildKit.
#[async_trait]
pub trait Solver: Send + Sync + 'static {
    /// Runs one build and pushes the result by digest, with no tag.
    ///
    /// Events are sent as they happen; a full channel blocks the solve. When `cancel` fires, the solve is stopped, and
    /// this returns [`SolveError::Cancelled`] once its processes have exited.
    async fn solve(
        &self,
        request: SolveRequest,
        events: mpsc::Sender<BuildEventKind>,
        cancel: CancellationToken,
    ) -> Result<SolveOutcome, SolveError>;

    /// Answers a question about a build without running its steps. When `cancel` fires, this returns
    /// [`SolveError::Cancelled`].
    async fn ask(
        &self,
        request: SolveRequest,
        question: SolveQuestion,
        cancel: CancellationToken,
    ) -> Result<SolveAnswer, SolveError>;
}

/// Question about a build, which the builder answers from the Dockerfile and the configurations of base images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SolveQuestion {
    /// Warnings of BuildKit's linter. Answered as the metadata `result.json` and `result.txt`, like the next two.
    Lint,
    /// Build arguments, secrets and stages of the target.
    Outline,
    /// Targets of the Dockerfile.
    Targets,
    /// LLB of the target for each platform.
    Definition,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SolveAnswer {
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// Encoded `pb.Definition` of LLB, by platform. The platform is empty when none was requested.
    pub definitions: BTreeMap<String, Vec<u8>>,
}

/// Inputs of one solve.
pub struct SolveRequest {
    pub build: BuildId,
    pub program: SolveProgram,
    /// Trust domain whose builder runs the build: nothing of the build reaches another domain.
    pub domain: TrustDomain,
    /// Spec of the build, without a build argument that selects the frontend.
    pub spec: BuildSpec,
    pub files: ContextFiles,
    pub secrets: BTreeMap<String, Secret<Vec<u8>>>,
    /// Layers that an earlier build compressed in another way are converted, those of the base among them.
    pub converts_layers: bool,
    /// Images that the build may use, files that ADD may fetch, and repositories (`host/path`). All other sources are
    /// denied.
    pub images: Vec<PinnedImageSource>,
    pub downloads: Vec<PinnedDownload>,
    pub repositories: Vec<String>,
    /// First RUN of each platform other than the daemon's.
    pub foreign_runs: Vec<PlatformRun>,
    pub caches: SolveCaches,
    /// Room registry as BuildKit reaches it (`host:port`), and the repository that receives the result.
    pub registry: String,
    pub repository: Repository,
    pub credentials: Arc<dyn CredentialProvider>,
}

/// Caches of build steps for one solve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SolveCaches {
    /// Caches that the builder reads from the room's registry.
    pub imports: Vec<PinnedImage>,
    /// Writes a cache into the config of the image.
    pub inline: bool,
    /// Writes a cache beside the image, into the repository of the result.
    pub export: Option<CacheFormat>,
}

/// What a solve runs.
#[derive(Clone, Debug, Default)]
pub enum SolveProgram {
    #[default]
    Dockerfile,
    Llb {
        graph: Arc<CheckedGraph>,
        /// Config of the image as JSON; BuildKit's own defaults without one.
        config: Option<Vec<u8>>,
    },
}

/// Pins a URL in ADD to content that the daemon serves to the builder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedDownload {
    /// URL as written in the Dockerfile.
    pub url: String,
    /// URL at which the builder fetches the content.
    pub offer_url: String,
    pub digest: Digest,
}

/// Pins an image name to an image of the room's registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PinnedImageSource {
    /// Name as BuildKit normalizes it: `docker.io/library/alpine:3`.
    pub name: String,
    pub repository: Repository,
    pub digest: Digest,
}

/// Request for an image that a Dockerfile names.
pub struct ImageRequest {
    pub reference: Reference,
    /// The reference names this room's registry.
    pub is_room_image: bool,
    /// Requested platforms, at least one.
    pub platforms: Vec<Platform>,
    pub caller: String,
    /// Credentials that came with the build, by registry.
    pub credentials: BTreeMap<String, RegistryCredential>,
    /// The registry must be asked for the current digest of the name.
    pub ask_registry: bool,
    /// Progress of the transfer of its content.
    pub transfer: Arc<TransferProgress>,
}

/// Provides registry credentials at the moment they are needed, because tokens expire during long builds.
pub trait CredentialProvider: Send + Sync + 'static {
    fn for_registry(&self, host: &str) -> Option<RegistryCredential>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SolveOutcome {
    /// Digest of the pushed manifest (or index).
    pub digest: Digest,
    /// Digest of the pushed cache.
    pub cache: Option<Digest>,
    /// Version that the solver reports of itself.
    pub builder_version: String,
    pub commits: Vec<FetchedCommit>,
}

/// Statements to attach to a built image.
#[derive(Clone, Debug, PartialEq)]
pub struct BuildStatements {
    /// Names of the image.
    pub names: Vec<String>,
    pub provenance: Option<Predicate>,
    /// Each image gets a list of its packages.
    pub sbom: bool,
    /// The index of the image lists the statements.
    pub in_index: bool,
}

/// Commit of a repository that a step fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedCommit {
    /// Name of the step, which contains the URL of the repository.
    pub step: String,
    pub commit: String,
}

#[derive(Debug, thiserror::Error)]
pub enum SolveError {
    #[error("cancelled")]
    Cancelled,
    /// The solver became unavailable; the same build may succeed later.
    #[error("{0}")]
    Unavailable(String),
    /// The build itself failed.
    #[error("{}", .0.message)]
    Failed(Box<Fault>),
}

/// Combines a build's mounts into one tree. The implementation is the context module.
#[async_trait]
pub trait ContextSource: Send + Sync + 'static {
    /// Opens the mounts of `spec` for `caller` and finds the Dockerfile. `given` are the credentials that came with
    /// the build, by registry.
    async fn prepare(
        &self,
        spec: &BuildSpec,
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<PreparedContext, Fault>;
    /// Finds the Dockerfile like [`prepare`](Self::prepare), with the ignore file as the only file of the context.
    async fn prepare_dockerfile(
        &self,
        spec: &BuildSpec,
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<PreparedContext, Fault>;
}

/// The files of a build, and its Dockerfile.
pub struct PreparedContext {
    /// Files for BuildKit, with [`Dockerfile::bytes`] as the Dockerfile.
    pub files: ContextFiles,
    /// Content identity of the files.
    pub identity: ContextIdentity,
    /// Path of the Dockerfile among the mounts.
    pub dockerfile_path: MountTarget,
    pub dockerfile: Arc<Dockerfile>,
}

/// Images of the room, as builds use them. The implementation is the image module.
#[async_trait]
pub trait RoomImages: Send + Sync + 'static {
    /// Makes an image available in the room; fetches it when it belongs to another registry.
    async fn supply(&self, request: ImageRequest) -> Result<SuppliedImage, Fault>;
    /// Makes a build cache available in the room, with the credentials of the build and those of the daemon.
    async fn supply_cache(
        &self,
        import: &CacheImport,
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<SuppliedCache, Fault>;
    /// Writes a build cache to a file or directory of room storage.
    async fn store_cache(&self, cache: &VerifiedImage, location: &CacheLocation) -> Result<(), Fault>;
    /// Checks that a pushed manifest and everything that it references exist.
    async fn verify(&self, repository: &Repository, digest: Digest) -> Result<VerifiedImage, Fault>;
    /// Gives a pushed image, or each image of a pushed index, the form that the build asks for: layers of a base have
    /// the form that they have in the base. Tells whether the other layers have the compression of the form.
    async fn finish_built_image(&self, built: &PinnedImage, form: ImageForm) -> Result<BuiltImage, Fault>;
    /// Attaches statements about an image to it, so that they stay as long as the image, and go with it to every
    /// repository of the room in which it is tagged afterwards. Returns the image to publish, which is another one if its
    /// index lists the statements.
    async fn attach(
        &self,
        image: VerifiedImage,
        statements: &BuildStatements,
    ) -> Result<VerifiedImage, Fault>;
    /// Returns the instructions in the history of an image; in case of an index, of its image for this machine.
    async fn instructions(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<Vec<ImageInstruction>, Fault>;
    /// Sets the tags, in any repositories of the room.
    async fn publish(&self, image: &VerifiedImage, tags: &[Reference]) -> Result<(), Fault>;
    /// Pushes an image to other registries, except for its tags, with the credentials of the build and those of the
    /// daemon.
    async fn push_content(
        &self,
        image: &VerifiedImage,
        tags: &[Reference],
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<(), Fault>;
    /// Sets the tags in the other registries.
    async fn push_names(
        &self,
        image: &VerifiedImage,
        tags: &[Reference],
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<(), Fault>;
    /// Keeps a pack of `caller` until it is released as often as it was held.
    async fn hold_pack(&self, id: &PackId, caller: &str) -> Result<(), Fault>;
    /// Returns the identity of the files of a pack of `caller`; `None` if there is no such pack.
    async fn pack_content(&self, id: &PackId, caller: &str) -> Result<Option<String>, StoreError>;
    async fn release_pack(&self, id: &PackId);
}

/// Reads secrets of the room. The implementation is the secrets module.
#[async_trait]
pub trait RoomSecretReader: Send + Sync + 'static {
    /// Returns the current value. Whether the caller may use the secret was checked when the build was submitted.
    async fn reveal_for_build(&self, name: &SecretName) -> Result<Secret<String>, Fault>;
}

/// A file that ADD names by URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownloadRequest {
    pub url: String,
    /// Value of the `--checksum` flag.
    pub checksum: Option<String>,
}

/// A fetched file that the daemon serves to the builder while this value exists.
pub struct OfferedDownload {
    /// URL at which the builder fetches the file.
    pub url: String,
    pub digest: Digest,
    pub size: u64,
    /// The file was cached and has not changed.
    pub cached: bool,
    pub offer: Box<dyn std::any::Any + Send + Sync>,
}

/// Fetches the files that builds name by URL. The implementation is the downloads module.
#[async_trait]
pub trait Downloader: Send + Sync + 'static {
    async fn download(&self, request: DownloadRequest) -> Result<OfferedDownload, Fault>;
    /// Checks that the builder may fetch a repository from this host itself.
    async fn allows_repository(&self, host: &str) -> Result<(), Fault>;
}

/// Persistent store of build records. The implementation is SQLite.
#[async_trait]
pub trait BuildStore: Send + Sync + 'static {
    /// Stores a new build. With a key that an earlier build has, stores nothing and returns that build.
    async fn insert(
        &self,
        record: BuildRecord,
        key: Option<IdempotencyKey>,
    ) -> Result<InsertOutcome, StoreError>;
    async fn get(&self, id: &BuildId) -> Result<Option<BuildRecord>, StoreError>;
    /// Returns the build that an earlier request with this key created.
    async fn find_by_key(&self, key: &IdempotencyKey) -> Result<Option<InsertOutcome>, StoreError>;
    /// Returns at most `limit` ids of builds that begin with `prefix`, in order; only builds that `owner` submitted,
    /// if one is given.
    async fn ids_with_prefix(
        &self,
        prefix: &str,
        owner: Option<&str>,
        limit: usize,
    ) -> Result<Vec<BuildId>, StoreError>;
    async fn list(&self, query: BuildQuery) -> Result<Vec<BuildRecord>, StoreError>;
    /// Replaces the stored record of a build; durable when this returns.
    async fn update(&self, record: BuildRecord) -> Result<(), StoreError>;
    async fn remove(&self, id: &BuildId) -> Result<(), StoreError>;
}

/// Persistent store of the inputs of builds. They are removed with their build. The implementation is SQLite.
#[async_trait]
pub trait BuildInputsStore: Send + Sync + 'static {
    /// Stores the inputs of a build, in place of those of an earlier attempt. Returns whether there is a listing of its
    /// context, whose digest is given.
    async fn put_inputs(&self, id: &BuildId, inputs: BuildInputs, context: &str) -> Result<bool, StoreError>;
    /// Stores the listing of a context. Old listings may be removed for it.
    async fn put_listing(&self, context: &str, listing: Vec<u8>) -> Result<(), StoreError>;
    async fn stored_inputs(&self, id: &BuildId) -> Result<Option<StoredInputs>, StoreError>;
    async fn listing(&self, context: &str) -> Result<Option<Vec<u8>>, StoreError>;
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredInputs {
    pub inputs: BuildInputs,
    /// Digest of the context.
    pub context: String,
}

/// Idempotency key of a submission. Keys are scoped to their caller, so that one caller cannot reach another's build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    pub caller: String,
    pub key: String,
    /// Hash of the request: the same key with another request is refused.
    pub request: Digest,
}

/// Result of storing a build with an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InsertOutcome {
    New,
    Existing(BuildId),
    /// The key was used for another request.
    Conflict(BuildId),
}

/// Filter of a list of builds, newest first.
#[derive(Clone, Debug, Default)]
pub struct BuildQuery {
    /// States to list; empty lists all.
    pub states: Vec<BuildState>,
    pub tag: Option<String>,
    /// Participant whose builds are listed.
    pub submitted_by: Option<String>,
    /// Build after which the list continues: only older builds are listed.
    pub after: Option<BuildId>,
    pub limit: usize,
}

/// Failure of the store. Its kind is [`StorageFull`](std::io::ErrorKind::StorageFull) if the disk is full.
#[derive(Debug, thiserror::Error)]
#[error("state database: {0}")]
pub struct StoreError(#[source] pub std::io::Error);
