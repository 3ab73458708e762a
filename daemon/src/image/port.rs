//! Storage of images: content in [`BlobStorage`], names in [`ImageCatalog`].
//!
//! # Protection of content in use from the sweep
//!
//! Content is live if the catalog reaches it from a tag, a pack, a revision of a service, or a manifest or link that is
//! younger than the grace period. Code that is about to make content reachable *touches* it first
//! ([`BlobStorage::touch`]; every lookup in the catalog does the same for its row), and only then writes to the
//! catalog. The sweep reads the live set, then removes a file only if it is neither live nor touched within the grace
//! period, and checks the latter under the lock that `touch` takes.

pub mod cached;
mod checks;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use async_trait::async_trait;
use hearth_oci::Descriptor;
use hearth_pack::identity::{ContentHash, TreeDigest};
use jiff::Timestamp;

use crate::model::id::PackId;
use crate::model::image::TaggedImage;
use crate::model::manifest::ManifestPart;
use crate::model::{Digest, Repository, Tag};

pub use crate::context::layers::{
    LayerCompression, LayerFacts, LayerFault, LayerInspector, LayerRefusal, LayerVerdict,
};
pub use checks::{ArrivalListener, ImageMark, LayerCheck, RejectedImage};

/// Content by digest. Blocking: call from a blocking thread.
pub trait BlobStorage: Send + Sync + 'static {
    /// Opens a blob for reading, positioned at its start.
    fn open(&self, digest: &Digest) -> io::Result<Option<File>>;
    fn size(&self, digest: &Digest) -> io::Result<Option<u64>>;
    /// Returns the size like [`size`](Self::size), and keeps the blob from the sweep for the grace period.
    fn touch(&self, digest: &Digest) -> io::Result<Option<u64>>;
    /// Stores content under its digest: streamed, verified, durable when this returns. Different content is a
    /// [`BlobError::Mismatch`] and is not stored. Content that is already present is still read to its end, verified
    /// and touched.
    fn put(&self, digest: &Digest, content: &mut dyn io::Read) -> Result<StoredBlob, BlobError>;
    /// Stores content like [`put`](Self::put), in pieces. It counts for `owner` if it is new; `name` identifies the
    /// upload while it runs.
    fn receive(&self, digest: &Digest, owner: &str, name: &str) -> Result<Box<dyn IncomingBlob>, BlobError>;
    /// Creates an unnamed file, and returns it with the directory in which it was created.
    fn scratch_file(&self) -> io::Result<(File, PathBuf)>;
    /// Removes what [`put`](Self::put) stored, unless it was touched since.
    fn undo_put(&self, stored: &StoredBlob) -> io::Result<()>;
    /// Removes every blob that is neither in `live` nor touched since `before`.
    fn sweep(&self, live: &HashSet<Digest>, before: SystemTime) -> io::Result<SweptBlobs>;
}

/// Content that is being received; see [`BlobStorage::receive`]. Dropping it before `finish` discards it.
pub trait IncomingBlob: Send + 'static {
    fn write(&mut self, content: &[u8]) -> Result<(), BlobError>;
    fn finish(self: Box<Self>, expected: &Digest) -> Result<StoredBlob, BlobError>;
}

/// Result of [`BlobStorage::put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredBlob {
    pub digest: Digest,
    pub size: u64,
    /// Time at which `put` touched the new blob; `None` if the blob existed before.
    pub fresh: Option<SystemTime>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweptBlobs {
    pub blobs: u64,
    pub bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("content of blob {expected} has digest {actual}")]
    Mismatch { expected: Digest, actual: Digest },
    #[error("no space is left for blob content")]
    DiskFull,
    /// The sender already holds as much as one caller may.
    #[error("{0}")]
    Quota(String),
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for BlobError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            _ => Self::Io(error),
        }
    }
}

/// Names of images; changes are durable when a call returns.
///
/// A lookup of a manifest or of a blob link also keeps it from [`forget`](Self::forget) for the grace period, so that a
/// caller can rely on the result while it acts on it.
#[async_trait]
pub trait ImageCatalog: cached::CachedImageCatalog {
    async fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TaggedImage>, CatalogError>;
    /// Lists tags ordered by repository and tag, after the given pair, at most `limit`.
    async fn tags(&self, query: TagQuery) -> Result<Vec<TaggedImage>, CatalogError>;
    async fn remove_tag(&self, repository: &Repository, tag: &Tag) -> Result<bool, CatalogError>;
    /// Sets or moves all these tags to one manifest, or none of them. In repositories other than `from`, the manifest
    /// and all its required content is linked first. `None` if `from` does not have the manifest.
    async fn publish(
        &self,
        from: &Repository,
        manifest: &Digest,
        tags: Vec<(Repository, Tag)>,
    ) -> Result<Option<Vec<TaggedImage>>, CatalogError>;

    /// Adds manifests to a repository, all or none, links the blobs that they require, and sets `tag` to the last of
    /// them. A manifest must follow those that it requires.
    async fn put_manifests(
        &self,
        repository: &Repository,
        manifests: Vec<NewManifest>,
        tag: Option<Tag>,
    ) -> Result<(), CatalogError>;
    async fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Descriptor>, CatalogError>;
    /// Removes a manifest from a repository, and the tags that name it.
    async fn remove_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<RemovalOutcome, CatalogError>;
    /// Lists manifests whose subject is this one, ordered by digest.
    async fn referrers(&self, query: ReferrerQuery) -> Result<Vec<Descriptor>, CatalogError>;

