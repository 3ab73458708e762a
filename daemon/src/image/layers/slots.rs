//! Slots for layer inspections, shared by all owners; one owner never has the last one.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use futures::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

pub(super) struct InspectionSlots {
    /// Slots of all owners: one more than a single owner may have.
    shared: Arc<Semaphore>,
    /// Slot for inspections ahead of need.
    ahead: Arc<Semaphore>,
    per_owner: usize,
    owners: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// Slot of one inspection; dropping it releases the slot.
pub(super) struct InspectionSlot {
    _permit: OwnedSemaphorePermit,
    _share: Option<OwnedSemaphorePermit>,
}

/// Owners that wait for an inspection.
#[derive(Default)]
pub(super) struct InspectionWaiters {
    owners: Mutex<Vec<String>>,
    changed: Notify,
}

impl InspectionWaiters {
    /// Adds an owner that waits for the inspection.
    pub(super) fn add(&self, owner: &str) {
        let mut owners = lock(&self.owners);
        if owners.iter().any(|known| known == owner) {
            return;
        }
        owners.push(owner.to_owned());
        drop(owners);
        self.changed.notify_one();
    }

    fn after(&self, known: usize) -> Vec<String> {
        lock(&self.owners).get(known..).unwrap_or_default().to_vec()
    }
}

impl InspectionSlots {
    pub(super) fn new(each: usize) -> Self {
        let semaphore = |slots| Arc::new(Semaphore::new(slots));
        Self { shared: semaphore(each + 1), ahead: semaphore(1), per_owner: each, owners: Mutex::default() }
    }

    /// Waits for a slot: within the share of any owner that waits for the inspection, or the slot for inspections ahead
    /// of need. `None` when the daemon shuts down.
    pub(super) async fn take(&self, needed: &InspectionWaiters) -> Option<InspectionSlot> {
        let ahead = Arc::clone(&self.ahead).acquire_owned();
        tokio::pin!(ahead);
        let mut waiting = FuturesUnordered::new();
        let mut known = 0;
        loop {
            for owner in needed.after(known) {
                known += 1;
                waiting.push(self.take_of(owner));
            }
            tokio::select! {
                permit = &mut ahead => return Some(InspectionSlot { _permit: permit.ok()?, _share: None }),
                Some(permit) = waiting.next() => return permit,
                () = needed.changed.notified() => {}
            }
        }
    }

    /// Waits within the owner's share first, so that at most that many of its inspections wait for a common slot.
    async fn take_of(&self, owner: String) -> Option<InspectionSlot> {
        let share = self.share_of(owner).acquire_owned().await.ok()?;
        let permit = Arc::clone(&self.shared).acquire_owned().await.ok()?;
        Some(InspectionSlot { _permit: permit, _share: Some(share) })
    }

    fn share_of(&self, owner: String) -> Arc<Semaphore> {
        let mut owners = lock(&self.owners);
        if let Some(share) = owners.get(&owner).and_then(Weak::upgrade) {
            return share;
        }
        // Inspections that have a slot or wait for one hold the share.
        owners.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(self.per_owner));
        owners.insert(owner, Arc::downgrade(&share));
        share
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    /// Returns a slot if one is free.
    fn take(slots: &InspectionSlots, needed: &InspectionWaiters) -> Option<InspectionSlot> {
        slots.take(needed).now_or_never().flatten()
    }

    fn needed_by(owner: &str) -> InspectionWaiters {
        let needed = InspectionWaiters::default();
        needed.add(owner);
        needed
    }

    #[tokio::test]
    async fn an_owner_with_many_layers_leaves_a_place_for_others() {
        let slots = InspectionSlots::new(2);
        let nobody = InspectionWaiters::default();
        let _ahead = take(&slots, &nobody).unwrap();
        assert!(take(&slots, &nobody).is_none(), "one ahead of need");
        let held: Vec<_> = (0..2).map(|_| take(&slots, &needed_by("eve")).unwrap()).collect();
        assert!(take(&slots, &needed_by("eve")).is_none());
        let others = take(&slots, &needed_by("ann")).expect("the last place is not of eve");
        assert!(take(&slots, &needed_by("bob")).is_none(), "no more than there are");
        drop(held);
        assert!(take(&slots, &needed_by("bob")).is_some());
        drop(others);
        assert!(lock(&slots.owners).len() <= 3, "shares of nobody are forgotten");
    }

    #[tokio::test]
    async fn a_pass_that_waits_within_a_full_share_moves_over_to_who_joins_it() {
        let slots = InspectionSlots::new(2);
        let _ahead = take(&slots, &InspectionWaiters::default()).unwrap();
        let _held: Vec<_> = (0..2).map(|_| take(&slots, &needed_by("eve")).unwrap()).collect();
        let needed = needed_by("eve");
        let waiting = slots.take(&needed);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        needed.add("ann");
        assert!(waiting.now_or_never().flatten().is_some());
    }
}
