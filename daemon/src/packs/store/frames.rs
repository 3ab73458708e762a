//! Cache of the latest few decompressed frames.

use std::io;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use parking_lot::Mutex;

use super::MAX_PIECE_SIZE;
use super::index::{ContentKey, ContentLocation, FrameContent};

/// Number of cached frames; they take at most 32 MiB.
const CACHED_FRAMES: usize = 8;

/// Cached frames, the most recently used last. The index is asked for a content only if none of them holds it.
#[derive(Debug, Default)]
pub(super) struct FrameCache(Mutex<Vec<CachedFrame>>);

#[derive(Debug)]
struct CachedFrame {
    bytes: Bytes,
    /// Contents in the order of their keys.
    contents: Vec<FrameContent>,
}

impl FrameCache {
    /// Returns a content of a cached frame. It is not verified.
    pub(super) fn find(&self, key: &ContentKey) -> Option<Bytes> {
        let mut cached = self.0.lock();
        let contains =
            |frame: &CachedFrame| frame.contents.binary_search_by_key(key, |content| content.key).ok();
        let (at, content) =
            cached.iter().enumerate().rev().find_map(|(at, frame)| Some((at, contains(frame)?)))?;
        cached[at..].rotate_left(1);
        let frame = cached.last()?;
        frame.contents[content].slice_of(&frame.bytes).ok()
    }

    /// Reads the frame that holds a content, and keeps it with all its `contents`. Returns the content.
    pub(super) fn read(&self, lying: &ContentLocation, contents: Vec<FrameContent>) -> io::Result<Bytes> {
        let bytes = read_frame(lying)?;
        let content = lying.content.slice_of(&bytes)?;
        let mut cached = self.0.lock();
        if cached.len() >= CACHED_FRAMES {
            cached.remove(0);
        }
        cached.push(CachedFrame { bytes, contents });
        Ok(content)
    }
}

impl FrameContent {
    pub(super) fn slice_of(&self, frame: &Bytes) -> io::Result<Bytes> {
        let (start, end) = (self.inside as usize, self.inside as usize + self.size as usize);
        if end > frame.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a stored frame is shorter than its index row says",
            ));
        }
        Ok(frame.slice(start..end))
    }
}

/// Reads and decompresses the frame that holds a content.
pub(super) fn read_frame(lying: &ContentLocation) -> io::Result<Bytes> {
    let mut frame = vec![0; lying.frame.length as usize];
    lying.file.read_exact_at(&mut frame, lying.frame.start.into())?;
    Ok(Bytes::from(zstd::bulk::decompress(&frame, MAX_PIECE_SIZE as usize)?))
}
