//! Where images are kept: content in [`Blobs`], names in [`Catalog`].
//!
//! # What keeps content from being swept away while it is in use
//!
//! Content is live when the catalog reaches it from a tag, a pack, a revision of a service, or a manifest or link
//! that is younger than the grace period. Whoever is about to make content reachable *touches* it first
//! ([`Blobs::touch`]; every lookup in the catalog does the same for its row), and only then writes to the
//! catalog. The sweep reads what is live, then removes a file only if it is neither live nor
//! touched within the grace period, and it decides that last part under the lock that `touch` takes.

pub mod cached;
mod checks;
mod layers;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use async_trait::async_trait;
use hearth_pack::identity::{ContentHash, TreeDigest};
use jiff::Timestamp;

use crate::model::id::PackId;
use crate::model::image::{Descriptor, TaggedImage};
use crate::model::manifest::Part;
use crate::model::{Digest, Repository, Tag};

pub use checks::{Arrivals, ImageMark, LayerCheck, UncheckedImage};
pub use layers::{LayerCompression, LayerFacts, LayerFault, LayerInspector, LayerRefusal, LayerVerdict};

/// Content by digest. Blocking: call from a blocking thread.
pub trait Blobs: Send + Sync + 'static {
    /// A blob opened for reading, at its start.
    fn open(&self, digest: &Digest) -> io::Result<Option<File>>;
    fn size(&self, digest: &Digest) -> io::Result<Option<u64>>;
    /// As [`size`](Self::size), and keeps the blob from the sweep for the grace period.
    fn touch(&self, digest: &Digest) -> io::Result<Option<u64>>;
    /// Stores content under its digest: streamed, verified, durable when this returns. A difference
    /// is [`BlobError::Mismatch`] and leaves nothing. Content that is there already is read to its end
    /// and verified all the same, and touched.
    fn put(&self, digest: &Digest, content: &mut dyn io::Read) -> Result<Stored, BlobError>;
    /// As [`put`](Self::put), for content that comes in pieces. It counts for `owner` if it is new; `name` tells what it
    /// is while it comes.
    fn receive(&self, digest: &Digest, owner: &str, name: &str) -> Result<Box<dyn IncomingBlob>, BlobError>;
    /// A file without a name, and the directory that it was made in.
    fn scratch_file(&self) -> io::Result<(File, PathBuf)>;
    /// Takes back what [`put`](Self::put) brought, unless someone has touched it since.
    fn take_back(&self, stored: &Stored) -> io::Result<()>;
    /// Removes every blob that is neither in `live` nor touched since `before`.
    fn sweep(&self, live: &HashSet<Digest>, before: SystemTime) -> io::Result<Swept>;
}

/// Content on its way in; see [`Blobs::receive`]. Dropping it before it is finished leaves nothing.
pub trait IncomingBlob: Send + 'static {
    fn write(&mut self, content: &[u8]) -> Result<(), BlobError>;
    fn finish(self: Box<Self>, expected: &Digest) -> Result<Stored, BlobError>;
}

/// What [`Blobs::put`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub digest: Digest,
    pub size: u64,
    /// When it was touched by this; `None` if it was there before.
    pub fresh: Option<SystemTime>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub blobs: u64,
    pub bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("content of blob {expected} has digest {actual}")]
    Mismatch { expected: Digest, actual: Digest },
    #[error("no space is left for blob content")]
    DiskFull,
    /// Whoever sends it holds as much as one caller may.
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

/// Names of images, durable when a call returns.
///
/// A lookup of a manifest or of a blob's link also keeps it from [`forget`](Self::forget) for the
/// grace period, so that what a caller was told is there stays there while it acts on it.
#[async_trait]
pub trait Catalog: cached::CachedImages {
    async fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TaggedImage>, CatalogError>;
    /// In order of repository and tag, after the pair given, at most `limit`.
    async fn tags(&self, query: TagQuery) -> Result<Vec<TaggedImage>, CatalogError>;
    async fn remove_tag(&self, repository: &Repository, tag: &Tag) -> Result<bool, CatalogError>;
    /// Sets or moves all these tags to one manifest, or none of them. In other repositories than
    /// `from`, the manifest and everything it needs is linked first. `None` if `from` does not have it.
    async fn publish(
        &self,
        from: &Repository,
        manifest: &Digest,
        tags: Vec<(Repository, Tag)>,
    ) -> Result<Option<Vec<TaggedImage>>, CatalogError>;

    /// Makes manifests known in a repository, all or none, with the blobs they need linked to it, and
    /// sets `tag` to the last of them. A manifest comes after those that it needs.
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
    /// Forgets a manifest in a repository, and the tags that name it.
    async fn remove_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Removal, CatalogError>;
    /// Manifests whose subject is this one, in order of digest.
    async fn referrers(&self, query: ReferrerQuery) -> Result<Vec<Descriptor>, CatalogError>;

