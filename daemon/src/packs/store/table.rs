//! Compact in-memory table of stored contents: 32 bytes each, because a room has hundreds of thousands.

use hearth_pack::identity::ContentHash;
use hearth_pack::sorted_map::SortedMap;

/// Table of stored contents by key.
pub(super) type ContentTable = SortedMap<ContentKey, IndexedContent>;

/// First half of a content's hash. Finding two different contents with the same half is infeasible; content that is
/// read is nevertheless compared with the complete hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct ContentKey([u8; 16]);

impl ContentKey {
    pub(super) fn of(hash: &ContentHash) -> Self {
        let mut key = [0; 16];
        key.copy_from_slice(&hash.as_bytes()[..16]);
        Self(key)
    }
}

/// Table entry of one stored content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexedContent {
    /// Number of the frame that holds the content.
    pub frame: u32,
    /// Offset in the decompressed frame. The highest bit marks a recipe.
    inside: u32,
    pub size: u32,
    /// Time when the content was last asked for, in seconds since the store was opened.
    pub last_asked: u32,
}

const RECIPE: u32 = 1 << 31;

impl IndexedContent {
    pub(super) const fn new(frame: u32, inside: u32, size: u32, recipe: bool, touched: u32) -> Self {
        // A frame holds at most 4 MiB, so an offset never uses the highest bit.
        let inside = (inside & !RECIPE) | if recipe { RECIPE } else { 0 };
        Self { frame, inside, size, last_asked: touched }
    }

    pub(super) const fn inside(&self) -> u32 {
        self.inside & !RECIPE
    }

    pub(super) const fn is_recipe(&self) -> bool {
        self.inside & RECIPE != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_takes_its_32_bytes() {
        assert_eq!(size_of::<(ContentKey, IndexedContent)>(), 32);
    }

    #[test]
    fn a_recipe_keeps_its_place() {
        for recipe in [false, true] {
            let known = IndexedContent::new(1, 4 << 20, 3, recipe, 4);
            assert_eq!((known.is_recipe(), known.inside()), (recipe, 4 << 20));
        }
    }
}
