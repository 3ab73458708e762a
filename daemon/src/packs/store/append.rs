//! Appends content to the store: adds it to the index and to the segment that is being written, within the limits.

use std::io;
use std::sync::Arc;

use hearth_pack::identity::ContentHash;

use super::index::{ContentIndex, ContentSegment, FrameRecord};
use super::rows::{FrameSlice, IndexRow, RowKind};
use super::segment::ContentSegmentWriter;
use super::table::ContentKey;
use super::{ContentPiece, ContentStore, ContentStoreInner, OwnerKey};

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
        let mut rows = Vec::with_capacity(batch.pieces.len());
        for &ContentPiece { hash, size } in batch.pieces {
            rows.push((hash, FrameSlice { frame: 0, length: 0, inside, size }));
            inside += size;
        }
        self.0.store(owner, batch.frame, rows, RowKind::Piece)
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
        let place = FrameSlice { frame: 0, length: 0, inside: 0, size };
        self.0.store(owner, &frame, vec![(*hash, place)], RowKind::Recipe)
    }

    /// Makes `owner` an additional owner of these contents, after it has proven that it has them.
    pub fn add_owner(&self, owner: &OwnerKey, contents: &[ContentHash]) -> Result<(), AppendError> {
        let mut writer = self.0.writer();
        let writer = self.0.open_writer(&mut writer)?;
        let mut index = self.0.index();
        for hash in contents {
            index.add_owner_row(writer, hash, owner);
        }
        Ok(())
    }

    /// Makes all appended contents durable.
    pub fn sync(&self) -> Result<(), AppendError> {
        match self.0.writer().as_mut() {
            Some(writer) => Ok(writer.sync()?),
            None => Ok(()),
        }
    }
}

impl ContentStoreInner {
    fn store(
        &self,
        owner: &OwnerKey,
        frame: &[u8],
        contents: Vec<(ContentHash, FrameSlice)>,
        kind: RowKind,
    ) -> Result<(), AppendError> {
        let now = self.now();
        let mut held = self.writer();
        let writer = self.open_writer(&mut held)?;
        {
            let mut index = self.index();
            let mut anything_new = false;
            for (hash, _) in &contents {
                match index.contents.get_mut(&ContentKey::of(hash)) {
                    Some(known) => known.last_asked = now,
                    None => anything_new = true,
                }
                index.add_owner_row(writer, hash, owner);
            }
            if !anything_new {
                return Ok(());
            }
            self.check_limits(&index, owner, frame.len() as u64)?;
        }
        let start = writer.append_frame(frame)?;
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        let number = writer.number;
        let mut index = self.index();
        let segment = ContentSegment { content: Arc::clone(&writer.content), length: writer.next_offset };
        index.segments.insert(number, segment);
        *index.sent.entry(*owner).or_default() += u64::from(length);
        let frame = index.add_frame(FrameRecord { segment: number, start, length, owner: *owner });
        for (hash, place) in contents {
            if index.contents.get(&ContentKey::of(&hash)).is_none() {
                let place = FrameSlice { frame: start, length, ..place };
                let row = IndexRow { hash, owner: *owner, kind, place };
                index.insert(&row, frame, now);
                writer.queue_row(row);
            }
        }
        Ok(())
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
        if index.bytes_sent_within_share(owner).saturating_add(more) > limits.per_owner {
            return Err(AppendError::OwnerQuota { limit: limits.per_owner });
        }
        let disk = rustix::fs::statvfs(&self.directory).map_err(io::Error::from)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < limits.min_free.saturating_add(more) {
            return Err(AppendError::NoSpace);
        }
        Ok(())
    }
}

impl ContentIndex {
    /// Makes `owner` an additional owner of a content if it is present.
    fn add_owner_row(&mut self, writer: &mut ContentSegmentWriter, hash: &ContentHash, owner: &OwnerKey) {
        let key = ContentKey::of(hash);
        let Some(known) = self.contents.get(&key) else { return };
        if self.frame(known).owner != *owner && self.extra_owners.insert((key, *owner)) {
            writer.queue_row(IndexRow {
                hash: *hash,
                owner: *owner,
                kind: RowKind::Owner,
                place: FrameSlice::default(),
            });
        }
    }
}
