//! Manifests, their required content, and the blobs linked to a repository.

use hearth_oci::Descriptor;
use rusqlite::{OptionalExtension as _, Row, Transaction};

use super::{now_ms, parsed, signed, size_column, touch_if_present};
use crate::image::port::{NewManifest, ReferrerQuery, RemovalOutcome};
use crate::model::manifest::{ManifestPart, PartKind};
use crate::model::{Digest, Repository};
use crate::store::StateStoreError;

pub(super) fn put(
    transaction: &Transaction<'_>,
    repository: &Repository,
    new: &NewManifest,
) -> Result<(), StateStoreError> {
    let repository = repository.as_str();
    let digest = new.manifest.digest.to_string();
    transaction
        .prepare_cached(
            "INSERT INTO manifests (repository, digest, media_type, size, content_size, subject, artifact_type, touched_at)
             VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6, ?7)
             ON CONFLICT DO UPDATE SET media_type = ?3, subject = ?5, artifact_type = ?6, touched_at = ?7",
        )?
        .execute((
            repository,
            &digest,
            &new.manifest.media_type,
            signed(new.manifest.size),
            new.subject.map(|subject| subject.to_string()),
            &new.artifact_type,
            now_ms(),
        ))?;
    let mut insert = transaction.prepare_cached(
        "INSERT OR IGNORE INTO manifest_parts (repository, manifest, digest, size, kind) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for part in &new.parts {
        let part_digest = part.digest.to_string();
        let kind = match part.kind {
            PartKind::Blob => {
                link(transaction, repository, &part_digest)?;
                "blob"
            }
            PartKind::Manifest => "manifest",
        };
        insert.execute((repository, &digest, part_digest, signed(part.size), kind))?;
    }
    transaction
        .prepare_cached(
            "WITH RECURSIVE below (digest) AS (
                 VALUES (?2)
                 UNION SELECT part.digest FROM below
                       JOIN manifest_parts part ON part.repository = ?1 AND part.manifest = below.digest
                       WHERE part.kind = 'manifest'
             )
             UPDATE manifests SET content_size = (
                 SELECT coalesce(sum(size), 0) FROM (
                     SELECT part.digest, max(part.size) AS size FROM below
                     JOIN manifest_parts part ON part.repository = ?1 AND part.manifest = below.digest
                     WHERE part.kind = 'blob' GROUP BY part.digest
                 )
             ) WHERE repository = ?1 AND digest = ?2",
        )?
        .execute((repository, &digest))?;
    Ok(())
}

pub(super) fn get(
    transaction: &Transaction<'_>,
    repository: &Repository,
    digest: &Digest,
) -> Result<Option<Descriptor>, StateStoreError> {
    if !touch_if_present(transaction, "manifests", repository.as_str(), &digest.to_string())? {
        return Ok(None);
    }
    Ok(transaction
        .prepare_cached(
            "SELECT media_type, digest, size FROM manifests WHERE repository = ?1 AND digest = ?2",
        )?
        .query_row((repository.as_str(), digest.to_string()), |row| descriptor(row, 0))
        .optional()?)
}

/// Reads a descriptor from three columns: media type, digest, size.
pub(super) fn descriptor(row: &Row<'_>, first: usize) -> rusqlite::Result<Descriptor> {
    Ok(Descriptor::new(&row.get::<_, String>(first)?, parsed(row, first + 1)?, size_column(row, first + 2)?))
}

pub(super) fn remove(
    transaction: &Transaction<'_>,
    repository: &Repository,
    digest: &Digest,
) -> Result<RemovalOutcome, StateStoreError> {
    if let Some(index) = needed_by(transaction, repository, digest)? {
        return Ok(RemovalOutcome::NeededBy(index));
    }
    if let Some(service) = deployed_by(transaction, repository, digest)? {
        return Ok(RemovalOutcome::Deployed(service));
    }
    let removed = transaction
        .prepare_cached("DELETE FROM manifests WHERE repository = ?1 AND digest = ?2")?
        .execute((repository.as_str(), digest.to_string()))?;
    Ok(if removed > 0 { RemovalOutcome::Removed } else { RemovalOutcome::Unknown })
}