    /// Whether a blob may be read through this repository: a digest alone opens nothing.
    async fn has_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, CatalogError>;
    /// Those of `parts` that the repository does not have.
    async fn missing(&self, repository: &Repository, parts: Vec<Part>) -> Result<Vec<Part>, CatalogError>;
    async fn link_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), CatalogError>;
    async fn unlink_blob(&self, repository: &Repository, digest: &Digest) -> Result<Removal, CatalogError>;

    /// Whether the repository has a manifest.
    async fn knows(&self, repository: &Repository) -> Result<bool, CatalogError>;
    /// Repositories that have a manifest, by name.
    async fn repositories(
        &self,
        after: Option<Repository>,
        limit: usize,
    ) -> Result<Vec<Repository>, CatalogError>;

    /// Notes what a manifest was made of, for as long as it is known.
    async fn put_origin(
        &self,
        repository: &Repository,
        manifest: &Digest,
        origin: Origin,
    ) -> Result<(), CatalogError>;
    /// The manifests that were made of this.
    async fn made_of(&self, origin: Origin) -> Result<Vec<(Repository, Digest)>, CatalogError>;

    /// What is known of these layers, as found under `limits`.
    async fn layer_verdicts(
        &self,
        layers: Vec<Digest>,
        limits: &str,
    ) -> Result<HashMap<Digest, LayerVerdict>, CatalogError>;
    /// Keeps what was found of layers under `limits`, in place of what was found before.
    async fn put_layer_verdicts(
        &self,
        verdicts: Vec<(Digest, LayerVerdict)>,
        limits: &str,
    ) -> Result<(), CatalogError>;
    /// Marks a manifest that was found wrong under `limits`.
    async fn mark_image(&self, mark: ImageMark, limits: &str) -> Result<(), CatalogError>;
    /// The marks that these manifests have under `limits`.
    async fn image_marks(&self, manifests: Vec<Digest>, limits: &str)
    -> Result<Vec<ImageMark>, CatalogError>;
    /// Forgets what was found of layers and manifests that are not in `live`.
    async fn forget_checks(&self, live: HashSet<Digest>) -> Result<(), CatalogError>;

    /// Packs: images without a tag that builds use.
    async fn put_pack(&self, pack: Pack) -> Result<(), CatalogError>;
    async fn pack(&self, id: &PackId) -> Result<Option<Pack>, CatalogError>;
    async fn packs(&self) -> Result<Vec<Pack>, CatalogError>;
    async fn remove_pack(&self, id: &PackId) -> Result<(), CatalogError>;

    /// Forgets manifests and links that nothing reaches and nobody touched since `before`.
    async fn forget(&self, before: Timestamp) -> Result<Forgotten, CatalogError>;
    /// Digests of all manifests known and all blobs linked, in any repository; packs aside.
    async fn live(&self) -> Result<HashSet<Digest>, CatalogError>;
}

/// A manifest whose content is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewManifest {
    pub manifest: Descriptor,
    pub parts: Vec<Part>,
    pub subject: Option<Digest>,
    pub artifact_type: Option<String>,
}

/// What an image was made of. The same origin gives the same image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Name of the participant whose the tree is.
    pub owner: String,
    pub tree: TreeDigest,
    /// Hash of the way in which it became an image.
    pub way: ContentHash,
}

#[derive(Clone, Debug, Default)]
pub struct TagQuery {
    pub repository: Option<Repository>,
    /// With a repository given, only the tag counts.
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
pub enum Removal {
    Removed,
    Unknown,
    /// This manifest of the same repository needs it.
    NeededBy(Digest),
    /// This service runs it, or may go back to it.
    Deployed(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    pub manifests: u64,
    pub links: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pack {
    pub id: PackId,
    pub content: PackContent,
    /// Name of the participant who sent it; nobody else may use it.
    pub owner: String,
    pub created_at: Timestamp,
}

impl Pack {
    /// The manifest of a pack that is an image.
    pub const fn image(&self) -> Option<&Descriptor> {
        match &self.content {
            PackContent::Image(manifest) => Some(manifest),
            PackContent::Tree { .. } => None,
        }
    }
}

/// What a pack stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackContent {
    /// An image whose blobs are in [`Blobs`].
    Image(Descriptor),
    /// A tree that the module of packs keeps.
    Tree {
        tree: TreeDigest,
        /// The owner's name for where it comes from; empty for none.
        lineage: String,
    },
}

#[derive(Debug, thiserror::Error)]
#[error("state database: {0}")]
pub struct CatalogError(pub String);
