//! gzip from its start, or from a place between two blocks; members follow each other.
//!
//! Sums of members are stepped over: what a layer holds is verified by its DiffID.

use std::io;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY,
};
use miniz_oxide::inflate::core::{BlockBoundaryState, DecompressorOxide, decompress};

use super::blob::Input;

/// How far back a block may look.
pub(super) const WINDOW: usize = 32 << 10;
/// Output that is not taken yet, and the window before it; a power of two.
const RING: usize = 256 << 10;
/// Of a member's name and comment.
const MAX_TEXT: usize = 64 << 10;

pub(super) struct Gzip {
    input: Input,
    inflate: Box<DecompressorOxide>,
    ring: Box<[u8]>,
    /// Where in the ring the next output goes.
    place: usize,
    /// Output of this member, as far as it matters for the window.
    behind: usize,
    in_member: bool,
}

/// What one step gave.
pub(super) enum Step<'g> {
    Output(&'g [u8]),
    End,
}

/// All that a decoder needs to go on from here.
pub(super) struct Boundary {
    pub blob: u64,
    /// None between members.
    pub block: Option<Block>,
}

pub(super) struct Block {
    pub bits: u8,
    pub bit_count: u8,
    pub window: Vec<u8>,
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Gzip {
    /// At the start of a member.
    pub(super) fn new(input: Input) -> Self {
        let (inflate, ring) = (Box::default(), vec![0; RING].into_boxed_slice());
        Self { input, inflate, ring, place: 0, behind: 0, in_member: false }
    }

    /// Between two blocks. The input stands at the first byte that was not looked at.
    pub(super) fn within(input: Input, block: &Block) -> Self {
        let mut gzip = Self::new(input);
        let state = BlockBoundaryState {
            num_bits: block.bit_count,
            bit_buf: block.bits,
            ..BlockBoundaryState::default()
        };
        *gzip.inflate = DecompressorOxide::from_block_boundary_state(&state);
        let window = &block.window[block.window.len().saturating_sub(WINDOW)..];
        gzip.ring[WINDOW - window.len()..WINDOW].copy_from_slice(window);
        (gzip.place, gzip.behind, gzip.in_member) = (WINDOW, window.len(), true);
        gzip
    }

    /// Decompresses a little more. With `stop`, ends at the next place where a decoder could begin;
    /// [`boundary`](Self::boundary) then gives it.
    pub(super) fn step(&mut self, stop: bool) -> io::Result<Step<'_>> {
        loop {
            if !self.in_member {
                if !self.member()? {
                    return Ok(Step::End);
                }
                continue;
            }
            if self.place == RING {
                self.place = 0;
            }
            let bytes = self.input.bytes()?;
            let at_end = bytes.is_empty();
            let mut flags = if at_end { 0 } else { TINFL_FLAG_HAS_MORE_INPUT };
            if stop {
                flags |= TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
            }
            let (status, used, made) =
                decompress(&mut self.inflate, bytes, &mut self.ring, self.place, flags);
            self.input.consume(used);
            let start = self.place;
            self.place += made;
            self.behind = (self.behind + made).min(WINDOW);
            match status {
                TINFLStatus::Done => self.end_member()?,
                TINFLStatus::BlockBoundary => {}
                TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput if used > 0 || made > 0 => {}
                _ if at_end => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => return Err(damaged("its gzip stream is damaged")),
            }
            if made > 0 || status == TINFLStatus::BlockBoundary {
                return Ok(Step::Output(&self.ring[start..start + made]));
            }
        }
    }

    /// Whether a decoder could begin here, and with what.
    pub(super) fn boundary(&self) -> Option<Boundary> {
        let blob = self.input.position();
        if !self.in_member {
            return Some(Boundary { blob, block: None });
        }
        let state = self.inflate.block_boundary_state()?;
        let mut window = Vec::with_capacity(self.behind);
        if self.place < self.behind {
            window.extend_from_slice(&self.ring[RING - (self.behind - self.place)..]);
            window.extend_from_slice(&self.ring[..self.place]);
        } else {
            window.extend_from_slice(&self.ring[self.place - self.behind..self.place]);
        }
        let block = Some(Block { bits: state.bit_buf, bit_count: state.num_bits, window });
        Some(Boundary { blob, block })
    }

    /// Steps over a member's header; false at the end of the blob, which may be padded with zeros.
    fn member(&mut self) -> io::Result<bool> {
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
        (self.in_member, self.behind) = (true, 0);
        Ok(true)
    }

    fn end_member(&mut self) -> io::Result<()> {
        self.in_member = false;
        self.input.skip(8)
    }
}
