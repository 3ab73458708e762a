//! State in SQLite: one database file with a write-ahead log and one connection that writes.
//!
//! Each submodule stores one kind of entity and implements the port of the module that owns it.

mod build_inputs;
mod builds;
mod images;
mod secrets;
mod services;

use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::database::{self, DatabaseError};
use crate::task;

/// Schema migrations: each entry raises the schema version by one. Entries are only ever appended.
const MIGRATIONS: &[&str] = &[
    include_str!("store/schema-1.sql"),
    include_str!("store/schema-tree-packs.sql"),
    include_str!("store/schema-image-origins.sql"),
    include_str!("store/schema-services.sql"),
    include_str!("store/schema-secrets.sql"),
    include_str!("store/schema-layer-verdicts.sql"),
    include_str!("store/schema-cached-images.sql"),
    include_str!("store/schema-build-lists.sql"),
    include_str!("store/schema-build-inputs.sql"),
];

/// Handle to the state database; cheap to clone.
#[derive(Clone)]
pub struct StateStore {
    connection: Arc<Mutex<Connection>>,
}

#[derive(Debug, thiserror::Error)]
pub enum StateStoreError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("a stored value cannot be read back: {0}")]
    Corrupt(#[from] serde_json::Error),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("the daemon is ending")]
    Closed,
}

impl From<StateStoreError> for io::Error {
    fn from(error: StateStoreError) -> Self {
        match error {
            StateStoreError::Sqlite(error) => DatabaseError::Sqlite(error).into(),
            StateStoreError::Database(error) => error.into(),
            StateStoreError::Corrupt(_) | StateStoreError::Closed => Self::other(error),
        }
    }
}

impl StateStore {
    /// Opens the database, creating it if necessary, and migrates its schema.
    pub fn open(path: &Path) -> Result<Self, StateStoreError> {
        let connection = database::open(path, MIGRATIONS)?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)) })
    }

    /// Runs `work` in one transaction on a blocking thread; its changes are durable when this returns `Ok`.
    pub async fn transaction<T, F>(&self, work: F) -> Result<T, StateStoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StateStoreError> + Send + 'static,
    {
        let connection = Arc::clone(&self.connection);
        task::blocking("store", move || {
            // A panic while the lock was held has rolled its transaction back, so the connection is still usable.
            let mut connection = connection.lock();
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })
        .await
        .unwrap_or(Err(StateStoreError::Closed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_disk_is_an_error_of_its_own_and_what_is_stored_can_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let store = StateStore::open(&directory.path().join("state.db")).unwrap();
        let read = |transaction: &Transaction<'_>| {
            Ok(transaction.query_row("SELECT count(*) FROM secrets", [], |row| row.get::<_, i64>(0))?)
        };
        let fill = |transaction: &Transaction<'_>| {
            transaction.pragma_update(None, "max_page_count", 1)?;
            transaction
                .execute_batch("CREATE TABLE more (value); INSERT INTO more VALUES (zeroblob(1000000))")?;
            Ok(())
        };
        let full: io::Error = store.transaction(fill).await.unwrap_err().into();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull, "{full}");
        assert_eq!(store.transaction(read).await.unwrap(), 0);
    }
}
