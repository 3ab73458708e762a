//! Queue of work that helper threads do ahead of the thread that needs the results. That thread, the consumer, takes
//! the results in its own order.
//!
//! ```text
//! consumer   take(root) .. take(a) .. take(a/b) ..       in order; runs a request itself if no helper has begun it,
//!                                                        and runs later ones while a helper is still busy with it
//! helpers    run a, run a/b, run a/c, run d ..           the newest request first, which is nearly that order
//! ```
//!
//! Running one request adds further ones: a directory that was listed requests the directories in it. Memory is
//! bounded: helpers pause while many results wait for the consumer. An error waits like any other result, so the
//! reported error is the first in the consumer's order.

use std::mem;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// A kind of work that can be done ahead.
pub trait Work: Sync {
    type Wish: Send;
    type Done: Send;

    /// Runs one request. It adds the requests that follow from it to `ahead`.
    fn work(&self, wish: &Self::Wish, ahead: &Ahead<'_, Self>) -> Self::Done;

    /// Weight of a result that waits to be taken, counted against the limit of the queue.
    fn weight(done: &Self::Done) -> usize;

    /// Result of a request whose thread panicked, so that the consumer does not wait forever.
    fn lost() -> Self::Done;
}

/// Queue of requests and their results.
pub struct Ahead<'w, W: Work + ?Sized> {
    work: &'w W,
    /// Weight of waiting results from which on helpers pause.
    limit: usize,
    state: Mutex<State<W::Wish, W::Done>>,
    changed: Condvar,
}

struct State<Wish, Done> {
    slots: Vec<Slot<Wish, Done>>,
    free: Vec<usize>,
    /// Slots with a request, the newest last. Some may have been run by the consumer meanwhile.
    wishes: Vec<usize>,
    /// Weight of the results that wait to be taken.
    ahead: usize,
    /// Number of threads that wait for a change.
    resting: usize,
    over: bool,
}

enum Slot<Wish, Done> {
    Free,
    Wish(Box<Wish>),
    Running,
    Ready(Done),
}

impl<'w, W: Work + ?Sized> Ahead<'w, W> {
    pub fn new(work: &'w W, limit: usize) -> Self {
        let state = State {
            slots: Vec::new(),
            free: Vec::new(),
            wishes: Vec::new(),
            ahead: 0,
            resting: 0,
            over: false,
        };
        Self { work, limit, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Adds a request. Returns the slot from which [`take`](Self::take) gets the result.
    pub fn ask(&self, wish: W::Wish) -> usize {
        self.state.lock().ask(Box::new(wish))
    }

    /// Adds several requests, in the order in which the results will be taken.
    pub fn ask_all(&self, wishes: Vec<W::Wish>) -> Vec<usize> {
        if wishes.is_empty() {
            return Vec::new();
        }
        let mut state = self.state.lock();
        // The order is reversed because the newest request runs first.
        let mut slots: Vec<usize> = wishes.into_iter().rev().map(|wish| state.ask(Box::new(wish))).collect();
        slots.reverse();
        self.wake(&state);
        slots
    }

    /// Returns the result of a request, after running or awaiting it. Each slot can be taken once.
    pub fn take(&self, slot: usize) -> W::Done {
        let mut state = self.state.lock();
        loop {
            match mem::replace(&mut state.slots[slot], Slot::Running) {
                Slot::Wish(wish) => {
                    drop(state);
                    self.run(slot, &wish);
                    state = self.state.lock();
                }
                Slot::Ready(done) => {
                    state.slots[slot] = Slot::Free;
                    state.free.push(slot);
                    state.ahead -= W::weight(&done);
                    self.wake(&state);
                    return done;
                }
                Slot::Running | Slot::Free => state = self.one(state),
            }
        }
    }

    /// Runs requests until the [`StopGuard`] of [`stop_guard`](Self::stop_guard) is dropped.
    pub fn help(&self) {
        let mut state = self.state.lock();
        while !state.over {
            state = self.one(state);
        }
    }

    /// Returns a guard that stops the helpers on drop, however the consumer ends.
    pub fn ends(&self) -> End<'_, 'w, W> {
        End(self)
    }

    /// Runs the newest request, or waits for a change.
    fn one<'s>(
        &'s self,
        mut state: MutexGuard<'s, State<W::Wish, W::Done>>,
    ) -> MutexGuard<'s, State<W::Wish, W::Done>> {
        if let Some((slot, wish)) = state.next(self.limit) {
            drop(state);
            self.run(slot, &wish);
            return self.state.lock();
        }
        state.resting += 1;
        self.changed.wait(&mut state);
        state.resting -= 1;
        state
    }

