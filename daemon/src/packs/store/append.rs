//! Appends content to the store: adds it to the index and to the segment that is being written, within the limits.

use std::io;
use std::sync::Arc;

use hearth_pack::identity::ContentHash;
use parking_lot::MutexGuard;

use super::index::{ContentIndex, ContentKey, ContentSegment, FrameContent, FrameLocation};
use super::segment::ContentSegmentWriter;
use super::{ContentPiece, ContentStore, ContentStoreInner, OwnerKey};
use crate::database::DatabaseError;

/// Disk space limits of the store.
#[derive(Clone, Copy, Debug)]
pub struct StoreLimits {
    /// Maximum size of all segments, in bytes.
    pub total: u64,
    /// Maximum number of stored bytes that one participant and its services have sent.
    pub per_owner: u64,
    /// Minimum free space on the file system, in bytes.
    pub min_free: u64,
}

/// Error of storing content.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    #[error("the room keeps at most {limit} bytes of packs' content")]
    Quota { limit: u64 },
    #[error("one participant may have at most {limit} bytes of packs' content in the room")]
    OwnerQuota { limit: u64 },
    #[error("no space is left for packs' content")]
    NoSpace,
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for AppendError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Io(error),
        }
    }
}

impl From<DatabaseError> for AppendError {
    fn from(error: DatabaseError) -> Self {
        io::Error::from(error).into()
    }
}

/// Contents that were sent together: a zstd frame, and the pieces in its decompressed data, in order and without
/// gaps.
#[derive(Debug)]
pub struct ContentBatch<'a> {
    pub frame: &'a [u8],
    pub pieces: &'a [ContentPiece],
}

impl ContentStore {
    /// Stores verified contents. Contents that are already present are not stored again, and `owner` becomes an
    /// additional owner of them. The contents are durable after [`sync`](Self::sync).
    pub fn append(&self, owner: &OwnerKey, batch: &ContentBatch<'_>) -> Result<(), AppendError> {
        let mut inside = 0;
        let mut contents = Vec::with_capacity(batch.pieces.len());
        for &ContentPiece { hash, size } in batch.pieces {
            contents.push(FrameContent { key: ContentKey::of(&hash), inside, size });
            inside += size;
        }
        self.0.store(owner, batch.frame, &contents, false)
    }

    /// Stores the recipe of a large content. The caller has verified that the pieces add up to `hash`.
    pub fn put_recipe(
        &self,
        owner: &OwnerKey,
        hash: &ContentHash,
        pieces: &[ContentPiece],
    ) -> Result<(), AppendError> {
        let list: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| [piece.hash.as_bytes().as_slice(), &piece.size.to_le_bytes()].concat())
            .collect();
        let size = u32::try_from(list.len()).map_err(io::Error::other)?;
        let frame = zstd::bulk::compress(&list, 1)?;
        self.0.store(owner, &frame, &[FrameContent { key: ContentKey::of(hash), inside: 0, size }], true)
    }

    /// Makes `owner` an additional owner of these contents, after it has proven that it has them.
    pub fn add_owner(&self, owner: &OwnerKey, contents: &[ContentHash]) -> Result<(), AppendError> {
        let keys: Vec<ContentKey> = contents.iter().map(ContentKey::of).collect();
        let mut index = self.0.index();
        index.begin()?;
        Ok(index.add_owner(owner, &keys)?)
    }

    /// Makes all appended contents and owners durable. Fails if some that were appended since the last call are lost.
    pub fn sync(&self) -> Result<(), AppendError> {
        self.0.sync(&mut self.0.writer())?;
        Ok(self.0.index().take_loss()?)
    }

    /// Returns the number of times that appended contents were lost, for [`sync_seen`](Self::sync_seen).
    pub fn losses(&self) -> Result<u64, AppendError> {
        Ok(self.0.index().losses()?)
    }

    /// Makes durable what was seen in the store since [`losses`](Self::losses) returned this number. Fails if some of
    /// it may be lost.
    pub fn sync_seen(&self, losses: u64) -> Result<(), AppendError> {
        Ok(self.0.sync_since(&mut self.0.writer(), losses)?)
    }
}

