//! Watches a build or a deploy across lost connections.
//!
//! ```text
//! detached --call--> attached --event n--> attached (next = n + 1)
//!    ^                   |
//!    |   stream lost     |  the last event, or the end of a replay
//!    '---- back-off -----'------------------> done
//! ```
//!
//! Each event is delivered once: after a loss the watch attaches again and drops the events that were
//! delivered before. The events of a build survive a restart of the daemon. Those of a deploy do not:
//! after a restart their numbers start again at 1, which a different first event reveals, and the watch
//! delivers the new events from their first on.

use hearth_proto::v1::{
    BuildEvent, BuildState, DeployEvent, WatchBuildRequest, WatchDeployRequest, build_event, deploy_event,
};
use tonic::{Request, Streaming};

use super::outage::{ReconnectBackoff, ReconnectLimits};
use super::{Client, ClientError};

/// The source of watched events: a build or a deploy.
pub trait WatchSubject: Send + Sync {
    type Event: NumberedEvent + Send;
    /// True when an event keeps its number across restarts of the daemon.
    const EVENTS_SURVIVE_RESTART: bool;

    /// Name of the subject in errors.
    fn name(&self) -> String;

    fn open(
        &self,
        client: &Client,
        from: u64,
        replay: bool,
    ) -> impl Future<Output = Result<Streaming<Self::Event>, ClientError>> + Send;

    /// Reports whether the subject has ended before it had an event with the number `next`.
    fn ended_before(
        &self,
        client: &Client,
        next: u64,
    ) -> impl Future<Output = Result<bool, ClientError>> + Send;
}

/// An event of a sequence that is numbered 1, 2, 3, ...
pub trait NumberedEvent {
    fn sequence(&self) -> u64;
    /// Number of events that this one stands for.
    fn count(&self) -> u64 {
        1
    }
    fn time(&self) -> Option<prost_types::Timestamp>;
    fn is_last(&self) -> bool;
}

/// A build, identified by its id.
#[derive(Debug)]
pub struct BuildSubject(String);

/// The deploy of a revision.
#[derive(Debug)]
pub struct DeploySubject {
    service: String,
    revision: u32,
}

/// A stream of events that reconnects after a loss.
pub struct EventWatch<S: WatchSubject> {
    client: Client,
    subject: S,
    next: u64,
    replay: bool,
    stream: Option<Streaming<S::Event>>,
    outages: ReconnectBackoff,
    /// Time of the first event. A different time reveals that the numbers started again.
    first_event_time: Option<prost_types::Timestamp>,
    done: bool,
}

pub type BuildWatch = EventWatch<BuildSubject>;
pub type DeployWatch = EventWatch<DeploySubject>;

/// The next item of a watch.
#[derive(Debug)]
pub enum WatchItem<E> {
    Event(Box<E>),
    /// The connection was lost and the watch is reconnecting. Returned once for each loss.
    Lost(String),
}

impl Client {
    /// Watches a build from sequence number `from` to its end. Survives lost connections.
    pub fn watch_build(&self, build_id: &str, from: u64) -> BuildWatch {
        EventWatch::new(self.clone(), BuildSubject(build_id.to_owned()), from, false)
    }

    /// Replays the events of a build from sequence number `from` to the newest one at this time.
    pub fn replay_build(&self, build_id: &str, from: u64) -> BuildWatch {
        EventWatch::new(self.clone(), BuildSubject(build_id.to_owned()), from, true)
    }

    /// Watches the deploy, or the last restart, of a revision to its end. Survives lost connections.
    pub fn watch_deploy(&self, service: &str, revision: u32) -> DeployWatch {
        EventWatch::new(self.clone(), DeploySubject { service: service.to_owned(), revision }, 1, false)
    }
}

impl<S: WatchSubject> EventWatch<S> {
    fn new(client: Client, subject: S, from: u64, replay: bool) -> Self {
        Self {
            client,
            subject,
            next: from.max(1),
            replay,
            stream: None,
            outages: ReconnectBackoff::new(ReconnectLimits::default()),
            first_event_time: None,
            done: false,
        }
    }

    #[must_use]
    pub fn with_limits(mut self, limits: ReconnectLimits) -> Self {
        self.outages.limits = limits;
        self
    }

