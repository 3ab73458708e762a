//! Footer of a cached layer: its key, digests and sizes, with a checksum over them. It follows the layer, or is a
//! file of its own if the layer is in an archive.

use std::fs::File;
use std::os::unix::fs::FileExt;

use hearth_value::Digest;
use serde::{Deserialize, Serialize};

use crate::layer::{Compression, PackedLayer};

/// JSON content of the footer. JSON, so that another version can read it and recognize it as foreign.
#[derive(Serialize, Deserialize)]
struct LayerFooter {
    key: String,
    digest: Digest,
    diff_id: Digest,
    size: u64,
    uncompressed_size: u64,
    /// Offset of the layer in the archive, if it is in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    in_archive: Option<u64>,
}

/// Magic number at the end of the file, after the length of the JSON and its BLAKE3 hash.
const MAGIC: &[u8; 16] = b"hearth-layer-1\n\0";
const TAIL: usize = 4 + 32 + MAGIC.len();
const JSON_LIMIT: usize = 4096;

pub(super) fn encode(key: &str, layer: &PackedLayer, in_archive: Option<u64>) -> Vec<u8> {
    let footer = LayerFooter {
        key: key.to_owned(),
        digest: layer.digest,
        diff_id: layer.diff_id,
        size: layer.size,
        uncompressed_size: layer.uncompressed_size,
        in_archive,
    };
    // Strings and numbers always serialize; an empty footer would read as damaged.
    let mut bytes = serde_json::to_vec(&footer).unwrap_or_default();
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    bytes.extend_from_slice(hash.as_bytes());
    bytes.extend_from_slice(MAGIC);
    bytes
}

/// Reads the footer of a file. Returns the layer and, if it is in an archive, its offset there. Returns `None` unless
/// the footer is intact and has this key.
pub(super) fn read(file: &File, key: &str, compression: Compression) -> Option<(PackedLayer, Option<u64>)> {
    let length = file.metadata().ok()?.len();
    let mut tail = [0; TAIL];
    file.read_exact_at(&mut tail, length.checked_sub(TAIL as u64)?).ok()?;
    let (count, rest) = tail.split_at(4);
    let (hash, magic) = rest.split_at(32);
    let count = u32::from_le_bytes(count.try_into().ok()?) as usize;
    if magic != MAGIC || count > JSON_LIMIT {
        return None;
    }
    let start = length.checked_sub((TAIL + count) as u64)?;
    let mut json = vec![0; count];
    file.read_exact_at(&mut json, start).ok()?;
    if blake3::hash(&json).as_bytes() != hash {
        return None;
    }
    let footer: LayerFooter = serde_json::from_slice(&json).ok()?;
    let layer = PackedLayer {
        digest: footer.digest,
        diff_id: footer.diff_id,
        size: footer.size,
        uncompressed_size: footer.uncompressed_size,
        compression,
    };
    let before = if footer.in_archive.is_some() { 0 } else { footer.size };
    (footer.key == key && before == start).then_some((layer, footer.in_archive))
}
