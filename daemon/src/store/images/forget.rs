//! Removal of unreferenced manifests and links, and the set of digests that are still live.
//!
//! A manifest stays while it is tagged, while a revision of a service runs or mounts it, while it is cached for builds,
//! while it was touched recently, while an index that stays requires it, and while the manifest that it refers to (its
//! subject) stays. A link stays while it was touched recently or a manifest of its repository requires it.

use std::collections::HashSet;

use rusqlite::Transaction;

use super::parsed;
use crate::image::port::ForgottenRecords;
use crate::model::Digest;
use crate::store::StateStoreError;

pub(super) fn forget(
    transaction: &Transaction<'_>,
    before_ms: i64,
) -> Result<ForgottenRecords, StateStoreError> {
    let manifests = transaction
        .prepare_cached(
            "WITH RECURSIVE staying (repository, digest) AS (
                 SELECT repository, digest FROM tags
                 UNION SELECT repository, digest FROM service_images
                 UNION SELECT repository, digest FROM cached_images
                 UNION SELECT repository, digest FROM manifests WHERE touched_at >= ?1
                 UNION SELECT part.repository, part.digest FROM staying
                       JOIN manifest_parts part
                         ON part.repository = staying.repository AND part.manifest = staying.digest
                       WHERE part.kind = 'manifest'
                 UNION SELECT referrer.repository, referrer.digest FROM staying
                       JOIN manifests referrer
                         ON referrer.repository = staying.repository AND referrer.subject = staying.digest
             )
             DELETE FROM manifests WHERE touched_at < ?1 AND (repository, digest) NOT IN staying",
        )?
        .execute([before_ms])?;
    let links = transaction
        .prepare_cached(
            "DELETE FROM repository_blobs WHERE touched_at < ?1 AND NOT EXISTS (
                 SELECT 1 FROM manifest_parts part
                 WHERE part.repository = repository_blobs.repository AND part.digest = repository_blobs.digest
             )",
        )?
        .execute([before_ms])?;
    Ok(ForgottenRecords { manifests: manifests as u64, links: links as u64 })
}

pub(super) fn live_digests(transaction: &Transaction<'_>) -> Result<HashSet<Digest>, StateStoreError> {
    // Includes required content: the blobs of a manifest live as long as the manifest, even if their links are removed.
    let mut statement = transaction.prepare_cached(
        "SELECT digest FROM manifests UNION ALL SELECT digest FROM repository_blobs
         UNION ALL SELECT digest FROM manifest_parts",
    )?;
    let rows = statement.query_map([], |row| parsed(row, 0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