    /// Reports whether a blob may be read through this repository: a digest alone opens nothing.
    async fn has_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, CatalogError>;
    /// Returns those of `parts` that the repository lacks.
    async fn missing(
        &self,
        repository: &Repository,
        parts: Vec<ManifestPart>,
    ) -> Result<Vec<ManifestPart>, CatalogError>;
    async fn link_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), CatalogError>;
    async fn unlink_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<RemovalOutcome, CatalogError>;

    /// Reports whether the repository has a manifest.
    async fn has_manifests(&self, repository: &Repository) -> Result<bool, CatalogError>;
    /// Lists repositories that have a manifest, ordered by name.
    async fn repositories(
        &self,
        after: Option<Repository>,
        limit: usize,
    ) -> Result<Vec<Repository>, CatalogError>;

    /// Records the origin of a manifest, as long as the manifest exists.
    async fn put_origin(
        &self,
        repository: &Repository,
        manifest: &Digest,
        origin: ImageOrigin,
    ) -> Result<(), CatalogError>;
    /// Returns the manifests with this origin.
    async fn find_by_origin(&self, origin: ImageOrigin) -> Result<Vec<(Repository, Digest)>, CatalogError>;

    /// Returns the known verdicts of these layers under `limits`.
    async fn layer_verdicts(
        &self,
        layers: Vec<Digest>,
        limits: &str,
    ) -> Result<HashMap<Digest, LayerVerdict>, CatalogError>;
    /// Stores the verdicts of layers under `limits`, replacing earlier ones.
    async fn put_layer_verdicts(
        &self,
        verdicts: Vec<(Digest, LayerVerdict)>,
        limits: &str,
    ) -> Result<(), CatalogError>;
    /// Marks a manifest that was found invalid under `limits`.
    async fn mark_image(&self, mark: ImageMark, limits: &str) -> Result<(), CatalogError>;
    /// Returns the marks of these manifests under `limits`.
    async fn image_marks(&self, manifests: Vec<Digest>, limits: &str)
    -> Result<Vec<ImageMark>, CatalogError>;
    /// Removes the verdicts and marks of content that is not in `live`.
    async fn forget_checks(&self, live: HashSet<Digest>) -> Result<(), CatalogError>;

    /// Stores a pack: an untagged image or a tree that builds use.
    async fn put_pack(&self, pack: PackRecord) -> Result<(), CatalogError>;
    async fn pack(&self, id: &PackId) -> Result<Option<PackRecord>, CatalogError>;
    async fn packs(&self) -> Result<Vec<PackRecord>, CatalogError>;
    async fn remove_pack(&self, id: &PackId) -> Result<(), CatalogError>;

    /// Removes manifests and links that are unreachable and untouched since `before`.
    async fn forget(&self, before: Timestamp) -> Result<ForgottenRecords, CatalogError>;
    /// Returns the digests of all manifests and linked blobs of all repositories, without packs.
    async fn live_digests(&self) -> Result<HashSet<Digest>, CatalogError>;
}

/// Manifest whose content is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewManifest {
    pub manifest: Descriptor,
    pub parts: Vec<ManifestPart>,
    pub subject: Option<Digest>,
    pub artifact_type: Option<String>,
}

/// Origin of an image; the same origin yields the same image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageOrigin {
    /// Name of the participant who owns the tree.
    pub owner: String,
    pub tree: TreeDigest,
    /// Hash of the settings by which the tree became an image.
    pub recipe: ContentHash,
}

#[derive(Clone, Debug, Default)]
pub struct TagQuery {
    pub repository: Option<Repository>,
    /// Position after which the listing starts; if `repository` is set, only the tag counts.
    pub after: Option<(Repository, Tag)>,
    pub limit: usize,
}

#[derive(Clone, Debug)]
pub struct ReferrerQuery {
    pub repository: Repository,
    pub subject: Digest,
    pub artifact_type: Option<String>,
    pub after: Option<Digest>,
    pub limit: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemovalOutcome {
    Removed,
    Unknown,
    /// A manifest of the same repository requires it.
    NeededBy(Digest),
    /// A service runs it, or may roll back to it.
    Deployed(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForgottenRecords {
    pub manifests: u64,
    pub links: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackRecord {
    pub id: PackId,
    pub content: PackContent,
    /// Name of the participant who uploaded it; nobody else may use it.
    pub owner: String,
    pub created_at: Timestamp,
}

impl PackRecord {
    /// Returns the manifest of an image pack.
    pub const fn image(&self) -> Option<&Descriptor> {
        match &self.content {
            PackContent::Image(manifest) => Some(manifest),
            PackContent::Tree { .. } => None,
        }
    }
}

/// Content of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackContent {
    /// Image whose blobs are in [`BlobStorage`].
    Image(Descriptor),
    /// Tree that the module `packs` stores.
    Tree {
        tree: TreeDigest,
        /// Owner's name for the source of the tree; empty if none.
        lineage: String,
    },
}

#[derive(Debug, thiserror::Error)]
#[error("state database: {0}")]
pub struct CatalogError(pub String);
