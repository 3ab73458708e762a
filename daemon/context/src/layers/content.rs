//! Hash of a file's content, computed while its stored bytes are parsed; holes count as zeros.

use hearth_pack::identity::ContentHash;

use super::sparse::SparseExtent;

/// Maximum number of zeros in the holes of one layer that are hashed, which takes about a second.
pub(super) const MAX_HASHED_HOLES: u64 = 4 << 30;

/// Key context of a separate hash for files with larger holes, which cannot equal the hash of any content.
/// Such files are equal only if their sparse maps are. A false "changed" is the worst consequence.
const MAP_HASH_CONTEXT: &str = "hearth sparse file: size, pieces, stored bytes";

/// Hashes the content of one file.
pub(super) struct ContentHasher {
    sum: blake3::Hasher,
    /// Remaining extents of the map in reverse order; empty if holes are not hashed.
    pieces: Vec<SparseExtent>,
    /// Offset in the file of the next byte.
    position: u64,
    size: Option<u64>,
}

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl ContentHasher {
    pub(super) fn plain() -> Self {
        Self { sum: blake3::Hasher::new(), pieces: Vec::new(), position: 0, size: None }
    }

    pub(super) fn sparse(pieces: &[SparseExtent], size: u64, budget: &mut u64) -> Self {
        let stored: u64 = pieces.iter().map(|piece| piece.length).sum();
        let holes = size.saturating_sub(stored);
        if let Some(rest) = budget.checked_sub(holes) {
            *budget = rest;
            let pieces = pieces.iter().rev().copied().collect();
            return Self { sum: blake3::Hasher::new(), pieces, position: 0, size: Some(size) };
        }
        let mut sum = blake3::Hasher::new_derive_key(MAP_HASH_CONTEXT);
        sum.update(&size.to_le_bytes());
        sum.update(&(pieces.len() as u64).to_le_bytes());
        for piece in pieces {
            sum.update(&piece.offset.to_le_bytes());
            sum.update(&piece.length.to_le_bytes());
        }
        Self { sum, pieces: Vec::new(), position: 0, size: None }
    }

    /// Adds stored bytes, in the order of the extents.
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while let Some(piece) = self.pieces.last().copied() {
            if bytes.is_empty() {
                return;
            }
            self.zeros_up_to(piece.offset);
            let left = piece.offset + piece.length - self.position;
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            let (now, rest) = bytes.split_at(count);
            self.sum.update(now);
            self.position += count as u64;
            bytes = rest;
            if self.position == piece.offset + piece.length {
                self.pieces.pop();
            }
        }
        self.sum.update(bytes);
    }

    fn zeros_up_to(&mut self, offset: u64) {
        while self.position < offset {
            let most = (offset - self.position).min(ZEROS.len() as u64);
            self.sum.update(&ZEROS[..usize::try_from(most).unwrap_or_default()]);
            self.position += most;
        }
    }

    pub(super) fn finish(mut self) -> ContentHash {
        if let Some(size) = self.size {
            self.zeros_up_to(size);
        }
        ContentHash::from_bytes(self.sum.finalize().into())
    }
}
