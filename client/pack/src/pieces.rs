//! Content of a tree in pieces, as it is sent to a room that lacks some of it. Small files are sent whole, several in
//! a batch. Large files are split by content-defined chunking, so that a change affects few chunks.
//!
//! ```text
//! missing entries -- split (large ones) --> plan --> batches, by several threads: read, verify, compress
//! ```

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::identity::ContentHash;
use crate::layer::{ContentReader, LayerSource};
use crate::walk::{ContentError, WalkEntry};
use crate::workers;

/// Size in bytes above which files are split.
pub const LARGE_FILE: u64 = 1 << 20;
/// Maximum content of a batch, in bytes. A piece of a large file may be larger and is then alone in its batch.
const MAX_BATCH: u64 = 1 << 20;
/// Minimum, target and maximum size of the pieces of large files, in bytes. Other values give other piece boundaries,
/// so that pieces in the room are no longer found.
const PIECE_SIZES: (usize, usize, usize) = (256 << 10, 1 << 20, 4 << 20);

/// Compression effort for content that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionEffort {
    /// Low effort, for a room on this machine: the connection is fast, and the room shares the cores.
    Local,
    /// Effort for a room on another machine. A higher one would cost more time than it saves except on a slow
    /// connection.
    Remote,
}

impl CompressionEffort {
    const fn level(self) -> i32 {
        match self {
            Self::Local => 1,
            Self::Remote => 3,
        }
    }
}

/// A piece of a file's content, or the whole content of a small file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilePiece {
    /// Index of the entry.
    pub entry: u32,
    /// Number of the piece in its file; 0 for a small file.
    pub number: u32,
    pub offset: u64,
    pub size: u32,
    pub hash: ContentHash,
}

/// Pieces that are sent together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceBatch {
    pub pieces: Vec<FilePiece>,
    /// Concatenated content of the pieces as one zstd frame.
    pub frame: Vec<u8>,
}

/// Error of reading or compressing pieces.
#[derive(Debug, thiserror::Error)]
pub enum PieceError {
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error("cannot compress: {0}")]
    Compress(io::Error),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// Splits a large file into pieces. `content` is the hash in the list; if the file now has another one, that is an
/// error.
pub fn split_file(
    source: &dyn LayerSource,
    entry: u32,
    content: &ContentHash,
) -> Result<Vec<FilePiece>, PieceError> {
    let listed = &source.entries()[entry as usize];
    let mut reader = source.reader();
    reader.open(entry as usize)?;
    let bytes = EntryStream { reader: reader.as_mut(), at: 0, size: listed.size };
    let (least, wanted, most) = PIECE_SIZES;
    let mut chunks = fastcdc::v2020::StreamCDC::new(bytes, least, wanted, most);
    let mut sum = blake3::Hasher::new();
    let mut pieces = Vec::new();
    for (number, chunk) in (0u32..).zip(&mut chunks) {
        let chunk = chunk.map_err(|error| unwrap_content_error(listed, error.into()))?;
        sum.update(&chunk.data);
        let size = u32::try_from(chunk.data.len()).unwrap_or(u32::MAX);
        pieces.push(FilePiece {
            entry,
            number,
            offset: chunk.offset,
            size,
            hash: ContentHash::of(&chunk.data),
        });
    }
    reader.verify()?;
    if ContentHash::from_bytes(sum.finalize().into()) != *content {
        return Err(ContentError::changed(listed, "its content changed").into());
    }
    Ok(pieces)
}

/// Groups pieces into batches, in the given order.
pub fn plan_batches(pieces: Vec<FilePiece>) -> Vec<Vec<FilePiece>> {
    let mut batches: Vec<Vec<FilePiece>> = Vec::new();
    let mut size = MAX_BATCH;
    for piece in pieces {
        size += u64::from(piece.size);
        match batches.last_mut() {
            Some(batch) if size <= MAX_BATCH => batch.push(piece),
            _ => {
                size = u64::from(piece.size);
                batches.push(vec![piece]);
            }
        }
    }
    batches
}

/// Reads and compresses batches with several threads, and passes each to `send` with the number of the calling
/// thread. A thread ends when `send` returns false.
pub fn send_batches(
    source: &dyn LayerSource,
    batches: &[Vec<FilePiece>],
    (workers, effort): (Option<u32>, CompressionEffort),
    send: &(dyn Fn(usize, PieceBatch) -> bool + Sync),
) -> Result<(), PieceError> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = |worker: usize| -> Result<(), PieceError> {
        let mut reader = source.reader();
        let mut content = Vec::new();
        let mut compressor = zstd::bulk::Compressor::new(effort.level()).map_err(PieceError::Compress)?;
        while !stop.load(Ordering::Relaxed) {
            let Some(pieces) = batches.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            content.clear();
            for piece in pieces {
                read_piece(source, reader.as_mut(), piece, &mut content)?;
            }
            let frame = compressor.compress(&content).map_err(PieceError::Compress)?;
            if !send(worker, PieceBatch { pieces: pieces.clone(), frame }) {
                break;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Result<Vec<_>, _> = (0..workers::worker_count(workers).min(batches.len()))
            .map(|worker| {
                let (work, stop) = (&work, &stop);
                workers::start(scope, "compress", move || {
                    let done = work(worker);
                    if done.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    done
                })
            })
            .collect();
        let threads =
            threads.map_err(PieceError::Thread).inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

fn read_piece(
    source: &dyn LayerSource,
    reader: &mut dyn ContentReader,
    piece: &FilePiece,
    content: &mut Vec<u8>,
) -> Result<(), PieceError> {
    reader.open(piece.entry as usize)?;
    let start = content.len();
    content.resize(start + piece.size as usize, 0);
    reader.read(piece.offset, &mut content[start..])?;
    reader.verify()?;
    if ContentHash::of(&content[start..]) != piece.hash {
        let entry = &source.entries()[piece.entry as usize];
        return Err(ContentError::changed(entry, "its content changed").into());
    }
    Ok(())
}

/// Computes the keyed hash over the concatenated contents of `entries`: the proof that this side has them.
pub fn prove(source: &dyn LayerSource, entries: &[u32], key: &[u8; 32]) -> Result<[u8; 32], PieceError> {
    let mut sum = blake3::Hasher::new_keyed(key);
    let mut reader = source.reader();
    let mut buffer = vec![0; 256 << 10];
    for &entry in entries {
        let listed = &source.entries()[entry as usize];
        reader.open(entry as usize)?;
        let mut at = 0;
        while at < listed.size {
            let left = usize::try_from(listed.size - at).unwrap_or(usize::MAX);
            let count = left.min(buffer.len());
            reader.read(at, &mut buffer[..count])?;
            sum.update(&buffer[..count]);
            at += count as u64;
        }
        reader.verify()?;
    }
    Ok(sum.finalize().into())
}

/// Sequential reader for an open entry.
struct EntryStream<'a, 'r> {
    reader: &'a mut (dyn ContentReader + 'r),
    at: u64,
    size: u64,
}

impl io::Read for EntryStream<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size - self.at).unwrap_or(usize::MAX);
        let count = left.min(buffer.len());
        self.reader.read(self.at, &mut buffer[..count]).map_err(io::Error::other)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Extracts the error that [`EntryStream`] wrapped.
fn unwrap_content_error(entry: &WalkEntry, error: io::Error) -> ContentError {
    match error.downcast::<ContentError>() {
        Ok(error) => error,
        Err(error) => ContentError::read(entry, error),
    }
}

#[cfg(test)]
mod tests;
