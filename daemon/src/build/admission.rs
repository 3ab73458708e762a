//! Admission control: decides which build runs, which one waits and which submission is refused. A plain value: no
//! locks, no I/O.
//!
//! A submission first takes a [`Reservation`], which counts against the limits while the build is being stored. It
//! then either [`enqueue`](BuildAdmission::enqueue)s its build or releases the reservation. Slots are assigned
//! round-robin among the owners with waiting builds; the builds of one owner start first in, first out.
//!
//! An *owner* stands for all names of one participant: the services that it has deployed build under names of their
//! own. The queue is shared by dynamic thresholds: an owner may have as many builds waiting as the queue has free
//! entries for others. However many builds one owner submits, half of the queue stays free; the next owner leaves half
//! of that.
//!
//! With two slots or more, the last free slot goes only to an owner that runs nothing, so a build never waits for the
//! long builds of another owner. With a single slot the owners take turns.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::model::id::BuildId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Maximum number of builds that run at the same time.
    pub concurrency: usize,
    /// Maximum number of builds that wait, over all callers.
    pub queue: usize,
    /// Maximum number of builds of one owner, running and waiting together.
    pub per_caller: usize,
}

/// Reason why a build is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    #[error("the queue is full: {waiting} builds wait")]
    QueueFull { waiting: usize, retry_after: Duration },
    #[error("`{caller}` has {limit} builds running or waiting, and more are not accepted")]
    CallerLimit { caller: String, limit: usize, retry_after: Duration },
    #[error("`{caller}` has {waiting} builds waiting; the places that are left in the queue are for others")]
    QueueShare { caller: String, waiting: usize, retry_after: Duration },
    #[error("the daemon is ending and takes no new builds")]
    Draining,
}

/// Place of a waiting build in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuePlace {
    /// Builds that start before it if no others are submitted.
    pub ahead: Vec<BuildId>,
    pub running: Vec<BuildId>,
    pub wait: QueueWait,
}

/// Reason why a build waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueWait {
    Slots { running: usize, slots: usize },
    LastSlot,
    Draining,
}

impl std::fmt::Display for QueueWait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Slots { running, slots } => write!(f, "{running} of {slots} builds run"),
            Self::LastSlot => f.write_str("the last free slot is kept for callers that run no build"),
            Self::Draining => f.write_str("the daemon is ending"),
        }
    }
}

/// Admission of one build that is being stored.
#[must_use = "a dropped reservation counts against the limits forever"]
#[derive(Debug)]
pub struct Reservation {
    caller: String,
}

#[derive(Debug)]
pub struct BuildAdmission {
    limits: AdmissionLimits,
    running: BTreeMap<BuildId, String>,
    /// Callers with waiting builds; the front one is next.
    waiting: VecDeque<(String, VecDeque<BuildId>)>,
    /// Number of unused reservations by caller.
    reservations: BTreeMap<String, usize>,
    draining: bool,
}

impl BuildAdmission {
    pub fn new(limits: AdmissionLimits) -> Self {
        Self {
            limits,
            running: BTreeMap::new(),
            waiting: VecDeque::new(),
            reservations: BTreeMap::new(),
            draining: false,
        }
    }

    /// Takes a reservation for a build of `caller`.
    pub fn reserve(&mut self, caller: &str) -> Result<Reservation, AdmissionError> {
        if self.draining {
            return Err(AdmissionError::Draining);
        }
        if self.of_caller(caller) >= self.limits.per_caller {
            return Err(AdmissionError::CallerLimit {
                caller: caller.to_owned(),
                limit: self.limits.per_caller,
                retry_after: self.retry_after(),
            });
        }
        let (starting, free) = (self.starting(), self.free_slots());
        // A build that finds a free slot does not count against the queue.
        let (waiting_of, slots) = (self.waiting_of(caller), self.slots_for(caller));
        if waiting_of >= slots || starting >= free {
            let waiting = self.waiting_count() + self.reservations.values().sum::<usize>();
            let left = self.limits.queue.saturating_sub(waiting.saturating_sub(starting.min(free)));
            if left == 0 {
                return Err(AdmissionError::QueueFull { waiting, retry_after: self.retry_after() });
            }
            let own = waiting_of.saturating_sub(slots);
            if own >= left {
                let (caller, retry_after) = (caller.to_owned(), self.retry_after());
                return Err(AdmissionError::QueueShare { caller, waiting: own, retry_after });
            }
        }
        *self.reservations.entry(caller.to_owned()).or_default() += 1;
        Ok(Reservation { caller: caller.to_owned() })
    }

    /// Reports whether the build of this reservation would run at once.
    pub fn has_slot(&self, reservation: &Reservation) -> bool {
        let own = self.waiting_of(&reservation.caller);
        !self.draining && own <= self.slots_for(&reservation.caller) && self.starting() <= self.free_slots()
    }

    /// Returns an unused reservation.
    pub fn release_reservation(&mut self, reservation: Reservation) {
        let Reservation { caller } = reservation;
        if let Some(count) = self.reservations.get_mut(&caller) {
            *count -= 1;
            if *count == 0 {
                self.reservations.remove(&caller);
            }
        }
    }

    /// Turns the reservation of a stored build into a queue entry.
    pub fn enqueue(&mut self, reservation: Reservation, id: BuildId) {
        let caller = reservation.caller.clone();
        self.release_reservation(reservation);
        self.restore(caller, id);
    }

