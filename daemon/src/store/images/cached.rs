//! Records of cached images: images of other registries that builds and deploys have fetched.

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{OptionalExtension as _, Row, Transaction};

use super::manifests::descriptor;
use super::{parsed, signed, size_column};
use crate::image::port::CatalogError;
use crate::image::port::cached::{CachedImage, CachedImageCatalog, CachedImageKey, ImageRight};
use crate::model::image::Platform;
use crate::store::{StateStore, StateStoreError};

const COLUMNS: &str =
    "SELECT name, platform, owner, repository, media_type, digest, size, upstream, size_bytes,
     checked_at, used_at FROM cached_images";

fn conversion_error(column: usize, what: &'static str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, what.into())
}

fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(row.get(column)?).map_err(|_| conversion_error(column, "not a time"))
}

fn cached_image(row: &Row<'_>) -> rusqlite::Result<CachedImage> {
    let platform =
        Platform::parse(row.get_ref(1)?.as_str()?).ok_or_else(|| conversion_error(1, "not a platform"))?;
    let right =
        ImageRight::from_text(row.get_ref(2)?.as_str()?).ok_or_else(|| conversion_error(2, "not a right"))?;
    Ok(CachedImage {
        key: CachedImageKey { name: row.get(0)?, platform, right },
        repository: parsed(row, 3)?,
        manifest: descriptor(row, 4)?,
        upstream: parsed(row, 7)?,
        size_bytes: size_column(row, 8)?,
        checked_at: time(row, 9)?,
        used_at: time(row, 10)?,
    })
}

fn put(transaction: &Transaction<'_>, image: &CachedImage) -> Result<(), StateStoreError> {
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO cached_images (name, platform, owner, repository, media_type, digest, size,
                 upstream, size_bytes, checked_at, used_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?
        .execute((
            &image.key.name,
            image.key.platform.as_str(),
            image.key.right.to_text(),
            image.repository.as_str(),
            &image.manifest.media_type,
            image.manifest.digest.to_string(),
            signed(image.manifest.size),
            image.upstream.to_string(),
            signed(image.size_bytes),
            image.checked_at.as_millisecond(),
            image.used_at.as_millisecond(),
        ))?;
    Ok(())
}

#[async_trait]
impl CachedImageCatalog for StateStore {
    async fn cached(&self, key: &CachedImageKey) -> Result<Option<CachedImage>, CatalogError> {
        let key = key.clone();
        let found = self.transaction(move |transaction| {
            Ok(transaction
                .prepare_cached(&format!("{COLUMNS} WHERE name = ?1 AND platform = ?2 AND owner = ?3"))?
                .query_row((&key.name, key.platform.as_str(), key.right.to_text()), cached_image)
                .optional()?)
        });
        Ok(found.await?)
    }

    async fn put_cached(&self, image: CachedImage) -> Result<(), CatalogError> {
        Ok(self.transaction(move |transaction| put(transaction, &image)).await?)
    }

    async fn record_use(
        &self,
        key: &CachedImageKey,
        at: Timestamp,
        checked: bool,
    ) -> Result<(), CatalogError> {
        let key = key.clone();
        let recorded = self.transaction(move |transaction| {
            transaction
                .prepare_cached(
                    "UPDATE cached_images SET used_at = ?4, checked_at = iif(?5, ?4, checked_at)
                     WHERE name = ?1 AND platform = ?2 AND owner = ?3",
                )?
                .execute((
                    &key.name,
                    key.platform.as_str(),
                    key.right.to_text(),
                    at.as_millisecond(),
                    checked,
                ))?;
            Ok(())
        });
        Ok(recorded.await?)
    }

    async fn all_cached(&self) -> Result<Vec<CachedImage>, CatalogError> {
        let all = self.transaction(|transaction| {
            let mut statement =
                transaction.prepare_cached(&format!("{COLUMNS} ORDER BY used_at, name, platform, owner"))?;
            let rows = statement.query_map([], cached_image)?;
            Ok(rows.collect::<Result<_, _>>()?)
        });
        Ok(all.await?)
    }

    async fn remove_cached(&self, key: &CachedImageKey) -> Result<(), CatalogError> {
        let key = key.clone();
        let removed = self.transaction(move |transaction| {
            transaction
                .prepare_cached("DELETE FROM cached_images WHERE name = ?1 AND platform = ?2 AND owner = ?3")?
                .execute((&key.name, key.platform.as_str(), key.right.to_text()))?;
            Ok(())
        });
        Ok(removed.await?)
    }
}
