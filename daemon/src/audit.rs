//! The audit trail: changes with their callers, and denied calls.
//!
//! ```text
//! calls that changed something ---.
//! calls that failed --> flood limit '--queue--> writer --> audit/changes-N.jsonl
//! denials ------------> flood limit ----^          '-----> audit/denied-N.jsonl
//! ```
//!
//! Changes and denials have separate files, each bounded in size and age, so that a flood of denials does not
//! displace the records of changes. Only the first few denials and failures of a caller or address in a minute
//! are written; the others are counted and become one record. Each caller has a share of full files: the caller
//! with the most records loses its own oldest ones first ([`fair`]). A record contains names only, never the
//! content of a request, a token or a secret.

mod deferred;
mod fair;
mod file;
mod flood;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::task;
use deferred::DeferredTrailFiles;
use flood::FloodLimit;

pub use file::FileLimits;

/// Maximum number of records between the calls and the writer.
const QUEUE_CAPACITY: usize = 4096;
/// Time limit for queueing a record, so that a hanging disk does not block every call.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of records that are written together.
const MAX_BATCH_RECORDS: usize = 256;
/// Interval at which counted denials are written and the age of the files is checked.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of records in the answer to a query.
pub const MAX_RECORDS: usize = 10_000;
/// Maximum length in bytes of each text of a record.
const MAX_TEXT_BYTES: usize = 300;

/// Outcome of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditOutcome {
    /// The call succeeded; a call that answers with a stream was started.
    Done,
    Failed,
    Denied,
}

/// One line of the trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    pub at: Timestamp,
    /// Name of the caller; empty where there was no valid token.
    pub caller: String,
    /// `Builds.Submit`, `PUT /v2/<repository>/manifests/<tag or digest>`, or `ingress`.
    pub action: String,
    /// Object of the action. Empty if the call has no object, or was denied before it named one.
    pub object: String,
    pub outcome: AuditOutcome,
    /// Error code of a failure, or the message that a denied caller received.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// An address, or `unix:uid=N`.
    pub source: String,
    /// Number of further denials or failures of the caller that were counted and not written.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
}

/// Action of a record that stands for damaged ones.
const DAMAGE: &str = "(damaged records)";

