//! Events of a deploy, numbered from 1 and kept so that a watcher can replay them from any number.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, stream};
use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::model::deploy::{DeployEvent, DeployEventKind, LogLine};
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::id::InstanceId;
use crate::model::service::RevisionOutcome;
use crate::model::whole_characters;

/// Maximum number of events kept per revision. The last event is always kept.
const MAX_EVENTS: usize = 4000;
/// Maximum number of log lines among the events.
const MAX_LINES: usize = 2000;
/// Maximum length of a log line in bytes; the log itself has the whole line.
const MAX_LINE: usize = 8 << 10;

/// Stream of deploy events that ends with the last event of the deploy.
pub type DeployEvents = Pin<Box<dyn Stream<Item = DeployEvent> + Send>>;

/// Event stream of one deploy or restart.
pub(super) struct DeployProgress {
    started_at: Timestamp,
    /// Set if the outcome counts in the metrics.
    counts: bool,
    event_log: Mutex<DeployEventLog>,
    newest: watch::Sender<u64>,
    /// Cancelled when the last event is published.
    pub(super) ended: CancellationToken,
}

/// Events of a deploy that have been published.
#[derive(Default)]
struct DeployEventLog {
    events: Vec<DeployEvent>,
    lines: usize,
    skipped: u64,
    ended: bool,
}

impl DeployProgress {
    pub(super) fn new(started_at: Timestamp) -> Self {
        Self {
            started_at,
            counts: true,
            event_log: Mutex::default(),
            newest: watch::Sender::new(0),
            ended: CancellationToken::new(),
        }
    }

    /// Progress of a deploy that ended before this run of the daemon: only its final event.
    pub(super) fn ended_earlier(outcome: RevisionOutcome) -> Self {
        let progress = Self::new(Timestamp::now());
        progress.publish(final_event(outcome));
        progress
    }

    /// Returns the events from number `from` to the last one. The stream ends early when the service is `gone` or the
    /// service loops `stop`.
    pub(super) fn follow(
        self: Arc<Self>,
        from: u64,
        gone: CancellationToken,
        stop: CancellationToken,
    ) -> DeployEvents {
        let newest = self.newest.subscribe();
        let watcher = DeployWatcher { progress: self, newest, gone, stop, next: from.max(1), done: false };
        Box::pin(stream::unfold(watcher, |mut watcher| async move {
            let event = watcher.next().await?;
            Some((event, watcher))
        }))
    }

    /// Progress of a restart that an earlier run of the daemon began and may have completed; not counted in the
    /// metrics.
    pub(super) fn for_earlier_restart() -> Self {
        Self { counts: false, ..Self::new(Timestamp::now()) }
    }

    fn is_counted(&self) -> bool {
        self.counts && !self.is_ended()
    }

    fn count(&self, outcome: &'static str) {
        if self.is_counted() {
            metrics::counter!("hearth_deploys_total", "outcome" => outcome).increment(1);
        }
    }

    fn lock_event_log(&self) -> MutexGuard<'_, DeployEventLog> {
        // No code under this lock leaves the list half changed.
        self.event_log.lock()
    }

    pub(super) fn is_ended(&self) -> bool {
        self.lock_event_log().ended
    }

    /// Publishes an event, unless the last event has been published.
    pub(super) fn publish(&self, kind: DeployEventKind) {
        let is_last = kind.is_last();
        let newest = {
            let mut log = self.lock_event_log();
            if log.ended || (log.events.len() >= MAX_EVENTS && !kind.is_last()) {
                return;
            }
            if kind.is_last() {
                log.ended = true;
                if log.skipped > 0 {
                    let lines = log.skipped;
                    log.push(DeployEventKind::Skipped { lines });
                }
            }
            log.push(kind)
        };
        self.newest.send_replace(newest);
        if is_last {
            self.ended.cancel();
        }
    }

    pub(super) fn publish_log_line(&self, instance: InstanceId, mut line: LogLine) {
        {
            let mut log = self.lock_event_log();
            if log.lines >= MAX_LINES {
                log.skipped += 1;
                return;
            }
            log.lines += 1;
        }
        if line.text.len() > MAX_LINE {
            let cut = whole_characters(&line.text[..MAX_LINE]);
            line.dropped_bytes += (line.text.len() - cut) as u64;
            line.text.truncate(cut);
        }
        self.publish(DeployEventKind::Log { instance, line });
    }

    pub(super) fn complete(&self) {
        let took = Timestamp::now().duration_since(self.started_at).unsigned_abs();
        self.count("live");
        if self.is_counted() {
            metrics::histogram!("hearth_deploy_duration_seconds").record(took.as_secs_f64());
        }
        self.publish(DeployEventKind::Live { took });
    }

    pub(super) fn fail(&self, fault: Fault) {
        self.count("failed");
        self.publish(DeployEventKind::Failed(Box::new(fault)));
    }

    pub(super) fn supersede(&self, by: u32) {
        self.count("superseded");
        self.publish(DeployEventKind::Superseded { by });
    }

    fn event(&self, from: u64) -> Option<DeployEvent> {
        let index = usize::try_from(from.saturating_sub(1)).ok()?;
        self.lock_event_log().events.get(index).cloned()
    }
}

