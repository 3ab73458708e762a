//! Times two alternatives in turns, so that other activity of the machine affects both.

use std::time::{Duration, Instant};

use super::figures::ROUNDS;

/// Times `ours` and `theirs` in turns. Each gets the number of the round and prepares outside of the measured time; it
/// returns the closure that is timed.
pub fn in_turns<A: FnOnce(), B: FnOnce()>(
    mut ours: impl FnMut(usize) -> A,
    mut theirs: impl FnMut(usize) -> B,
) -> (Vec<Duration>, Vec<Duration>) {
    in_turns_by(|round| time(ours(round)), |round| time(theirs(round)))
}

/// Runs both sides in turns, where each side measures its own time.
pub fn in_turns_by(
    mut ours: impl FnMut(usize) -> Duration,
    mut theirs: impl FnMut(usize) -> Duration,
) -> (Vec<Duration>, Vec<Duration>) {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // The side that runs first alternates, too.
        if round % 2 == 0 {
            first.push(ours(round));
            second.push(theirs(round));
        } else {
            second.push(theirs(round));
            first.push(ours(round));
        }
    }
    (first, second)
}

/// Times one side; each round prepares outside of the measured time.
pub fn alone<A: FnOnce()>(mut ours: impl FnMut(usize) -> A) -> Vec<Duration> {
    (0..ROUNDS).map(|round| time(ours(round))).collect()
}

pub fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}
