//! One frame of a layer. One thread opens, reads, hashes and compresses its entries, while their content is still in
//! that core's cache.

use std::ops::Range;

use flate2::Crc;
use parking_lot::Mutex;

use super::compress::FrameCompressor;
use super::header::{self, TarHeader};
use super::plan::{FRAME_SIZE, FrameRange};
use super::source::has_xattrs;
use super::{ContentReader, LayerError, LayerOptions, LayerSource};
use crate::file_kind::FileKind;
use crate::identity::{ContentHash, HashedEntry};
use crate::walk::EntryXattrs;

/// A finished frame. Frames are reused to keep their buffers.
#[derive(Default)]
pub(super) struct LayerFrame {
    /// Tar bytes of the frame, of which the first `used` are valid. It is as long as the longest frame so far.
    buffer: Vec<u8>,
    used: usize,
    pub(super) compressed: Vec<u8>,
    pub(super) crc: Crc,
    /// Hashes and attributes of the entries that begin in this frame, if requested. The hashes of files that span
    /// several frames are not included.
    pub(super) hashed: Vec<(usize, HashedEntry)>,
    pub(super) pieces: Vec<SplitFilePart>,
    /// Number of entries that end in this frame.
    pub(super) entries: u64,
    /// Number of content bytes.
    pub(super) bytes: u64,
}

/// Part of a file that spans several frames.
pub(super) struct SplitFilePart {
    pub(super) index: usize,
    pub(super) range: Range<usize>,
    pub(super) last: bool,
}

impl LayerFrame {
    pub(super) fn tar(&self) -> &[u8] {
        &self.buffer[..self.used]
    }

    fn clear(&mut self) {
        self.used = 0;
        self.compressed.clear();
        self.hashed.clear();
        self.pieces.clear();
        (self.entries, self.bytes) = (0, 0);
    }

    /// Extends the frame by `count` bytes with unspecified content.
    fn extend(&mut self, count: usize) -> Range<usize> {
        let range = self.used..self.used + count;
        if self.buffer.len() < range.end {
            // Most frames are resized once: one seldom exceeds a full frame plus a file of that size.
            self.buffer.resize(range.end.max(2 * FRAME_SIZE as usize + FRAME_SIZE as usize / 8), 0);
        }
        self.used = range.end;
        range
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let range = self.extend(bytes.len());
        self.buffer[range].copy_from_slice(bytes);
    }
}

/// Builder that fills and compresses frames, one for each thread.
pub(super) struct FrameBuilder<'a> {
    source: &'a dyn LayerSource,
    reader: Box<dyn ContentReader + 'a>,
    compressor: FrameCompressor,
    mtime: u64,
    hash: bool,
    /// Index of the entry that the reader has opened.
    open: Option<usize>,
}

impl<'a> FrameBuilder<'a> {
    pub(super) fn new(
        source: &'a dyn LayerSource,
        options: &LayerOptions,
        hash: bool,
    ) -> std::io::Result<Self> {
        let compressor = FrameCompressor::new(options.compression)?;
        Ok(Self { source, reader: source.reader(), compressor, mtime: options.mtime, hash, open: None })
    }

    pub(super) fn fill(
        &mut self,
        cut: &FrameRange,
        spare: &Mutex<Vec<LayerFrame>>,
    ) -> Result<LayerFrame, LayerError> {
        let mut frame = spare.lock().pop().unwrap_or_default();
        frame.clear();
        let mut begin = cut.from.inside;
        for index in cut.from.index..cut.to.index {
            let end = self.source.entries()[index].size;
            self.entry(index, begin.take(), end, &mut frame)?;
        }
        if let Some(end) = cut.to.inside {
            self.entry(cut.to.index, begin, end, &mut frame)?;
        }
        if cut.last {
            frame.bytes(&header::END_BLOCKS);
        }
        let LayerFrame { buffer, used, compressed, .. } = &mut frame;
        frame.crc = self
            .compressor
            .compress_frame(&buffer[..*used], compressed)
            .map_err(|source| LayerError::Write { source })?;
        Ok(frame)
    }

    /// Writes the part of an entry that belongs to the frame: its content from `begin` to `end`, or without `begin`
    /// its header and its content up to `end`.
    fn entry(
        &mut self,
        index: usize,
        begin: Option<u64>,
        end: u64,
        frame: &mut LayerFrame,
    ) -> Result<(), LayerError> {
        let entry = &self.source.entries()[index];
        let mut xattrs = EntryXattrs::new();
        if has_xattrs(entry) && (begin.is_none() || self.open != Some(index)) {
            self.open = Some(index);
            xattrs = self.reader.open(index)?;
        }
        if begin.is_none() {
            frame.bytes(&header::encode(&TarHeader::of(entry, self.mtime), &xattrs));
        }
        let from = begin.unwrap_or(0);
        let mut content = None;
        if entry.kind == FileKind::File(()) {
            let range = self.content(from, end, frame)?;
            let whole = begin.is_none() && end == entry.size;
            if self.hash && whole {
                content = Some(ContentHash::of(&frame.buffer[range]));
            } else if self.hash {
                frame.pieces.push(SplitFilePart { index, range, last: end == entry.size });
            }
        }
        if self.hash && begin.is_none() {
            frame.hashed.push((index, HashedEntry { content, xattrs }));
        }
        if end == entry.size {
            frame.bytes(&header::END_BLOCKS[..header::padding(entry.size)]);
            frame.entries += 1;
        }
        Ok(())
    }

    fn content(&mut self, from: u64, end: u64, frame: &mut LayerFrame) -> Result<Range<usize>, LayerError> {
        // The range is never larger than a frame.
        let range = frame.extend(usize::try_from(end - from).unwrap_or(usize::MAX));
        self.reader.read(from, &mut frame.buffer[range.clone()])?;
        self.reader.verify()?;
        frame.bytes += end - from;
        Ok(range)
    }
}
