//! Tags: mutable names of manifests.

use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Row, Transaction};

use super::manifests::descriptor;
use super::{now_ms, parsed, signed, size_column, touch_if_present};
use crate::image::port::TagQuery;
use crate::model::image::TaggedImage;
use crate::model::{Digest, Repository, Tag};
use crate::store::StateStoreError;

const COLUMNS: &str =
    "SELECT tags.repository, tag, media_type, manifests.digest, size, content_size, updated_at
    FROM tags JOIN manifests ON manifests.repository = tags.repository AND manifests.digest = tags.digest";

fn tagged(row: &Row<'_>) -> rusqlite::Result<TaggedImage> {
    Ok(TaggedImage {
        repository: parsed(row, 0)?,
        tag: parsed(row, 1)?,
        manifest: descriptor(row, 2)?,
        size_bytes: size_column(row, 5)?,
        updated_at: parsed(row, 6)?,
    })
}

pub(super) fn get(
    transaction: &Transaction<'_>,
    repository: &Repository,
    tag: &Tag,
) -> Result<Option<TaggedImage>, StateStoreError> {
    let image = transaction
        .prepare_cached(&format!("{COLUMNS} WHERE tags.repository = ?1 AND tag = ?2"))?
        .query_row((repository.as_str(), tag.as_str()), tagged)
        .optional()?;
    if let Some(image) = &image {
        // The tag may move while the caller still works with the manifest that it names now.
        touch_if_present(transaction, "manifests", repository.as_str(), &image.manifest.digest.to_string())?;
    }
    Ok(image)
}

pub(super) fn list(
    transaction: &Transaction<'_>,
    query: &TagQuery,
) -> Result<Vec<TaggedImage>, StateStoreError> {
    let limit = signed(query.limit as u64);
    let after = query.after.as_ref();
    let images = match &query.repository {
        Some(repository) => transaction
            .prepare_cached(&format!(
                "{COLUMNS} WHERE tags.repository = ?1 AND tag > ?2 ORDER BY tag LIMIT ?3"
            ))?
            .query_map((repository.as_str(), after.map_or("", |(_, tag)| tag.as_str()), limit), tagged)?
            .collect::<Result<_, _>>()?,
        None => transaction
            .prepare_cached(&format!(
                "{COLUMNS} WHERE (tags.repository, tag) > (?1, ?2) ORDER BY tags.repository, tag LIMIT ?3"
            ))?
            .query_map(
                (
                    after.map_or("", |(repository, _)| repository.as_str()),
                    after.map_or("", |(_, tag)| tag.as_str()),
                    limit,
                ),
                tagged,
            )?
            .collect::<Result<_, _>>()?,
    };
    Ok(images)
}

pub(super) fn remove(
    transaction: &Transaction<'_>,
    repository: &Repository,
    tag: &Tag,
) -> Result<bool, StateStoreError> {
    let removed = transaction
        .prepare_cached("DELETE FROM tags WHERE repository = ?1 AND tag = ?2")?
        .execute((repository.as_str(), tag.as_str()))?;
    Ok(removed > 0)
}

pub(super) fn set(
    transaction: &Transaction<'_>,
    repository: &Repository,
    tag: &Tag,
    manifest: &Digest,
) -> Result<(), StateStoreError> {
    transaction
        .prepare_cached(
            "INSERT INTO tags (repository, tag, digest, updated_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET digest = ?3, updated_at = ?4",
        )?
        .execute((repository.as_str(), tag.as_str(), manifest.to_string(), Timestamp::now().to_string()))?;
    Ok(())
}

pub(super) fn publish(
    transaction: &Transaction<'_>,
    from: &Repository,
    manifest: &Digest,
    tags: &[(Repository, Tag)],
) -> Result<Option<Vec<TaggedImage>>, StateStoreError> {
    if !touch_if_present(transaction, "manifests", from.as_str(), &manifest.to_string())? {
        return Ok(None);
    }
    let mut images = Vec::with_capacity(tags.len());
    for (repository, tag) in tags {
        if repository != from {
            copy_manifest(transaction, from, manifest, repository)?;
        }
        set(transaction, repository, tag, manifest)?;
        images.extend(get(transaction, repository, tag)?);
    }
    Ok(Some(images))
}

/// Copies the records of a manifest, of everything below it, and of its referrers, to another repository.
pub(in crate::store) fn copy_manifest(
    transaction: &Transaction<'_>,
    from: &Repository,
    manifest: &Digest,
    to: &Repository,
) -> Result<(), StateStoreError> {
    const BELOW: &str = "WITH RECURSIVE below (digest) AS (
             VALUES (?2)
             UNION SELECT part.digest FROM below
                   JOIN manifest_parts part ON part.repository = ?1 AND part.manifest = below.digest
                   WHERE part.kind = 'manifest'
             UNION SELECT referrer.digest FROM below
                   JOIN manifests referrer ON referrer.repository = ?1 AND referrer.subject = below.digest
         )";
    for statement in [
        "INSERT INTO manifests (repository, digest, media_type, size, content_size, subject, artifact_type, touched_at)
             SELECT ?3, digest, media_type, size, content_size, subject, artifact_type, ?4
             FROM manifests WHERE repository = ?1 AND digest IN (SELECT digest FROM below)
             ON CONFLICT DO UPDATE SET touched_at = ?4",
        "INSERT OR IGNORE INTO manifest_parts (repository, manifest, digest, size, kind)
             SELECT ?3, manifest, digest, size, kind
             FROM manifest_parts WHERE repository = ?1 AND manifest IN (SELECT digest FROM below) AND ?4 > 0",
        "INSERT INTO repository_blobs (repository, digest, touched_at)
             SELECT DISTINCT ?3, digest, ?4
             FROM manifest_parts
             WHERE repository = ?1 AND manifest IN (SELECT digest FROM below) AND kind = 'blob'
             ON CONFLICT DO UPDATE SET touched_at = ?4",
    ] {
        transaction.prepare_cached(&format!("{BELOW} {statement}"))?.execute((
            from.as_str(),
            manifest.to_string(),
            to.as_str(),
            now_ms(),
        ))?;
    }
    Ok(())
}
