//! A map of contents that takes little more than what is in it: one sorted list, and a small map of what came since it
//! was last merged. A hash map would double, many short lists leave holes between them, and a room has hundreds of
//! thousands of contents.

use std::collections::BTreeMap;

use hearth_pack::identity::ContentHash;

/// What came lately is merged when it is more than this, and more than a part of the list.
const MOST_RECENT: usize = 4096;
const RECENT_PART: usize = 16;

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

#[derive(Debug, Default)]
pub(super) struct Table {
    /// By their keys. So long a list has pages of its own, and grows without a copy.
    settled: Vec<(Key, Known)>,
    /// None of them is in `settled`.
    recent: BTreeMap<Key, Known>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.settled.len() + self.recent.len()
    }

    fn find(&self, key: &Key) -> Option<usize> {
        self.settled.binary_search_by_key(key, |(key, _)| *key).ok()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Known> {
        match self.find(key) {
            Some(at) => Some(&self.settled[at].1),
            None => self.recent.get(key),
        }
    }

    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Known> {
        match self.find(key) {
            Some(at) => Some(&mut self.settled[at].1),
            None => self.recent.get_mut(key),
        }
    }

    /// Gives what was known before.
    pub(super) fn insert(&mut self, key: Key, known: Known) -> Option<Known> {
        if let Some(at) = self.find(&key) {
            return Some(std::mem::replace(&mut self.settled[at].1, known));
        }
        let before = self.recent.insert(key, known);
        if self.recent.len() > MOST_RECENT.max(self.settled.len() / RECENT_PART) {
            self.merge();
        }
        before
    }

    /// From the back: each entry moves once, to its place in the longer list.
    fn merge(&mut self) {
        let recent = std::mem::take(&mut self.recent);
        let mut left = self.settled.len();
        self.settled.reserve_exact(recent.len());
        self.settled.extend(recent.iter().map(|(key, known)| (*key, *known)));
        let mut free = self.settled.len();
        for entry in recent.into_iter().rev() {
            while left > 0 && self.settled[left - 1].0 > entry.0 {
                left -= 1;
                free -= 1;
                self.settled[free] = self.settled[left];
            }
            free -= 1;
            self.settled[free] = entry;
        }
    }

    pub(super) fn retain(&mut self, mut stays: impl FnMut(&Key, &Known) -> bool) {
        self.settled.retain(|(key, known)| stays(key, known));
        self.recent.retain(|key, known| stays(key, known));
        if self.settled.capacity() > self.settled.len() + self.settled.len() / 4 {
            self.settled.shrink_to_fit();
        }
    }

    /// In no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Known)> {
        self.settled.iter().map(|(key, known)| (key, known)).chain(&self.recent)
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
    fn a_content_takes_little_more_than_its_32_bytes_and_gives_them_back() {
        let mut table = Table::default();
        let entry = size_of::<(Key, Known)>();
        for number in 0..300_000 {
            table.insert(key(number), known(number));
            assert!(table.recent.len() <= MOST_RECENT.max(table.settled.len() / RECENT_PART));
        }
        assert_eq!((entry, table.settled.capacity()), (32, table.settled.len()));
        assert!(table.settled.is_sorted_by_key(|(key, _)| *key));
        table.retain(|_, known| known.frame < 3000);
        assert!(table.settled.capacity() * entry < 100_000, "{}", table.settled.capacity());
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
