//! zstd frames: located by their headers without decompression, and decompressed from the start of any frame.
//! The seek table at the end of our packs is a skippable frame like any other and is not used: the headers of
//! frames and blocks must be read anyway to limit memory, and they contain the same positions without having
//! to be trusted.
//!
//! Format: RFC 8878.

use std::io;
use std::ops::Range;

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::LayerError;
use super::blob::{BlobInput, ByteSource};

/// Maximum window that a decoder must keep of its output: 128 MiB, the default limit of `zstd`.
const MAX_WINDOW_LOG: u32 = 27;
const MAX_WINDOW: u64 = 1 << MAX_WINDOW_LOG;
/// Frames are combined into units until they reach one of these sizes in bytes.
const UNIT_OUTPUT: u64 = 512 << 10;
const UNIT_INPUT: u64 = 256 << 10;

/// Consecutive frames that are decompressed together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FrameUnit {
    /// Range in the blob.
    pub range: Range<u64>,
    /// Largest window of the frames in bytes.
    pub window: u64,
    /// Decompressed size in bytes, if all frames declare it.
    pub content: Option<u64>,
}

struct ZstdFrame {
    end: u64,
    window: u64,
    /// Decompressed size in bytes; `None` when the frame does not declare it.
    content: Option<u64>,
}

/// Reads headers through a small buffer, because they may be close together.
struct FrameHeaderReader<'b> {
    blob: &'b dyn ByteSource,
    start: u64,
    buffer: [u8; 4096],
    filled: usize,
}

impl FrameHeaderReader<'_> {
    fn read(&mut self, into: &mut [u8], at: u64) -> Result<(), LayerError> {
        let is_there = at >= self.start && at - self.start + into.len() as u64 <= self.filled as u64;
        if !is_there {
            let most = self.blob.length().saturating_sub(at).min(self.buffer.len() as u64) as usize;
            self.filled = 0;
            self.blob.read_exact_at(&mut self.buffer[..most], at)?;
            (self.start, self.filled) = (at, most);
        }
        let offset = (at - self.start) as usize;
        let bytes = self.buffer[..self.filled].get(offset..offset + into.len()).ok_or_else(damaged)?;
        into.copy_from_slice(bytes);
        Ok(())
    }
}

fn damaged() -> LayerError {
    LayerError::Decompress(io::Error::new(io::ErrorKind::InvalidData, "a zstd frame is damaged"))
}

/// Returns all frames of a blob, combined into units.
pub(super) fn units(blob: &dyn ByteSource) -> Result<Vec<FrameUnit>, LayerError> {
    let mut headers = FrameHeaderReader { blob, start: 0, buffer: [0; 4096], filled: 0 };
    let mut units = Vec::new();
    let (mut at, length) = (0, blob.length());
    let mut start = 0;
    let (mut window, mut output, mut content) = (0u64, 0u64, Some(0u64));
    while at < length {
        let frame = frame(&mut headers, at)?;
        window = window.max(frame.window);
        output = output.saturating_add(frame.content.unwrap_or(UNIT_OUTPUT));
        content = content.zip(frame.content).and_then(|(all, one)| all.checked_add(one));
        at = frame.end;
        if output >= UNIT_OUTPUT || at - start >= UNIT_INPUT || at == length {
            units.push(FrameUnit { range: start..at, window, content });
            (start, window, output, content) = (at, 0, 0, Some(0));
        }
    }
    Ok(units)
}

