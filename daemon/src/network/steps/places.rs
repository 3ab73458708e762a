//! Places of the resolver: so many in all, and so many of one address, so that one step does not take them from others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
pub(super) struct StepPlaces {
    all: usize,
    each: u32,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, u32>,
}

/// A place that is taken; dropping it gives it back.
#[derive(Debug)]
pub(super) struct StepPlace {
    places: Arc<StepPlaces>,
    from: IpAddr,
}

impl StepPlaces {
    pub(super) fn new(all: usize, each: u32) -> Arc<Self> {
        Arc::new(Self { all, each, taken: Mutex::default() })
    }

    /// None where the address has as many as it may, or all are taken.
    pub(super) fn take(self: &Arc<Self>, from: IpAddr) -> Option<StepPlace> {
        let mut taken = self.taken();
        let own = taken.by_address.get(&from).copied().unwrap_or_default();
        if own >= self.each || taken.all >= self.all {
            return None;
        }
        taken.all += 1;
        taken.by_address.insert(from, own + 1);
        Some(StepPlace { places: Arc::clone(self), from })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StepPlace {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all -= 1;
        if let Some(own) = taken.by_address.get_mut(&self.from) {
            *own -= 1;
            if *own == 0 {
                taken.by_address.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_places_for_the_others_and_all_come_back() {
        let places = StepPlaces::new(10, 4);
        let address = |n: u8| IpAddr::from([10, 1, 0, n]);
        let take = |from| (0..100).map_while(|_| places.take(from)).collect::<Vec<_>>();
        let eve = take(address(3));
        assert_eq!(eve.len(), 4);
        let others: Vec<_> = [take(address(4)), take(address(5))].into_iter().flatten().collect();
        assert_eq!(others.len(), 6, "no more than there are");
        drop(eve);
        assert_eq!(take(address(5)).len(), 2, "it has two already");
        drop(others);
        assert!(places.taken().by_address.is_empty() && places.taken().all == 0);
    }
}
