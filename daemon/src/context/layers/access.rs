//! Where the decompression of a blob can begin.
//!
//! A plain tar is readable anywhere. Of zstd each frame stands for itself. gzip has no such places but
//! between its members, so the state of a decoder is kept every few MiB.

use std::io;

use super::blob::Bytes;
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

/// In the middle of a gzip member: where in the index file the decoder's state lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Within {
    pub at: u64,
    pub length: u32,
    /// BLAKE3.
    pub hash: [u8; 32],
}

/// Of a state in the index file.
const MAX_STATE: u32 = 256 << 10;

impl Format {
    /// By the first bytes of a blob.
    pub(super) fn of_blob(blob: &dyn Bytes) -> io::Result<Self> {
        let mut start = [0; 4];
        let length = usize::try_from(blob.length()).unwrap_or(usize::MAX).min(start.len());
        blob.read_exact_at(&mut start[..length], 0)?;
        Ok(Self::of(&start[..length]))
    }

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
            None => out.push(0),
            Some(Within { at, length, hash }) => {
                out.push(1);
                put_number(out, *at);
                put_number(out, u64::from(*length));
                out.extend_from_slice(hash);
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
            [0] => None,
            [1] if format == Format::Gzip => {
                let (at, length, hash) = (wire.number()?, wire.small()?, wire.array()?);
                if length > MAX_STATE {
                    return Err(Damaged);
                }
                Some(Within { at, length, hash })
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
