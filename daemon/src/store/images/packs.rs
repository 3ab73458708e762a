//! Packs that builds use as context: untagged images, and trees.

use rusqlite::{OptionalExtension as _, Row, Transaction};

use super::manifests::descriptor;
use super::{parsed, signed};
use crate::image::port::{PackContent, PackRecord};
use crate::model::id::PackId;
use crate::store::StateStoreError;

const IMAGES: &str = "SELECT id, media_type, digest, size, owner, created_at FROM packs";
const TREES: &str = "SELECT id, tree, lineage, owner, created_at FROM tree_packs";

fn image(row: &Row<'_>) -> rusqlite::Result<PackRecord> {
    Ok(PackRecord {
        id: parsed(row, 0)?,
        content: PackContent::Image(descriptor(row, 1)?),
        owner: row.get(4)?,
        created_at: parsed(row, 5)?,
    })
}

fn tree(row: &Row<'_>) -> rusqlite::Result<PackRecord> {
    Ok(PackRecord {
        id: parsed(row, 0)?,
        content: PackContent::Tree { tree: parsed(row, 1)?, lineage: row.get(2)? },
        owner: row.get(3)?,
        created_at: parsed(row, 4)?,
    })
}

pub(super) fn put(transaction: &Transaction<'_>, pack: &PackRecord) -> Result<(), StateStoreError> {
    let (id, owner, created_at) = (pack.id.as_str(), &pack.owner, pack.created_at.to_string());
    match &pack.content {
        PackContent::Image(manifest) => transaction
            .prepare_cached(
                "INSERT INTO packs (id, media_type, digest, size, owner, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute((
                id,
                &manifest.media_type,
                manifest.digest.to_string(),
                signed(manifest.size),
                owner,
                created_at,
            ))?,
        PackContent::Tree { tree, lineage } => transaction
            .prepare_cached(
                "INSERT INTO tree_packs (id, tree, lineage, owner, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute((id, tree.to_string(), lineage, owner, created_at))?,
    };
    Ok(())
}

pub(super) fn get(transaction: &Transaction<'_>, id: &PackId) -> Result<Option<PackRecord>, StateStoreError> {
    let found = transaction
        .prepare_cached(&format!("{IMAGES} WHERE id = ?1"))?
        .query_row([id.as_str()], image)
        .optional()?;
    if found.is_some() {
        return Ok(found);
    }
    Ok(transaction
        .prepare_cached(&format!("{TREES} WHERE id = ?1"))?
        .query_row([id.as_str()], tree)
        .optional()?)
}

pub(super) fn all(transaction: &Transaction<'_>) -> Result<Vec<PackRecord>, StateStoreError> {
    let mut statement = transaction.prepare_cached(IMAGES)?;
    let mut packs: Vec<PackRecord> = statement.query_map([], image)?.collect::<Result<_, _>>()?;
    let mut statement = transaction.prepare_cached(TREES)?;
    for pack in statement.query_map([], tree)? {
        packs.push(pack?);
    }
    packs.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(packs)
}

pub(super) fn remove(transaction: &Transaction<'_>, id: &PackId) -> Result<(), StateStoreError> {
    for table in ["packs", "tree_packs"] {
        transaction.prepare_cached(&format!("DELETE FROM {table} WHERE id = ?1"))?.execute([id.as_str()])?;
    }
    Ok(())
}
