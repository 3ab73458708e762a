//! Inputs of the steps of builds, and listings of their contexts.

use async_trait::async_trait;
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::{StateStore, StateStoreError};
use crate::build::port::{BuildInputsStore, StoreError, StoredInputs};
use crate::model::build_inputs::BuildInputs;
use crate::model::id::BuildId;

/// Maximum number of listings, and of their bytes. The oldest ones are removed first.
const MAX_LISTINGS: i64 = 2000;
const MAX_LISTING_BYTES: i64 = 256 << 20;

#[async_trait]
impl BuildInputsStore for StateStore {
    async fn put_inputs(&self, id: &BuildId, inputs: BuildInputs, context: &str) -> Result<bool, StoreError> {
        let (id, context) = (id.clone(), context.to_owned());
        let work = move |transaction: &Transaction<'_>| {
            transaction.execute(
                "INSERT OR REPLACE INTO build_inputs (build_id, inputs, context) VALUES (?1, ?2, ?3)",
                params![id.as_str(), serde_json::to_string(&inputs)?, context],
            )?;
            let query = "SELECT 1 FROM context_listings WHERE context = ?1";
            Ok(transaction.query_row(query, [&context], |_| Ok(())).optional()?.is_some())
        };
        Ok(self.transaction(work).await?)
    }

    async fn put_listing(&self, context: &str, listing: Vec<u8>) -> Result<(), StoreError> {
        let context = context.to_owned();
        let work = move |transaction: &Transaction<'_>| {
            transaction.execute(
                "INSERT OR IGNORE INTO context_listings (context, listing, bytes) VALUES (?1, ?2, length(?2))",
                params![context, listing],
            )?;
            trim_listings(transaction)
        };
        Ok(self.transaction(work).await?)
    }

    async fn stored_inputs(&self, id: &BuildId) -> Result<Option<StoredInputs>, StoreError> {
        let id = id.clone();
        let work = move |transaction: &Transaction<'_>| {
            let query = "SELECT inputs, context FROM build_inputs WHERE build_id = ?1";
            let row: Option<(String, String)> = transaction
                .query_row(query, [id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((inputs, context)) = row else { return Ok(None) };
            Ok(Some(StoredInputs { inputs: serde_json::from_str(&inputs)?, context }))
        };
        Ok(self.transaction(work).await?)
    }

    async fn listing(&self, context: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let context = context.to_owned();
        let work = move |transaction: &Transaction<'_>| {
            let query = "SELECT listing FROM context_listings WHERE context = ?1";
            Ok(transaction.query_row(query, [context], |row| row.get(0)).optional()?)
        };
        Ok(self.transaction(work).await?)
    }
}

/// Removes the listings that no build has, and the oldest ones beyond the limits.
pub(super) fn trim_listings(transaction: &Transaction<'_>) -> Result<(), StateStoreError> {
    transaction.execute(
        "DELETE FROM context_listings WHERE context NOT IN (SELECT context FROM build_inputs)
            OR sequence <= (SELECT max(sequence) FROM context_listings) - ?1",
        [MAX_LISTINGS],
    )?;
    transaction.execute(
        "DELETE FROM context_listings WHERE sequence IN (
            SELECT sequence FROM (
                SELECT sequence, sum(bytes) OVER (ORDER BY sequence DESC) AS total FROM context_listings
            ) WHERE total > ?1
        )",
        [MAX_LISTING_BYTES],
    )?;
    Ok(())
}
