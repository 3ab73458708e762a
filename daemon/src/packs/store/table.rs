//! A map of contents that takes little more than what is in it: many short sorted lists, each of which grows by a
//! small part of itself. A hash map would double, and a room has hundreds of thousands of contents.

use std::hash::{BuildHasher as _, RandomState};

use hearth_pack::identity::ContentHash;

const SHELVES: usize = 4096;

/// Half of a content's hash. No two contents that differ are found to have the same one; what is read is
/// compared with the whole hash all the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Key([u8; 16]);

impl Key {
    pub(super) fn of(hash: &ContentHash) -> Self {
        let mut key = [0; 16];
        key.copy_from_slice(&hash.as_bytes()[..16]);
        Self(key)
    }
}

/// What is known of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Number of the frame that it lies in.
    pub frame: u32,
    /// Where it begins in the decompressed frame; the highest bit says that it is a recipe.
    inside: u32,
    pub size: u32,
    /// Seconds since the store was opened when it was last asked for.
    pub touched: u32,
}

const RECIPE: u32 = 1 << 31;

impl Known {
    pub(super) const fn new(frame: u32, inside: u32, size: u32, recipe: bool, touched: u32) -> Self {
        // A frame holds 4 MiB.
        let inside = (inside & !RECIPE) | if recipe { RECIPE } else { 0 };
        Self { frame, inside, size, touched }
    }

    pub(super) const fn inside(&self) -> u32 {
        self.inside & !RECIPE
    }

    pub(super) const fn is_recipe(&self) -> bool {
        self.inside & RECIPE != 0
    }
}

#[derive(Debug)]
pub(super) struct Table {
    shelves: Vec<Vec<(Key, Known)>>,
    /// Its secret keeps anybody from choosing contents that all belong on one shelf.
    hasher: RandomState,
    len: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self { shelves: vec![Vec::new(); SHELVES], hasher: RandomState::new(), len: 0 }
    }
}

impl Table {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    fn shelf(&self, key: &Key) -> usize {
        (self.hasher.hash_one(key) >> 32) as usize % SHELVES
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Known> {
        let shelf = &self.shelves[self.shelf(key)];
        let at = shelf.binary_search_by_key(key, |(key, _)| *key).ok()?;
        Some(&shelf[at].1)
    }

    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Known> {
        let number = self.shelf(key);
        let shelf = &mut self.shelves[number];
        let at = shelf.binary_search_by_key(key, |(key, _)| *key).ok()?;
        Some(&mut shelf[at].1)
    }

    /// Gives what was known before.
    pub(super) fn insert(&mut self, key: Key, known: Known) -> Option<Known> {
        let number = self.shelf(&key);
        let shelf = &mut self.shelves[number];
        match shelf.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(at) => Some(std::mem::replace(&mut shelf[at].1, known)),
            Err(at) => {
                if shelf.len() == shelf.capacity() {
                    shelf.reserve_exact(shelf.len() / 8 + 4);
                }
                shelf.insert(at, (key, known));
                self.len += 1;
                None
            }
        }
    }

    pub(super) fn retain(&mut self, mut stays: impl FnMut(&Key, &Known) -> bool) {
        self.len = 0;
        for shelf in &mut self.shelves {
            shelf.retain(|(key, known)| stays(key, known));
            if shelf.capacity() > shelf.len() + shelf.len() / 4 + 8 {
                shelf.shrink_to_fit();
            }
            self.len += shelf.len();
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Known)> {
        self.shelves.iter().flatten().map(|(key, known)| (key, known))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn key(number: u32) -> Key {
        Key::of(&ContentHash::of(&number.to_le_bytes()))
    }

    fn known(number: u32) -> Known {
        Known::new(number, number % 1000, number, number.is_multiple_of(7), 0)
    }

    #[test]
    fn it_holds_what_a_map_holds() {
        let (mut table, mut map) = (Table::default(), HashMap::new());
        for round in 0..3 {
            for number in (round..30_000).step_by(2) {
                let value = known(number + round);
                assert_eq!(table.insert(key(number), value), map.insert(key(number), value));
            }
            assert_eq!(table.len(), map.len());
            let stays = |known: &Known| known.frame % 3 != round;
            table.retain(|_, known| stays(known));
            map.retain(|_, known| stays(known));
            assert_eq!(table.iter().map(|(key, known)| (*key, *known)).collect::<HashMap<_, _>>(), map);
        }
        for number in 0..30_000 {
            assert_eq!(table.get(&key(number)), map.get(&key(number)));
            assert_eq!(table.get_mut(&key(number)), map.get_mut(&key(number)));
        }
    }

    #[test]
    fn a_content_takes_forty_bytes_and_gives_them_back() {
        let mut table = Table::default();
        let room = |table: &Table| {
            table.shelves.iter().map(|shelf| shelf.capacity() * size_of::<(Key, Known)>()).sum::<usize>()
        };
        for number in 0..300_000 {
            table.insert(key(number), known(number));
        }
        assert!(room(&table) < 300_000 * 40, "{}", room(&table));
        table.retain(|_, known| known.frame < 3000);
        assert!(room(&table) < 500_000, "{}", room(&table));
        assert_eq!(table.len(), 3000);
    }

    #[test]
    fn a_recipe_keeps_its_place() {
        for recipe in [false, true] {
            let known = Known::new(1, 4 << 20, 3, recipe, 4);
            assert_eq!((known.is_recipe(), known.inside()), (recipe, 4 << 20));
        }
    }
}
