//! Access points: positions in a blob where decompression can begin.
//!
//! A plain tar is readable at any position. Each zstd frame is independent. gzip has such positions only
//! between its members, so the state of a decoder is saved every few MiB.

use std::io;

use super::blob::ByteSource;
use super::encoding::{DamagedIndex, IndexDecoder, put_number};

/// Compression of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlobFormat {
    Plain,
    Gzip,
    Zstd,
}

/// A position where decompression can begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AccessPoint {
    /// Offset in the tar.
    pub tar: u64,
    /// Offset of the next byte to read in the blob.
    pub blob: u64,
    /// Saved decoder state; `None` at the start of a frame or member.
    pub state: Option<DecoderStateRef>,
}

/// Position in the index file of the decoder state for a point inside a gzip member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DecoderStateRef {
    pub at: u64,
    pub length: u32,
    /// BLAKE3 hash of the state.
    pub hash: [u8; 32],
}

/// Maximum size in bytes of a decoder state in the index file.
const MAX_STATE: u32 = 256 << 10;

impl BlobFormat {
    /// Detects the format from the first bytes of a blob.
    pub(super) fn of_blob(blob: &dyn ByteSource) -> io::Result<Self> {
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

pub(super) fn encode(out: &mut Vec<u8>, format: BlobFormat, points: &[AccessPoint]) {
    out.push(match format {
        BlobFormat::Plain => 0,
        BlobFormat::Gzip => 1,
        BlobFormat::Zstd => 2,
    });
    put_number(out, points.len() as u64);
    let (mut tar, mut blob) = (0, 0);
    for point in points {
        put_number(out, point.tar - tar);
        put_number(out, point.blob - blob);
        (tar, blob) = (point.tar, point.blob);
        match &point.state {
            None => out.push(0),
            Some(DecoderStateRef { at, length, hash }) => {
                out.push(1);
                put_number(out, *at);
                put_number(out, u64::from(*length));
                out.extend_from_slice(hash);
            }
        }
    }
}

/// Decodes access points. They are in ascending order, and the first one is the start of the tar.
pub(super) fn decode(wire: &mut IndexDecoder<'_>) -> Result<(BlobFormat, Vec<AccessPoint>), DamagedIndex> {
    let format = match wire.array()? {
        [0] => BlobFormat::Plain,
        [1] => BlobFormat::Gzip,
        [2] => BlobFormat::Zstd,
        _ => return Err(DamagedIndex),
    };
    let count = wire.count(3)?;
    let mut points: Vec<AccessPoint> = Vec::with_capacity(count);
    let (mut tar, mut blob) = (0u64, 0u64);
    for index in 0..count {
        let step = wire.number()?;
        tar = tar.checked_add(step).ok_or(DamagedIndex)?;
        blob = blob.checked_add(wire.number()?).ok_or(DamagedIndex)?;
        let within = match wire.array()? {
            [0] => None,
            [1] if format == BlobFormat::Gzip => {
                let (at, length, hash) = (wire.number()?, wire.number_u32()?, wire.array()?);
                if length > MAX_STATE {
                    return Err(DamagedIndex);
                }
                Some(DecoderStateRef { at, length, hash })
            }
            _ => return Err(DamagedIndex),
        };
        let is_start = tar == 0 && within.is_none();
        if (index == 0 && !is_start) || (index > 0 && step == 0) {
            return Err(DamagedIndex);
        }
        points.push(AccessPoint { tar, blob, state: within });
    }
    if points.is_empty() != (format == BlobFormat::Plain) {
        return Err(DamagedIndex);
    }
    Ok((format, points))
}
