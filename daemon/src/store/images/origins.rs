//! Origins of images: the trees and build settings that they were made from.

use rusqlite::Transaction;

use super::parsed;
use crate::image::port::Origin;
use crate::model::{Digest, Repository};
use crate::store::StoreError;

pub(super) fn put(
    transaction: &Transaction<'_>,
    repository: &Repository,
    manifest: &Digest,
    origin: &Origin,
) -> Result<(), StoreError> {
    let Origin { owner, tree, way } = origin;
    transaction
        .prepare_cached(
            "INSERT INTO image_origins (repository, manifest, owner, tree, way)
             SELECT repository, digest, ?3, ?4, ?5 FROM manifests WHERE repository = ?1 AND digest = ?2
             ON CONFLICT DO UPDATE SET tree = ?4, way = ?5",
        )?
        .execute((repository.as_str(), manifest.to_string(), owner, tree.to_string(), way.to_string()))?;
    Ok(())
}

pub(super) fn find(
    transaction: &Transaction<'_>,
    origin: &Origin,
) -> Result<Vec<(Repository, Digest)>, StoreError> {
    let Origin { owner, tree, way } = origin;
    let mut statement = transaction.prepare_cached(
        "SELECT repository, manifest FROM image_origins WHERE tree = ?1 AND way = ?2 AND owner = ?3
         ORDER BY repository, manifest",
    )?;
    let rows = statement.query_map((tree.to_string(), way.to_string(), owner), |row| {
        Ok((parsed(row, 0)?, parsed(row, 1)?))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
