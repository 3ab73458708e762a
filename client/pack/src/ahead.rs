//! Work done by several threads ahead of the one that needs it, and taken in that one's order.
//!
//! ```text
//! taker      take(root) .. take(a) .. take(a/b) ..       in order; does what nobody has begun, and what is
//!                                                        to come while another is at what it needs
//! helpers    do a, do a/b, do a/c, do d ..               the newest wish first, which is nearly that order
//! ```
//!
//! Doing one piece asks for further ones: a directory that was listed asks for those in it. What is held is
//! bounded: helpers rest while much waits for the taker. What goes wrong waits like any result, so the error
//! that is seen is the first in the taker's order.

use std::mem;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// What is done ahead.
pub trait Work: Sync {
    type Wish: Send;
    type Done: Send;

    /// Does one piece; what it leads to is asked of `ahead`.
    fn work(&self, wish: &Self::Wish, ahead: &Ahead<'_, Self>) -> Self::Done;

    /// What a result counts as long as it waits.
    fn weight(done: &Self::Done) -> usize;

    /// The result of a piece whose thread panicked: its taker must not wait for ever.
    fn lost() -> Self::Done;
}

/// Pieces under way.
pub struct Ahead<'w, W: Work + ?Sized> {
    work: &'w W,
    /// Helpers rest while results of this weight wait.
    limit: usize,
    state: Mutex<State<W::Wish, W::Done>>,
    changed: Condvar,
}

struct State<Wish, Done> {
    slots: Vec<Slot<Wish, Done>>,
    free: Vec<usize>,
    /// Slots with a wish, the newest last; some may have been taken meanwhile.
    wishes: Vec<usize>,
    /// Weight of what waits.
    ahead: usize,
    /// Threads that wait for a change.
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

    /// Asks for one piece; gives what to take it by.
    pub fn ask(&self, wish: W::Wish) -> usize {
        self.state.lock().ask(Box::new(wish))
    }

    /// Asks for several, of which the first is needed first.
    pub fn ask_all(&self, wishes: Vec<W::Wish>) -> Vec<usize> {
        if wishes.is_empty() {
            return Vec::new();
        }
        let mut state = self.state.lock();
        // Backwards: the newest wish is done first.
        let mut slots: Vec<usize> = wishes.into_iter().rev().map(|wish| state.ask(Box::new(wish))).collect();
        slots.reverse();
        self.wake(&state);
        slots
    }

    /// A result that was asked for; once only.
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

    /// Does what is asked for, until the [`End`] of [`ends`](Self::ends) is dropped.
    pub fn help(&self) {
        let mut state = self.state.lock();
        while !state.over {
            state = self.one(state);
        }
    }

    /// Lets the helpers go when it is dropped, however the taker ends.
    pub fn ends(&self) -> End<'_, 'w, W> {
        End(self)
    }

    /// Does what was asked for last, or waits for a change.
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

    /// The newest wish, unless enough waits already.
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

/// Hands a result over when it is dropped.
struct Answer<'a, 'w, W: Work + ?Sized> {
    ahead: &'a Ahead<'w, W>,
    slot: usize,
    /// None when the work panicked.
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

/// See [`Ahead::ends`].
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

    /// Each number leads to all smaller ones.
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

    /// Depth first; none where a piece was lost.
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
                    // A helper that panics is what one of the tests is about.
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