impl DeployEventLog {
    fn push(&mut self, kind: DeployEventKind) -> u64 {
        let sequence = self.events.len() as u64 + 1;
        self.events.push(DeployEvent { sequence, at: Timestamp::now(), kind });
        sequence
    }
}

/// Position of one watcher in the events of a deploy.
struct DeployWatcher {
    progress: Arc<DeployProgress>,
    newest: watch::Receiver<u64>,
    /// Cancelled when the service is removed; no further events follow.
    gone: CancellationToken,
    stop: CancellationToken,
    next: u64,
    done: bool,
}

impl DeployWatcher {
    async fn next(&mut self) -> Option<DeployEvent> {
        let mut last_look = false;
        while !self.done {
            if let Some(event) = self.progress.event(self.next) {
                self.done = event.kind.is_last();
                self.next += 1;
                return Some(event);
            }
            // A number beyond the last event never arrives.
            if last_look || (self.progress.is_ended() && self.progress.event(self.next).is_none()) {
                return None;
            }
            let next = self.next;
            tokio::select! {
                arrived = self.newest.wait_for(|newest| *newest >= next) => drop(arrived.ok()?),
                () = self.gone.cancelled() => last_look = true,
                () = self.stop.cancelled() => last_look = true,
            }
        }
        None
    }
}

fn final_event(outcome: RevisionOutcome) -> DeployEventKind {
    match outcome {
        RevisionOutcome::Live { .. } => DeployEventKind::Live { took: std::time::Duration::ZERO },
        RevisionOutcome::Failed(fault) => DeployEventKind::Failed(fault),
        RevisionOutcome::Superseded { by } => DeployEventKind::Superseded { by },
        // The wanted revision has its own progress; any other pending revision never becomes live.
        RevisionOutcome::Pending => DeployEventKind::Failed(Box::new(Fault::new(
            FaultStage::Deploy,
            ErrorCode::Interrupted,
            "the deploy was interrupted before it was live",
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::build::LogStream;

    #[test]
    fn a_flood_of_log_lines_is_cut_and_counted_and_never_hides_the_end() {
        let progress = DeployProgress::new(Timestamp::now());
        for _ in 0..MAX_LINES + 7 {
            let line = LogLine {
                at: Timestamp::UNIX_EPOCH,
                stream: LogStream::Stdout,
                text: "é".repeat(MAX_LINE).into_bytes(),
                dropped_bytes: 0,
                unfinished: false,
            };
            progress.publish_log_line(InstanceId::random(), line);
        }
        progress.complete();
        progress.fail(Fault::new(FaultStage::Deploy, ErrorCode::Internal, "after the end"));
        let last = MAX_LINES as u64 + 2;
        assert_eq!(progress.event(last - 1).unwrap().kind, DeployEventKind::Skipped { lines: 7 });
        assert!(matches!(progress.event(last).unwrap().kind, DeployEventKind::Live { .. }));
        assert_eq!(progress.event(last + 1), None);
        let Some(DeployEventKind::Log { line, .. }) = progress.event(1).map(|event| event.kind) else {
            panic!("no line");
        };
        assert_eq!((line.text.len(), line.dropped_bytes), (MAX_LINE, MAX_LINE as u64));
    }
}
