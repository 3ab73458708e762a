//! Stored verdicts about layers, and the manifests that were found invalid. Rows are removed with their content.

use std::collections::{HashMap, HashSet};

use rusqlite::{OptionalExtension as _, Transaction};

use super::parsed;
use crate::image::port::{ImageMark, LayerVerdict};
use crate::model::Digest;
use crate::store::StateStoreError;

pub(super) fn get(
    transaction: &Transaction<'_>,
    layers: Vec<Digest>,
    limits: &str,
) -> Result<HashMap<Digest, LayerVerdict>, StateStoreError> {
    let mut statement =
        transaction.prepare_cached("SELECT verdict FROM layer_verdicts WHERE digest = ?1 AND limits = ?2")?;
    let mut found = HashMap::with_capacity(layers.len());
    for layer in layers {
        let row: Option<String> =
            statement.query_row((layer.to_string(), limits), |row| row.get(0)).optional()?;
        if let Some(verdict) = row {
            found.insert(layer, serde_json::from_str(&verdict)?);
        }
    }
    Ok(found)
}

pub(super) fn put(
    transaction: &Transaction<'_>,
    verdicts: &[(Digest, LayerVerdict)],
    limits: &str,
) -> Result<(), StateStoreError> {
    let mut statement = transaction.prepare_cached(
        "INSERT INTO layer_verdicts (digest, limits, verdict) VALUES (?1, ?2, ?3)
         ON CONFLICT DO UPDATE SET limits = ?2, verdict = ?3",
    )?;
    for (layer, verdict) in verdicts {
        statement.execute((layer.to_string(), limits, serde_json::to_string(verdict)?))?;
    }
    Ok(())
}

/// Records that a manifest was found invalid.
pub(super) fn put_mark(
    transaction: &Transaction<'_>,
    mark: &ImageMark,
    limits: &str,
) -> Result<(), StateStoreError> {
    transaction
        .prepare_cached(
            "INSERT INTO image_marks (digest, limits, code, reason) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET limits = ?2, code = ?3, reason = ?4",
        )?
        .execute((mark.manifest.to_string(), limits, &mark.code.as_str(), &mark.reason))?;
    Ok(())
}

pub(super) fn marks(
    transaction: &Transaction<'_>,
    manifests: Vec<Digest>,
    limits: &str,
) -> Result<Vec<ImageMark>, StateStoreError> {
    let mut statement = transaction
        .prepare_cached("SELECT code, reason FROM image_marks WHERE digest = ?1 AND limits = ?2")?;
    let mut found = Vec::new();
    for manifest in manifests {
        let mark = statement
            .query_row((manifest.to_string(), limits), |row| {
                Ok(ImageMark { manifest, code: row.get::<_, String>(0)?.into(), reason: row.get(1)? })
            })
            .optional()?;
        found.extend(mark);
    }
    Ok(found)
}

/// Removes the rows whose content is not in `live`.
pub(super) fn forget(transaction: &Transaction<'_>, live: &HashSet<Digest>) -> Result<(), StateStoreError> {
    for table in ["layer_verdicts", "image_marks"] {
        let known: Vec<Digest> = transaction
            .prepare_cached(&format!("SELECT digest FROM {table}"))?
            .query_map([], |row| parsed(row, 0))?
            .collect::<Result<_, _>>()?;
        let mut statement = transaction.prepare_cached(&format!("DELETE FROM {table} WHERE digest = ?1"))?;
        for gone in known.iter().filter(|digest| !live.contains(digest)) {
            statement.execute([gone.to_string()])?;
        }
    }
    Ok(())
}
