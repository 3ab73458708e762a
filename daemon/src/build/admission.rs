//! Who may build now, who waits, who is turned away. A plain value: no locks, no I/O.
//!
//! A submission first takes a [`Place`], which counts against the limits while the build is being
//! stored, and then either [`enqueue`](Admission::enqueue)s its build or gives the place back.
//! Slots go round among the owners that wait; within one owner the first come is the first served.
//!
//! An *owner* stands for all names of one participant: the services that it has deployed build under names of their
//! own. The queue is shared by dynamic thresholds: an owner may have as many builds waiting as there are places left
//! for others. However many builds one owner submits, half of the queue is left, and of that the next one leaves half.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::model::id::BuildId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Builds that run at once.
    pub concurrency: usize,
    /// Builds that wait, of all callers together.
    pub queue: usize,
    /// Builds of one owner, running and waiting together.
    pub per_caller: usize,
}

/// Why a build is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Deny {
    #[error("the queue is full: {waiting} builds wait")]
    QueueFull { waiting: usize, retry_after: Duration },
    #[error("`{caller}` has {limit} builds running or waiting, and more are not accepted")]
    CallerLimit { caller: String, limit: usize, retry_after: Duration },
    #[error("`{caller}` has {waiting} builds waiting; the places that are left in the queue are for others")]
    QueueShare { caller: String, waiting: usize, retry_after: Duration },
    #[error("the daemon is ending and takes no new builds")]
    Draining,
}

/// Room for one build that is being stored.
#[must_use = "a place that is dropped is never free again"]
#[derive(Debug)]
pub struct Place {
    caller: String,
}

#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    running: BTreeMap<BuildId, String>,
    /// Callers with waiting builds; the front one is next.
    waiting: VecDeque<(String, VecDeque<BuildId>)>,
    /// Places taken and not yet used, by caller.
    places: BTreeMap<String, usize>,
    draining: bool,
}

