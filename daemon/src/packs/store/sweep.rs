//! Frees content that no tree references and that nobody has asked for within the grace period. Segments without
//! needed content are removed; the content of sparse segments is moved to a new segment.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use hearth_pack::identity::ContentHash;
use rusqlite::{Row, params};

use super::index::{
    ASKED_ACCURACY, ContentIndex, ContentKey, ContentSegment, FrameLocation, concatenate, over_keys,
};
use super::segment::ContentSegmentWriter;
use super::{ContentStore, ContentStoreInner, OwnerKey, segment};
use crate::database::DatabaseError;

/// Maximum number of contents that are looked at or removed while the index is locked.
const MAX_REMOVED: usize = 1 << 13;

/// Result of a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackSweepResult {
    /// Number of removed contents.
    pub contents: u64,
    /// Number of freed bytes on disk.
    pub bytes: u64,
}

impl ContentStore {
    /// Removes all content that is neither in `live`, nor a piece of live content, nor asked for within `grace`.
    /// Contents in `ended` (of an abandoned upload) have no grace period if they have no other owner. With `ended` or
    /// without a grace period, the segment that is being written is closed first, so that its space can be freed,
    /// too.
    pub fn sweep(
        &self,
        live: &HashSet<ContentHash>,
        grace: Duration,
        ended: Option<&(OwnerKey, Vec<ContentHash>)>,
    ) -> io::Result<PackSweepResult> {
        let live = self.with_pieces(live)?;
        let before = self.used_bytes();
        let mut contents = 0;
        if let Some((owner, ended)) = ended {
            let keys: Vec<ContentKey> = ended.iter().map(ContentKey::of).collect();
            for keys in keys.chunks(MAX_REMOVED) {
                let mut index = self.0.index();
                let alone = index.owned_only_by(owner, keys)?;
                contents += index.remove(alone.iter().filter(|key| !live.contains(key)))?;
            }
        }
        let oldest = match u32::try_from(grace.as_secs()) {
            Ok(0) => u32::MAX,
            grace => self.0.now().saturating_sub(grace.unwrap_or(u32::MAX).saturating_add(ASKED_ACCURACY)),
        };
        let mut after = Vec::new();
        loop {
            let mut index = self.0.index();
            let batch = index.next_asked_before(oldest, &after)?;
            let Some((last, _)) = batch.last() else { break };
            after = last.0.to_vec();
            let expired = batch.iter().filter(|(_, expired)| *expired).map(|(key, _)| key);
            contents += index.remove(expired.filter(|key| !live.contains(key)))?;
        }
        self.0.compact(grace.is_zero() || ended.is_some())?;
        let index = self.0.index();
        index.recount_sent()?;
        Ok(PackSweepResult { contents, bytes: before.saturating_sub(index.used_bytes()) })
    }

    fn with_pieces(&self, live: &HashSet<ContentHash>) -> io::Result<HashSet<ContentKey>> {
        let mut all: HashSet<ContentKey> = live.iter().map(ContentKey::of).collect();
        let sql = "SELECT key FROM contents WHERE recipe";
        let mut recipes: Vec<ContentKey> = self.0.index().query(sql, [], ContentKey::from_row)?;
        recipes.retain(|recipe| all.contains(recipe));
        for recipe in recipes {
            let Some(lying) = self.0.index().locate(&recipe)? else { continue };
            all.extend(lying.read_recipe()?.iter().map(|piece| ContentKey::of(&piece.hash)));
        }
        Ok(all)
    }
}

impl ContentStoreInner {
    /// Removes empty segments, and moves the content of sparse ones.
    fn compact(&self, close: bool) -> io::Result<()> {
        // The lock blocks appends meanwhile; reads continue.
        let mut held = self.writer();
        self.index().remove_empty_frames()?;
        self.sync(&mut held)?;
        let losses = self.index().losses()?;
        if close {
            *held = None;
        }
        let current = held.as_ref().map(|writer| writer.number);
        // Empty segments are removed first, because moving content needs space.
        let (empty, moving): (Vec<_>, Vec<_>) =
            self.index().sparse_segments(current)?.into_iter().partition(|(_, needed)| *needed == 0);
        self.remove_segments(&empty)?;
        for (number, _) in &moving {
            let frames = self.index().frames_of(*number)?;
            for (id, from) in frames {
                let writer = self.open_writer(&mut held)?;
                self.move_frame(writer, id, &from)?;
            }
        }
        // Content whose new location was lost is still in its old segment.
        self.sync_since(&mut held, losses)?;
        self.remove_segments(&moving)
    }