    /// Queues a build that an earlier run of the daemon had accepted, without checking the limits.
    pub fn restore(&mut self, caller: String, id: BuildId) {
        match self.waiting.iter_mut().find(|(name, _)| *name == caller) {
            Some((_, queue)) => queue.push_back(id),
            None => self.waiting.push_back((caller, VecDeque::from([id]))),
        }
    }

    /// Assigns a free slot to the next build, which counts as running from then on.
    pub fn start_next(&mut self) -> Option<BuildId> {
        if self.draining {
            return None;
        }
        let first = self.waiting.iter().position(|(caller, _)| self.slots_for(caller) > 0)?;
        let (caller, mut queue) = self.waiting.remove(first)?;
        let id = queue.pop_front()?;
        if !queue.is_empty() {
            self.waiting.push_back((caller.clone(), queue));
        }
        self.running.insert(id.clone(), caller);
        Some(id)
    }

    /// Removes a waiting build from the queue. Returns false when it does not wait.
    pub fn withdraw(&mut self, id: &BuildId) -> bool {
        let mut found = false;
        self.waiting.retain_mut(|(_, queue)| {
            let before = queue.len();
            queue.retain(|queued| queued != id);
            found |= queue.len() != before;
            !queue.is_empty()
        });
        found
    }

    /// Frees the slot of a running build that has ended.
    pub fn mark_ended(&mut self, id: &BuildId) {
        self.running.remove(id);
    }

    /// Stops accepting and starting builds.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Returns the place of a waiting build. `None` when it does not wait.
    pub fn place(&self, id: &BuildId) -> Option<QueuePlace> {
        let (caller, own) = self.waiting.iter().find(|(_, queue)| queue.contains(id))?;
        let before = own.iter().position(|waiting| waiting == id)?;
        // In each round, every caller in front of this one starts a build, and every other one that was there before.
        let position = self.waiting.iter().position(|(name, _)| name == caller)?;
        let of_others = self.waiting.iter().enumerate().filter(|(_, (name, _))| name != caller);
        let of_others = of_others
            .flat_map(|(other, (_, queue))| queue.iter().take(before + usize::from(other < position)));
        let ahead = own.iter().take(before).chain(of_others).cloned().collect();
        let (running, slots) = (self.running.len(), self.limits.concurrency);
        let wait = match (self.draining, self.slots_for(caller)) {
            (true, _) => QueueWait::Draining,
            (false, 0) if running < slots => QueueWait::LastSlot,
            (false, _) => QueueWait::Slots { running, slots },
        };
        Some(QueuePlace { ahead, running: self.running.keys().cloned().collect(), wait })
    }

    pub fn running_count(&self) -> usize {
        self.running.len()
    }

    pub fn waiting_count(&self) -> usize {
        self.waiting.iter().map(|(_, queue)| queue.len()).sum()
    }

    /// Ids of the waiting builds.
    pub fn waiting(&self) -> BTreeSet<BuildId> {
        self.waiting.iter().flat_map(|(_, queue)| queue).cloned().collect()
    }

    fn of_caller(&self, caller: &str) -> usize {
        self.running_of(caller) + self.waiting_of(caller)
    }

    fn running_of(&self, caller: &str) -> usize {
        self.running.values().filter(|name| *name == caller).count()
    }

    fn free_slots(&self) -> usize {
        self.limits.concurrency.saturating_sub(self.running.len())
    }

    /// Number of free slots that `caller` would get if no other caller waited. The last slot is reserved for callers
    /// that run nothing.
    fn slots_for(&self, caller: &str) -> usize {
        let free = self.free_slots();
        let shared = free.saturating_sub(usize::from(self.limits.concurrency > 1));
        if self.running_of(caller) > 0 { shared } else { shared.max(1).min(free) }
    }

    /// Number of builds, queued or reserved, whose caller may use a free slot. It exceeds the number of free slots
    /// when callers compete for them.
    fn starting(&self) -> usize {
        let waiting = self.waiting.iter().map(|(caller, _)| caller);
        let callers: BTreeSet<&String> = waiting.chain(self.reservations.keys()).collect();
        callers.into_iter().map(|caller| self.waiting_of(caller).min(self.slots_for(caller))).sum()
    }

    /// Number of waiting builds of `caller`, reservations included.
    fn waiting_of(&self, caller: &str) -> usize {
        let own = self.waiting.iter().filter(|(name, _)| name == caller);
        own.map(|(_, queue)| queue.len()).sum::<usize>() + self.reservations.get(caller).copied().unwrap_or(0)
    }

    /// Suggested wait before the next try. It grows with the number of waiting builds.
    fn retry_after(&self) -> Duration {
        let rounds = self.waiting_count() / self.limits.concurrency.max(1);
        Duration::from_secs(5 * (1 + rounds as u64)).min(Duration::from_secs(120))
    }

    /// Reports whether every id occurs at most once among running and waiting.
    #[cfg(test)]
    fn is_sound(&self) -> bool {
        let waiting = self.waiting.iter().flat_map(|(_, queue)| queue);
        let mut seen = BTreeSet::new();
        self.running.keys().chain(waiting).all(|id| seen.insert(id.clone()))
            && self.waiting.iter().all(|(_, queue)| !queue.is_empty())
    }
}

#[cfg(test)]
mod tests;
