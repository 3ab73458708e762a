//! Index of the store's contents: an SQLite database beside the segments.
//!
//! Changes belong to one transaction, which stays open until the content that its rows point to is durable. The same
//! connection reads them at once; a crash discards them. SQLite discards them, too, when one statement finds the disk
//! full. Each such loss is counted, so that no upload takes rows for durable that are gone. Contents are looked up in
//! batches in the order of their keys: a statement for each would take five times as long.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use hearth_pack::identity::ContentHash;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _, Params, Row, params};

use super::OwnerKey;
use super::quotas::OwnerQuotas;
use crate::database::{self, DatabaseError};

/// Schema migrations. Entries are only ever appended.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql")];
/// Maximum number of contents in one statement; it bounds the time for which the index is locked.
pub(super) const MAX_BATCH: usize = 1 << 16;
/// Negative size of the page cache in KiB. It is for the transaction of an upload, which writes pages all over the table.
const CACHE_KIB: i32 = -8192;
/// Accuracy in seconds of the time when a content was last asked for: a later request within it changes nothing.
pub(super) const ASKED_ACCURACY: u32 = 600;

/// Statement over the table `keys(number, key)`, which holds the keys that [`concatenate`] made to parameter 1.
macro_rules! over_keys {
    ($sql:literal) => {
        concat!(
            "WITH RECURSIVE numbers(number) AS (SELECT 0 UNION ALL
                 SELECT number + 1 FROM numbers WHERE number + 1 < length(?1) / 16),
             keys(number, key) AS (SELECT number, substr(?1, number * 16 + 1, 16) FROM numbers) ",
            $sql
        )
    };
}
pub(super) use over_keys;

/// First half of a content's hash. Finding two different contents with the same half is infeasible; content that is
/// read is nevertheless compared with the complete hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct ContentKey(pub [u8; 16]);

impl ContentKey {
    pub(super) fn of(hash: &ContentHash) -> Self {
        let mut key = [0; 16];
        key.copy_from_slice(&hash.as_bytes()[..16]);
        Self(key)
    }

    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        row.get(0).map(Self)
    }
}

/// Concatenates keys for [`over_keys`].
pub(super) fn concatenate<'k>(keys: impl IntoIterator<Item = &'k ContentKey>) -> Vec<u8> {
    keys.into_iter().flat_map(|key| key.0).collect()
}

/// Index of contents, frames and segments.
#[derive(Debug)]
pub(super) struct ContentIndex {
    pub database: Connection,
    pub segments: BTreeMap<u32, ContentSegment>,
    /// Counted again when changes were lost. Lock order: this after the index.
    pub quotas: Arc<Mutex<OwnerQuotas>>,
    /// Number of the next segment.
    pub next_segment: u32,
    /// Changes were made that are not durable.
    has_changes: bool,
    /// Number of times that changes were lost, and their number at the last [`take_loss`](Self::take_loss).
    losses: u64,
    reported_losses: u64,
}

/// Content file of a segment and its length in bytes.
#[derive(Debug)]
pub(super) struct ContentSegment {
    pub content: Arc<File>,
    pub length: u32,
}

/// Location of a zstd frame, which holds contents that were sent together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameLocation {
    pub segment: u32,
    /// Offset in the segment; `length` is the compressed size. Both are in bytes.
    pub start: u32,
    pub length: u32,
}

/// Content of a frame: a range of the decompressed frame in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FrameContent {
    pub key: ContentKey,
    pub inside: u32,
    pub size: u32,
}

/// Location of a content: the file, the frame in it, and the range in the frame.
pub(super) struct ContentLocation {
    pub file: Arc<File>,
    /// Id of the frame.
    pub id: i64,
    pub frame: FrameLocation,
    pub content: FrameContent,
    pub recipe: bool,
}

/// Content that was looked up for an owner.
#[derive(Clone, Copy)]
pub(super) struct FoundContent {
    pub size: u32,
    pub recipe: bool,
    pub is_own: bool,
}

