//! State in SQLite: one database file with a write-ahead log and one connection that writes.
//!
//! Each submodule stores one kind of entity and implements the port of the module that owns it.

mod builds;
mod images;
mod secrets;
mod services;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, Transaction, TransactionBehavior};

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
];

/// Time that a statement waits for another process that holds the database open, such as a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

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
    #[error(
        "schema version {found} is newer than this hearthd knows ({known}); it was written by a later release"
    )]
    TooNew { found: usize, known: usize },
    #[error("the daemon is ending")]
    Closed,
}

impl StateStore {
    /// Opens the database, creating it if necessary, and migrates its schema.
    pub fn open(path: &Path) -> Result<Self, StateStoreError> {
        Self::prepare(Connection::open(path)?)
    }

    fn prepare(mut connection: Connection) -> Result<Self, StateStoreError> {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // FULL: acknowledged data survives a power failure, not only a crash of the daemon.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", "ON")?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let version = usize::try_from(version).unwrap_or(usize::MAX);
        if version > MIGRATIONS.len() {
            return Err(StateStoreError::TooNew { found: version, known: MIGRATIONS.len() });
        }
        for (step, sql) in MIGRATIONS.iter().enumerate().skip(version) {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
            transaction.execute_batch(sql)?;
            transaction.pragma_update(None, "user_version", i64::try_from(step + 1).unwrap_or(i64::MAX))?;
            transaction.commit()?;
        }
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
