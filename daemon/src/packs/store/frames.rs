//! Cache of the latest few decompressed frames.

use std::io;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use parking_lot::Mutex;

use super::MAX_PIECE_SIZE;
use super::index::ContentLocation;

/// Number of cached frames; they take at most 32 MiB.
const CACHED_FRAMES: usize = 8;

/// Cached frames, the most recently used last.
#[derive(Debug, Default)]
pub(super) struct FrameCache(Mutex<Vec<(FrameKey, Bytes)>>);

/// Segment number and offset of a frame. Segments are never overwritten and their numbers never reused.
type FrameKey = (u32, u32);

impl FrameCache {
    pub(super) fn get(&self, lying: &ContentLocation) -> io::Result<Bytes> {
        let key = (lying.segment, lying.place.frame);
        {
            let mut kept = self.0.lock();
            if let Some(at) = kept.iter().position(|(known, _)| *known == key) {
                let found = kept.remove(at);
                let bytes = found.1.clone();
                kept.push(found);
                return Ok(bytes);
            }
        }
        let bytes = read_frame(lying)?;
        let mut kept = self.0.lock();
        if kept.len() >= CACHED_FRAMES {
            kept.remove(0);
        }
        kept.push((key, bytes.clone()));
        Ok(bytes)
    }
}

/// Reads and decompresses the frame that holds a content.
pub(super) fn read_frame(lying: &ContentLocation) -> io::Result<Bytes> {
    let mut frame = vec![0; lying.place.length as usize];
    lying.file.read_exact_at(&mut frame, lying.place.frame.into())?;
    Ok(Bytes::from(zstd::bulk::decompress(&frame, MAX_PIECE_SIZE as usize)?))
}