impl ContentIndex {
    pub(super) fn open(path: &Path) -> Result<Self, DatabaseError> {
        let database = database::open(path, MIGRATIONS)?;
        database.pragma_update(None, "cache_size", CACHE_KIB)?;
        database.set_prepared_statement_cache_capacity(32);
        Ok(Self {
            database,
            segments: BTreeMap::new(),
            quotas: Arc::default(),
            next_segment: 0,
            has_changes: false,
            losses: 0,
            reported_losses: 0,
        })
    }

    /// Returns the rows of a statement as a collection.
    pub(super) fn query<T, C: FromIterator<T>>(
        &self,
        sql: &str,
        parameters: impl Params,
        row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<C, DatabaseError> {
        Ok(self.database.prepare_cached(sql)?.query_map(parameters, row)?.collect::<Result<C, _>>()?)
    }

    /// Begins a transaction unless one is open.
    pub(super) fn begin(&mut self) -> Result<(), DatabaseError> {
        self.count_losses()?;
        if !self.has_changes {
            self.database.execute_batch("BEGIN IMMEDIATE")?;
            self.has_changes = true;
        }
        Ok(())
    }

    /// Makes the changes durable. The content that they point to is durable already.
    pub(super) fn commit(&mut self) -> Result<(), DatabaseError> {
        self.count_losses()?;
        if self.has_changes {
            if let Err(error) = self.database.execute_batch("COMMIT") {
                self.count_losses()?;
                return Err(error.into());
            }
            self.has_changes = false;
            self.database.execute_batch("PRAGMA shrink_memory")?;
        }
        Ok(())
    }

    /// Returns the number of times that changes were lost so far.
    pub(super) fn losses(&mut self) -> Result<u64, DatabaseError> {
        self.count_losses()?;
        Ok(self.losses)
    }

    /// Fails if changes were lost since the last call.
    pub(super) fn take_loss(&mut self) -> Result<(), DatabaseError> {
        let losses = self.losses()?;
        if std::mem::replace(&mut self.reported_losses, losses) == losses {
            Ok(())
        } else {
            Err(DatabaseError::ChangesLost)
        }
    }

    /// Counts a loss if SQLite has rolled the transaction back.
    fn count_losses(&mut self) -> Result<(), DatabaseError> {
        if self.has_changes && self.database.is_autocommit() {
            self.has_changes = false;
            self.losses += 1;
            self.recount_sent()?;
        }
        Ok(())
    }

    /// Returns the latest time when a content was asked for.
    pub(super) fn latest_time(&self) -> Result<u32, DatabaseError> {
        let sql = "SELECT coalesce(max(asked), 0) FROM contents";
        Ok(self.database.query_row(sql, [], |row| row.get(0))?)
    }

    /// Looks up contents, and records that they were asked for.
    pub(super) fn find(
        &self,
        owner: &OwnerKey,
        keys: &[ContentKey],
        now: u32,
    ) -> Result<Vec<Option<FoundContent>>, DatabaseError> {
        let mut sorted: Vec<(ContentKey, usize)> = keys.iter().copied().zip(0..).collect();
        sorted.sort_unstable_by_key(|(key, _)| u128::from_be_bytes(key.0));
        let bytes = concatenate(sorted.iter().map(|(key, _)| key));
        let mut found = vec![None; keys.len()];
        let mut oldest = now;
        let mut statement = self.database.prepare_cached(over_keys!(
            "SELECT number, size, recipe, asked, frames.owner = ?2 OR EXISTS (
                 SELECT 1 FROM content_owners WHERE key = contents.key AND owner = ?2)
             FROM keys CROSS JOIN contents USING (key) CROSS JOIN frames ON id = frame"
        ))?;
        let mut rows = statement.query(params![bytes, owner.0])?;
        while let Some(row) = rows.next()? {
            let (_, number) = sorted[row.get::<_, u32>(0)? as usize];
            found[number] =
                Some(FoundContent { size: row.get(1)?, recipe: row.get(2)?, is_own: row.get(4)? });
            oldest = oldest.min(row.get(3)?);
        }
        if let Some(before) = now.checked_sub(ASKED_ACCURACY).filter(|before| oldest < *before) {
            let sql = over_keys!(
                "UPDATE contents SET asked = ?2 WHERE key IN (SELECT key FROM keys) AND asked < ?3"
            );
            self.database.prepare_cached(sql)?.execute(params![bytes, now, before])?;
        }
        Ok(found)
    }

