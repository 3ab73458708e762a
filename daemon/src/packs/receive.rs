//! Receives the content of an upload: decompresses it, verifies it against the list, and stores it.

use std::borrow::Cow;

use bytes::Bytes;
use hearth_pack::identity::ContentHash;

use super::store::{AppendError, ContentBatch, MAX_PIECE_SIZE};
use super::upload::{UploadGuard, display_path};
use super::{PackError, PackStore};
use crate::context::ContentPiece;
use crate::task;

/// Zstd level for content that arrives uncompressed.
const ZSTD_LEVEL: i32 = 1;

/// Position that a piece in a message claims: its entry in the list, its chunk number, and its size in bytes.
#[derive(Clone, Copy, Debug)]
pub struct SentPiece {
    pub entry: u32,
    pub chunk: u32,
    pub size: u32,
}

/// Concatenated bytes of the pieces in one message.
#[derive(Clone, Debug)]
pub enum PieceData {
    Plain(Bytes),
    Zstd(Bytes),
}

/// Receives the content of one upload. Received content is durable after [`finish`](Self::finish).
pub struct PieceReceiver {
    packs: PackStore,
    call: UploadGuard,
    pub pieces: u64,
    pub bytes: u64,
}

impl PieceReceiver {
    pub(super) fn new(packs: PackStore, call: UploadGuard) -> Self {
        Self { packs, call, pieces: 0, bytes: 0 }
    }

    /// Verifies and stores the content of one message: all of it or none.
    pub async fn receive(&mut self, pieces: Vec<SentPiece>, data: PieceData) -> Result<(), PackError> {
        let total: u64 = pieces.iter().map(|piece| u64::from(piece.size)).sum();
        let count = pieces.len() as u64;
        let (packs, upload) = (self.packs.clone(), self.call.guard());
        let store = move || match store_pieces(&packs, &upload, &pieces, &data) {
            Err(PackError::Store(full)) if is_full(&full) => Err((full, pieces, data)),
            other => Ok(other),
        };
        let stored = task::blocking("take pieces", store).await.map_err(|_| PackError::Ending)?;
        match stored {
            Ok(stored) => stored?,
            Err((full, pieces, data)) => {
                self.packs.free_space(self.call.owner, &full).await?;
                let (packs, upload) = (self.packs.clone(), self.call.guard());
                let again =
                    task::blocking("take pieces", move || store_pieces(&packs, &upload, &pieces, &data));
                let again = again.await.map_err(|_| PackError::Ending)?;
                if matches!(&again, Err(PackError::Store(full)) if is_full(full)) {
                    self.packs.abandon_upload(&self.call).await;
                }
                again?;
            }
        }
        self.pieces += count;
        self.bytes += total;
        Ok(())
    }

    /// Makes the received content durable. Called however the stream ended.
    pub async fn finish(&self) -> Result<(), PackError> {
        self.packs.blocking("sync packs", |shared| Ok(shared.store.sync()?)).await
    }
}

const fn is_full(error: &AppendError) -> bool {
    use AppendError::{NoSpace, OwnerQuota, Quota};
    matches!(error, Quota { .. } | OwnerQuota { .. } | NoSpace)
}

fn store_pieces(
    packs: &PackStore,
    upload: &UploadGuard,
    sent: &[SentPiece],
    data: &PieceData,
) -> Result<(), PackError> {
    let total: u64 = sent.iter().map(|piece| u64::from(piece.size)).sum();
    if total > u64::from(MAX_PIECE_SIZE) {
        return Err(PackError::Data("a message has more than 4 MiB"));
    }
    let total = usize::try_from(total).unwrap_or(usize::MAX);
    let plain = match data {
        PieceData::Plain(bytes) => Cow::Borrowed(bytes.as_ref()),
        PieceData::Zstd(bytes) => match zstd::bulk::decompress(bytes, total) {
            Ok(plain) => Cow::Owned(plain),
            Err(_) => {
                return Err(PackError::Data(
                    "it is not a zstd frame, or larger than the sizes of the pieces",
                ));
            }
        },
    };
    if plain.len() != total {
        return Err(PackError::Data("its length differs from the total size of the pieces"));
    }
    let mut pieces = Vec::with_capacity(sent.len());
    let mut rest = plain.as_ref();
    for piece in sent {
        let expected = upload.expected_piece(piece.entry, piece.chunk, piece.size)?;
        let (content, after) = rest.split_at(piece.size as usize);
        rest = after;
        if ContentHash::of(content) != expected.hash {
            let list = upload.list()?;
            return Err(PackError::ContentMismatch { path: display_path(&list.listing, piece.entry) });
        }
        pieces.push(ContentPiece { hash: expected.hash, size: piece.size });
    }
    let frame = match data {
        // The data is stored as it arrived: it is one small frame.
        PieceData::Zstd(bytes) => Cow::Borrowed(bytes.as_ref()),
        PieceData::Plain(bytes) => Cow::Owned(zstd::bulk::compress(bytes, ZSTD_LEVEL)?),
    };
    packs.0.store.append(&upload.owner, &ContentBatch { frame: &frame, pieces: &pieces })?;
    for piece in sent {
        upload.mark_received(piece.entry, piece.chunk);
    }
    Ok(())
}
