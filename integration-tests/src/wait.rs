//! Waiting for something to become true, with an end.

use std::time::{Duration, Instant};

/// Asks until the answer is `Some`, for at most `limit`, with growing pauses.
pub fn poll<T>(limit: Duration, ask: impl FnMut() -> Option<T>) -> Option<T> {
    poll_within(Duration::from_millis(100), limit, ask)
}

/// The same, with pauses of at most `longest`: where the time of the answer itself is measured.
pub fn poll_within<T>(longest: Duration, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    let mut pause = longest.min(Duration::from_millis(5));
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if start.elapsed() >= limit {
            return None;
        }
        std::thread::sleep(pause.min(limit.saturating_sub(start.elapsed())));
        pause = (pause * 2).min(longest);
    }
}

/// Asks until the answer is yes, and panics with `what` when it is not within `limit`.
#[track_caller]
pub fn until(limit: Duration, what: &str, mut ask: impl FnMut() -> bool) {
    assert!(poll(limit, || ask().then_some(())).is_some(), "not within {limit:?}: {what}");
}

pub const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