fn frame(headers: &mut FrameHeaderReader<'_>, at: u64) -> Result<ZstdFrame, LayerError> {
    let length = headers.blob.length();
    let mut read = |buffer: &mut [u8], at: u64| headers.read(buffer, at);
    let inside = |end: u64| if end <= length { Ok(end) } else { Err(damaged()) };
    let mut head = [0; 5];
    read(&mut head, at)?;
    if matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, _]) {
        let mut size = [0; 4];
        read(&mut size, at + 4)?;
        let end = inside(at + 8 + u64::from(u32::from_le_bytes(size)))?;
        return Ok(ZstdFrame { end, window: 0, content: Some(0) });
    }
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor] = head else { return Err(damaged()) };
    let single_segment = descriptor & 0x20 != 0;
    let content_bytes = match descriptor >> 6 {
        0 => u64::from(single_segment),
        1 => 2,
        2 => 4,
        _ => 8,
    };
    if descriptor & 3 != 0 {
        return Err(LayerError::Decompress(io::Error::other("a zstd frame needs a dictionary")));
    }
    let mut at = at + 5;
    let mut window = 0;
    if !single_segment {
        let mut byte = [0];
        read(&mut byte, at)?;
        let base = 1u64 << (10 + (byte[0] >> 3));
        window = base + base / 8 * u64::from(byte[0] & 7);
        at += 1;
    }
    let mut content = None;
    if content_bytes > 0 {
        let mut bytes = [0; 8];
        read(&mut bytes[..content_bytes as usize], at)?;
        let extra = if content_bytes == 2 { 256 } else { 0 };
        content = Some(u64::from_le_bytes(bytes).saturating_add(extra));
        at += content_bytes;
    }
    if single_segment {
        window = content.unwrap_or(u64::MAX);
    }
    if window > MAX_WINDOW {
        return Err(LayerError::Window { window, limit: MAX_WINDOW });
    }
    loop {
        let mut header = [0; 4];
        read(&mut header[..3], at)?;
        let header = u32::from_le_bytes(header);
        let size = u64::from(header >> 3);
        let stored = match header >> 1 & 3 {
            1 => 1,
            0 | 2 => size,
            _ => return Err(damaged()),
        };
        at = inside(at + 3 + stored)?;
        if header & 1 != 0 {
            break;
        }
    }
    let end = inside(at + if descriptor & 4 != 0 { 4 } else { 0 })?;
    Ok(ZstdFrame { end, window, content })
}

/// Decompresses several frames in one call, which is faster than streaming.
pub(super) struct FrameDecompressor {
    context: DCtx<'static>,
    stored: Vec<u8>,
}

impl FrameDecompressor {
    /// Maximum size in bytes of the input and of the output.
    pub(super) const LIMIT: u64 = 6 << 20;

    pub(super) fn new() -> io::Result<Self> {
        let context = DCtx::try_create().ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self { context, stored: Vec::new() })
    }

    /// Decompresses the frames in a range of the blob, which hold `content` bytes, into the empty buffer
    /// `out`. Returns false if the range or the content exceeds the limit.
    pub(super) fn read(
        &mut self,
        blob: &dyn ByteSource,
        range: Range<u64>,
        content: u64,
        out: &mut Vec<u8>,
    ) -> io::Result<bool> {
        let length = range.end.saturating_sub(range.start);
        if length > Self::LIMIT || content > Self::LIMIT {
            return Ok(false);
        }
        self.stored.resize(length as usize, 0);
        blob.read_exact_at(&mut self.stored, range.start)?;
        out.reserve(content as usize);
        self.context.decompress(out, &self.stored).map_err(error)?;
        if out.len() as u64 != content {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a zstd frame does not hold what it says",
            ));
        }
        Ok(true)
    }
}

/// Decompresses frames as a stream.
pub(super) struct ZstdDecoder {
    input: BlobInput,
    context: DCtx<'static>,
    in_frame: bool,
}

impl ZstdDecoder {
    pub(super) fn new(input: BlobInput) -> io::Result<Self> {
        let mut context = DCtx::try_create().ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        context.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG)).map_err(error)?;
        Ok(Self { input, context, in_frame: false })
    }

    /// Fills `out` as far as the frames reach; returns 0 at the end.
    pub(super) fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut output = OutBuffer::around(out);
        while output.pos() < output.capacity() {
            let bytes = self.input.bytes()?;
            if bytes.is_empty() && !self.in_frame {
                break;
            }
            let at_end = bytes.is_empty();
            let mut input = InBuffer::around(bytes);
            let before = output.pos();
            let left = self.context.decompress_stream(&mut output, &mut input).map_err(error)?;
            let used = input.pos();
            if at_end && left != 0 && output.pos() == before {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.in_frame = left != 0;
            self.input.consume(used);
        }
        Ok(output.pos())
    }
}

fn error(code: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, zstd::zstd_safe::get_error_name(code))
}
