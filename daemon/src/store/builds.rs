//! Builds and idempotency keys.

use async_trait::async_trait;
use rusqlite::types::Value;
use rusqlite::{OptionalExtension as _, Transaction, params, params_from_iter};

use super::{StateStore, StateStoreError, build_inputs};
use crate::build::port;
use crate::build::port::{BuildQuery, BuildStore, IdempotencyKey, InsertOutcome};
use crate::model::build::BuildRecord;
use crate::model::id::BuildId;

impl From<StateStoreError> for port::StoreError {
    fn from(error: StateStoreError) -> Self {
        Self(error.into())
    }
}

#[async_trait]
impl BuildStore for StateStore {
    async fn insert(
        &self,
        record: BuildRecord,
        key: Option<IdempotencyKey>,
    ) -> Result<InsertOutcome, port::StoreError> {
        let work = move |transaction: &Transaction<'_>| {
            if let Some(key) = &key
                && let Some(earlier) = find(transaction, key)?
            {
                return Ok(earlier);
            }
            transaction.execute(
                "INSERT INTO builds (id, state, tag, record) VALUES (?1, ?2, ?3, ?4)",
                params![
                    record.id.as_str(),
                    record.state.as_str(),
                    tag_of(&record),
                    serde_json::to_string(&record)?
                ],
            )?;
            if let Some(key) = key {
                transaction.execute(
                    "INSERT INTO idempotency_keys (caller, key, request, build_id) VALUES (?1, ?2, ?3, ?4)",
                    params![key.caller, key.key, key.request.to_string(), record.id.as_str()],
                )?;
            }
            Ok(InsertOutcome::New)
        };
        Ok(self.transaction(work).await?)
    }

    async fn get(&self, id: &BuildId) -> Result<Option<BuildRecord>, port::StoreError> {
        let id = id.clone();
        let work = move |transaction: &Transaction<'_>| {
            let query = "SELECT record FROM builds WHERE id = ?1";
            let text: Option<String> =
                transaction.query_row(query, [id.as_str()], |row| row.get(0)).optional()?;
            Ok(text.map(|text| serde_json::from_str(&text)).transpose()?)
        };
        Ok(self.transaction(work).await?)
    }

    async fn find_by_key(&self, key: &IdempotencyKey) -> Result<Option<InsertOutcome>, port::StoreError> {
        let key = key.clone();
        Ok(self.transaction(move |transaction| find(transaction, &key)).await?)
    }

    async fn ids_with_prefix(
        &self,
        prefix: &str,
        owner: Option<&str>,
        limit: usize,
    ) -> Result<Vec<BuildId>, port::StoreError> {
        let (prefix, owner) = (prefix.to_owned(), owner.map(str::to_owned));
        let work = move |transaction: &Transaction<'_>| {
            // A range query can use the index; no character of an id sorts after `~`.
            let query = "SELECT id FROM builds WHERE id >= ?1 AND id < ?1 || '~'
                AND (?2 IS NULL OR json_extract(record, '$.submitted_by') = ?2) ORDER BY id LIMIT ?3";
            let mut statement = transaction.prepare_cached(query)?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = statement.query_map(params![prefix, owner, limit], |row| row.get::<_, String>(0))?;
            rows.map(|id| Ok(serde_json::from_value(serde_json::Value::String(id?))?)).collect()
        };
        Ok(self.transaction(work).await?)
    }

    async fn list(&self, query: BuildQuery) -> Result<Vec<BuildRecord>, port::StoreError> {
        Ok(self.transaction(move |transaction| list(transaction, &query)).await?)
    }

    async fn update(&self, record: BuildRecord) -> Result<(), port::StoreError> {
        let work = move |transaction: &Transaction<'_>| {
            transaction.execute(
                "UPDATE builds SET state = ?2, tag = ?3, record = ?4 WHERE id = ?1",
                params![
                    record.id.as_str(),
                    record.state.as_str(),
                    tag_of(&record),
                    serde_json::to_string(&record)?
                ],
            )?;
            Ok(())
        };
        Ok(self.transaction(work).await?)
    }

    async fn remove(&self, id: &BuildId) -> Result<(), port::StoreError> {
        let id = id.clone();
        let work = move |transaction: &Transaction<'_>| {
            transaction.execute("DELETE FROM builds WHERE id = ?1", [id.as_str()])?;
            build_inputs::trim_listings(transaction)
        };
        Ok(self.transaction(work).await?)
    }
}

fn find(
    transaction: &Transaction<'_>,
    key: &IdempotencyKey,
) -> Result<Option<InsertOutcome>, StateStoreError> {
    let query = "SELECT build_id, request FROM idempotency_keys WHERE caller = ?1 AND key = ?2";
    let found: Option<(String, String)> = transaction
        .query_row(query, params![key.caller, key.key], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((id, request)) = found else { return Ok(None) };
    let id: BuildId = serde_json::from_value(serde_json::Value::String(id))?;
    let same = request == key.request.to_string();
    Ok(Some(if same { InsertOutcome::Existing(id) } else { InsertOutcome::Conflict(id) }))
}

fn list(transaction: &Transaction<'_>, query: &BuildQuery) -> Result<Vec<BuildRecord>, StateStoreError> {
    let mut sql = "SELECT record FROM builds WHERE 1".to_owned();
    let mut values: Vec<Value> = Vec::new();
    if !query.states.is_empty() {
        let marks = vec!["?"; query.states.len()].join(", ");
        sql.push_str(&format!(" AND state IN ({marks})"));
        values.extend(query.states.iter().map(|state| Value::Text(state.as_str().to_owned())));
    }
    if let Some(tag) = &query.tag {
        sql.push_str(" AND tag = ?");
        values.push(Value::Text(tag.clone()));
    }
    if let Some(name) = &query.submitted_by {
        sql.push_str(" AND json_extract(record, '$.submitted_by') = ?");
        values.push(Value::Text(name.clone()));
    }
    if let Some(after) = &query.after {
        sql.push_str(" AND sequence < (SELECT sequence FROM builds WHERE id = ?)");
        values.push(Value::Text(after.to_string()));
    }
    sql.push_str(" ORDER BY sequence DESC LIMIT ?");
    values.push(Value::Integer(i64::try_from(query.limit).unwrap_or(i64::MAX)));
    let mut statement = transaction.prepare_cached(&sql)?;
    let rows = statement.query_map(params_from_iter(values), |row| row.get::<_, String>(0))?;
    rows.map(|text| Ok(serde_json::from_str(&text?)?)).collect()
}

/// Returns the tag that builds are looked up by: the first.
fn tag_of(record: &BuildRecord) -> String {
    record.spec.tags.first().map(ToString::to_string).unwrap_or_default()
}
