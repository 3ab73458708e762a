//! Work done by several threads, its results taken in the order of the work.
//!
//! The calling thread takes results; the others draw pieces and work on them. No piece is drawn that is
//! more than a window ahead of the result taken last, which bounds what lies in memory whatever the
//! speeds are. The first failure in order is the one that is seen.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

use super::locked;

/// Draws pieces from `pieces`, each worked on by one of `threads` workers made by `worker`, and gives the
/// results to `take` in order, until the pieces or `take`'s patience end.
pub(crate) fn ordered<P, R, W, E>(
    threads: usize,
    pieces: impl Iterator<Item = P> + Send,
    worker: impl Fn() -> W + Sync,
    mut take: impl FnMut(R) -> Result<(), E>,
) -> Result<(), E>
where
    P: Send,
    R: Send,
    W: FnMut(P) -> R,
{
    let window = 2 * threads + 2;
    let state = State { pieces, drawn: 0, taken: 0, results: VecDeque::new(), ended: false, stopped: false };
    let desk = Desk { state: Mutex::new(state), room: Condvar::new(), result: Condvar::new() };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let _guard = StopOnPanic(&desk);
                let mut work = worker();
                while let Some((number, piece)) = desk.draw(window) {
                    desk.put(number, work(piece));
                }
            });
        }
        let _guard = StopAtEnd(&desk);
        while let Some(result) = desk.take() {
            take(result)?;
        }
        Ok(())
    })
}

struct State<I, R> {
    pieces: I,
    drawn: u64,
    taken: u64,
    /// Results from `taken` on; those that are not there yet are none.
    results: VecDeque<Option<R>>,
    ended: bool,
    stopped: bool,
}

struct Desk<I, R> {
    state: Mutex<State<I, R>>,
    /// The window moved on.
    room: Condvar,
    /// A result was put down, or there will be no more.
    result: Condvar,
}

impl<P, I: Iterator<Item = P>, R> Desk<I, R> {
    fn draw(&self, window: usize) -> Option<(u64, P)> {
        let mut state = locked(&self.state);
        while !state.stopped && !state.ended && state.drawn - state.taken >= window as u64 {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopped || state.ended {
            return None;
        }
        let Some(piece) = state.pieces.next() else {
            state.ended = true;
            self.room.notify_all();
            self.result.notify_all();
            return None;
        };
        let number = state.drawn;
        state.drawn += 1;
        state.results.push_back(None);
        Some((number, piece))
    }

    fn put(&self, number: u64, result: R) {
        let mut state = locked(&self.state);
        let place = usize::try_from(number - state.taken).unwrap_or(usize::MAX);
        if let Some(place) = state.results.get_mut(place) {
            *place = Some(result);
        }
        self.result.notify_all();
    }

    fn take(&self) -> Option<R> {
        let mut state = locked(&self.state);
        loop {
            if state.stopped || (state.ended && state.results.is_empty()) {
                return None;
            }
            if let Some(result) = state.results.front_mut().and_then(Option::take) {
                state.results.pop_front();
                state.taken += 1;
                self.room.notify_one();
                return Some(result);
            }
            state = self.result.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<I, R> Desk<I, R> {
    fn stop(&self) {
        locked(&self.state).stopped = true;
        self.room.notify_all();
        self.result.notify_all();
    }
}

/// A worker that panics must not leave the others waiting for its result; the scope panics then.
struct StopOnPanic<'a, I, R>(&'a Desk<I, R>);

impl<I, R> Drop for StopOnPanic<'_, I, R> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

struct StopAtEnd<'a, I, R>(&'a Desk<I, R>);

impl<I, R> Drop for StopAtEnd<'_, I, R> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[cfg(test)]
mod tests;
