//! Pause before the next start of a service whose instances exit: 100 ms, doubled with each exit up to 30 s, and 100 ms
//! again after an instance that was healthy for a minute.

use std::time::Duration;

use jiff::Timestamp;

use super::plan::after;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);
/// Healthy time after which an instance counts as having served, which resets the backoff.
pub const HEALTHY_MINUTE: Duration = Duration::from_secs(60);

/// Failure count of a revision, and the earliest time for its next start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestartBackoff {
    /// Number of exits and failed starts since an instance last served.
    pub failures: u32,
    pub not_before: Option<Timestamp>,
}

impl RestartBackoff {
    /// Records an exit of an instance or a failed start.
    pub fn failed(&mut self, healthy_since: Option<Timestamp>, now: Timestamp) {
        if healthy_since.is_some_and(|since| now >= after(since, HEALTHY_MINUTE)) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        let doubled = FIRST.saturating_mul(1u32 << (self.failures - 1).min(16));
        self.not_before = Some(after(now, doubled.min(LONGEST)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    #[test]
    fn the_pause_doubles_from_100_ms_to_30_s() {
        let mut backoff = RestartBackoff::default();
        let mut pauses = Vec::new();
        for _ in 0..40 {
            backoff.failed(None, at(0));
            pauses.push(backoff.not_before.unwrap().as_millisecond());
        }
        assert_eq!(pauses[..10], [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000]);
        assert!(pauses[10..].iter().all(|pause| *pause == 30_000));
    }

    #[test]
    fn a_healthy_minute_makes_the_pause_short_again() {
        let mut backoff = RestartBackoff::default();
        for _ in 0..5 {
            backoff.failed(None, at(0));
        }
        backoff.failed(Some(at(0)), at(59_999));
        assert_eq!(backoff.failures, 6);
        backoff.failed(Some(at(0)), at(60_000));
        assert_eq!(backoff, RestartBackoff { failures: 1, not_before: Some(at(60_100)) });
    }
}
