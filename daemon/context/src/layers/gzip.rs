//! gzip decoder that starts at the beginning or at a saved decoder state; members may follow each other.
//!
//! To resume at any position, a decoder needs its own state and the last 32 KiB of output. Positions between
//! two blocks need less, but some writers produce one block for a whole layer.
//!
//! Checksums of members are skipped: a layer's content is verified by its DiffID.

use std::io;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::blob::BlobInput;

/// Maximum distance in bytes of a back reference.
const WINDOW: usize = 32 << 10;
/// Size in bytes of the ring buffer for new output and the window before it; a power of two.
const RING: usize = 256 << 10;
/// Maximum size in bytes of a member's name and comment.
const MAX_TEXT: usize = 64 << 10;
/// Maximum size in bytes of a saved state with its window; a state is about 20 KiB of text.
const MAX_STATE: usize = 256 << 10;

pub(super) struct GzipDecoder {
    input: BlobInput,
    inflate: Box<DecompressorOxide>,
    ring: Box<[u8]>,
    /// Position in the ring buffer of the next output.
    ring_position: usize,
    /// Number of bytes of this member's output that the window contains.
    window_length: usize,
    in_member: bool,
}

/// Result of one decoding step.
pub(super) enum GzipStep<'g> {
    Output(&'g [u8]),
    End,
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl GzipDecoder {
    /// Creates a decoder at the start of a member.
    pub(super) fn new(input: BlobInput) -> Self {
        let (inflate, ring) = (Box::default(), vec![0; RING].into_boxed_slice());
        Self { input, inflate, ring, ring_position: 0, window_length: 0, in_member: false }
    }

    /// Restores a decoder from a saved `state`. The input must be at the position where the state was saved.
    pub(super) fn from_state(input: BlobInput, state: &[u8]) -> io::Result<Self> {
        let state = zstd::bulk::decompress(state, MAX_STATE)?;
        let wrong = || damaged("the state of a decoder is damaged");
        let (length, rest) = state.split_first_chunk().ok_or_else(wrong)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| wrong())?;
        let (inflate, window) = rest.split_at_checked(length).ok_or_else(wrong)?;
        if window.len() > WINDOW {
            return Err(wrong());
        }
        let mut gzip = Self::new(input);
        *gzip.inflate = serde_json::from_slice(inflate)?;
        gzip.ring[WINDOW - window.len()..WINDOW].copy_from_slice(window);
        (gzip.ring_position, gzip.window_length, gzip.in_member) = (WINDOW, window.len(), true);
        Ok(gzip)
    }

    /// Decompresses some more bytes.
    pub(super) fn step(&mut self) -> io::Result<GzipStep<'_>> {
        loop {
            if !self.in_member {
                if !self.read_member_header()? {
                    return Ok(GzipStep::End);
                }
                continue;
            }
            if self.ring_position == RING {
                self.ring_position = 0;
            }
            let bytes = self.input.bytes()?;
            let at_end = bytes.is_empty();
            let flags = if at_end { 0 } else { TINFL_FLAG_HAS_MORE_INPUT };
            let (status, used, made) =
                decompress(&mut self.inflate, bytes, &mut self.ring, self.ring_position, flags);
            self.input.consume(used);
            let start = self.ring_position;
            self.ring_position += made;
            self.window_length = (self.window_length + made).min(WINDOW);
            match status {
                TINFLStatus::Done => self.end_member()?,
                TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput if used > 0 || made > 0 => {}
                _ if at_end => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => return Err(damaged("its gzip stream is damaged")),
            }
            if made > 0 {
                return Ok(GzipStep::Output(&self.ring[start..start + made]));
            }
        }
    }

    /// Offset of the next byte of the blob that the decoder reads.
    pub(super) const fn position(&self) -> u64 {
        self.input.position()
    }

    /// Saves the state that a decoder needs to resume here; `None` between members, where it needs nothing.
    pub(super) fn save_state(&self) -> io::Result<Option<Vec<u8>>> {
        if !self.in_member {
            return Ok(None);
        }
        let inflate = serde_json::to_vec(&*self.inflate)?;
        let length = u32::try_from(inflate.len()).unwrap_or(u32::MAX).to_le_bytes();
        let mut state = Vec::with_capacity(length.len() + inflate.len() + WINDOW);
        state.extend_from_slice(&length);
        state.extend_from_slice(&inflate);
        if self.ring_position < self.window_length {
            state.extend_from_slice(&self.ring[RING - (self.window_length - self.ring_position)..]);
            state.extend_from_slice(&self.ring[..self.ring_position]);
        } else {
            state.extend_from_slice(&self.ring[self.ring_position - self.window_length..self.ring_position]);
        }
        Ok(Some(zstd::bulk::compress(&state, 1)?))
    }

    /// Skips a member's header. Returns false at the end of the blob, which may be padded with zeros.
    fn read_member_header(&mut self) -> io::Result<bool> {
        if self.input.bytes()?.is_empty() {
            return Ok(false);
        }
        let first = self.input.byte()?;
        if first == 0 {
            while let Some(byte) = self.input.bytes()?.first() {
                if *byte != 0 {
                    return Err(damaged("its gzip stream is followed by something else"));
                }
                self.input.consume(1);
            }
            return Ok(false);
        }
        let magic = [first, self.input.byte()?, self.input.byte()?];
        if magic != [0x1f, 0x8b, 8] {
            return Err(damaged("its gzip stream is followed by something else"));
        }
        let flags = self.input.byte()?;
        self.input.skip(6)?;
        if flags & 4 != 0 {
            let length = u16::from_le_bytes([self.input.byte()?, self.input.byte()?]);
            self.input.skip(usize::from(length))?;
        }
        for text in [8, 16] {
            if flags & text != 0 {
                let mut left = MAX_TEXT;
                while self.input.byte()? != 0 {
                    left = left
                        .checked_sub(1)
                        .ok_or_else(|| damaged("a name in its gzip header is too long"))?;
                }
            }
        }
        if flags & 2 != 0 {
            self.input.skip(2)?;
        }
        *self.inflate = DecompressorOxide::new();
        (self.in_member, self.window_length) = (true, 0);
        Ok(true)
    }

    fn end_member(&mut self) -> io::Result<()> {
        self.in_member = false;
        self.input.skip(8)
    }
}
