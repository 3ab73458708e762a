//! Retry policy of requests to registries.

use std::time::Duration;

/// Policy for retrying a request, with a pause that doubles after each attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    pub attempts: u32,
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// Time after which a connection fails if no data arrives.
    pub stall: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(15),
            stall: Duration::from_secs(60),
        }
    }
}

impl RetryPolicy {
    /// Returns the pause after attempt number `attempt`, counted from 1: the doubled pause with random jitter, so that
    /// many clients do not retry at the same time, or `requested`, the pause that the registry asked for, if that is
    /// longer. The result is at most `longest_pause`.
    pub(super) fn pause(&self, attempt: u32, requested: Option<Duration>) -> Duration {
        let doubled = self.first_pause.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        let jittered = doubled.mul_f64(rand::random_range(0.75..1.25));
        requested.unwrap_or(jittered).max(jittered).min(self.longest_pause)
    }
}

/// Reports whether an HTTP status is transient, so that a retry may succeed.
pub(super) const fn is_transient_status(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_honour_retry_after_and_are_bounded() {
        let retry = RetryPolicy::default();
        assert!(retry.pause(1, None) < Duration::from_millis(320));
        assert!(retry.pause(4, None) > retry.pause(1, None));
        assert_eq!(retry.pause(60, None), retry.longest_pause);
        assert_eq!(retry.pause(1, Some(Duration::from_secs(2))), Duration::from_secs(2));
        assert_eq!(retry.pause(1, Some(Duration::from_secs(86_400))), retry.longest_pause);
    }
}
