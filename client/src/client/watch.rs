//! Watching a build across lost connections.
//!
//! ```text
//! detached --call--> attached --event n--> attached (next = n + 1)
//!    ^                   |
//!    |   stream lost     |  `finished` event, or the end of a replay
//!    '---- back-off -----'------------------> done
//! ```
//!
//! Each event is handed out once: after a loss the watch attaches again from `next`, and drops
//! whatever the daemon sends that lies before it.

use std::time::Duration;

use hearth_proto::v1::build_event::Event;
use hearth_proto::v1::{BuildEvent, WatchBuildRequest};
use tokio::time::Instant;
use tonic::{Request, Streaming};

use super::{Client, ClientError};

/// How long a watch tries to get back to a daemon that does not answer.
#[derive(Clone, Copy, Debug)]
pub struct WatchLimits {
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// Counted from the loss; any event starts it anew.
    pub give_up_after: Duration,
}

impl Default for WatchLimits {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(5),
            give_up_after: Duration::from_secs(120),
        }
    }
}

pub struct Watch {
    client: Client,
    build_id: String,
    next: u64,
    replay: bool,
    limits: WatchLimits,
    stream: Option<Streaming<BuildEvent>>,
    outage: Option<Outage>,
    done: bool,
}

/// Since when the daemon has not been heard, and how long to pause before the next attempt.
struct Outage {
    since: Instant,
    pause: Duration,
    retry_at: Instant,
    cause: ClientError,
}

/// What a watch came to next.
#[derive(Debug)]
pub enum Watched {
    Event(Box<BuildEvent>),
    /// The connection was lost and the watch is trying to get back. Told once for each loss.
    Lost(String),
}

impl Watch {
    pub(super) fn new(client: Client, build_id: &str, from: u64, replay: bool, limits: WatchLimits) -> Self {
        Self {
            client,
            build_id: build_id.to_owned(),
            next: from.max(1),
            replay,
            limits,
            stream: None,
            outage: None,
            done: false,
        }
    }

    #[must_use]
    pub fn with_limits(mut self, limits: WatchLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Sequence number of the next event that has not been handed out.
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// The next event, or none after the last one. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Option<Watched>, ClientError> {
        while !self.done {
            if let Some(outage) = &self.outage {
                tokio::time::sleep_until(outage.retry_at).await;
            }
            let lost = match self.step().await {
                Ok(Step::Event(event)) => return Ok(Some(Watched::Event(event))),
                Ok(Step::Seen) => continue,
                Ok(Step::End) => break,
                Err(error) if error.may_pass() => error,
                Err(error) => return Err(error),
            };
            if let Some(reason) = self.note_loss(lost)? {
                return Ok(Some(Watched::Lost(reason)));
            }
        }
        self.done = true;
        Ok(None)
    }

    async fn step(&mut self) -> Result<Step, ClientError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = WatchBuildRequest {
                    build_id: self.build_id.clone(),
                    from_sequence: self.next,
                    no_follow: self.replay,
                };
                let stream = self.client.answer(self.client.builds().watch(Request::new(request)).await)?;
                self.stream.insert(stream)
            }
        };
        let received = stream.message().await;
        let event =
            match received.map_err(|status| ClientError::from_status(&self.client.address, &status))? {
                Some(event) => event,
                None if self.replay => return Ok(Step::End),
                // A followed build ends with its `finished` event; an end without one is a loss.
                None => {
                    return Err(ClientError::Unreachable {
                        address: self.client.address.clone(),
                        reason: "the event stream ended before the build did".to_owned(),
                    });
                }
            };
        self.outage = None;
        if event.sequence < self.next {
            return Ok(Step::Seen);
        }
        if event.sequence > self.next {
            return Err(ClientError::Protocol(format!(
                "event {} of build {} came where {} was due",
                event.sequence, self.build_id, self.next
            )));
        }
        self.next += 1;
        self.done = matches!(event.event, Some(Event::Finished(_)));
        Ok(Step::Event(Box::new(event)))
    }

    /// Plans the next attempt. The reason is given back at the first loss; after too many the
    /// cause is the error.
    fn note_loss(&mut self, cause: ClientError) -> Result<Option<String>, ClientError> {
        self.stream = None;
        let now = Instant::now();
        match self.outage.take() {
            None => {
                let reason = cause.to_string();
                let pause = self.limits.first_pause;
                self.outage = Some(Outage { since: now, pause, retry_at: now + pause, cause });
                Ok(Some(reason))
            }
            // The first cause says more than the "connection refused" that follows it.
            Some(outage) if now.duration_since(outage.since) >= self.limits.give_up_after => {
                Err(outage.cause)
            }
            Some(outage) => {
                let pause = (outage.pause * 2).min(self.limits.longest_pause);
                self.outage = Some(Outage { pause, retry_at: now + pause, ..outage });
                Ok(None)
            }
        }
    }
}

enum Step {
    Event(Box<BuildEvent>),
    /// An event that was handed out before.
    Seen,
    End,
}