    /// Sequence number of the next event to deliver.
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// Returns the next event, or `None` after the last one. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<WatchItem<S::Event>>, ClientError> {
        while !self.done {
            self.outages.wait_for_retry().await;
            let lost = match self.step().await {
                Ok(WatchStep::Event(event)) => return Ok(Some(WatchItem::Event(event))),
                Ok(WatchStep::AlreadyDelivered) => continue,
                Ok(WatchStep::End) => break,
                Err(error) if error.is_retryable() => error,
                Err(error) => return Err(error),
            };
            self.stream = None;
            if let Some(reason) = self.outages.connection_lost(lost)? {
                return Ok(Some(WatchItem::Lost(reason)));
            }
        }
        self.done = true;
        Ok(None)
    }

    async fn step(&mut self) -> Result<WatchStep<S::Event>, ClientError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let from = if S::EVENTS_SURVIVE_RESTART { self.next } else { 1 };
                self.stream.insert(self.subject.open(&self.client, from, self.replay).await?)
            }
        };
        let received = stream.message().await;
        let event =
            match received.map_err(|status| ClientError::from_status(&self.client.address, &status))? {
                Some(event) => event,
                None if self.replay => return Ok(WatchStep::End),
                None if self.subject.ended_before(&self.client, self.next).await? => {
                    return Ok(WatchStep::End);
                }
                // A followed stream of a subject that has further events ends with its last event; an end without
                // one is a lost connection.
                None => {
                    return Err(ClientError::Unreachable {
                        address: self.client.address.clone(),
                        reason: format!("the events of {} ended before their last one", self.subject.name()),
                    });
                }
            };
        self.outages.connection_restored();
        let sequence = event.sequence();
        if sequence == 1 {
            if !S::EVENTS_SURVIVE_RESTART
                && self.first_event_time.is_some_and(|first| Some(first) != event.time())
            {
                self.next = 1;
            }
            self.first_event_time = event.time();
        }
        if sequence < self.next {
            return Ok(WatchStep::AlreadyDelivered);
        }
        if sequence > self.next {
            return Err(ClientError::Protocol(format!(
                "event {sequence} of {} came where {} was due",
                self.subject.name(),
                self.next
            )));
        }
        self.next = sequence.saturating_add(event.count());
        self.done = event.is_last();
        Ok(WatchStep::Event(Box::new(event)))
    }
}

/// Outcome of reading one message from the stream.
enum WatchStep<E> {
    Event(Box<E>),
    /// An event that was delivered before.
    AlreadyDelivered,
    End,
}

impl WatchSubject for BuildSubject {
    type Event = BuildEvent;
    const EVENTS_SURVIVE_RESTART: bool = true;

    fn name(&self) -> String {
        format!("build {}", self.0)
    }

    async fn open(
        &self,
        client: &Client,
        from: u64,
        replay: bool,
    ) -> Result<Streaming<BuildEvent>, ClientError> {
        let request = WatchBuildRequest { build_id: self.0.clone(), from_sequence: from, no_follow: replay };
        client.message_or_error(client.builds().watch(Request::new(request)).await)
    }

    async fn ended_before(&self, client: &Client, next: u64) -> Result<bool, ClientError> {
        let build = client.build(&self.0).await?;
        let is_final =
            !matches!(build.state(), BuildState::Unspecified | BuildState::Queued | BuildState::Running);
        Ok(is_final && build.last_sequence < next)
    }
}

impl WatchSubject for DeploySubject {
    type Event = DeployEvent;
    const EVENTS_SURVIVE_RESTART: bool = false;

    fn name(&self) -> String {
        format!("the deploy of {} revision {}", self.service, self.revision)
    }

    async fn open(
        &self,
        client: &Client,
        from: u64,
        _replay: bool,
    ) -> Result<Streaming<DeployEvent>, ClientError> {
        let request = WatchDeployRequest {
            service: self.service.clone(),
            revision: self.revision,
            from_sequence: from,
        };
        client.message_or_error(client.services().watch(Request::new(request)).await)
    }

    /// A deploy is always watched from its first event.
    async fn ended_before(&self, _client: &Client, _next: u64) -> Result<bool, ClientError> {
        Ok(false)
    }
}

impl NumberedEvent for BuildEvent {
    fn sequence(&self) -> u64 {
        self.sequence
    }

    fn count(&self) -> u64 {
        self.damaged_events.max(1)
    }

    fn time(&self) -> Option<prost_types::Timestamp> {
        self.time
    }

    fn is_last(&self) -> bool {
        matches!(self.event, Some(build_event::Event::Finished(_)))
    }
}

impl NumberedEvent for DeployEvent {
    fn sequence(&self) -> u64 {
        self.sequence
    }

    fn time(&self) -> Option<prost_types::Timestamp> {
        self.time
    }

    fn is_last(&self) -> bool {
        use deploy_event::Event::{Failed, Live, Superseded};
        matches!(self.event, Some(Live(_) | Failed(_) | Superseded(_)))
    }
}
