//! Where the decompression of a blob can begin.
//!
//! A plain tar is readable anywhere. Of zstd each frame stands for itself. gzip has no such places but
//! between its members; between two blocks of one, the last 32 KiB of output and a few bits of input
//! are all that a decoder needs (zlib's `examples/zran.c` shows it), so those are kept every few MiB.

use super::wire::{Damaged, Wire, put_number};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Plain,
    Gzip,
    Zstd,
}

/// A place to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Point {
    /// In the tar.
    pub tar: u64,
    /// In the blob: the next byte to read.
    pub blob: u64,
    /// None at the start of a frame or member.
    pub within: Option<Within>,
}

/// Between two blocks of a gzip member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Within {
    /// Bits of the byte before that belong to the next block, and how many.
    pub bits: u8,
    pub bit_count: u8,
    /// Where in the index file the window lies, compressed.
    pub window_at: u64,
    pub window_length: u32,
    pub window_hash: [u8; 32],
}

impl Format {
    pub(super) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

pub(super) fn put(out: &mut Vec<u8>, format: Format, points: &[Point]) {
    out.push(match format {
        Format::Plain => 0,
        Format::Gzip => 1,
        Format::Zstd => 2,
    });
    put_number(out, points.len() as u64);
    let (mut tar, mut blob) = (0, 0);
    for point in points {
        put_number(out, point.tar - tar);
        put_number(out, point.blob - blob);
        (tar, blob) = (point.tar, point.blob);
        match &point.within {
            None => out.push(0xff),
            Some(within) => {
                out.extend_from_slice(&[within.bit_count, within.bits]);
                put_number(out, within.window_at);
                put_number(out, u64::from(within.window_length));
                out.extend_from_slice(&within.window_hash);
            }
        }
    }
}

/// Points in ascending order, the first of them the start of all.
pub(super) fn get(wire: &mut Wire<'_>) -> Result<(Format, Vec<Point>), Damaged> {
    let format = match wire.array()? {
        [0] => Format::Plain,
        [1] => Format::Gzip,
        [2] => Format::Zstd,
        _ => return Err(Damaged),
    };
    let count = wire.count(3)?;
    let mut points: Vec<Point> = Vec::with_capacity(count);
    let (mut tar, mut blob) = (0u64, 0u64);
    for index in 0..count {
        let step = wire.number()?;
        tar = tar.checked_add(step).ok_or(Damaged)?;
        blob = blob.checked_add(wire.number()?).ok_or(Damaged)?;
        let within = match wire.array()? {
            [0xff] => None,
            [bit_count @ 0..=7] if format == Format::Gzip => {
                let [bits] = wire.array()?;
                let (window_at, window_length) = (wire.number()?, wire.small()?);
                if window_length > 64 << 10 || u32::from(bits) >> bit_count != 0 {
                    return Err(Damaged);
                }
                let window_hash = wire.array()?;
                Some(Within { bits, bit_count, window_at, window_length, window_hash })
            }
            _ => return Err(Damaged),
        };
        let is_start = tar == 0 && within.is_none();
        if (index == 0 && !is_start) || (index > 0 && step == 0) {
            return Err(Damaged);
        }
        points.push(Point { tar, blob, within });
    }
    if points.is_empty() != (format == Format::Plain) {
        return Err(Damaged);
    }
    Ok((format, points))
}
