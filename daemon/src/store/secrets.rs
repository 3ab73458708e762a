//! Room secrets, stored in their sealed form.

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Transaction, params};
use serde::de::DeserializeOwned;

use super::{StateStore, StateStoreError};
use crate::model::secret::{SecretName, SecretView};
use crate::secrets::port::{self, SealedSecret, SecretStore};

impl From<StateStoreError> for port::SecretStoreError {
    fn from(error: StateStoreError) -> Self {
        Self(error.into())
    }
}

/// Parses a name or time that this module wrote.
fn parse_value<T: DeserializeOwned>(text: String) -> Result<T, StateStoreError> {
    Ok(serde_json::from_value(serde_json::Value::String(text))?)
}

#[async_trait]
impl SecretStore for StateStore {
    async fn put(
        &self,
        secret: SealedSecret,
        most: usize,
    ) -> Result<Option<SecretView>, port::SecretStoreError> {
        Ok(self.transaction(move |transaction| put(transaction, secret, most)).await?)
    }

    async fn get(&self, name: &SecretName) -> Result<Option<SealedSecret>, port::SecretStoreError> {
        let name = name.clone();
        let work = move |transaction: &Transaction<'_>| {
            let found = transaction
                .prepare_cached("SELECT key_id, sealed, changed_at FROM secrets WHERE name = ?1")?
                .query_row([name.as_str()], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?)))
                .optional()?;
            let secret =
                |(key_id, sealed, at)| Ok(SealedSecret { name, key_id, sealed, at: parse_value(at)? });
            found.map(secret).transpose()
        };
        Ok(self.transaction(work).await?)
    }

    async fn list(&self) -> Result<Vec<SecretView>, port::SecretStoreError> {
        let work = |transaction: &Transaction<'_>| {
            let mut statement = transaction
                .prepare_cached("SELECT name, created_at, changed_at FROM secrets ORDER BY name")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            let view = |row: rusqlite::Result<(String, String, String)>| {
                let (name, created, changed) = row?;
                Ok(SecretView {
                    name: parse_value(name)?,
                    created_at: parse_value(created)?,
                    changed_at: parse_value(changed)?,
                })
            };
            rows.map(view).collect()
        };
        Ok(self.transaction(work).await?)
    }

    async fn remove(&self, name: &SecretName) -> Result<bool, port::SecretStoreError> {
        let name = name.clone();
        let work = move |transaction: &Transaction<'_>| {
            Ok(transaction.execute("DELETE FROM secrets WHERE name = ?1", [name.as_str()])? > 0)
        };
        Ok(self.transaction(work).await?)
    }
}

fn put(
    transaction: &Transaction<'_>,
    secret: SealedSecret,
    most: usize,
) -> Result<Option<SecretView>, StateStoreError> {
    let SealedSecret { name, key_id, sealed, at } = secret;
    let created: Option<String> = transaction
        .prepare_cached("SELECT created_at FROM secrets WHERE name = ?1")?
        .query_row([name.as_str()], |row| row.get(0))
        .optional()?;
    let created_at: Timestamp = match created {
        Some(created) => parse_value(created)?,
        None => {
            let count: i64 = transaction.query_row("SELECT count(*) FROM secrets", [], |row| row.get(0))?;
            if usize::try_from(count).unwrap_or(usize::MAX) >= most {
                return Ok(None);
            }
            at
        }
    };
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO secrets (name, key_id, sealed, created_at, changed_at)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![name.as_str(), key_id, sealed, created_at.to_string(), at.to_string()])?;
    Ok(Some(SecretView { name, created_at, changed_at: at }))
}
