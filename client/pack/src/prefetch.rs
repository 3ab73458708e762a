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
pub trait PrefetchWork: Sync {
    type Request: Send;
    type Output: Send;

    /// Runs one request. It adds the requests that follow from it to `ahead`.
    fn run_request(&self, wish: &Self::Request, ahead: &PrefetchQueue<'_, Self>) -> Self::Output;

    /// Weight of a result that waits to be taken, counted against the limit of the queue.
    fn weight(done: &Self::Output) -> usize;

    /// Result of a request whose thread panicked, so that the consumer does not wait forever.
    fn after_panic() -> Self::Output;
}

/// Queue of requests and their results.
pub struct PrefetchQueue<'w, W: PrefetchWork + ?Sized> {
    work: &'w W,
    /// Weight of waiting results from which on helpers pause.
    limit: usize,
    state: Mutex<PrefetchState<W::Request, W::Output>>,
    changed: Condvar,
}

struct PrefetchState<Wish, Done> {
    slots: Vec<RequestSlot<Wish, Done>>,
    free: Vec<usize>,
    /// Slots with a request, the newest last. Some may have been run by the consumer meanwhile.
    pending: Vec<usize>,
    /// Weight of the results that wait to be taken.
    ready_weight: usize,
    /// Number of threads that wait for a change.
    waiting_threads: usize,
    stopped: bool,
}

enum RequestSlot<Wish, Done> {
    Free,
    Pending(Box<Wish>),
    Running,
    Ready(Done),
}

impl<'w, W: PrefetchWork + ?Sized> PrefetchQueue<'w, W> {
    pub fn new(work: &'w W, limit: usize) -> Self {
        let state = PrefetchState {
            slots: Vec::new(),
            free: Vec::new(),
            pending: Vec::new(),
            ready_weight: 0,
            waiting_threads: 0,
            stopped: false,
        };
        Self { work, limit, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Adds a request. Returns the slot from which [`take`](Self::take) gets the result.
    pub fn request(&self, wish: W::Request) -> usize {
        self.state.lock().request(Box::new(wish))
    }

    /// Adds several requests, in the order in which the results will be taken.
    pub fn request_all(&self, wishes: Vec<W::Request>) -> Vec<usize> {
        if wishes.is_empty() {
            return Vec::new();
        }
        let mut state = self.state.lock();
        // The order is reversed because the newest request runs first.
        let mut slots: Vec<usize> =
            wishes.into_iter().rev().map(|wish| state.request(Box::new(wish))).collect();
        slots.reverse();
        self.wake(&state);
        slots
    }

    /// Returns the result of a request, after running or awaiting it. Each slot can be taken once.
    pub fn take(&self, slot: usize) -> W::Output {
        let mut state = self.state.lock();
        loop {
            match mem::replace(&mut state.slots[slot], RequestSlot::Running) {
                RequestSlot::Pending(wish) => {
                    drop(state);
                    self.run(slot, &wish);
                    state = self.state.lock();
                }
                RequestSlot::Ready(done) => {
                    state.slots[slot] = RequestSlot::Free;
                    state.free.push(slot);
                    state.ready_weight -= W::weight(&done);
                    self.wake(&state);
                    return done;
                }
                RequestSlot::Running | RequestSlot::Free => state = self.run_one_or_wait(state),
            }
        }
    }

    /// Runs requests until the [`StopGuard`] of [`stop_guard`](Self::stop_guard) is dropped.
    pub fn run_helper(&self) {
        let mut state = self.state.lock();
        while !state.stopped {
            state = self.run_one_or_wait(state);
        }
    }

    /// Returns a guard that stops the helpers on drop, however the consumer ends.
    pub fn stop_guard(&self) -> StopGuard<'_, 'w, W> {
        StopGuard(self)
    }

    /// Runs the newest request, or waits for a change.
    fn run_one_or_wait<'s>(
        &'s self,
        mut state: MutexGuard<'s, PrefetchState<W::Request, W::Output>>,
    ) -> MutexGuard<'s, PrefetchState<W::Request, W::Output>> {
        if let Some((slot, wish)) = state.next(self.limit) {
            drop(state);
            self.run(slot, &wish);
            return self.state.lock();
        }
        state.waiting_threads += 1;
        self.changed.wait(&mut state);
        state.waiting_threads -= 1;
        state
    }

