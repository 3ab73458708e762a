//! Runs work on several threads and takes the results in the order of the work.
//!
//! The calling thread takes the results, and works on pieces itself while the next result is missing, so that no time
//! is lost waiting for a thread to wake up. No piece is started that is more than a window ahead of the last result
//! taken, which bounds the memory at any speed. The first failure in order is the one that is returned.

use std::collections::VecDeque;

use parking_lot::{Condvar, Mutex};

/// Number of results that may wait in addition to those in progress, so that the workers can continue while the
/// calling thread is busy.
const EXTRA_RESULTS: usize = 12;

/// Processes all items of `pieces` with workers created by `worker`: one in each of `threads` threads and one in the
/// calling thread. Passes the results to `take` in order, until it fails or all are taken.
pub(crate) fn run_ordered<P, R, W, E>(
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
    let window = 2 * threads as u64 + EXTRA_RESULTS as u64;
    let state =
        QueueState { pieces, drawn: 0, taken: 0, results: VecDeque::new(), ended: false, stopped: false };
    let desk =
        OrderedQueue { state: Mutex::new(state), window, room: Condvar::new(), result: Condvar::new() };
    std::thread::scope(|scope| {
        super::start_helpers(scope, threads, "ordered", || {
            let _guard = StopOnPanic(&desk);
            let mut work = worker();
            while let Some((number, piece)) = desk.draw() {
                desk.put(number, work(piece));
            }
        });
        let _guard = StopAtEnd(&desk);
        let mut work = None;
        loop {
            match desk.next() {
                NextStep::Result(result) => take(result)?,
                NextStep::Piece(number, piece) => desk.put(number, work.get_or_insert_with(&worker)(piece)),
                NextStep::End => return Ok(()),
            }
        }
    })
}

/// Next step of the calling thread.
enum NextStep<P, R> {
    Result(R),
    Piece(u64, P),
    End,
}

struct QueueState<I, R> {
    pieces: I,
    drawn: u64,
    taken: u64,
    /// Results from number `taken` on; `None` for those still missing.
    results: VecDeque<Option<R>>,
    ended: bool,
    stopped: bool,
}

struct OrderedQueue<I, R> {
    state: Mutex<QueueState<I, R>>,
    window: u64,
    /// Signalled when the window has advanced.
    room: Condvar,
    /// Signalled when the next result is available, or there will be no more.
    result: Condvar,
}

impl<P, I: Iterator<Item = P>, R> QueueState<I, R> {
    /// Returns the next piece, or `None` at the end.
    fn draw(&mut self) -> Option<(u64, P)> {
        let Some(piece) = self.pieces.next() else {
            self.ended = true;
            return None;
        };
        let number = self.drawn;
        self.drawn += 1;
        self.results.push_back(None);
        Some((number, piece))
    }
}

impl<P, I: Iterator<Item = P>, R> OrderedQueue<I, R> {
    /// Returns the next piece for a worker thread, once it is within the window.
    fn draw(&self) -> Option<(u64, P)> {
        let mut state = self.state.lock();
        while !state.stopped && !state.ended && state.drawn - state.taken >= self.window {
            self.room.wait(&mut state);
        }
        let drawn = if state.stopped || state.ended { None } else { state.draw() };
        if drawn.is_none() {
            self.room.notify_all();
            self.result.notify_all();
        }
        drawn
    }

    fn put(&self, number: u64, result: R) {
        let mut state = self.state.lock();
        let index = number - state.taken;
        if let Some(waiting) = usize::try_from(index).ok().and_then(|index| state.results.get_mut(index)) {
            *waiting = Some(result);
        }
        if index == 0 {
            self.result.notify_all();
        }
    }

    fn next(&self) -> NextStep<P, R> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return NextStep::End;
            }
            if let Some(result) = state.results.front_mut().and_then(Option::take) {
                state.results.pop_front();
                state.taken += 1;
                self.room.notify_one();
                return NextStep::Result(result);
            }
            if !state.ended && state.drawn - state.taken < self.window {
                match state.draw() {
                    Some((number, piece)) => return NextStep::Piece(number, piece),
                    None => {
                        self.room.notify_all();
                    }
                }
            } else if state.ended && state.results.is_empty() {
                return NextStep::End;
            } else {
                self.result.wait(&mut state);
            }
        }
    }
}

impl<I, R> OrderedQueue<I, R> {
    fn stop(&self) {
        self.state.lock().stopped = true;
        self.room.notify_all();
        self.result.notify_all();
    }
}

/// Guard that stops all workers if one panics, so that none waits for its result. The scope then propagates the
/// panic.
struct StopOnPanic<'a, I, R>(&'a OrderedQueue<I, R>);

impl<I, R> Drop for StopOnPanic<'_, I, R> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

struct StopAtEnd<'a, I, R>(&'a OrderedQueue<I, R>);

impl<I, R> Drop for StopAtEnd<'_, I, R> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[cfg(test)]
mod tests;
