//! Frees content that no tree references and that nobody has asked for within the grace period. Segments without
//! needed content are removed; the content of sparse segments is moved to a new segment.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use hearth_pack::identity::ContentHash;

use super::index::{ContentIndex, ContentSegment, FrameRecord};
use super::rows::{FrameSlice, IndexRow, RowKind};
use super::segment::ContentSegmentWriter;
use super::table::ContentKey;
use super::{ContentStore, ContentStoreInner, OwnerKey, seconds_before, segment};

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
        let oldest = seconds_before(self.0.now(), grace);
        let contents = {
            let mut index = self.0.index();
            let ended =
                ended.map(|(owner, contents)| index.owned_only_by(owner, contents)).unwrap_or_default();
            index.retain(|key, known| {
                live.contains(key) || (known.last_asked >= oldest && !grace.is_zero() && !ended.contains(key))
            })
        };
        if (grace.is_zero() || ended.is_some())
            && let Some(mut writer) = self.0.writer().take()
        {
            writer.sync()?;
        }
        self.0.compact()?;
        let mut index = self.0.index();
        index.recount_sent();
        Ok(PackSweepResult { contents, bytes: before.saturating_sub(index.used_bytes()) })
    }

    fn with_pieces(&self, live: &HashSet<ContentHash>) -> io::Result<HashSet<ContentKey>> {
        let is_recipe = |hash: &&ContentHash| {
            let index = self.0.index();
            index.contents.get(&ContentKey::of(hash)).is_some_and(|known| known.is_recipe())
        };
        let recipes: Vec<&ContentHash> = live.iter().filter(is_recipe).collect();
        let mut all: HashSet<ContentKey> = live.iter().map(ContentKey::of).collect();
        for recipe in recipes {
            all.extend(
                self.pieces(recipe)?.unwrap_or_default().iter().map(|piece| ContentKey::of(&piece.hash)),
            );
        }
        Ok(all)
    }
}

impl ContentStoreInner {
    /// Removes empty segments, and moves the content of sparse ones. Rows that name additional owners may be lost
    /// with a removed segment; at worst such an owner is asked for a proof again.
    fn compact(&self) -> io::Result<()> {
        // The lock blocks appends meanwhile; reads continue.
        let mut held = self.writer();
        let current = held.as_ref().map(|writer| writer.number);
        let (sparse, frames) = {
            let index = self.index();
            let sparse = index.sparse_segments(current);
            let frames = index.frames_of(&sparse);
            (sparse, frames)
        };
        // Empty segments are removed first, because moving content needs space.
        let (moving, empty): (Vec<u32>, Vec<u32>) =
            sparse.into_iter().partition(|number| frames.contains_key(number));
        self.remove_segments(&empty)?;
        let mut moved = HashMap::new();
        for (number, frames) in &frames {
            // The complete hashes are only in the rows: the index has half of each.
            let mut rows: HashMap<u32, Vec<IndexRow>> = HashMap::new();
            for row in segment::read_rows(&self.directory, *number)? {
                if row.kind != RowKind::Owner && self.is_located_at(&row, *number) {
                    moved.insert(ContentKey::of(&row.hash), row.hash);
                    rows.entry(row.place.frame).or_default().push(row);
                }
            }
            for (frame, at) in frames {
                let writer = self.open_writer(&mut held)?;
                self.move_frame(writer, *frame, at, rows.get(&at.start).map_or(&[], Vec::as_slice))?;
            }
        }
        if let Some(writer) = held.as_mut() {
            let index = self.index();
            for (key, owner) in &index.extra_owners {
                let Some(&hash) = moved.get(key) else { continue };
                writer.queue_row(IndexRow {
                    hash,
                    owner: *owner,
                    kind: RowKind::Owner,
                    place: FrameSlice::default(),
                });
            }
            drop(index);
            writer.sync()?;
        }
        self.remove_segments(&moving)
    }

    /// Reports whether a row gives the current location of its content.
    fn is_located_at(&self, row: &IndexRow, segment: u32) -> bool {
        let index = self.index();
        index.contents.get(&ContentKey::of(&row.hash)).is_some_and(|known| {
            let frame = index.frame(known);
            (frame.segment, frame.start) == (segment, row.place.frame)
        })
    }

    fn remove_segments(&self, numbers: &[u32]) -> io::Result<()> {
        for number in numbers {
            self.index().segments.remove(number);
            segment::remove_files(&self.directory, *number)?;
        }
        Ok(())
    }

    fn move_frame(
        &self,
        writer: &mut ContentSegmentWriter,
        number: u32,
        from: &FrameRecord,
        rows: &[IndexRow],
    ) -> io::Result<()> {
        let file = self.index().segments.get(&from.segment).map(|segment| Arc::clone(&segment.content));
        let Some(file) = file else { return Ok(()) };
        let mut bytes = vec![0; from.length as usize];
        file.read_exact_at(&mut bytes, from.start.into())?;
        let start = writer.append_frame(&bytes)?;
        let mut index = self.index();
        let segment = ContentSegment { content: Arc::clone(&writer.content), length: writer.next_offset };
        index.segments.insert(writer.number, segment);
        index.move_frame(number, writer.number, start);
        for row in rows {
            writer.queue_row(IndexRow {
                place: FrameSlice { frame: start, ..row.place },
                owner: from.owner,
                ..*row
            });
        }
        Ok(())
    }
}

impl ContentIndex {
    /// Returns the keys of those contents that are present and owned by `owner` only.
    fn owned_only_by(&self, owner: &OwnerKey, contents: &[ContentHash]) -> HashSet<ContentKey> {
        let is_alone =
            |key: &ContentKey| self.contents.get(key).is_some_and(|known| self.frame(known).owner == *owner);
        let mut alone: HashSet<ContentKey> = contents.iter().map(ContentKey::of).filter(is_alone).collect();
        self.extra_owners
            .iter()
            .filter(|(_, other)| other != owner)
            .for_each(|(key, _)| _ = alone.remove(key));
        alone
    }

    /// Returns the segments of which less than half is needed, except for the one that is being written.
    fn sparse_segments(&self, current: Option<u32>) -> HashSet<u32> {
        let mut needed: HashMap<u32, u64> = HashMap::new();
        for (_, frame) in self.frames() {
            *needed.entry(frame.segment).or_default() += u64::from(frame.length);
        }
        let is_sparse = |(number, segment): (&u32, &ContentSegment)| {
            let needed = needed.get(number).copied().unwrap_or_default();
            (Some(*number) != current && needed * 2 < u64::from(segment.length).max(1)).then_some(*number)
        };
        self.segments.iter().filter_map(is_sparse).collect()
    }

    /// Returns the needed frames of these segments, by segment.
    fn frames_of(&self, segments: &HashSet<u32>) -> HashMap<u32, Vec<(u32, FrameRecord)>> {
        let mut frames: HashMap<u32, Vec<(u32, FrameRecord)>> = HashMap::new();
        for (number, frame) in self.frames().filter(|(_, frame)| segments.contains(&frame.segment)) {
            frames.entry(frame.segment).or_default().push((number, *frame));
        }
        frames
    }
}