fn needed_by(
    transaction: &Transaction<'_>,
    repository: &Repository,
    digest: &Digest,
) -> Result<Option<Digest>, StateStoreError> {
    Ok(transaction
        .prepare_cached("SELECT manifest FROM manifest_parts WHERE repository = ?1 AND digest = ?2 LIMIT 1")?
        .query_row((repository.as_str(), digest.to_string()), |row| parsed(row, 0))
        .optional()?)
}

fn deployed_by(
    transaction: &Transaction<'_>,
    repository: &Repository,
    digest: &Digest,
) -> Result<Option<String>, StateStoreError> {
    Ok(transaction
        .prepare_cached(
            "SELECT services.name FROM service_images JOIN services ON services.id = service_images.service
             WHERE repository = ?1 AND digest = ?2 LIMIT 1",
        )?
        .query_row((repository.as_str(), digest.to_string()), |row| row.get(0))
        .optional()?)
}

pub(super) fn referrers(
    transaction: &Transaction<'_>,
    query: &ReferrerQuery,
) -> Result<Vec<Descriptor>, StateStoreError> {
    let mut statement = transaction.prepare_cached(
        "SELECT media_type, digest, size FROM manifests
         WHERE repository = ?1 AND subject = ?2 AND (?3 IS NULL OR artifact_type = ?3) AND digest > ?4
         ORDER BY digest LIMIT ?5",
    )?;
    let rows = statement.query_map(
        (
            query.repository.as_str(),
            query.subject.to_string(),
            &query.artifact_type,
            query.after.map(|digest| digest.to_string()).unwrap_or_default(),
            signed(query.limit as u64),
        ),
        |row| descriptor(row, 0),
    )?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn missing(
    transaction: &Transaction<'_>,
    repository: &Repository,
    parts: Vec<ManifestPart>,
) -> Result<Vec<ManifestPart>, StateStoreError> {
    let mut missing = Vec::new();
    for part in parts {
        let table = match part.kind {
            PartKind::Blob => "repository_blobs",
            PartKind::Manifest => "manifests",
        };
        if !touch_if_present(transaction, table, repository.as_str(), &part.digest.to_string())? {
            missing.push(part);
        }
    }
    Ok(missing)
}

pub(super) fn link(
    transaction: &Transaction<'_>,
    repository: &str,
    digest: &str,
) -> Result<(), StateStoreError> {
    transaction
        .prepare_cached(
            "INSERT INTO repository_blobs (repository, digest, touched_at) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET touched_at = ?3",
        )?
        .execute((repository, digest, now_ms()))?;
    Ok(())
}

pub(super) fn unlink(
    transaction: &Transaction<'_>,
    repository: &Repository,
    digest: &Digest,
) -> Result<RemovalOutcome, StateStoreError> {
    if let Some(manifest) = needed_by(transaction, repository, digest)? {
        return Ok(RemovalOutcome::NeededBy(manifest));
    }
    let removed = transaction
        .prepare_cached("DELETE FROM repository_blobs WHERE repository = ?1 AND digest = ?2")?
        .execute((repository.as_str(), digest.to_string()))?;
    Ok(if removed > 0 { RemovalOutcome::Removed } else { RemovalOutcome::Unknown })
}

pub(super) fn has_manifests(
    transaction: &Transaction<'_>,
    repository: &Repository,
) -> Result<bool, StateStoreError> {
    Ok(transaction
        .prepare_cached("SELECT 1 FROM manifests WHERE repository = ?1 LIMIT 1")?
        .exists([repository.as_str()])?)
}

pub(super) fn repositories(
    transaction: &Transaction<'_>,
    after: Option<&Repository>,
    limit: usize,
) -> Result<Vec<Repository>, StateStoreError> {
    // Steps from name to name in the primary key, so that a repository with many manifests costs one step.
    let mut next =
        transaction.prepare_cached("SELECT min(repository) FROM manifests WHERE repository > ?1")?;
    let mut names = Vec::new();
    let mut last = after.map(|name| name.as_str().to_owned()).unwrap_or_default();
    while names.len() < limit {
        let Some(name) = next.query_row([&last], |row| row.get::<_, Option<String>>(0))? else { break };
        last.clone_from(&name);
        names.push(name.parse().map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
        })?);
    }
    Ok(names)
}
