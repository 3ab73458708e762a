//! Where images are kept: content in [`Blobs`], names in [`Catalog`].

use std::fs::File;
use std::io;

use async_trait::async_trait;

use crate::model::id::PackId;
use crate::model::image::{Descriptor, TaggedImage};
use crate::model::{Digest, Repository, Tag};

/// Content by digest. Blocking: call from a blocking thread.
pub trait Blobs: Send + Sync + 'static {
    /// A blob opened for reading, at its start.
    fn open(&self, digest: &Digest) -> io::Result<Option<File>>;
    fn size(&self, digest: &Digest) -> io::Result<Option<u64>>;
    /// Stores content under its digest: streamed, verified, durable when this returns. A difference
    /// is [`BlobError::Mismatch`] and leaves nothing.
    fn put(&self, digest: &Digest, content: &mut dyn io::Read) -> Result<u64, BlobError>;
}

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("content of blob {expected} has digest {actual}")]
    Mismatch { expected: Digest, actual: Digest },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Names of images, durable when a call returns.
#[async_trait]
pub trait Catalog: Send + Sync + 'static {
    async fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TaggedImage>, CatalogError>;
    /// Sets or moves a tag.
    async fn set_tag(&self, image: TaggedImage) -> Result<(), CatalogError>;
    async fn remove_tag(&self, repository: &Repository, tag: &Tag) -> Result<bool, CatalogError>;
    /// In order of repository and tag, after the pair given, at most `limit`.
    async fn tags(&self, query: TagQuery) -> Result<Vec<TaggedImage>, CatalogError>;

    /// Makes a manifest known in a repository, with the blobs it needs linked to the repository.
    async fn put_manifest(
        &self,
        repository: &Repository,
        manifest: Descriptor,
        blobs: Vec<Digest>,
    ) -> Result<(), CatalogError>;
    async fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Descriptor>, CatalogError>;
    /// Forgets a manifest in a repository, and the tags that name it.
    async fn remove_manifest(&self, repository: &Repository, digest: &Digest) -> Result<bool, CatalogError>;
    /// Whether a blob may be read through this repository: a digest alone opens nothing.
    async fn has_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, CatalogError>;
    async fn link_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), CatalogError>;
    async fn repositories(
        &self,
        after: Option<Repository>,
        limit: usize,
    ) -> Result<Vec<Repository>, CatalogError>;

    /// Packs: images without a tag that builds use.
    async fn put_pack(&self, pack: Pack) -> Result<(), CatalogError>;
    async fn pack(&self, id: &PackId) -> Result<Option<Pack>, CatalogError>;
    async fn packs(&self) -> Result<Vec<Pack>, CatalogError>;
    async fn remove_pack(&self, id: &PackId) -> Result<(), CatalogError>;
}

#[derive(Clone, Debug, Default)]
pub struct TagQuery {
    pub repository: Option<Repository>,
    pub after: Option<(Repository, Tag)>,
    pub limit: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pack {
    pub id: PackId,
    pub manifest: Descriptor,
    /// Name of the participant who sent it; nobody else may use it.
    pub owner: String,
    pub created_at: jiff::Timestamp,
}

#[derive(Debug, thiserror::Error)]
#[error("state database: {0}")]
pub struct CatalogError(pub String);
