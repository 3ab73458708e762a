//! Content-addressed store by BLAKE3 hash that packs many small contents into few files.
//!
//! ```text
//! <root>/<number>.content    a segment: concatenated zstd frames that hold the contents
//! <root>/index.db            SQLite: the location and the owners of each content
//!
//! append --> written, readable, discarded after a crash
//!   sync --> content durable --> rows committed
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
mod earlier_index;
mod frames;
mod index;
mod quotas;
mod segment;
mod sweep;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hearth_pack::identity::ContentHash;
use parking_lot::{Mutex, MutexGuard};

use crate::context::ContentPiece;
use frames::FrameCache;
use index::{ContentIndex, ContentKey, ContentLocation, MAX_BATCH};
use quotas::OwnerQuotas;
use segment::ContentSegmentWriter;

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
    /// Time of the store's clock when it was opened, in seconds: the latest time in the index. The clock stands still
    /// while the store is closed, so that nothing is removed because the daemon did not run.
    clock: u32,
    /// Segment that is being appended to. Lock order: this before `index`.
    writer: Mutex<Option<ContentSegmentWriter>>,
    index: Mutex<ContentIndex>,
    quotas: Arc<Mutex<OwnerQuotas>>,
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
        let mut index = ContentIndex::open(&directory.join("index.db"))?;
        index.import(directory)?;
        index.open_segments(directory)?;
        index.recount_sent()?;
        Ok(Self(Arc::new(ContentStoreInner {
            directory: directory.to_owned(),
            limits,
            opened: Instant::now(),
            clock: index.latest_time()?,
            writer: Mutex::new(None),
            quotas: Arc::clone(&index.quotas),
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
        let contents: Vec<(&ContentHash, u64)> = contents.collect();
        let mut presence = Vec::with_capacity(contents.len());
        for batch in contents.chunks(MAX_BATCH) {
            let keys: Vec<ContentKey> = batch.iter().map(|(hash, _)| ContentKey::of(hash)).collect();
            let found = self.0.index().find(owner, &keys, now)?;
            for ((hash, size), found) in batch.iter().zip(found) {
                let stored = match found {
                    Some(found) if found.recipe => {
                        let pieces = self.pieces(hash)?.unwrap_or_default();
                        pieces.iter().map(|piece| u64::from(piece.size)).sum()
                    }
                    other => other.map_or(0, |found| u64::from(found.size)),
                };
                presence.push(match found {
                    Some(found) if stored == *size && found.is_own => ContentPresence::Own,
                    Some(_) if stored == *size => ContentPresence::Foreign,
                    _ => ContentPresence::Missing,
                });
            }
        }
        Ok(presence)
    }

    /// Returns a reader with a frame cache of its own.
    pub fn reader(&self) -> ContentStoreReader {
        ContentStoreReader { store: self.clone(), frames: FrameCache::default() }
    }

    /// Returns the pieces of a content, or `None` if it is missing. A small content is its own only piece.
    pub fn pieces(&self, hash: &ContentHash) -> io::Result<Option<Vec<ContentPiece>>> {
        let Some(lying) = self.0.locate(hash)? else { return Ok(None) };
        if !lying.recipe {
            return Ok(Some(vec![ContentPiece { hash: *hash, size: lying.content.size }]));
        }
        lying.read_recipe().map(Some)
    }

    pub fn limits(&self) -> StoreLimits {
        self.0.limits
    }

    /// Counts content of `owner` against the quota of `share` from now on.
    pub fn set_share(&self, owner: OwnerKey, share: OwnerKey) {
        self.0.quotas.lock().set_share(owner, share);
    }

    /// Returns the number of bytes on disk that a participant has sent.
    pub fn bytes_sent_by(&self, owner: &OwnerKey) -> u64 {
        self.0.quotas.lock().bytes_sent_by(owner)
    }

    /// Returns the number of bytes on disk.
    pub fn used_bytes(&self) -> u64 {
        self.0.index().used_bytes()
    }
}

impl ContentStoreInner {
    fn now(&self) -> u32 {
        self.clock.saturating_add(u32::try_from(self.opened.elapsed().as_secs()).unwrap_or(u32::MAX))
    }

    fn index(&self) -> MutexGuard<'_, ContentIndex> {
        self.index.lock()
    }

    fn writer(&self) -> MutexGuard<'_, Option<ContentSegmentWriter>> {
        self.writer.lock()
    }

    fn locate(&self, hash: &ContentHash) -> io::Result<Option<ContentLocation>> {
        Ok(self.index().locate(&ContentKey::of(hash))?)
    }
}

impl ContentStoreReader {
    /// Returns a verified content that is one piece, or `None` if it is missing.
    pub fn piece(&self, hash: &ContentHash) -> io::Result<Option<Bytes>> {
        let key = ContentKey::of(hash);
        let content = match self.frames.find(&key) {
            Some(content) => content,
            None => {
                let index = self.store.0.index();
                let Some(lying) = index.locate(&key)?.filter(|lying| !lying.recipe) else { return Ok(None) };
                let contents = index.contents_of(lying.id)?;
                drop(index);
                self.frames.read(&lying, contents)?
            }
        };
        if ContentHash::of(&content) != *hash {
            let what = format!("stored content {hash} is damaged");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(Some(content))
    }

    /// Returns the pieces of a content. See [`ContentStore::pieces`].
    pub fn pieces(&self, hash: &ContentHash) -> io::Result<Option<Vec<ContentPiece>>> {
        match self.frames.find(&ContentKey::of(hash)) {
            Some(content) => Ok(Some(vec![ContentPiece { hash: *hash, size: content.len() as u32 }])),
            None => self.store.pieces(hash),
        }
    }
}

impl ContentLocation {
    /// Reads the pieces of a content that is stored as a recipe.
    fn read_recipe(&self) -> io::Result<Vec<ContentPiece>> {
        let list = self.content.slice_of(&frames::read_frame(self)?)?;
        let piece = |bytes: &[u8]| {
            let (hash, size) = bytes.split_at(32);
            Some(ContentPiece {
                hash: ContentHash::from_bytes(hash.try_into().ok()?),
                size: u32::from_le_bytes(size.try_into().ok()?),
            })
        };
        Ok(list.chunks_exact(36).filter_map(piece).collect())
    }
}

#[cfg(test)]
mod tests;
