//! Reconnection policy of readers whose daemon does not answer.

use std::time::Duration;

use tokio::time::Instant;

use super::ClientError;

/// Pauses and time limit of reconnection attempts.
#[derive(Clone, Copy, Debug)]
pub struct ReconnectLimits {
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// Time after the loss at which reconnecting stops. Any message from the daemon resets it.
    pub give_up_after: Duration,
}

impl Default for ReconnectLimits {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(5),
            give_up_after: Duration::from_secs(120),
        }
    }
}

/// State of an interrupted connection: when it was lost, and when the next attempt is due.
pub(super) struct ReconnectBackoff {
    pub limits: ReconnectLimits,
    current: Option<OngoingOutage>,
}

struct OngoingOutage {
    since: Instant,
    pause: Duration,
    retry_at: Instant,
    cause: ClientError,
}

impl ReconnectBackoff {
    pub fn new(limits: ReconnectLimits) -> Self {
        Self { limits, current: None }
    }

    /// Waits until the next attempt is due.
    pub async fn wait_for_retry(&self) {
        if let Some(outage) = &self.current {
            tokio::time::sleep_until(outage.retry_at).await;
        }
    }

    /// Ends the outage: the daemon was heard.
    pub fn connection_restored(&mut self) {
        self.current = None;
    }

    /// Schedules the next attempt. Returns the reason at the first loss only; after the time limit the
    /// first cause becomes the error.
    pub fn connection_lost(&mut self, cause: ClientError) -> Result<Option<String>, ClientError> {
        let now = Instant::now();
        match self.current.take() {
            None => {
                let reason = cause.to_string();
                let pause = self.limits.first_pause;
                self.current = Some(OngoingOutage { since: now, pause, retry_at: now + pause, cause });
                Ok(Some(reason))
            }
            // The first cause says more than the "connection refused" of later attempts.
            Some(outage) if now.duration_since(outage.since) >= self.limits.give_up_after => {
                Err(outage.cause)
            }
            Some(outage) => {
                let pause = (outage.pause * 2).min(self.limits.longest_pause);
                self.current = Some(OngoingOutage { pause, retry_at: now + pause, ..outage });
                Ok(None)
            }
        }
    }
}
