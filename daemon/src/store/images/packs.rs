//! Packs: images without a tag that builds use as context.

use rusqlite::{OptionalExtension as _, Row, Transaction};

use super::manifests::descriptor;
use super::{parsed, signed};
use crate::image::port::Pack;
use crate::model::id::PackId;
use crate::store::StoreError;

const COLUMNS: &str = "SELECT id, media_type, digest, size, owner, created_at FROM packs";

fn pack(row: &Row<'_>) -> rusqlite::Result<Pack> {
    Ok(Pack {
        id: parsed(row, 0)?,
        manifest: descriptor(row, 1)?,
        owner: row.get(4)?,
        created_at: parsed(row, 5)?,
    })
}

pub(super) fn put(transaction: &Transaction<'_>, pack: &Pack) -> Result<(), StoreError> {
    transaction
        .prepare_cached(
            "INSERT INTO packs (id, media_type, digest, size, owner, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute((
            pack.id.as_str(),
            &pack.manifest.media_type,
            pack.manifest.digest.to_string(),
            signed(pack.manifest.size),
            &pack.owner,
            pack.created_at.to_string(),
        ))?;
    Ok(())
}

pub(super) fn get(transaction: &Transaction<'_>, id: &PackId) -> Result<Option<Pack>, StoreError> {
    Ok(transaction
        .prepare_cached(&format!("{COLUMNS} WHERE id = ?1"))?
        .query_row([id.as_str()], pack)
        .optional()?)
}

pub(super) fn all(transaction: &Transaction<'_>) -> Result<Vec<Pack>, StoreError> {
    let mut statement = transaction.prepare_cached(&format!("{COLUMNS} ORDER BY id"))?;
    Ok(statement.query_map([], pack)?.collect::<Result<_, _>>()?)
}

pub(super) fn remove(transaction: &Transaction<'_>, id: &PackId) -> Result<(), StoreError> {
    transaction.prepare_cached("DELETE FROM packs WHERE id = ?1")?.execute([id.as_str()])?;
    Ok(())
}
