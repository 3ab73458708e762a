//! Counting semaphore with two limits: permits in total, and permits of one key, such as a caller or an address, so
//! that one key never takes all of them.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

#[derive(Debug)]
pub struct KeyedSemaphore<K> {
    /// Maximum number of permits of all keys together.
    total_limit: usize,
    /// Maximum number of permits of one key.
    key_limit: usize,
    counts: Mutex<PermitCounts<K>>,
}

#[derive(Debug)]
struct PermitCounts<K> {
    total: usize,
    by_key: HashMap<K, usize>,
}

/// A permit that was acquired; dropping it releases it.
#[derive(Debug)]
pub struct KeyedPermit<K: Eq + Hash> {
    places: Arc<KeyedSemaphore<K>>,
    key: K,
}

impl<K: Eq + Hash> KeyedSemaphore<K> {
    pub fn new(all: usize, each: usize) -> Arc<Self> {
        let taken = Mutex::new(PermitCounts { total: 0, by_key: HashMap::new() });
        Arc::new(Self { total_limit: all, key_limit: each, counts: taken })
    }

    /// Acquires a permit without waiting. Returns `None` when the key or the total is at its limit.
    pub fn try_acquire(self: &Arc<Self>, key: K) -> Option<KeyedPermit<K>>
    where
        K: Clone,
    {
        let mut taken = self.lock_counts();
        let own = taken.by_key.get(&key).copied().unwrap_or_default();
        if own >= self.key_limit || taken.total >= self.total_limit {
            return None;
        }
        taken.total += 1;
        taken.by_key.insert(key.clone(), own + 1);
        Some(KeyedPermit { places: Arc::clone(self), key })
    }

    fn lock_counts(&self) -> MutexGuard<'_, PermitCounts<K>> {
        // No code under this lock panics.
        self.counts.lock()
    }
}

impl<K: Eq + Hash> Drop for KeyedPermit<K> {
    fn drop(&mut self) {
        let mut taken = self.places.lock_counts();
        taken.total -= 1;
        if let Some(own) = taken.by_key.get_mut(&self.key) {
            *own -= 1;
            if *own == 0 {
                taken.by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn one_address_leaves_places_for_the_others_and_all_come_back() {
        let places = KeyedSemaphore::new(10, 4);
        let address = |n: u8| IpAddr::from([10, 1, 0, n]);
        let take = |from| (0..100).map_while(|_| places.try_acquire(from)).collect::<Vec<_>>();
        let eve = take(address(3));
        assert_eq!(eve.len(), 4);
        let others: Vec<_> = [take(address(4)), take(address(5))].into_iter().flatten().collect();
        assert_eq!(others.len(), 6, "no more than there are");
        drop(eve);
        assert_eq!(take(address(5)).len(), 2, "it has two already");
        drop(others);
        assert!(places.lock_counts().by_key.is_empty() && places.lock_counts().total == 0);
    }
}
