//! Waits for conditions, with a time limit.

use std::time::{Duration, Instant};

/// Calls `ask` until it returns `Some`, for at most `limit`, with growing pauses.
pub fn poll<T>(limit: Duration, ask: impl FnMut() -> Option<T>) -> Option<T> {
    poll_within(Duration::from_millis(100), limit, ask)
}

/// Polls like [`poll`] with pauses of at most `longest`, for callers that measure when the condition came true.
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

/// Calls `ask` until it returns `true`, and panics with `what` when that takes longer than `limit`.
#[track_caller]
pub fn until(limit: Duration, what: &str, mut ask: impl FnMut() -> bool) {
    assert!(poll(limit, || ask().then_some(())).is_some(), "not true within {limit:?}: {what}");
}

pub const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