    fn run(&self, slot: usize, wish: &W::Wish) {
        let mut answer = Answer { ahead: self, slot, done: None };
        answer.done = Some(self.work.work(wish, self));
    }

    fn wake(&self, state: &State<W::Wish, W::Done>) {
        if state.resting > 0 {
            self.changed.notify_all();
        }
    }
}

impl<Wish, Done> State<Wish, Done> {
    fn ask(&mut self, wish: Box<Wish>) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            self.slots.len() - 1
        });
        self.slots[slot] = Slot::Wish(wish);
        self.wishes.push(slot);
        slot
    }

    /// Returns the newest request, unless the limit of waiting results is reached.
    fn next(&mut self, limit: usize) -> Option<(usize, Box<Wish>)> {
        while self.ahead < limit {
            let slot = self.wishes.pop()?;
            match mem::replace(&mut self.slots[slot], Slot::Running) {
                Slot::Wish(wish) => return Some((slot, wish)),
                taken => self.slots[slot] = taken,
            }
        }
        None
    }
}

/// Guard that stores the result of a request on drop.
struct Answer<'a, 'w, W: Work + ?Sized> {
    ahead: &'a Ahead<'w, W>,
    slot: usize,
    /// Result of the request, `None` if the work panicked.
    done: Option<W::Done>,
}

impl<W: Work + ?Sized> Drop for Answer<'_, '_, W> {
    fn drop(&mut self) {
        let done = self.done.take().unwrap_or_else(W::lost);
        let mut state = self.ahead.state.lock();
        state.ahead += W::weight(&done);
        state.slots[self.slot] = Slot::Ready(done);
        self.ahead.wake(&state);
    }
}

/// Guard that stops the helpers on drop. See [`PrefetchQueue::stop_guard`].
pub struct End<'a, 'w, W: Work + ?Sized>(&'a Ahead<'w, W>);

impl<W: Work + ?Sized> Drop for End<'_, '_, W> {
    fn drop(&mut self) {
        self.0.state.lock().over = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Work in which each number requests all smaller ones.
    struct Numbers {
        panics_at: Option<u32>,
    }

    impl Work for Numbers {
        type Wish = u32;
        type Done = Option<(u32, Vec<usize>)>;

        fn work(&self, wish: &u32, ahead: &Ahead<'_, Self>) -> Self::Done {
            assert_ne!(Some(*wish), self.panics_at, "as it was told to");
            Some((*wish, ahead.ask_all((0..*wish).collect())))
        }

        fn weight(_: &Self::Done) -> usize {
            1
        }

        fn lost() -> Self::Done {
            None
        }
    }

    /// Takes the results depth first. Returns `None` if the thread of a request panicked.
    fn order(ahead: &Ahead<'_, Numbers>, slot: usize) -> Option<Vec<u32>> {
        let (number, below) = ahead.take(slot)?;
        let mut all = vec![number];
        for slot in below {
            all.extend(order(ahead, slot)?);
        }
        Some(all)
    }

    fn with_helpers(numbers: &Numbers, limit: usize) -> Option<Vec<u32>> {
        let ahead = Ahead::new(numbers, limit);
        let top = ahead.ask(7);
        std::thread::scope(|scope| {
            let _end = ahead.ends();
            for _ in 0..3 {
                scope.spawn(|| {
                    // One of the tests lets a helper panic.
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ahead.help()));
                });
            }
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| order(&ahead, top))).ok().flatten()
        })
    }

    #[test]
    fn results_come_in_the_order_of_the_taker_whoever_did_them() {
        fn expected(number: u32) -> Vec<u32> {
            std::iter::once(number).chain((0..number).flat_map(expected)).collect()
        }
        for limit in [0, 1, 10, 1000] {
            for _ in 0..20 {
                assert_eq!(with_helpers(&Numbers { panics_at: None }, limit), Some(expected(7)), "{limit}");
            }
        }
    }

    #[test]
    fn a_piece_whose_thread_panicked_is_waited_for_by_nobody() {
        for _ in 0..20 {
            assert_eq!(with_helpers(&Numbers { panics_at: Some(3) }, 1000), None);
        }
    }
}
