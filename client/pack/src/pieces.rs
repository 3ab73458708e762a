//! The content of a tree in pieces, as it is sent to a room that lacks some of it: small files as they are,
//! several in a batch, large ones cut where their content says, so that a change moves few borders.
//!
//! ```text
//! missing entries -- cut (large ones) --> Plan --> batches, by several threads: read, verify, compress
//! ```

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::identity::ContentHash;
use crate::layer::{ContentReader, Source};
use crate::walk::{ContentError, Entry};
use crate::workers;

/// Files that are larger are cut.
pub const LARGE: u64 = 1 << 20;
/// What a batch holds at most; a piece of a large file may be larger, and is then alone.
const BATCH: u64 = 1 << 20;
/// Sizes of the pieces of large files: least, wanted, most. Part of what makes two pieces the same.
const SIZES: (usize, usize, usize) = (256 << 10, 1 << 20, 4 << 20);

/// How hard content is compressed on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// To a room on this machine: the line costs nothing, and the room shares the cores.
    Near,
    /// More than this costs more time than it saves on any but a slow line.
    Far,
}

impl Effort {
    const fn level(self) -> i32 {
        match self {
            Self::Near => 1,
            Self::Far => 3,
        }
    }
}

/// A piece of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index of the entry.
    pub entry: u32,
    /// Number among the pieces of its file; 0 for a small one.
    pub number: u32,
    pub offset: u64,
    pub size: u32,
    pub hash: ContentHash,
}

/// Pieces that are sent together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub pieces: Vec<Piece>,
    /// Their content one after the other, as one zstd frame.
    pub frame: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum PieceError {
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error("cannot compress: {0}")]
    Compress(io::Error),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// Cuts a large file. `content` is the hash that it was listed with; another one now is an error.
pub fn cut(source: &dyn Source, entry: u32, content: &ContentHash) -> Result<Vec<Piece>, PieceError> {
    let listed = &source.entries()[entry as usize];
    let mut reader = source.reader();
    reader.open(entry as usize)?;
    let bytes = Reading { reader: reader.as_mut(), at: 0, size: listed.size };
    let (least, wanted, most) = SIZES;
    let mut chunks = fastcdc::v2020::StreamCDC::new(bytes, least, wanted, most);
    let mut sum = blake3::Hasher::new();
    let mut pieces = Vec::new();
    for (number, chunk) in (0u32..).zip(&mut chunks) {
        let chunk = chunk.map_err(|error| unread(listed, error.into()))?;
        sum.update(&chunk.data);
        let size = u32::try_from(chunk.data.len()).unwrap_or(u32::MAX);
        pieces.push(Piece { entry, number, offset: chunk.offset, size, hash: ContentHash::of(&chunk.data) });
    }
    reader.verify()?;
    if ContentHash::from_bytes(sum.finalize().into()) != *content {
        return Err(ContentError::changed(listed, "its content is another").into());
    }
    Ok(pieces)
}

/// Puts pieces into batches, in the order given.
pub fn plan(pieces: Vec<Piece>) -> Vec<Vec<Piece>> {
    let mut batches: Vec<Vec<Piece>> = Vec::new();
    let mut size = BATCH;
    for piece in pieces {
        size += u64::from(piece.size);
        match batches.last_mut() {
            Some(batch) if size <= BATCH => batch.push(piece),
            _ => {
                size = u64::from(piece.size);
                batches.push(vec![piece]);
            }
        }
    }
    batches
}

/// Reads and compresses batches with several threads and gives each to `send`, which says whether to go on.
/// `send` is told which thread calls.
pub fn read(
    source: &dyn Source,
    batches: &[Vec<Piece>],
    (workers, effort): (Option<u32>, Effort),
    send: &(dyn Fn(usize, Batch) -> bool + Sync),
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
            if !send(worker, Batch { pieces: pieces.clone(), frame }) {
                break;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Result<Vec<_>, _> = (0..workers::count(workers).min(batches.len()))
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
    source: &dyn Source,
    reader: &mut dyn ContentReader,
    piece: &Piece,
    content: &mut Vec<u8>,
) -> Result<(), PieceError> {
    reader.open(piece.entry as usize)?;
    let start = content.len();
    content.resize(start + piece.size as usize, 0);
    reader.read(piece.offset, &mut content[start..])?;
    reader.verify()?;
    if ContentHash::of(&content[start..]) != piece.hash {
        let entry = &source.entries()[piece.entry as usize];
        return Err(ContentError::changed(entry, "its content is another").into());
    }
    Ok(())
}

/// Hashes the contents of `entries`, one after the other, with a key: the proof that this side has them.
pub fn prove(source: &dyn Source, entries: &[u32], key: &[u8; 32]) -> Result<[u8; 32], PieceError> {
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

/// An open entry as a stream.
struct Reading<'a, 'r> {
    reader: &'a mut (dyn ContentReader + 'r),
    at: u64,
    size: u64,
}

impl io::Read for Reading<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size - self.at).unwrap_or(usize::MAX);
        let count = left.min(buffer.len());
        self.reader.read(self.at, &mut buffer[..count]).map_err(io::Error::other)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Takes back the error that [`Reading`] wrapped.
fn unread(entry: &Entry, error: io::Error) -> ContentError {
    match error.downcast::<ContentError>() {
        Ok(error) => error,
        Err(error) => ContentError::read(entry, error),
    }
}

#[cfg(test)]
mod tests;
