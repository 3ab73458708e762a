//! In-memory index of the store's contents: 32 to 34 bytes for each content.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;

use super::OwnerKey;
use super::rows::{FrameSlice, IndexRow, RowKind};
use super::table::{ContentKey, ContentTable, IndexedContent};

/// Number of owners with a shared quota above which those without stored content are dropped.
const MAX_SHARES: usize = 4096;

/// Index of contents, frames and segments.
#[derive(Debug, Default)]
pub(super) struct ContentIndex {
    pub contents: ContentTable,
    /// Frames by frame number: [`IndexedContent::frame`] is an index into this vector.
    frames: Vec<FrameRecord>,
    /// Frame numbers that are not in use.
    free_frames: Vec<u32>,
    /// Additional owners of contents; the first owner is in the frame.
    pub extra_owners: HashSet<(ContentKey, OwnerKey)>,
    pub segments: BTreeMap<u32, ContentSegment>,
    /// Bytes of frames, by the owner who sent them.
    pub sent: HashMap<OwnerKey, u64>,
    /// Owner whose quota another owner's bytes count against. Owners with a quota of their own have no entry.
    quota_owner_of: HashMap<OwnerKey, OwnerKey>,
    /// Number of the next segment.
    pub next_segment: u32,
}

/// Location and first owner of a zstd frame, which holds contents that were sent together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameRecord {
    pub segment: u32,
    /// Offset in the segment.
    pub start: u32,
    pub length: u32,
    pub owner: OwnerKey,
}

/// Content file of a segment and its length in bytes.
#[derive(Debug)]
pub(super) struct ContentSegment {
    pub content: Arc<File>,
    pub length: u32,
}

/// Location of a content: the file and the frame in it.
pub(super) struct ContentLocation {
    pub file: Arc<File>,
    pub segment: u32,
    pub place: FrameSlice,
    pub recipe: bool,
}

impl ContentIndex {
    pub(super) fn frame(&self, known: &IndexedContent) -> &FrameRecord {
        &self.frames[known.frame as usize]
    }

    pub(super) fn is_own(&self, key: &ContentKey, known: &IndexedContent, owner: &OwnerKey) -> bool {
        self.frame(known).owner == *owner || self.extra_owners.contains(&(*key, *owner))
    }

    pub(super) fn locate(&self, key: &ContentKey) -> Option<ContentLocation> {
        let known = self.contents.get(key)?;
        let FrameRecord { segment, start, length, .. } = *self.frame(known);
        let place = FrameSlice { frame: start, length, inside: known.inside(), size: known.size };
        let file = Arc::clone(&self.segments.get(&segment)?.content);
        Some(ContentLocation { file, segment, place, recipe: known.is_recipe() })
    }

    /// Adds a frame and returns its number.
    pub(super) fn add_frame(&mut self, frame: FrameRecord) -> u32 {
        match self.free_frames.pop() {
            Some(number) => {
                self.frames[number as usize] = frame;
                number
            }
            None => {
                self.frames.push(frame);
                u32::try_from(self.frames.len() - 1).unwrap_or(u32::MAX)
            }
        }
    }

    /// Adds the rows of a segment from an earlier run.
    pub(super) fn reopen(&mut self, segment: u32, rows: &[IndexRow]) {
        let mut numbers = HashMap::new();
        for row in rows {
            let IndexRow { hash, owner, kind, place: FrameSlice { frame: start, length, .. } } = *row;
            if kind == RowKind::Owner {
                self.extra_owners.insert((ContentKey::of(&hash), owner));
                continue;
            }
            let frame = FrameRecord { segment, start, length, owner };
            let number = *numbers.entry(start).or_insert_with(|| self.add_frame(frame));
            self.insert(row, number, 0);
        }
    }

    /// Adds a content that is in the frame with this number.
    pub(super) fn insert(&mut self, row: &IndexRow, frame: u32, touched: u32) {
        let (key, FrameSlice { inside, size, .. }) = (ContentKey::of(&row.hash), row.place);
        let known = IndexedContent::new(frame, inside, size, row.kind == RowKind::Recipe, touched);
        // A second location in a later segment means that the content was moved there.
        if let Some(before) = self.contents.insert(key, known) {
            let first = self.frame(&before).owner;
            if first != row.owner {
                self.extra_owners.insert((key, first));
            }
        }
    }

    /// Removes the contents for which `stays` returns false. Returns the number of removed contents.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(&ContentKey, &IndexedContent) -> bool) -> u64 {
        let before = self.contents.len();
        self.contents.retain(|key, known| stays(key, known));
        let Self { contents, extra_owners: owners, .. } = self;
        owners.retain(|(key, _)| contents.get(key).is_some());
        self.release_empty_frames();
        (before - self.contents.len()) as u64
    }

    /// Makes the numbers of empty frames available again.
    fn release_empty_frames(&mut self) {
        let mut used = vec![false; self.frames.len()];
        self.contents.iter().for_each(|(_, known)| used[known.frame as usize] = true);
        let last = used.iter().rposition(|used| *used).map_or(0, |last| last + 1);
        self.frames.truncate(last);
        self.frames.shrink_to(last + last / 8);
        self.free_frames =
            (0..).zip(&used[..last]).filter_map(|(number, used)| (!used).then_some(number)).collect();
    }

    /// Returns the frames that hold content, with their numbers.
    pub(super) fn frames(&self) -> impl Iterator<Item = (u32, &FrameRecord)> {
        let free: HashSet<u32> = self.free_frames.iter().copied().collect();
        (0..).zip(&self.frames).filter(move |(number, _)| !free.contains(number))
    }

    /// Records the new location of a moved frame.
    pub(super) fn move_frame(&mut self, number: u32, segment: u32, start: u32) {
        if let Some(frame) = self.frames.get_mut(number as usize) {
            frame.segment = segment;
            frame.start = start;
        }
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.segments.values().map(|segment| u64::from(segment.length)).sum()
    }

    /// Returns the stored bytes of all owners who share the quota of `owner`.
    pub(super) fn bytes_sent_within_share(&self, owner: &OwnerKey) -> u64 {
        let share = |owner: &OwnerKey| *self.quota_owner_of.get(owner).unwrap_or(owner);
        let of = share(owner);
        self.sent.iter().filter(|(other, _)| share(other) == of).map(|(_, bytes)| bytes).sum()
    }

    pub(super) fn set_share(&mut self, owner: OwnerKey, share: OwnerKey) {
        if self.quota_owner_of.len() >= MAX_SHARES {
            let Self { quota_owner_of: share_of, sent, .. } = self;
            share_of.retain(|owner, _| sent.contains_key(owner));
        }
        self.quota_owner_of.insert(owner, share);
    }

    pub(super) fn recount_sent(&mut self) {
        let mut sent: HashMap<OwnerKey, u64> = HashMap::new();
        for (_, frame) in self.frames() {
            *sent.entry(frame.owner).or_default() += u64::from(frame.length);
        }
        self.sent = sent;
    }
}
