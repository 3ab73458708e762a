//! File format of a layer's index: the entries of the layer, and access points of its blob.
//!
//! ```text
//! states of gzip decoders | body | length of the body (8) | BLAKE3 of magic, length, body (32) | magic (16)
//! ```
//!
//! The body is small and read as a whole. A decoder state is read when a decoder starts at it, and has its
//! own hash. An index that is damaged, of another version, or of another layer is rebuilt.

use hearth_model::Digest;

use super::access_points::{self, AccessPoint, BlobFormat};
use super::encoding::{DamagedIndex, IndexDecoder, put_bytes, put_number};

/// The last characters are the version; changing them rebuilds every index. An update of `miniz_oxide` needs a new
/// version, since the states of decoders are its private format.
const MAGIC: &[u8; 16] = b"hearth layer 002";
const TRAILER: usize = 8 + 32 + MAGIC.len();

/// Maximum size in bytes of a body; no layer within the limits has a larger one.
const MAX_BODY: u64 = 1 << 30;

/// The decoded index of one layer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LayerIndex {
    pub diff_id: Digest,
    pub blob: Digest,
    pub blob_length: u64,
    /// Length of the tar in bytes.
    pub length: u64,
    pub format: BlobFormat,
    pub points: Vec<AccessPoint>,
    /// Entries as encoded by [`EntryWriter`](super::entries::EntryWriter).
    pub entries: Vec<u8>,
    /// True if any entry may be a whiteout.
    pub has_whiteouts: bool,
}

impl LayerIndex {
    /// Encodes the body and the trailer.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.entries.len() + 64 * self.points.len() + 256);
        out.extend_from_slice(self.diff_id.as_bytes());
        out.extend_from_slice(self.blob.as_bytes());
        put_number(&mut out, self.blob_length);
        put_number(&mut out, self.length);
        access_points::encode(&mut out, self.format, &self.points);
        out.push(u8::from(self.has_whiteouts));
        put_bytes(&mut out, &self.entries);
        let length = (out.len() as u64).to_le_bytes();
        let sum = checksum(&length, &out);
        out.extend_from_slice(&length);
        out.extend_from_slice(&sum);
        out.extend_from_slice(MAGIC);
        out
    }

    /// Returns the range of the body in a file with this trailer.
    pub(super) fn body_range(
        file_length: u64,
        trailer: &[u8; TRAILER],
    ) -> Result<std::ops::Range<u64>, DamagedIndex> {
        let mut wire = IndexDecoder(trailer);
        let length = u64::from_le_bytes(wire.array()?);
        let end = file_length.checked_sub(TRAILER as u64).ok_or(DamagedIndex)?;
        let start = end.checked_sub(length).ok_or(DamagedIndex)?;
        Ok(start..end)
    }

    pub(super) fn decode(body: &[u8], trailer: &[u8; TRAILER]) -> Result<Self, DamagedIndex> {
        let mut wire = IndexDecoder(trailer);
        let (length, expected) = (wire.array::<8>()?, wire.array::<32>()?);
        let is_whole = u64::from_le_bytes(length) == body.len() as u64 && wire.0 == MAGIC;
        if !is_whole || checksum(&length, body) != expected {
            return Err(DamagedIndex);
        }
        Self::decode_body(body)
    }

    /// Decodes a body whose checksum was verified; inconsistent values are refused all the same.
    pub(super) fn decode_body(body: &[u8]) -> Result<Self, DamagedIndex> {
        let mut wire = IndexDecoder(body);
        let (diff_id, blob) = (Digest::from_sha256(wire.array()?), Digest::from_sha256(wire.array()?));
        let (blob_length, length) = (wire.number()?, wire.number()?);
        let (format, points) = access_points::decode(&mut wire)?;
        let hides = wire.array()? != [0];
        let entries = wire.bytes()?.to_vec();
        let is_inside = points.iter().all(|point| point.tar <= length && point.blob <= blob_length);
        if !wire.0.is_empty() || !is_inside {
            return Err(DamagedIndex);
        }
        Ok(Self { diff_id, blob, blob_length, length, format, points, entries, has_whiteouts: hides })
    }
}

fn checksum(length: &[u8; 8], body: &[u8]) -> [u8; 32] {
    let mut sum = blake3::Hasher::new();
    sum.update(MAGIC);
    sum.update(length);
    sum.update(body);
    sum.finalize().into()
}

/// Reads the body at the end of an index file.
pub(super) fn read(file: &std::fs::File) -> std::io::Result<Result<LayerIndex, DamagedIndex>> {
    use std::os::unix::fs::FileExt as _;
    let file_length = file.metadata()?.len();
    let mut trailer = [0; TRAILER];
    let Some(at) = file_length.checked_sub(TRAILER as u64) else { return Ok(Err(DamagedIndex)) };
    file.read_exact_at(&mut trailer, at)?;
    let Ok(range) = LayerIndex::body_range(file_length, &trailer) else { return Ok(Err(DamagedIndex)) };
    if range.end - range.start > MAX_BODY {
        return Ok(Err(DamagedIndex));
    }
    let mut body = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut body, range.start)?;
    Ok(LayerIndex::decode(&body, &trailer))
}
