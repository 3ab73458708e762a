//! Content-addressed store by BLAKE3 hash that packs many small contents into few files.
//!
//! ```text
//! <root>/<number>.content    concatenated zstd frames that hold the contents
//! <root>/<number>.rows       the location and the owner of each content
//!
//! append --> written, readable, discarded after a crash
//!   sync --> content durable --> rows written --> rows durable
//! ```
//!
//! At startup, content that no row points to is discarded. After a crash each content is therefore either complete or
//! missing. Every content is verified again when it is read.
//!
//! A file larger than a piece is stored as a *recipe*: the list of its pieces, under the hash of the whole file.
//!
//! Content has *owners*: the participants who have sent it or proven that they have it. A content's hash alone gives
//! nobody else access.

mod append;
mod frames;
mod index;
mod rows;
mod segment;
mod sweep;
mod table;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hearth_pack::identity::ContentHash;
use parking_lot::{Mutex, MutexGuard};

use crate::context::pack::ContentPiece;
use frames::FrameCache;
use index::{ContentIndex, ContentLocation, ContentSegment};
use rows::FrameSlice;
use segment::ContentSegmentWriter;
use table::ContentKey;

pub use append::{AppendError, ContentBatch, StoreLimits};
pub use sweep::PackSweepResult;

/// Maximum size of a piece, and of the decompressed content of one frame, in bytes.
pub const MAX_PIECE_SIZE: u32 = 4 << 20;

/// Key of a participant in the store: the first 16 bytes of the BLAKE3 hash of the participant's name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct OwnerKey([u8; 16]);

impl OwnerKey {
    pub fn of(name: &str) -> Self {
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..16]);
        Self(key)
    }

    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Presence of a content in the store from one participant's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentPresence {
    Missing,
    /// Present, but owned only by other participants.
    Foreign,
    Own,
}

/// Handle to the store; cheap to clone. All methods block.
#[derive(Clone, Debug)]
pub struct ContentStore(Arc<ContentStoreInner>);

#[derive(Debug)]
struct ContentStoreInner {
    directory: PathBuf,
    limits: StoreLimits,
    opened: Instant,
    /// Segment that is being appended to. Lock order: this before `index`.
    writer: Mutex<Option<ContentSegmentWriter>>,
    index: Mutex<ContentIndex>,
}

/// Reader of contents with a cache of the latest few frames: neighbours in a tree are mostly in the same frame.
#[derive(Debug)]
pub struct ContentStoreReader {
    store: ContentStore,
    frames: FrameCache,
}

