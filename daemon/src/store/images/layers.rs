//! What was found in layers. A row is of use for as long as its blob may come back, and costs a few hundred bytes.

use std::collections::{HashMap, HashSet};

use rusqlite::{OptionalExtension as _, Transaction};

use super::parsed;
use crate::image::port::LayerVerdict;
use crate::model::Digest;
use crate::store::StoreError;

pub(super) fn get(
    transaction: &Transaction<'_>,
    layers: Vec<Digest>,
    limits: &str,
) -> Result<HashMap<Digest, LayerVerdict>, StoreError> {
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
) -> Result<(), StoreError> {
    let mut statement = transaction.prepare_cached(
        "INSERT INTO layer_verdicts (digest, limits, verdict) VALUES (?1, ?2, ?3)
         ON CONFLICT DO UPDATE SET limits = ?2, verdict = ?3",
    )?;
    for (layer, verdict) in verdicts {
        statement.execute((layer.to_string(), limits, serde_json::to_string(verdict)?))?;
    }
    Ok(())
}

/// Forgets those whose blob is not among `live`.
pub(super) fn forget(transaction: &Transaction<'_>, live: &HashSet<Digest>) -> Result<(), StoreError> {
    let known: Vec<Digest> = transaction
        .prepare_cached("SELECT digest FROM layer_verdicts")?
        .query_map([], |row| parsed(row, 0))?
        .collect::<Result<_, _>>()?;
    let mut statement = transaction.prepare_cached("DELETE FROM layer_verdicts WHERE digest = ?1")?;
    for gone in known.iter().filter(|layer| !live.contains(layer)) {
        statement.execute([gone.to_string()])?;
    }
    Ok(())
}