    fn remove_segments(&self, segments: &[(u32, u64)]) -> io::Result<()> {
        for (number, _) in segments {
            self.index().segments.remove(number);
            segment::remove(&self.directory, *number)?;
        }
        Ok(())
    }

    fn move_frame(&self, writer: &mut ContentSegmentWriter, id: i64, from: &FrameLocation) -> io::Result<()> {
        let file = self.index().segments.get(&from.segment).map(|segment| Arc::clone(&segment.content));
        let Some(file) = file else { return Ok(()) };
        let mut bytes = vec![0; from.length as usize];
        file.read_exact_at(&mut bytes, from.start.into())?;
        let (to, mut index) = self.append_frame(writer, &bytes)?;
        Ok(index.move_frame(id, &to)?)
    }
}

impl ContentIndex {
    /// Returns those of these contents that are present and owned by `owner` only.
    fn owned_only_by(
        &self,
        owner: &OwnerKey,
        keys: &[ContentKey],
    ) -> Result<HashSet<ContentKey>, DatabaseError> {
        let sql = over_keys!(
            "SELECT key FROM keys CROSS JOIN contents USING (key) CROSS JOIN frames ON id = frame
             WHERE frames.owner = ?2 AND NOT EXISTS (
                 SELECT 1 FROM content_owners WHERE key = contents.key AND owner <> ?2)"
        );
        self.query(sql, params![concatenate(keys), owner.0], ContentKey::from_row)
    }

    /// Returns the next contents after `after`, in the order of their keys, and whether each was last asked for before
    /// `oldest`. The number of contents bounds the time for which the index is locked.
    fn next_asked_before(&self, oldest: u32, after: &[u8]) -> Result<Vec<(ContentKey, bool)>, DatabaseError> {
        let sql = "SELECT key, asked < ?2 FROM contents WHERE key > ?1 ORDER BY key LIMIT ?3";
        let most = u32::try_from(MAX_REMOVED).unwrap_or(u32::MAX);
        self.query(sql, params![after, oldest, most], |row| Ok((ContentKey::from_row(row)?, row.get(1)?)))
    }

    /// Removes contents and their owners. Returns the number of removed contents.
    fn remove<'k>(&mut self, keys: impl Iterator<Item = &'k ContentKey>) -> Result<u64, DatabaseError> {
        let keys = concatenate(keys);
        if keys.is_empty() {
            return Ok(0);
        }
        self.begin()?;
        let sql = over_keys!("DELETE FROM contents WHERE key IN (SELECT key FROM keys)");
        Ok(self.database.prepare_cached(sql)?.execute([keys])? as u64)
    }

    fn remove_empty_frames(&mut self) -> Result<(), DatabaseError> {
        self.begin()?;
        let sql = "DELETE FROM frames WHERE NOT EXISTS (SELECT 1 FROM contents WHERE frame = id)";
        self.database.execute(sql, [])?;
        Ok(())
    }

    /// Returns the segments of which less than half is needed, except for the one that is being written, with the
    /// number of needed bytes.
    fn sparse_segments(&self, current: Option<u32>) -> Result<Vec<(u32, u64)>, DatabaseError> {
        let sql = "SELECT segment, sum(length) FROM frames GROUP BY segment";
        let row = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned()));
        let needed: HashMap<u32, u64> = self.query(sql, [], row)?;
        let is_sparse = |(number, segment): (&u32, &ContentSegment)| {
            let needed = needed.get(number).copied().unwrap_or_default();
            let sparse = Some(*number) != current && needed * 2 < u64::from(segment.length).max(1);
            sparse.then_some((*number, needed))
        };
        Ok(self.segments.iter().filter_map(is_sparse).collect())
    }

    /// Returns the frames of a segment with their ids.
    fn frames_of(&self, segment: u32) -> Result<Vec<(i64, FrameLocation)>, DatabaseError> {
        let row = |row: &Row<'_>| {
            Ok((row.get(0)?, FrameLocation { segment, start: row.get(1)?, length: row.get(2)? }))
        };
        self.query("SELECT id, start, length FROM frames WHERE segment = ?1", [segment], row)
    }

    fn move_frame(&mut self, id: i64, to: &FrameLocation) -> Result<(), DatabaseError> {
        self.begin()?;
        let sql = "UPDATE frames SET segment = ?2, start = ?3 WHERE id = ?1";
        self.database.prepare_cached(sql)?.execute(params![id, to.segment, to.start])?;
        Ok(())
    }
}