impl ContentStore {
    /// Opens the store at `directory`, or creates it.
    pub fn open(directory: &Path, limits: StoreLimits) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mut numbers = Vec::new();
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.split('.').next()?.parse().ok());
            numbers.extend(number.filter(|number: &u32| !numbers.contains(number)));
        }
        numbers.sort_unstable();
        let mut index = ContentIndex::default();
        for number in numbers {
            index.next_segment = number + 1;
            if let Some((content, length, rows)) = segment::reopen(directory, number)? {
                index.segments.insert(number, ContentSegment { content, length });
                index.reopen(number, &rows);
            }
        }
        index.recount_sent();
        Ok(Self(Arc::new(ContentStoreInner {
            directory: directory.to_owned(),
            limits,
            opened: Instant::now(),
            writer: Mutex::new(None),
            index: Mutex::new(index),
        })))
    }

    /// Reports the presence of these contents for `owner`, in order. Present contents are protected from sweeps for
    /// the grace period.
    pub fn presence<'a>(
        &self,
        owner: &OwnerKey,
        contents: impl Iterator<Item = (&'a ContentHash, u64)>,
    ) -> io::Result<Vec<ContentPresence>> {
        let now = self.0.now();
        let mut recipes = Vec::new();
        let mut number = 0;
        let mut index = self.0.index();
        let look = |(hash, size): (&'a ContentHash, u64)| {
            number += 1;
            let key = ContentKey::of(hash);
            let Some(known) = index.contents.get_mut(&key) else { return ContentPresence::Missing };
            if known.is_recipe() {
                recipes.push((number - 1, *hash, size));
            } else if u64::from(known.size) != size {
                return ContentPresence::Missing;
            }
            known.last_asked = now;
            let known = *known;
            if index.is_own(&key, &known, owner) { ContentPresence::Own } else { ContentPresence::Foreign }
        };
        let mut found: Vec<ContentPresence> = contents.map(look).collect();
        drop(index);
        for (number, hash, size) in recipes {
            let pieces = self.pieces(&hash)?.unwrap_or_default();
            if pieces.iter().map(|piece| u64::from(piece.size)).sum::<u64>() != size {
                found[number] = ContentPresence::Missing;
            }
        }
        Ok(found)
    }

    /// Returns a reader with a frame cache of its own.
    pub fn reader(&self) -> ContentStoreReader {
        ContentStoreReader { store: self.clone(), frames: FrameCache::default() }
    }

    /// Returns the pieces of a content, or `None` if it is missing. A small content is its own only piece.
    pub fn pieces(&self, hash: &ContentHash) -> io::Result<Option<Vec<ContentPiece>>> {
        let Some(lying) = self.0.locate(hash) else { return Ok(None) };
        if !lying.recipe {
            return Ok(Some(vec![ContentPiece { hash: *hash, size: lying.place.size }]));
        }
        let list = slice_of_frame(&frames::read_frame(&lying)?, &lying.place)?;
        let piece = |bytes: &[u8]| {
            let (hash, size) = bytes.split_at(32);
            Some(ContentPiece {
                hash: ContentHash::from_bytes(hash.try_into().ok()?),
                size: u32::from_le_bytes(size.try_into().ok()?),
            })
        };
        Ok(Some(list.chunks_exact(36).filter_map(piece).collect()))
    }

    pub fn limits(&self) -> StoreLimits {
        self.0.limits
    }

    /// Counts content of `owner` against the quota of `share` from now on.
    pub fn set_share(&self, owner: OwnerKey, share: OwnerKey) {
        self.0.index().set_share(owner, share);
    }

    /// Returns the number of bytes on disk that a participant has sent.
    pub fn bytes_sent_by(&self, owner: &OwnerKey) -> u64 {
        self.0.index().sent.get(owner).copied().unwrap_or_default()
    }

    /// Returns the number of bytes on disk.
    pub fn used_bytes(&self) -> u64 {
        self.0.index().used_bytes()
    }
}

impl ContentStoreInner {
    fn now(&self) -> u32 {
        u32::try_from(self.opened.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    fn index(&self) -> MutexGuard<'_, ContentIndex> {
        // Every change under the lock is one insertion or removal, so the index stays consistent after a panic.
        self.index.lock()
    }

    fn writer(&self) -> MutexGuard<'_, Option<ContentSegmentWriter>> {
        self.writer.lock()
    }

    fn locate(&self, hash: &ContentHash) -> Option<ContentLocation> {
        self.index().locate(&ContentKey::of(hash))
    }
}

impl ContentStoreReader {
    /// Returns a verified content that is one piece, or `None` if it is missing.
    pub fn piece(&self, hash: &ContentHash) -> io::Result<Option<Bytes>> {
        let Some(lying) = self.store.0.locate(hash).filter(|lying| !lying.recipe) else { return Ok(None) };
        let content = slice_of_frame(&self.frames.get(&lying)?, &lying.place)?;
        if ContentHash::of(&content) != *hash {
            let what = format!("stored content {hash} is damaged");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(Some(content))
    }

    /// Returns the pieces of a content. See [`ContentStore::pieces`].
    pub fn pieces(&self, hash: &ContentHash) -> io::Result<Option<Vec<ContentPiece>>> {
        self.store.pieces(hash)
    }
}

fn slice_of_frame(frame: &Bytes, place: &FrameSlice) -> io::Result<Bytes> {
    let FrameSlice { inside, size, .. } = *place;
    let (start, end) = (inside as usize, inside as usize + size as usize);
    if end > frame.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a stored frame is shorter than its index row says",
        ));
    }
    Ok(frame.slice(start..end))
}

/// Returns the time `age` before `now` in seconds of the store's own clock, at least 0, which is when the store was
/// opened.
fn seconds_before(now: u32, age: Duration) -> u32 {
    now.saturating_sub(u32::try_from(age.as_secs()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