    pub(super) fn locate(&self, key: &ContentKey) -> Result<Option<ContentLocation>, DatabaseError> {
        let sql = "SELECT id, segment, start, length, inside, size, recipe
                   FROM contents CROSS JOIN frames ON id = frame WHERE key = ?1";
        let row = |row: &Row<'_>| {
            let frame = FrameLocation { segment: row.get(1)?, start: row.get(2)?, length: row.get(3)? };
            let content = FrameContent { key: *key, inside: row.get(4)?, size: row.get(5)? };
            Ok((row.get(0)?, frame, content, row.get(6)?))
        };
        let found = self.database.prepare_cached(sql)?.query_row([key.0], row).optional()?;
        Ok(found.and_then(|(id, frame, content, recipe)| {
            let file = Arc::clone(&self.segments.get(&frame.segment)?.content);
            Some(ContentLocation { file, id, frame, content, recipe })
        }))
    }

    /// Returns the contents of a frame in the order of their keys.
    pub(super) fn contents_of(&self, frame: i64) -> Result<Vec<FrameContent>, DatabaseError> {
        let sql = "SELECT key, inside, size FROM contents WHERE frame = ?1 ORDER BY key";
        let row = |row: &Row<'_>| {
            Ok(FrameContent { key: ContentKey::from_row(row)?, inside: row.get(1)?, size: row.get(2)? })
        };
        self.query(sql, [frame], row)
    }

    /// Adds a frame and those of its contents that are not in the index yet.
    pub(super) fn insert(
        &self,
        frame: &FrameLocation,
        owner: &OwnerKey,
        contents: &[FrameContent],
        recipe: bool,
        now: u32,
    ) -> Result<(), DatabaseError> {
        let FrameLocation { segment, start, length } = *frame;
        self.database
            .prepare_cached("INSERT INTO frames (segment, start, length, owner) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![segment, start, length, owner.0])?;
        let frame = self.database.last_insert_rowid();
        let mut statement = self.database.prepare_cached(
            "INSERT INTO contents (key, frame, inside, size, recipe, asked) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT DO NOTHING",
        )?;
        for FrameContent { key, inside, size } in contents {
            statement.execute(params![key.0, frame, inside, size, recipe, now])?;
        }
        Ok(())
    }

    /// Makes `owner` an additional owner of those of these contents that are present.
    pub(super) fn add_owner(&self, owner: &OwnerKey, keys: &[ContentKey]) -> Result<(), DatabaseError> {
        let sql = over_keys!(
            "INSERT OR IGNORE INTO content_owners (key, owner)
             SELECT key, ?2 FROM keys CROSS JOIN contents USING (key) CROSS JOIN frames ON id = frame
             WHERE frames.owner <> ?2"
        );
        let mut statement = self.database.prepare_cached(sql)?;
        for keys in keys.chunks(MAX_BATCH) {
            statement.execute(params![concatenate(keys), owner.0])?;
        }
        Ok(())
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.segments.values().map(|segment| u64::from(segment.length)).sum()
    }

    pub(super) fn recount_sent(&self) -> Result<(), DatabaseError> {
        let sql = "SELECT owner, sum(length) FROM frames GROUP BY owner";
        let row = |row: &Row<'_>| Ok((OwnerKey(row.get(0)?), row.get::<_, i64>(1)?.cast_unsigned()));
        let sent: HashMap<OwnerKey, u64> = self.query(sql, [], row)?;
        self.quotas.lock().recount(sent);
        Ok(())
    }
}