impl ContentStoreInner {
    /// Makes content durable, and then the rows that point to it. Without the lock of the writer, the rows of content
    /// that is not durable yet would be among them.
    pub(super) fn sync(&self, writer: &mut Option<ContentSegmentWriter>) -> io::Result<()> {
        if let Some(writer) = writer {
            writer.sync()?;
        }
        Ok(self.index().commit()?)
    }

    /// Like [`sync`](Self::sync), and fails if changes were lost since their number was `losses`.
    pub(super) fn sync_since(
        &self,
        writer: &mut Option<ContentSegmentWriter>,
        losses: u64,
    ) -> io::Result<()> {
        self.sync(writer)?;
        if self.index().losses()? == losses { Ok(()) } else { Err(DatabaseError::ChangesLost.into()) }
    }

    fn store(
        &self,
        owner: &OwnerKey,
        frame: &[u8],
        contents: &[FrameContent],
        recipe: bool,
    ) -> Result<(), AppendError> {
        let now = self.now();
        let mut held = self.writer();
        let writer = self.open_writer(&mut held)?;
        {
            let keys: Vec<ContentKey> = contents.iter().map(|content| content.key).collect();
            let mut index = self.index();
            index.begin()?;
            let found = index.find(owner, &keys, now)?;
            if found.iter().flatten().any(|found| !found.is_own) {
                index.add_owner(owner, &keys)?;
            }
            if found.iter().all(Option::is_some) {
                return Ok(());
            }
            self.check_limits(&index, owner, frame.len() as u64)?;
        }
        let (frame, mut index) = self.append_frame(writer, frame)?;
        // The transaction may have been lost while the index was not locked.
        index.begin()?;
        self.quotas.lock().add(*owner, u64::from(frame.length));
        Ok(index.insert(&frame, owner, contents, recipe, now)?)
    }

    /// Appends a frame to the segment that is being written. Returns its location and the locked index.
    pub(super) fn append_frame(
        &self,
        writer: &mut ContentSegmentWriter,
        frame: &[u8],
    ) -> io::Result<(FrameLocation, MutexGuard<'_, ContentIndex>)> {
        let start = writer.append_frame(frame)?;
        let length = writer.next_offset - start;
        let mut index = self.index();
        let segment = ContentSegment { content: Arc::clone(&writer.content), length: writer.next_offset };
        index.segments.insert(writer.number, segment);
        Ok((FrameLocation { segment: writer.number, start, length }, index))
    }

    pub(super) fn open_writer<'w>(
        &self,
        writer: &'w mut Option<ContentSegmentWriter>,
    ) -> io::Result<&'w mut ContentSegmentWriter> {
        if let Some(full) = writer.as_mut().filter(|writer| writer.is_full()) {
            full.sync()?;
            *writer = None;
        }
        match writer {
            Some(writer) => Ok(writer),
            None => {
                let number = {
                    let mut index = self.index();
                    index.next_segment += 1;
                    index.next_segment - 1
                };
                Ok(writer.insert(ContentSegmentWriter::create(&self.directory, number)?))
            }
        }
    }

    fn check_limits(&self, index: &ContentIndex, owner: &OwnerKey, more: u64) -> Result<(), AppendError> {
        let limits = &self.limits;
        if index.used_bytes() + more > limits.total {
            return Err(AppendError::Quota { limit: limits.total });
        }
        if self.quotas.lock().bytes_sent_within_share(owner).saturating_add(more) > limits.per_owner {
            return Err(AppendError::OwnerQuota { limit: limits.per_owner });
        }
        let disk = rustix::fs::statvfs(&self.directory).map_err(io::Error::from)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < limits.min_free.saturating_add(more) {
            return Err(AppendError::NoSpace);
        }
        Ok(())
    }
}
