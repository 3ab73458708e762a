//! Format of the index file of a segment: rows with the location of each content, each written after the content
//! itself was made durable. An incomplete or damaged row ends the file.
//!
//! ```text
//! row := hash:32 owner:16 frame:u32 length:u32 inside:u32 size:u32 kind:u32 sum:8        (76 bytes)
//! ```

use hearth_pack::identity::ContentHash;

use super::OwnerKey;

pub(super) const ROW_SIZE: usize = 76;

/// Location of a content: a byte range of the decompressed data of a zstd frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FrameSlice {
    /// Offset of the frame in its segment; `length` is its compressed size. Both are in bytes.
    pub frame: u32,
    pub length: u32,
    /// Offset of the content in the decompressed frame; `size` is the size of the content. Both are in bytes.
    pub inside: u32,
    pub size: u32,
}

/// Meaning of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowKind {
    /// Location of a content that is one piece.
    Piece,
    /// Location of a recipe: the list of the pieces of a content, verified when it was stored.
    Recipe,
    /// Additional owner of a content whose location is in another row.
    Owner,
}

/// One row of the index file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexRow {
    pub hash: ContentHash,
    pub owner: OwnerKey,
    pub kind: RowKind,
    pub place: FrameSlice,
}

impl IndexRow {
    pub(super) fn encode(&self) -> [u8; ROW_SIZE] {
        let mut bytes = [0; ROW_SIZE];
        bytes[..32].copy_from_slice(self.hash.as_bytes());
        bytes[32..48].copy_from_slice(&self.owner.0);
        let FrameSlice { frame, length, inside, size } = self.place;
        let kind = match self.kind {
            RowKind::Piece => 1,
            RowKind::Recipe => 2,
            RowKind::Owner => 3,
        };
        for (place, number) in bytes[48..68].chunks_exact_mut(4).zip([frame, length, inside, size, kind]) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let sum = blake3::hash(&bytes[..68]);
        bytes[68..].copy_from_slice(&sum.as_bytes()[..8]);
        bytes
    }

    pub(super) fn decode(bytes: &[u8; ROW_SIZE]) -> Option<Self> {
        if bytes[68..] != blake3::hash(&bytes[..68]).as_bytes()[..8] {
            return None;
        }
        let number = |index: usize| {
            let mut four = [0; 4];
            four.copy_from_slice(&bytes[48 + 4 * index..][..4]);
            u32::from_le_bytes(four)
        };
        let (mut hash, mut owner) = ([0; 32], [0; 16]);
        hash.copy_from_slice(&bytes[..32]);
        owner.copy_from_slice(&bytes[32..48]);
        let kind = match number(4) {
            1 => RowKind::Piece,
            2 => RowKind::Recipe,
            3 => RowKind::Owner,
            _ => return None,
        };
        let place = FrameSlice { frame: number(0), length: number(1), inside: number(2), size: number(3) };
        Some(Self { hash: ContentHash::from_bytes(hash), owner: OwnerKey(owner), kind, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_and_a_damaged_one_does_not() {
        let place = FrameSlice { frame: 1, length: 2, inside: 3, size: 4 };
        let (hash, owner) = (ContentHash::of(b"x"), OwnerKey::of("someone"));
        for kind in [RowKind::Piece, RowKind::Recipe, RowKind::Owner] {
            let row = IndexRow { hash, owner, kind, place };
            let mut bytes = row.encode();
            assert_eq!(IndexRow::decode(&bytes), Some(row));
            bytes[50] ^= 1;
            assert_eq!(IndexRow::decode(&bytes), None);
        }
        assert_eq!(IndexRow::decode(&[0; ROW_SIZE]), None);
    }
}