    fn run(&self, slot: usize, wish: &W::Request) {
        let mut answer = ResultGuard { ahead: self, slot, done: None };
        answer.done = Some(self.work.run_request(wish, self));
    }

    fn wake(&self, state: &PrefetchState<W::Request, W::Output>) {
        if state.waiting_threads > 0 {
            self.changed.notify_all();
        }
    }
}

impl<Wish, Done> PrefetchState<Wish, Done> {
    fn request(&mut self, wish: Box<Wish>) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(RequestSlot::Free);
            self.slots.len() - 1
        });
        self.slots[slot] = RequestSlot::Pending(wish);
        self.pending.push(slot);
        slot
    }

    /// Returns the newest request, unless the limit of waiting results is reached.
    fn next(&mut self, limit: usize) -> Option<(usize, Box<Wish>)> {
        while self.ready_weight < limit {
            let slot = self.pending.pop()?;
            match mem::replace(&mut self.slots[slot], RequestSlot::Running) {
                RequestSlot::Pending(wish) => return Some((slot, wish)),
                taken => self.slots[slot] = taken,
            }
        }
        None
    }
}

/// Guard that stores the result of a request on drop.
struct ResultGuard<'a, 'w, W: PrefetchWork + ?Sized> {
    ahead: &'a PrefetchQueue<'w, W>,
    slot: usize,
    /// Result of the request, `None` if the work panicked.
    done: Option<W::Output>,
}

impl<W: PrefetchWork + ?Sized> Drop for ResultGuard<'_, '_, W> {
    fn drop(&mut self) {
        let done = self.done.take().unwrap_or_else(W::after_panic);
        let mut state = self.ahead.state.lock();
        state.ready_weight += W::weight(&done);
        state.slots[self.slot] = RequestSlot::Ready(done);
        self.ahead.wake(&state);
    }
}

/// Guard that stops the helpers on drop. See [`PrefetchQueue::stop_guard`].
pub struct StopGuard<'a, 'w, W: PrefetchWork + ?Sized>(&'a PrefetchQueue<'w, W>);

impl<W: PrefetchWork + ?Sized> Drop for StopGuard<'_, '_, W> {
    fn drop(&mut self) {
        self.0.state.lock().stopped = true;
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

    impl PrefetchWork for Numbers {
        type Request = u32;
        type Output = Option<(u32, Vec<usize>)>;

        fn run_request(&self, wish: &u32, ahead: &PrefetchQueue<'_, Self>) -> Self::Output {
            assert_ne!(Some(*wish), self.panics_at, "as it was told to");
            Some((*wish, ahead.request_all((0..*wish).collect())))
        }

        fn weight(_: &Self::Output) -> usize {
            1
        }

        fn after_panic() -> Self::Output {
            None
        }
    }

    /// Takes the results depth first. Returns `None` if the thread of a request panicked.
    fn order(ahead: &PrefetchQueue<'_, Numbers>, slot: usize) -> Option<Vec<u32>> {
        let (number, below) = ahead.take(slot)?;
        let mut all = vec![number];
        for slot in below {
            all.extend(order(ahead, slot)?);
        }
        Some(all)
    }

    fn with_helpers(numbers: &Numbers, limit: usize) -> Option<Vec<u32>> {
        let ahead = PrefetchQueue::new(numbers, limit);
        let top = ahead.request(7);
        std::thread::scope(|scope| {
            let _end = ahead.stop_guard();
            for _ in 0..3 {
                scope.spawn(|| {
                    // One of the tests lets a helper panic.
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ahead.run_helper()));
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
