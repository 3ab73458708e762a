//! Origins of images: the trees and build settings that they were made from.

use rusqlite::Transaction;

use super::parsed;
use crate::image::port::ImageOrigin;
use crate::model::{Digest, Repository};
use crate::store::StateStoreError;

pub(super) fn put(
    transaction: &Transaction<'_>,
    repository: &Repository,
    manifest: &Digest,
    origin: &ImageOrigin,
) -> Result<(), StateStoreError> {
    let ImageOrigin { owner, tree, recipe: way } = origin;
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
    origin: &ImageOrigin,
) -> Result<Vec<(Repository, Digest)>, StateStoreError> {
    let ImageOrigin { owner, tree, recipe: way } = origin;
    let mut statement = transaction.prepare_cached(
        "SELECT repository, manifest FROM image_origins WHERE tree = ?1 AND way = ?2 AND owner = ?3
         ORDER BY repository, manifest",
    )?;
    let rows = statement.query_map((tree.to_string(), way.to_string(), owner), |row| {
        Ok((parsed(row, 0)?, parsed(row, 1)?))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
