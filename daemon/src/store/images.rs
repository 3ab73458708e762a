//! Image catalog in SQLite: manifests and their required content, blob links, tags, origins, packs.

mod cached;
mod forget;
mod layers;
mod manifests;
mod origins;
mod packs;
pub(super) mod tags;

use std::collections::{HashMap, HashSet};
use std::str::FromStr;

use async_trait::async_trait;
use hearth_oci::Descriptor;
use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{OptionalExtension as _, Row, Transaction};

use super::{StateStore, StateStoreError};
use crate::image::port::{
    CatalogError, ForgottenRecords, ImageCatalog, ImageMark, ImageOrigin, LayerVerdict, NewManifest,
    PackRecord, ReferrerQuery, RemovalOutcome, TagQuery,
};
use crate::model::id::PackId;
use crate::model::image::TaggedImage;
use crate::model::manifest::ManifestPart;
use crate::model::{Digest, Repository, Tag};

/// Minimum age in milliseconds before a lookup updates `touched_at`, so that most lookups only read. Far below any
/// grace period.
const TOUCH_AFTER_MS: i64 = 60_000;

impl From<StateStoreError> for CatalogError {
    fn from(error: StateStoreError) -> Self {
        Self(error.into())
    }
}

fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

/// Parses a column that holds the text form of a value.
fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text = row.get_ref(column)?.as_str()?;
    text.parse()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}

/// Reads a size from a column; SQLite has only signed integers.
fn size_column(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let size: i64 = row.get(column)?;
    Ok(size.try_into().unwrap_or(0))
}

fn signed(size: u64) -> i64 {
    size.try_into().unwrap_or(i64::MAX)
}

/// Reports whether the row exists, and updates its `touched_at` if that is old.
pub(super) fn touch_if_present(
    transaction: &Transaction<'_>,
    table: &'static str,
    repository: &str,
    digest: &str,
) -> Result<bool, StateStoreError> {
    let touched: Option<i64> = transaction
        .prepare_cached(&format!("SELECT touched_at FROM {table} WHERE repository = ?1 AND digest = ?2"))?
        .query_row((repository, digest), |row| row.get(0))
        .optional()?;
    let Some(touched) = touched else { return Ok(false) };
    let now = now_ms();
    if now - touched > TOUCH_AFTER_MS {
        transaction
            .prepare_cached(&format!(
                "UPDATE {table} SET touched_at = ?3 WHERE repository = ?1 AND digest = ?2"
            ))?
            .execute((repository, digest, now))?;
    }
    Ok(true)
}

#[async_trait]
impl ImageCatalog for StateStore {
    async fn tag(&self, repository: &Repository, tag: &Tag) -> Result<Option<TaggedImage>, CatalogError> {
        let (repository, tag) = (repository.clone(), tag.clone());
        Ok(self.transaction(move |transaction| tags::get(transaction, &repository, &tag)).await?)
    }

    async fn tags(&self, query: TagQuery) -> Result<Vec<TaggedImage>, CatalogError> {
        Ok(self.transaction(move |transaction| tags::list(transaction, &query)).await?)
    }

    async fn remove_tag(&self, repository: &Repository, tag: &Tag) -> Result<bool, CatalogError> {
        let (repository, tag) = (repository.clone(), tag.clone());
        Ok(self.transaction(move |transaction| tags::remove(transaction, &repository, &tag)).await?)
    }

    async fn publish(
        &self,
        from: &Repository,
        manifest: &Digest,
        tags: Vec<(Repository, Tag)>,
    ) -> Result<Option<Vec<TaggedImage>>, CatalogError> {
        let (from, manifest) = (from.clone(), *manifest);
        Ok(self.transaction(move |transaction| tags::publish(transaction, &from, &manifest, &tags)).await?)
    }

    async fn put_manifests(
        &self,
        repository: &Repository,
        manifests: Vec<NewManifest>,
        tag: Option<Tag>,
    ) -> Result<(), CatalogError> {
        let repository = repository.clone();
        Ok(self
            .transaction(move |transaction| {
                for manifest in &manifests {
                    manifests::put(transaction, &repository, manifest)?;
                }
                if let (Some(last), Some(tag)) = (manifests.last(), tag) {
                    tags::set(transaction, &repository, &tag, &last.manifest.digest)?;
                }
                Ok(())
            })
            .await?)
    }

    async fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Descriptor>, CatalogError> {
        let (repository, digest) = (repository.clone(), *digest);
        Ok(self.transaction(move |transaction| manifests::get(transaction, &repository, &digest)).await?)
    }

    async fn remove_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<RemovalOutcome, CatalogError> {
        let (repository, digest) = (repository.clone(), *digest);
        Ok(self.transaction(move |transaction| manifests::remove(transaction, &repository, &digest)).await?)
    }

