//! Map with little memory overhead: one sorted list, and a small map of the entries since the last merge. A hash map
//! takes up to twice the memory, and a machine has hundreds of thousands of files.

use std::collections::BTreeMap;

/// Number of recent entries above which they are merged, if they also exceed the length of the list divided by
/// [`RECENT_PART`].
const MIN_MERGE_SIZE: usize = 4096;
const RECENT_PART: usize = 16;

/// Map with little memory overhead, see the module documentation.
#[derive(Clone, Debug)]
pub struct SortedMap<K, V> {
    /// Entries sorted by key. The allocator gives such a large vector its own pages, so it can grow without a copy.
    settled: Vec<(K, V)>,
    /// Entries since the last merge. Their keys are not in `settled`.
    recent: BTreeMap<K, V>,
}

impl<K, V> Default for SortedMap<K, V> {
    fn default() -> Self {
        Self { settled: Vec::new(), recent: BTreeMap::new() }
    }
}

impl<K: Ord + Copy, V: Copy> SortedMap<K, V> {
    pub fn len(&self) -> usize {
        self.settled.len() + self.recent.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn find(&self, key: &K) -> Option<usize> {
        self.settled.binary_search_by_key(key, |(key, _)| *key).ok()
    }

    pub fn get(&self, key: &K) -> Option<&V> {
        match self.find(key) {
            Some(at) => Some(&self.settled[at].1),
            None => self.recent.get(key),
        }
    }

    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        match self.find(key) {
            Some(at) => Some(&mut self.settled[at].1),
            None => self.recent.get_mut(key),
        }
    }

    /// Inserts a value and returns the previous value of the key.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        if let Some(at) = self.find(&key) {
            return Some(std::mem::replace(&mut self.settled[at].1, value));
        }
        let before = self.recent.insert(key, value);
        if self.recent.len() > MIN_MERGE_SIZE.max(self.settled.len() / RECENT_PART) {
            self.merge();
        }
        before
    }

    /// Merges the recent entries into the sorted list, from the back, so that each entry moves only once.
    fn merge(&mut self) {
        let recent = std::mem::take(&mut self.recent);
        let mut left = self.settled.len();
        self.settled.reserve_exact(recent.len());
        self.settled.extend(recent.iter().map(|(key, value)| (*key, *value)));
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

    pub fn retain(&mut self, mut stays: impl FnMut(&K, &V) -> bool) {
        self.settled.retain(|(key, value)| stays(key, value));
        self.recent.retain(|key, value| stays(key, value));
        if self.settled.capacity() > self.settled.len() + self.settled.len() / 4 {
            self.settled.shrink_to_fit();
        }
    }

    /// Iterates over the entries in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.settled.iter().map(|(key, value)| (key, value)).chain(&self.recent)
    }
}

impl<K: Ord + Copy, V: Copy> Extend<(K, V)> for SortedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

/// Collects entries. The last entry of several with the same key is kept.
impl<K: Ord + Copy, V: Copy> FromIterator<(K, V)> for SortedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut settled: Vec<_> = entries.into_iter().collect();
        settled.reverse();
        settled.sort_by_key(|(key, _)| *key);
        settled.dedup_by_key(|(key, _)| *key);
        settled.shrink_to_fit();
        Self { settled, recent: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Returns keys in no particular order.
    fn key(number: u64) -> u64 {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn all(map: &SortedMap<u64, u64>) -> HashMap<u64, u64> {
        let all: HashMap<_, _> = map.iter().map(|(key, value)| (*key, *value)).collect();
        assert_eq!(all.len(), map.len());
        all
    }

    #[test]
    fn it_holds_what_a_hash_map_holds() {
        let (mut sorted, mut hashed) = (SortedMap::default(), HashMap::new());
        assert!(sorted.is_empty());
        for round in 0..3 {
            for number in (round..30_000).step_by(2) {
                let value = number + round;
                assert_eq!(sorted.insert(key(number), value), hashed.insert(key(number), value));
            }
            let stays = |value: &u64| value % 3 != round;
            sorted.retain(|_, value| stays(value));
            hashed.retain(|_, value| stays(value));
            assert_eq!(all(&sorted), hashed);
        }
        for number in 0..30_000 {
            assert_eq!(sorted.get(&key(number)), hashed.get(&key(number)));
            assert_eq!(sorted.get_mut(&key(number)), hashed.get_mut(&key(number)));
        }
    }

    #[test]
    fn all_at_once_or_one_by_one_is_the_same() {
        let entries = || (0..20_000).map(|number| (key(number % 15_000), number));
        let whole: SortedMap<u64, u64> = entries().collect();
        let mut grown = SortedMap::default();
        grown.extend(entries());
        assert_eq!(all(&whole), entries().collect::<HashMap<_, _>>());
        assert_eq!(all(&grown), all(&whole));
    }

    #[test]
    fn it_takes_no_more_than_its_entries_and_gives_them_back() {
        let mut map = SortedMap::default();
        for number in 0..300_000 {
            map.insert(key(number), number);
            assert!(map.recent.len() <= MIN_MERGE_SIZE.max(map.settled.len() / RECENT_PART));
        }
        assert_eq!(map.settled.capacity(), map.settled.len());
        assert!(map.settled.is_sorted_by_key(|(key, _)| *key));
        map.retain(|_, value| *value < 3000);
        assert!(map.settled.capacity() < 6000, "{}", map.settled.capacity());
        assert_eq!(map.len(), 3000);
    }
}
