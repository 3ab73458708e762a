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
    semaphore: Arc<KeyedSemaphore<K>>,
    key: K,
}

impl<K: Eq + Hash> KeyedSemaphore<K> {
    pub fn new(all: usize, each: usize) -> Arc<Self> {
        let counts = Mutex::new(PermitCounts { total: 0, by_key: HashMap::new() });
        Arc::new(Self { total_limit: all, key_limit: each, counts })
    }

    /// Acquires a permit without waiting. Returns `None` when the key or the total is at its limit.
    pub fn try_acquire(self: &Arc<Self>, key: K) -> Option<KeyedPermit<K>>
    where
        K: Clone,
    {
        let mut counts = self.lock_counts();
        let key_count = counts.by_key.get(&key).copied().unwrap_or_default();
        if key_count >= self.key_limit || counts.total >= self.total_limit {
            return None;
        }
        counts.total += 1;
        counts.by_key.insert(key.clone(), key_count + 1);
        Some(KeyedPermit { semaphore: Arc::clone(self), key })
    }

    fn lock_counts(&self) -> MutexGuard<'_, PermitCounts<K>> {
        // No code under this lock panics.
        self.counts.lock()
    }
}

impl<K: Eq + Hash> Drop for KeyedPermit<K> {
    fn drop(&mut self) {
        let mut counts = self.semaphore.lock_counts();
        counts.total -= 1;
        if let Some(key_count) = counts.by_key.get_mut(&self.key) {
            *key_count -= 1;
            if *key_count == 0 {
                counts.by_key.remove(&self.key);
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
        let semaphore = KeyedSemaphore::new(10, 4);
        let address = |n: u8| IpAddr::from([10, 1, 0, n]);
        let take = |from| (0..100).map_while(|_| semaphore.try_acquire(from)).collect::<Vec<_>>();
        let eve = take(address(3));
        assert_eq!(eve.len(), 4);
        let others: Vec<_> = [take(address(4)), take(address(5))].into_iter().flatten().collect();
        assert_eq!(others.len(), 6, "no more than there are");
        drop(eve);
        assert_eq!(take(address(5)).len(), 2, "it has two already");
        drop(others);
        assert!(semaphore.lock_counts().by_key.is_empty() && semaphore.lock_counts().total == 0);
    }
}
