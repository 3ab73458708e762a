//! Frees what nothing needs: content that no tree names and nobody has asked for lately. Segments without
//! needed content are removed; those with little of it are moved together.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use hearth_pack::identity::ContentHash;

use super::rows::{Kind, Place, Row};
use super::segment::Writer;
use super::{ContentStore, Index, Inner, Known, Segment, seconds_before, segment};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub contents: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

impl ContentStore {
    /// Removes all content that is neither in `live`, nor a piece of what is, nor asked for within `grace`.
    /// Without any grace, what is being written to is closed first, so that its space is freed too.
    pub fn sweep(&self, live: &HashSet<ContentHash>, grace: Duration) -> io::Result<Swept> {
        let live = self.with_pieces(live)?;
        let before = self.used();
        let oldest = seconds_before(self.0.now(), grace);
        let contents = {
            let mut index = self.0.index();
            let count = index.contents.len();
            index
                .contents
                .retain(|hash, known| live.contains(hash) || (known.touched >= oldest && !grace.is_zero()));
            let Index { contents, owners, .. } = &mut *index;
            owners.retain(|(hash, _)| contents.contains_key(hash));
            (count - index.contents.len()) as u64
        };
        if grace.is_zero()
            && let Some(mut writer) = self.0.writer().take()
        {
            writer.sync()?;
        }
        self.0.compact()?;
        let mut index = self.0.index();
        index.count_sent();
        Ok(Swept { contents, bytes: before.saturating_sub(index.used()) })
    }

    fn with_pieces(&self, live: &HashSet<ContentHash>) -> io::Result<HashSet<ContentHash>> {
        let recipes: Vec<ContentHash> = {
            let index = self.0.index();
            let is_recipe = |(hash, known): (&ContentHash, &Known)| known.recipe.then_some(*hash);
            index.contents.iter().filter_map(is_recipe).collect()
        };
        let mut all = live.clone();
        for recipe in recipes.iter().filter(|recipe| live.contains(recipe)) {
            all.extend(self.pieces(recipe)?.unwrap_or_default().iter().map(|piece| piece.hash));
        }
        Ok(all)
    }
}

/// A frame that is needed: its segment and where it begins there.
type FrameAt = (u32, u32);

impl Inner {
    /// Removes segments that hold nothing, and moves what little others hold. Who else has content is said
    /// in rows that may lie in a segment that goes; at worst they are asked for a proof again.
    fn compact(&self) -> io::Result<()> {
        // Nothing is appended meanwhile; reading goes on.
        let mut held = self.writer();
        let current = held.as_ref().map(|writer| writer.number);
        let (sparse, frames) = {
            let index = self.index();
            let sparse = index.sparse_segments(current);
            let frames = index.frames_of(&sparse);
            (sparse, frames)
        };
        // Those that hold nothing first: what is moved needs space.
        let (moving, empty): (Vec<u32>, Vec<u32>) =
            sparse.into_iter().partition(|number| frames.keys().any(|(segment, _)| segment == number));
        self.remove_segments(&empty)?;
        let mut moved = HashSet::new();
        for ((segment, frame), (length, contents)) in frames {
            let writer = self.open_writer(&mut held)?;
            self.move_frame(writer, (segment, frame), length, &contents)?;
            moved.extend(contents);
        }
        if let Some(writer) = held.as_mut() {
            let place = Place { frame: 0, length: 0, inside: 0, size: 0 };
            let index = self.index();
            for &(hash, owner) in index.owners.iter().filter(|(hash, _)| moved.contains(hash)) {
                writer.row(Row { hash, owner, kind: Kind::Owner, place });
            }
            drop(index);
            writer.sync()?;
        }
        self.remove_segments(&moving)
    }

    fn remove_segments(&self, numbers: &[u32]) -> io::Result<()> {
        for number in numbers {
            self.index().segments.remove(number);
            segment::remove(&self.directory, *number)?;
        }
        Ok(())
    }

    fn move_frame(
        &self,
        writer: &mut Writer,
        (from, frame): FrameAt,
        length: u32,
        contents: &[ContentHash],
    ) -> io::Result<()> {
        let file = self.index().segments.get(&from).map(|segment| Arc::clone(&segment.content));
        let Some(file) = file else { return Ok(()) };
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, frame.into())?;
        let start = writer.frame(&bytes)?;
        let mut index = self.index();
        let segment = Segment { content: Arc::clone(&writer.content), length: writer.end };
        index.segments.insert(writer.number, segment);
        for hash in contents {
            let Some(known) = index.contents.get_mut(hash) else { continue };
            known.segment = writer.number;
            known.place.frame = start;
            let kind = if known.recipe { Kind::Recipe } else { Kind::Piece };
            writer.row(Row { hash: *hash, owner: known.owner, kind, place: known.place });
        }
        Ok(())
    }
}

impl Index {
    /// Segments of which less than half is needed, the one that is written to aside.
    fn sparse_segments(&self, current: Option<u32>) -> HashSet<u32> {
        let frames: HashSet<(FrameAt, u32)> = self
            .contents
            .values()
            .map(|known| ((known.segment, known.place.frame), known.place.length))
            .collect();
        let mut needed: HashMap<u32, u64> = HashMap::new();
        for ((segment, _), length) in frames {
            *needed.entry(segment).or_default() += u64::from(length);
        }
        let is_sparse = |(number, segment): (&u32, &Segment)| {
            let needed = needed.get(number).copied().unwrap_or_default();
            (Some(*number) != current && needed * 2 < u64::from(segment.length).max(1)).then_some(*number)
        };
        self.segments.iter().filter_map(is_sparse).collect()
    }

    /// What of these segments is needed.
    fn frames_of(&self, segments: &HashSet<u32>) -> HashMap<FrameAt, (u32, Vec<ContentHash>)> {
        let mut frames: HashMap<FrameAt, (u32, Vec<ContentHash>)> = HashMap::new();
        for (hash, known) in self.contents.iter().filter(|(_, known)| segments.contains(&known.segment)) {
            let frame = frames.entry((known.segment, known.place.frame)).or_default();
            frame.0 = known.place.length;
            frame.1.push(*hash);
        }
        frames
    }
}
