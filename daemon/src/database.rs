//! SQLite databases of the daemon: each has a write-ahead log, one connection, and a schema version.

use std::io;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

/// Time that a statement waits for another process that holds the database open, such as a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error(
        "schema version {found} is newer than this hearthd knows ({known}); it was written by a later release"
    )]
    TooNew { found: usize, known: usize },
    #[error("changes that were not durable yet were lost, because the disk was full for another one")]
    ChangesLost,
}

impl From<DatabaseError> for io::Error {
    fn from(error: DatabaseError) -> Self {
        let is_full = is_disk_full(&error);
        let kind = if is_full { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
        Self::new(kind, error)
    }
}

fn is_disk_full(error: &DatabaseError) -> bool {
    match error {
        DatabaseError::Sqlite(error) => error.sqlite_error().is_some_and(|error| {
            error.code == ErrorCode::DiskFull || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
        }),
        DatabaseError::ChangesLost => true,
        DatabaseError::TooNew { .. } => false,
    }
}

/// Opens a database, creates it if necessary, and migrates its schema. A database that exists opens on a full disk,
/// too: it can be read then.
pub fn open(path: &Path, migrations: &[&str]) -> Result<Connection, DatabaseError> {
    match prepare(Connection::open(path)?, migrations) {
        Err(error) if is_disk_full(&error) => {
            // The index of the write-ahead log is a file beside the database. In exclusive mode, it is in memory.
            let connection = Connection::open(path)?;
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            let connection = prepare(connection, migrations)?;
            tracing::warn!(path = %path.display(), "opened a database on a full disk; no other process can open it until the daemon is started again");
            Ok(connection)
        }
        opened => opened,
    }
}

/// Sets up a connection and migrates the schema. Each migration raises the schema version by one.
pub fn prepare(mut connection: Connection, migrations: &[&str]) -> Result<Connection, DatabaseError> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // FULL: acknowledged data survives a power failure, not only a crash of the daemon.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    if version > migrations.len() {
        return Err(DatabaseError::TooNew { found: version, known: migrations.len() });
    }
    for (step, sql) in migrations.iter().enumerate().skip(version) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", i64::try_from(step + 1).unwrap_or(i64::MAX))?;
        transaction.commit()?;
    }
    Ok(connection)
}
