//! Storage of images: content in [`BlobStorage`], names in [`ImageCatalog`].
//!
//! # Protection of content in use from the sweep
//!
//! Content is live if the catalog reaches it from a tag, a pack, a revision of a service, or a manifest or link that is
//! younger than the grace period. Code that is about to make content reachable first *touches* it
//! ([`BlobStorage::touch`]; every lookup in the catalog touches its row in the same way), and then writes to the
//! catalog. The sweep reads the set of live content, and then removes each file that is neither live nor touched
//! within the grace period. It checks for a touch while it holds the lock that `touch` takes.

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

pub use crate::context::{
    LayerCompression, LayerFacts, LayerFault, LayerInspector, LayerRefusal, LayerVerdict,
};
pub use checks::{ArrivalListener, ImageMark, LayerCheck, RejectedImage};

/// Storage of blobs by digest. All methods block: call them from a blocking thread.
pub trait BlobStorage: Send + Sync + 'static {
    /// Opens a blob for reading, positioned at its start.
    fn open(&self, digest: &Digest) -> io::Result<Option<File>>;
    /// Opens a blob like [`open`](Self::open) after its content was verified, at least once since the start of the
    /// daemon, and keeps it from the sweep like [`touch`](Self::touch). A damaged blob is reported as missing.
    fn open_verified(&self, digest: &Digest) -> io::Result<Option<File>>;
    fn size(&self, digest: &Digest) -> io::Result<Option<u64>>;
    /// Returns the size like [`size`](Self::size), and keeps the blob from the sweep for the grace period.
    fn touch(&self, digest: &Digest) -> io::Result<Option<u64>>;
    /// Stores content under its digest. The content is streamed and verified, and is durable when this returns. Content
    /// with another digest is not stored and fails with [`BlobError::Mismatch`]. If the blob exists already, the content
    /// is still read to its end and verified, and the blob is touched.
    fn put(&self, digest: &Digest, content: &mut dyn io::Read) -> Result<StoredBlob, BlobError>;
    /// Stores content like [`put`](Self::put), in pieces. New content counts against the quota of `owner`; `name`
    /// identifies the upload until it ends.
    fn receive(&self, digest: &Digest, owner: &str, name: &str) -> Result<Box<dyn IncomingBlob>, BlobError>;
    /// Creates an unnamed file, and returns it with the directory in which it was created.
    fn scratch_file(&self) -> io::Result<(File, PathBuf)>;
    /// Removes a blob that [`put`](Self::put) stored, unless it has been touched since.
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
    /// The caller has reached its limit of stored content.
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
/// A lookup also protects the manifest or blob link from [`forget`](Self::forget) for the grace period, so that the
/// caller can rely on the result.
#[async_trait]
pub trait ImageCatalog: cached::CachedImageCatalog {
    async fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TaggedImage>, CatalogError>;
    /// Lists tags ordered by repository and tag, after the given pair, at most `limit`.
    async fn tags(&self, query: TagQuery) -> Result<Vec<TaggedImage>, CatalogError>;
    async fn remove_tag(&self, repository: &Repository, tag: &Tag) -> Result<bool, CatalogError>;
    /// Creates or moves all of `tags` to one manifest, atomically. The manifest and its required content are first
    /// linked in the repositories other than `from`. Returns `None` if `from` does not have the manifest.
    async fn publish(
        &self,
        from: &Repository,
        manifest: &Digest,
        tags: Vec<(Repository, Tag)>,
    ) -> Result<Option<Vec<TaggedImage>>, CatalogError>;

    /// Atomically adds manifests to a repository, links the blobs that they require, and sets `tag` to the last
    /// manifest. In `manifests`, a manifest comes after the manifests that it requires.
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
    /// Lists the manifests whose subject is `query.subject`, ordered by digest.
    async fn referrers(&self, query: ReferrerQuery) -> Result<Vec<Descriptor>, CatalogError>;

    /// Reports whether a blob may be read through this repository. A blob that the repository does not link cannot be
    /// read through it, even if the caller knows the digest.
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

    /// Records the origin of a manifest. The record is removed with the manifest.
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

/// Manifest to add to a repository. Its content is already in the blob storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewManifest {
    pub manifest: Descriptor,
    pub parts: Vec<ManifestPart>,
    pub subject: Option<Digest>,
    pub artifact_type: Option<String>,
}

/// Origin of an image that was made from a tree of files. The same origin always yields the same image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageOrigin {
    /// Name of the participant who owns the tree.
    pub owner: String,
    pub tree: TreeDigest,
    /// Hash of the settings with which the image was made from the tree.
    pub recipe: ContentHash,
}

#[derive(Clone, Debug, Default)]
pub struct TagQuery {
    pub repository: Option<Repository>,
    /// Position after which the listing starts. If `repository` is set, only the tag of the position is used.
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
    /// Not removed: this manifest of the same repository requires it.
    NeededBy(Digest),
    /// Not removed: this service runs it, or may roll back to it.
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

/// Failure of the store. Its kind is [`StorageFull`](std::io::ErrorKind::StorageFull) if the disk is full.
#[derive(Debug, thiserror::Error)]
#[error("state database: {0}")]
pub struct CatalogError(#[source] pub std::io::Error);