impl Admission {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            running: BTreeMap::new(),
            waiting: VecDeque::new(),
            places: BTreeMap::new(),
            draining: false,
        }
    }

    /// Takes a place for a build of `caller`.
    pub fn reserve(&mut self, caller: &str) -> Result<Place, Deny> {
        if self.draining {
            return Err(Deny::Draining);
        }
        if self.of_caller(caller) >= self.limits.per_caller {
            return Err(Deny::CallerLimit {
                caller: caller.to_owned(),
                limit: self.limits.per_caller,
                retry_after: self.retry_after(),
            });
        }
        let waiting = self.waiting_count() + self.places.values().sum::<usize>();
        let free = self.limits.concurrency.saturating_sub(self.running.len());
        // Those that find a free slot wait for nobody.
        if waiting >= free {
            let left = self.limits.queue.saturating_sub(waiting - free);
            if left == 0 {
                return Err(Deny::QueueFull { waiting, retry_after: self.retry_after() });
            }
            let own = self.waiting_of(caller).saturating_sub(free);
            if own >= left {
                let (caller, retry_after) = (caller.to_owned(), self.retry_after());
                return Err(Deny::QueueShare { caller, waiting: own, retry_after });
            }
        }
        *self.places.entry(caller.to_owned()).or_default() += 1;
        Ok(Place { caller: caller.to_owned() })
    }

    /// Whether the builds that have places would all run at once.
    pub fn has_slot(&self) -> bool {
        let taken = self.running.len() + self.places.values().sum::<usize>();
        !self.draining && self.waiting.is_empty() && taken <= self.limits.concurrency
    }

    /// The place was not needed.
    pub fn give_back(&mut self, place: Place) {
        let Place { caller } = place;
        if let Some(count) = self.places.get_mut(&caller) {
            *count -= 1;
            if *count == 0 {
                self.places.remove(&caller);
            }
        }
    }

    /// The stored build waits for a slot.
    pub fn enqueue(&mut self, place: Place, id: BuildId) {
        let caller = place.caller.clone();
        self.give_back(place);
        self.restore(caller, id);
    }

    /// Queues a build that an earlier run of the daemon had accepted; limits are not asked.
    pub fn restore(&mut self, caller: String, id: BuildId) {
        match self.waiting.iter_mut().find(|(name, _)| *name == caller) {
            Some((_, queue)) => queue.push_back(id),
            None => self.waiting.push_back((caller, VecDeque::from([id]))),
        }
    }

    /// Gives a free slot to the next build, which counts as running from now on.
    pub fn next(&mut self) -> Option<BuildId> {
        if self.draining || self.running.len() >= self.limits.concurrency {
            return None;
        }
        let (caller, mut queue) = self.waiting.pop_front()?;
        let id = queue.pop_front()?;
        if !queue.is_empty() {
            self.waiting.push_back((caller.clone(), queue));
        }
        self.running.insert(id.clone(), caller);
        Some(id)
    }

    /// Takes a waiting build out of the queue; false when it does not wait.
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

    /// A running build has ended.
    pub fn ended(&mut self, id: &BuildId) {
        self.running.remove(id);
    }

    /// Nothing is accepted or started any more.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    pub fn running_count(&self) -> usize {
        self.running.len()
    }

    pub fn waiting_count(&self) -> usize {
        self.waiting.iter().map(|(_, queue)| queue.len()).sum()
    }

    /// The builds that wait.
    pub fn waiting(&self) -> BTreeSet<BuildId> {
        self.waiting.iter().flat_map(|(_, queue)| queue).cloned().collect()
    }

    fn of_caller(&self, caller: &str) -> usize {
        let running = self.running.values().filter(|name| *name == caller).count();
        running + self.waiting_of(caller)
    }

    /// Those that have a place only wait too.
    fn waiting_of(&self, caller: &str) -> usize {
        let own = self.waiting.iter().filter(|(name, _)| name == caller);
        own.map(|(_, queue)| queue.len()).sum::<usize>() + self.places.get(caller).copied().unwrap_or(0)
    }

    /// Longer the more builds stand before the one who asks.
    fn retry_after(&self) -> Duration {
        let rounds = self.waiting_count() / self.limits.concurrency.max(1);
        Duration::from_secs(5 * (1 + rounds as u64)).min(Duration::from_secs(120))
    }

    /// Every id at most once among running and waiting.
    #[cfg(test)]
    fn is_sound(&self) -> bool {
        let waiting = self.waiting.iter().flat_map(|(_, queue)| queue);
        let mut seen = BTreeSet::new();
        self.running.keys().chain(waiting).all(|id| seen.insert(id.clone()))
            && self.waiting.iter().all(|(_, queue)| !queue.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(concurrency: usize, queue: usize, per_caller: usize) -> Limits {
        Limits { concurrency, queue, per_caller }
    }

    fn submit(admission: &mut Admission, caller: &str) -> Result<BuildId, Deny> {
        let place = admission.reserve(caller)?;
        let id = BuildId::random();
        admission.enqueue(place, id.clone());
        Ok(id)
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let mut admission = Admission::new(limits(1, 2, 10));
        let first = submit(&mut admission, "a").unwrap();
        assert_eq!(admission.next(), Some(first.clone()));
        submit(&mut admission, "a").unwrap();
        submit(&mut admission, "b").unwrap();
        let Err(Deny::QueueFull { waiting: 2, retry_after }) = submit(&mut admission, "c") else {
            panic!("accepted");
        };
        assert!(retry_after >= Duration::from_secs(1));
        admission.ended(&first);
        admission.next().unwrap();
        submit(&mut admission, "c").unwrap();
    }

    #[test]
    fn a_place_has_a_slot_when_nobody_runs_or_waits_for_it() {
        let mut admission = Admission::new(limits(2, 10, 10));
        let first = admission.reserve("a").unwrap();
        let second = admission.reserve("b").unwrap();
        assert!(admission.has_slot());
        let third = admission.reserve("b").unwrap();
        assert!(!admission.has_slot());
        admission.give_back(third);
        admission.enqueue(first, BuildId::random());
        assert!(!admission.has_slot(), "the one that waits comes first");
        admission.next().unwrap();
        assert!(admission.has_slot());
        admission.give_back(second);
        admission.drain();
        assert!(!admission.has_slot());
    }

    #[test]
    fn a_caller_at_its_limit_is_refused_and_others_are_not() {
        let mut admission = Admission::new(limits(2, 10, 2));
        let _held = admission.reserve("a").unwrap();
        submit(&mut admission, "a").unwrap();
        assert!(matches!(submit(&mut admission, "a"), Err(Deny::CallerLimit { limit: 2, .. })));
        submit(&mut admission, "b").unwrap();
    }

    #[test]
    fn a_place_that_is_given_back_is_free_again() {
        let mut admission = Admission::new(limits(1, 0, 1));
        let place = admission.reserve("a").unwrap();
        assert!(admission.reserve("b").is_err());
        admission.give_back(place);
        assert!(admission.reserve("b").is_ok());
    }

    #[test]
    fn a_draining_queue_starts_and_accepts_nothing() {
        let mut admission = Admission::new(limits(1, 2, 2));
        submit(&mut admission, "a").unwrap();
        admission.drain();
        assert_eq!(admission.next(), None);
        assert_eq!(submit(&mut admission, "b"), Err(Deny::Draining));
    }

    #[test]
    fn slots_go_round_among_callers() {
        let mut admission = Admission::new(limits(1, 100, 100));
        let busy: Vec<_> = (0..5).map(|_| submit(&mut admission, "busy").unwrap()).collect();
        let rare = submit(&mut admission, "rare").unwrap();
        let mut order = Vec::new();
        while let Some(id) = admission.next() {
            admission.ended(&id);
            order.push(id);
        }
        assert_eq!(order[1], rare, "the rare caller waits for one build of the busy one, not for five");
        order.remove(1);
        assert_eq!(order, busy);
    }

    #[test]
    fn one_owner_leaves_half_of_the_queue_and_the_next_one_half_of_that() {
        let mut admission = Admission::new(limits(1, 8, 100));
        let mut accepted = |owner: &str| {
            let mut count = 0;
            let refused = loop {
                match submit(&mut admission, owner) {
                    Ok(_) => count += 1,
                    Err(deny) => break deny,
                }
                admission.next();
            };
            (count, matches!(refused, Deny::QueueShare { .. }))
        };
        assert_eq!(accepted("greedy"), (1 + 4, true));
        assert_eq!(accepted("second"), (2, true));
        assert_eq!(accepted("third"), (1, true));
        assert_eq!(accepted("fourth"), (1, false));
    }

    #[test]
    fn free_slots_are_for_anybody() {
        let mut admission = Admission::new(limits(4, 0, 100));
        for _ in 0..4 {
            submit(&mut admission, "a").unwrap();
        }
        assert!(matches!(submit(&mut admission, "a"), Err(Deny::QueueFull { .. })));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Submit(u8),
        Next,
        End(usize),
        Withdraw(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0u8..4).prop_map(Step::Submit),
            3 => Just(Step::Next),
            2 => any::<usize>().prop_map(Step::End),
            1 => any::<usize>().prop_map(Step::Withdraw),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn an_owner_that_has_nothing_waiting_is_refused_only_when_many_others_wait(
            submitted in proptest::collection::vec((0u8..4, any::<bool>()), 0..400),
            concurrency in 1usize..4, queue in 16usize..64,
        ) {
            let mut admission = Admission::new(limits(concurrency, queue, usize::MAX));
            for (owner, runs) in submitted {
                let _ = submit(&mut admission, &format!("o{owner}"));
                if runs {
                    admission.next();
                }
                // Four owners leave a part in 2^4, whatever they submit and however slots come free.
                prop_assert!(admission.waiting_count() < queue + concurrency);
                let place = admission.reserve("newcomer");
                prop_assert!(place.is_ok(), "{:?}", place);
                admission.give_back(place.unwrap());
            }
        }

        #[test]
        fn never_more_than_the_slots_run_and_a_caller_is_served_in_order(
            steps in steps(), concurrency in 1usize..4, queue in 0usize..8, per_caller in 1usize..6,
        ) {
            let mut admission = Admission::new(limits(concurrency, queue, per_caller));
            let mut expected: BTreeMap<String, VecDeque<BuildId>> = BTreeMap::new();
            let mut running: Vec<BuildId> = Vec::new();
            let mut owner: BTreeMap<BuildId, String> = BTreeMap::new();
            // How many builds of others started while a caller waited.
            let mut passed_over: BTreeMap<String, usize> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Submit(n) => {
                        let caller = format!("c{n}");
                        if let Ok(id) = submit(&mut admission, &caller) {
                            owner.insert(id.clone(), caller.clone());
                            expected.entry(caller).or_default().push_back(id);
                        }
                    }
                    Step::Next => if let Some(id) = admission.next() {
                        let caller = owner[&id].clone();
                        let first = expected.get_mut(&caller).and_then(VecDeque::pop_front);
                        prop_assert_eq!(first.as_ref(), Some(&id));
                        passed_over.remove(&caller);
                        for (other, queue) in &expected {
                            if *other != caller && !queue.is_empty() {
                                let count = passed_over.entry(other.clone()).or_default();
                                *count += 1;
                                prop_assert!(*count <= 4, "{other} starves");
                            }
                        }
                        running.push(id);
                    },
                    Step::End(n) => if !running.is_empty() {
                        let id = running.remove(n % running.len());
                        admission.ended(&id);
                    },
                    Step::Withdraw(n) => {
                        let all: Vec<_> = expected.values().flatten().cloned().collect();
                        if !all.is_empty() {
                            let id = &all[n % all.len()];
                            prop_assert!(admission.withdraw(id));
                            prop_assert!(!admission.withdraw(id));
                            if let Some(queue) = expected.get_mut(&owner[id]) {
                                queue.retain(|queued| queued != id);
                            }
                            if expected[&owner[id]].is_empty() { passed_over.remove(&owner[id]); }
                        }
                    }
                }
                prop_assert!(admission.running_count() <= concurrency);
                prop_assert_eq!(admission.running_count(), running.len());
                prop_assert_eq!(admission.waiting_count(), expected.values().map(VecDeque::len).sum::<usize>());
                prop_assert!(admission.is_sound());
            }
        }
    }
}