    async fn referrers(&self, query: ReferrerQuery) -> Result<Vec<Descriptor>, CatalogError> {
        Ok(self.transaction(move |transaction| manifests::referrers(transaction, &query)).await?)
    }

    async fn has_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, CatalogError> {
        let (repository, digest) = (repository.clone(), digest.to_string());
        Ok(self
            .transaction(move |transaction| {
                touch_if_present(transaction, "repository_blobs", repository.as_str(), &digest)
            })
            .await?)
    }

    async fn missing(
        &self,
        repository: &Repository,
        parts: Vec<ManifestPart>,
    ) -> Result<Vec<ManifestPart>, CatalogError> {
        let repository = repository.clone();
        Ok(self.transaction(move |transaction| manifests::missing(transaction, &repository, parts)).await?)
    }

    async fn link_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), CatalogError> {
        let (repository, digest) = (repository.clone(), digest.to_string());
        Ok(self
            .transaction(move |transaction| manifests::link(transaction, repository.as_str(), &digest))
            .await?)
    }

    async fn unlink_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<RemovalOutcome, CatalogError> {
        let (repository, digest) = (repository.clone(), *digest);
        Ok(self.transaction(move |transaction| manifests::unlink(transaction, &repository, &digest)).await?)
    }

    async fn has_manifests(&self, repository: &Repository) -> Result<bool, CatalogError> {
        let repository = repository.clone();
        Ok(self.transaction(move |transaction| manifests::has_manifests(transaction, &repository)).await?)
    }

    async fn repositories(
        &self,
        after: Option<Repository>,
        limit: usize,
    ) -> Result<Vec<Repository>, CatalogError> {
        Ok(self
            .transaction(move |transaction| manifests::repositories(transaction, after.as_ref(), limit))
            .await?)
    }

    async fn put_origin(
        &self,
        repository: &Repository,
        manifest: &Digest,
        origin: ImageOrigin,
    ) -> Result<(), CatalogError> {
        let (repository, manifest) = (repository.clone(), *manifest);
        Ok(self
            .transaction(move |transaction| origins::put(transaction, &repository, &manifest, &origin))
            .await?)
    }

    async fn find_by_origin(&self, origin: ImageOrigin) -> Result<Vec<(Repository, Digest)>, CatalogError> {
        Ok(self.transaction(move |transaction| origins::find(transaction, &origin)).await?)
    }

    async fn layer_verdicts(
        &self,
        layers: Vec<Digest>,
        limits: &str,
    ) -> Result<HashMap<Digest, LayerVerdict>, CatalogError> {
        let limits = limits.to_owned();
        Ok(self.transaction(move |transaction| layers::get(transaction, layers, &limits)).await?)
    }

    async fn put_layer_verdicts(
        &self,
        verdicts: Vec<(Digest, LayerVerdict)>,
        limits: &str,
    ) -> Result<(), CatalogError> {
        let limits = limits.to_owned();
        Ok(self.transaction(move |transaction| layers::put(transaction, &verdicts, &limits)).await?)
    }

    async fn mark_image(&self, mark: ImageMark, limits: &str) -> Result<(), CatalogError> {
        let limits = limits.to_owned();
        Ok(self.transaction(move |transaction| layers::put_mark(transaction, &mark, &limits)).await?)
    }

    async fn image_marks(
        &self,
        manifests: Vec<Digest>,
        limits: &str,
    ) -> Result<Vec<ImageMark>, CatalogError> {
        let limits = limits.to_owned();
        Ok(self.transaction(move |transaction| layers::marks(transaction, manifests, &limits)).await?)
    }

    async fn forget_checks(&self, live: HashSet<Digest>) -> Result<(), CatalogError> {
        Ok(self.transaction(move |transaction| layers::forget(transaction, &live)).await?)
    }

    async fn put_pack(&self, pack: PackRecord) -> Result<(), CatalogError> {
        Ok(self.transaction(move |transaction| packs::put(transaction, &pack)).await?)
    }

    async fn pack(&self, id: &PackId) -> Result<Option<PackRecord>, CatalogError> {
        let id = id.clone();
        Ok(self.transaction(move |transaction| packs::get(transaction, &id)).await?)
    }

    async fn packs(&self) -> Result<Vec<PackRecord>, CatalogError> {
        Ok(self.transaction(packs::all).await?)
    }

    async fn remove_pack(&self, id: &PackId) -> Result<(), CatalogError> {
        let id = id.clone();
        Ok(self.transaction(move |transaction| packs::remove(transaction, &id)).await?)
    }

    async fn forget(&self, before: Timestamp) -> Result<ForgottenRecords, CatalogError> {
        Ok(self.transaction(move |transaction| forget::forget(transaction, before.as_millisecond())).await?)
    }

    async fn live_digests(&self) -> Result<HashSet<Digest>, CatalogError> {
        Ok(self.transaction(forget::live_digests).await?)
    }
}

#[cfg(test)]
mod tests;