impl AuditRecord {
    /// Makes a record that stands for damaged lines of a file.
    fn damage(at: Timestamp, bytes: usize) -> Self {
        Self {
            at,
            caller: String::new(),
            action: DAMAGE.to_owned(),
            object: String::new(),
            outcome: AuditOutcome::Failed,
            detail: format!("{bytes} bytes of the audit trail are damaged on the disk"),
            source: String::new(),
            more: 0,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Filter for records. An empty text matches all.
#[derive(Clone, Debug, Default)]
pub struct AuditQuery {
    pub since: Option<Timestamp>,
    /// Exact name, or a prefix with a trailing `*`.
    pub caller: String,
    /// Part of the action, compared without regard to case.
    pub action: String,
    pub denied_only: bool,
    /// Maximum number of records, the newest ones first; at most [`MAX_RECORDS`].
    pub limit: usize,
}

impl AuditQuery {
    fn matches(&self, record: &AuditRecord) -> bool {
        let caller = match self.caller.strip_suffix('*') {
            Some(prefix) => record.caller.starts_with(prefix),
            None => self.caller.is_empty() || record.caller == self.caller,
        };
        let action = self.action.to_ascii_lowercase();
        // Damage is always found: it may have been a record that is looked for.
        if record.action == DAMAGE {
            return self.since.is_none_or(|since| record.at >= since);
        }
        caller
            && self.since.is_none_or(|since| record.at >= since)
            && (!self.denied_only || record.outcome == AuditOutcome::Denied)
            && record.action.to_ascii_lowercase().contains(&action)
    }
}

enum TrailMessage {
    Record(Box<AuditRecord>),
    Read(AuditQuery, oneshot::Sender<io::Result<Vec<AuditRecord>>>),
    /// Answered when all earlier records are in the files.
    Flush(oneshot::Sender<()>),
}

#[derive(Default)]
struct FloodLimits {
    denials: Mutex<FloodLimit>,
    failures: Mutex<FloodLimit>,
}

impl FloodLimits {
    fn admit(&self, record: &AuditRecord) -> bool {
        let limit = match record.outcome {
            AuditOutcome::Done => return true,
            AuditOutcome::Failed => &self.failures,
            AuditOutcome::Denied => &self.denials,
        };
        limit.lock().admits(record)
    }

    fn summaries(&self, now: Timestamp, ended: bool) -> Vec<AuditRecord> {
        let all = [&self.denials, &self.failures];
        let counted = |limit: &Mutex<FloodLimit>| limit.lock().summaries(now, ended);
        all.into_iter().flat_map(counted).collect()
    }
}

/// A handle on the trail; cheap to clone.
#[derive(Clone)]
pub struct AuditTrail {
    queue: mpsc::Sender<TrailMessage>,
    floods: Arc<FloodLimits>,
    /// Number of records that were dropped because the queue was full.
    lost: Arc<AtomicU64>,
}

impl AuditTrail {
    /// Opens the files and starts the writer. Blocking.
    pub fn open(directory: &Path, limits: FileLimits) -> io::Result<Self> {
        metrics::describe_counter!("hearth_audit_lost_total", "Records that the audit trail could not take.");
        let files = DeferredTrailFiles::open(directory, limits)?;
        let (queue, records) = mpsc::channel(QUEUE_CAPACITY);
        let floods = Arc::<FloodLimits>::default();
        let trail = Self { queue, floods: Arc::clone(&floods), lost: Arc::default() };
        // The task ends when the last handle is dropped and the queue is empty.
        drop(task::spawn("audit trail", write_loop(files, records, floods)));
        Ok(trail)
    }

    /// Records a call. If the writer is behind, waits for a moment and then counts the record as lost.
    pub async fn record(&self, record: AuditRecord) {
        if record.outcome == AuditOutcome::Denied {
            return self.try_record(record);
        }
        if !self.floods.admit(&record) {
            return;
        }
        let message = TrailMessage::Record(Box::new(record.with_truncated_texts()));
        if self.queue.send_timeout(message, QUEUE_TIMEOUT).await.is_err() {
            self.count_lost();
        }
    }

    /// Records a call without waiting. If the queue is full, the record is counted as lost.
    pub fn try_record(&self, record: AuditRecord) {
        if self.floods.admit(&record)
            && self.queue.try_send(TrailMessage::Record(Box::new(record.with_truncated_texts()))).is_err()
        {
            self.count_lost();
        }
    }

    fn count_lost(&self) {
        metrics::counter!("hearth_audit_lost_total").increment(1);
        let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
        if lost.is_power_of_two() {
            tracing::error!(lost, "failed to queue audit records; the writer is behind");
        }
    }

    /// Returns the newest records that match, oldest first, including those that are still in the queue.
    pub async fn read(&self, query: AuditQuery) -> io::Result<Vec<AuditRecord>> {
        let (answer, answered) = oneshot::channel();
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        self.queue.send(TrailMessage::Read(query, answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Waits until everything that was recorded is in the files, for at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        let (answer, answered) = oneshot::channel();
        let flushed = async {
            if self.queue.send(TrailMessage::Flush(answer)).await.is_ok() {
                // A writer that has stopped has written everything that it will.
                let _ = answered.await;
            }
        };
        if tokio::time::timeout(limit, flushed).await.is_err() {
            tracing::warn!("failed to flush the audit trail in time");
        }
    }
}

impl AuditRecord {
    fn with_truncated_texts(mut self) -> Self {
        for text in [&mut self.caller, &mut self.action, &mut self.object, &mut self.detail] {
            if text.len() > MAX_TEXT_BYTES {
                text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
                text.push('…');
            }
        }
        self
    }
}

async fn write_loop(
    files: DeferredTrailFiles,
    mut records: mpsc::Receiver<TrailMessage>,
    floods: Arc<FloodLimits>,
) {
    let files = Arc::new(Mutex::new(files));
    let mut tick = tokio::time::interval(MAINTENANCE_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let mut batch = Vec::new();
        let ended = tokio::select! {
            count = records.recv_many(&mut batch, MAX_BATCH_RECORDS) => count == 0,
            _ = tick.tick() => false,
        };
        let counted = floods.summaries(Timestamp::now(), ended);
        let mut written: Vec<AuditRecord> = Vec::new();
        let mut asked = VecDeque::new();
        for message in batch {
            match message {
                TrailMessage::Record(record) => written.push(*record),
                other => asked.push_back(other),
            }
        }
        written.extend(counted);
        let files = Arc::clone(&files);
        let work = move || {
            let mut files = files.lock();
            if let Err(error) = files.write(&written) {
                tracing::error!(%error, lost = written.len(), "failed to write audit records");
                metrics::counter!("hearth_audit_lost_total").increment(written.len() as u64);
            }
            for message in asked {
                match message {
                    // The receiver may have been dropped.
                    TrailMessage::Read(query, answer) => drop(answer.send(files.read(&query))),
                    TrailMessage::Flush(answer) => drop(answer.send(())),
                    TrailMessage::Record(_) => {}
                }
            }
        };
        if let Err(error) = task::blocking("audit trail", work).await {
            tracing::error!(%error, "audit trail task panicked");
        }
        if ended {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
