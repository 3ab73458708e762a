//! Log of a service, line by line, across lost connections.
//!
//! Lines have no numbers. After a loss the reader requests the lines since the time of the last one,
//! and drops as many lines with exactly that time as it had delivered. A daemon that shuts down ends
//! its streams without an error, so a followed log is complete only when the service no longer exists.

use std::collections::VecDeque;

use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::{InstanceLogLine, LogLine, ReadServiceLogsRequest, ServiceLogLines};
use tonic::{Request, Streaming};

use super::outage::{ReconnectBackoff, ReconnectLimits};
use super::{Client, ClientError};

pub struct ServiceLogs {
    client: Client,
    request: ReadServiceLogsRequest,
    stream: Option<Streaming<ServiceLogLines>>,
    outages: ReconnectBackoff,
    waiting: VecDeque<InstanceLogLine>,
    position: LogPosition,
}

/// The next item of a log.
#[derive(Debug)]
pub enum ServiceLogItem {
    /// A line of an instance, or a piece of one.
    Line { instance: String, line: LogLine },
    /// The connection was lost and the reader is reconnecting. Returned once for each loss.
    Lost(String),
}

impl Client {
    /// Reads lines of a service's log, oldest first. With `follow` the reader survives lost connections.
    pub fn service_logs(&self, request: ReadServiceLogsRequest) -> ServiceLogs {
        ServiceLogs {
            client: self.clone(),
            request,
            stream: None,
            outages: ReconnectBackoff::new(ReconnectLimits::default()),
            waiting: VecDeque::new(),
            position: LogPosition::default(),
        }
    }
}

impl ServiceLogs {
    /// Returns the next line, or `None` after the last one. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<ServiceLogItem>, ClientError> {
        loop {
            while let Some(InstanceLogLine { instance_id: instance, line }) = self.waiting.pop_front() {
                let line = line.unwrap_or_default();
                if self.position.is_new(&instance, &line) {
                    return Ok(Some(ServiceLogItem::Line { instance, line }));
                }
            }
            self.outages.wait_for_retry().await;
            let lost = match self.read().await {
                Ok(true) => continue,
                Ok(false) => return Ok(None),
                Err(error) if self.request.follow && error.is_retryable() => error,
                Err(error) => return Err(error),
            };
            self.stream = None;
            if let Some(reason) = self.outages.connection_lost(lost)? {
                return Ok(Some(ServiceLogItem::Lost(reason)));
            }
        }
    }

    /// Receives the next lines. Returns false at the end of the log.
    async fn read(&mut self) -> Result<bool, ClientError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let mut request = self.request.clone();
                if let Some(since) = self.position.resume_time() {
                    request.since = Some(since);
                    request.tail = None;
                }
                let stream =
                    self.client.message_or_error(self.client.services().logs(Request::new(request)).await)?;
                self.stream.insert(stream)
            }
        };
        let received = stream.message().await;
        let received = received.map_err(|status| ClientError::from_status(&self.client.address, &status))?;
        match received {
            Some(lines) => {
                self.outages.connection_restored();
                self.waiting.extend(lines.lines);
                Ok(true)
            }
            // A log of one instance or revision ends when the daemon ends it.
            None if !self.request.follow || self.request.source.is_some() => Ok(false),
            None => match self.client.service(&self.request.service).await {
                Ok(_) => Err(ClientError::Unreachable {
                    address: self.client.address.clone(),
                    reason: "the log stream ended although the service still exists".to_owned(),
                }),
                Err(ClientError::Failed(detail)) if detail.code.parse() == Ok(ErrorCode::ServiceNotFound) => {
                    Ok(false)
                }
                Err(error) => Err(error),
            },
        }
    }
}

/// Maximum number of instances whose positions are known. Those of the longest ago are forgotten.
const MAX_INSTANCES: usize = 64;

/// Position in the log: what was delivered of each instance. The instances follow each other in the stream, so that
/// after a loss lines of an earlier one may come again before those of a later one.
#[derive(Debug, Default)]
struct LogPosition {
    /// Time of the last delivered line of all.
    last: Option<prost_types::Timestamp>,
    delivered: VecDeque<InstancePosition>,
    /// What had been delivered before the last loss, as far as it may come again.
    before: VecDeque<InstancePosition>,
}

#[derive(Debug, Clone)]
struct InstancePosition {
    instance: String,
    /// Time of the last delivered line.
    last: Option<prost_types::Timestamp>,
    /// Number of delivered lines with that time.
    count: usize,
}

impl LogPosition {
    /// Returns the time to resume from after a loss. None when no line has arrived yet.
    fn resume_time(&mut self) -> Option<prost_types::Timestamp> {
        self.before.clone_from(&self.delivered);
        self.last
    }

    /// Reports whether a line was not delivered before, and records it.
    fn is_new(&mut self, instance: &str, line: &LogLine) -> bool {
        let order = |time: Option<prost_types::Timestamp>| time.map(|time| (time.seconds, time.nanos));
        if let Some(at) = self.before.iter().position(|known| known.instance == instance) {
            let known = &mut self.before[at];
            if line.time == known.last && known.count > 0 {
                known.count -= 1;
                return false;
            }
            if order(line.time) < order(known.last) {
                return false;
            }
            self.before.remove(at);
        }
        self.last = line.time;
        match self.delivered.iter_mut().find(|known| known.instance == instance) {
            Some(known) if known.last == line.time => known.count += 1,
            Some(known) => (known.last, known.count) = (line.time, 1),
            None => {
                if self.delivered.len() == MAX_INSTANCES {
                    self.delivered.pop_front();
                }
                let instance = instance.to_owned();
                self.delivered.push_back(InstancePosition { instance, last: line.time, count: 1 });
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(nanos: i32, text: &str) -> LogLine {
        let time = Some(prost_types::Timestamp { seconds: 1, nanos });
        LogLine { time, text: text.to_owned().into(), ..LogLine::default() }
    }

    #[test]
    fn lines_that_came_before_a_loss_do_not_come_twice() {
        let mut place = LogPosition::default();
        assert_eq!(place.resume_time(), None);
        let delivered = |place: &mut LogPosition, lines: &[LogLine]| {
            let new = lines.iter().filter(|line| place.is_new("a", line));
            new.map(|line| String::from_utf8(line.text.to_vec()).unwrap()).collect::<String>()
        };
        assert_eq!(delivered(&mut place, &[line(1, "a"), line(2, "b"), line(2, "c")]), "abc");
        // A further line with the same time had not been read yet.
        assert_eq!(place.resume_time().map(|time| time.nanos), Some(2));
        assert_eq!(delivered(&mut place, &[line(2, "b"), line(2, "c"), line(2, "d"), line(3, "e")]), "de");
        assert_eq!(place.resume_time().map(|time| time.nanos), Some(3));
        assert_eq!(delivered(&mut place, &[line(4, "f")]), "f");
    }
    #[test]
    fn lines_of_overlapping_instances_do_not_come_twice() {
        let mut place = LogPosition::default();
        for (instance, nanos) in [("old", 1), ("old", 100), ("new", 90), ("new", 95)] {
            assert!(place.is_new(instance, &line(nanos, "x")), "{instance} {nanos}");
        }
        assert_eq!(place.resume_time().map(|time| time.nanos), Some(95));
        for (instance, nanos, is_new) in [
            ("old", 96, false),
            ("old", 100, false),
            ("old", 101, true),
            ("new", 95, false),
            ("new", 95, true),
        ] {
            assert_eq!(place.is_new(instance, &line(nanos, "x")), is_new, "{instance} {nanos}");
        }
    }
}
