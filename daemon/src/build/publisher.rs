//! Event publisher: all events of a build pass through it to the event log.
//!
//! It keeps the order of the events, moves the step numbers of a later attempt behind those of earlier attempts, masks
//! secret values, drops and counts log bytes beyond the quota, and appends the rest to the event log in batches.
//!
//! Bytes that are dropped or held back of a step are published before the step's end, so that a reader who has seen a
//! step finish has all of it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::event_log::EventLog;
use super::mask::{MaskCarry, SecretMask};
use crate::disk::{SpaceLevel, SpaceWatch};
use crate::model::build::{BuildEventKind, BuildState, LogStream, StepSummary};
use crate::model::fault::Fault;
use crate::task;

/// Maximum number of events stored with one write.
const BATCH: usize = 256;
/// Maximum bytes of log data in one event.
const CHUNK: usize = 64 << 10;
/// Maximum number of steps in the record of a build, and of characters in the name of one.
const MAX_SUMMARIES: usize = 200;
const MAX_SUMMARY_NAME: usize = 200;
/// Bytes of the quota that a progress event uses.
const PROGRESS_COST: u64 = 128;

pub struct EventPublisher {
    log: Arc<EventLog>,
    mask: SecretMask,
    quota: u64,
    /// The build was warned that it is above its quota.
    warned_quota: bool,
    /// Free space of the disk: output is not kept while it is low.
    space: Option<SpaceWatch>,
    /// The build was warned that free space is low.
    warned_low_space: bool,
    streams: BTreeMap<(u32, bool), StepStream>,
    /// Steps of this attempt that have begun.
    steps: BTreeMap<u32, StepSummary>,
    /// Highest step number of the earlier attempts.
    earlier_steps: u32,
    /// Highest step number so far.
    highest_step: u32,
    /// Events that could not be stored by [`seal`](Self::seal).
    unstored: Vec<BuildEventKind>,
}

#[derive(Default)]
struct StepStream {
    carry: MaskCarry,
    /// Bytes dropped since the last published event of this stream.
    dropped: u64,
}

/// Number of steps of the latest attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepCounts {
    pub cached: u32,
    pub total: u32,
}

impl EventPublisher {
    /// Creates a publisher. `quota` is in bytes of log data.
    pub fn new(log: Arc<EventLog>, mask: SecretMask, quota: u64) -> Self {
        Self {
            log,
            mask,
            quota,
            warned_quota: false,
            space: None,
            warned_low_space: false,
            streams: BTreeMap::new(),
            steps: BTreeMap::new(),
            earlier_steps: 0,
            highest_step: 0,
            unstored: Vec::new(),
        }
    }

    /// Continues the log of an earlier run of the daemon.
    pub async fn resume(log: Arc<EventLog>, mask: SecretMask, quota: u64) -> io::Result<Self> {
        let source = Arc::clone(&log);
        let highest =
            task::blocking("build log", move || highest_step(&source)).await.map_err(io::Error::other)??;
        let quota = quota.saturating_sub(log.len());
        Ok(Self { highest_step: highest, ..Self::new(log, mask, quota) })
    }

    /// Drops output while less of the disk is free than should be.
    #[must_use]
    pub fn with_space_watch(self, space: SpaceWatch) -> Self {
        Self { space: Some(space), ..self }
    }

    fn is_low(&self) -> bool {
        self.space.as_ref().is_some_and(|space| space.level() != SpaceLevel::Ample)
    }

    pub fn step_counts(&self) -> StepCounts {
        let count = |steps: usize| u32::try_from(steps).unwrap_or(u32::MAX);
        let cached = self.steps.values().filter(|step| step.cached).count();
        StepCounts { cached: count(cached), total: count(self.steps.len()) }
    }

    /// Returns the first steps of this attempt, with names of a limited length.
    pub fn step_summaries(&self) -> Vec<StepSummary> {
        self.steps.values().take(MAX_SUMMARIES).cloned().collect()
    }

    /// Begins an attempt, whose sender counts its steps from 1 again.
    pub async fn begin_attempt(&mut self) -> io::Result<()> {
        let rest = self.take_held_back(|_| true);
        self.earlier_steps = self.highest_step;
        self.steps.clear();
        self.store(rest).await
    }

    pub async fn publish(&mut self, kind: BuildEventKind) -> io::Result<()> {
        let mut out = Vec::new();
        self.process_event(kind, &mut out);
        self.store(out).await
    }

    /// Publishes the received events until every sender is dropped. Returns their number.
    pub async fn forward(&mut self, events: &mut mpsc::Receiver<BuildEventKind>) -> io::Result<u64> {
        let (mut batch, mut count) = (Vec::with_capacity(BATCH), 0);
        while events.recv_many(&mut batch, BATCH).await > 0 {
            count += batch.len() as u64;
            let mut out = Vec::with_capacity(batch.len());
            for kind in batch.drain(..) {
                self.process_event(kind, &mut out);
            }
            self.store(out).await?;
        }
        Ok(count)
    }

    /// Publishes the bytes that are held back. After an error, the next call tries again.
    pub async fn seal(&mut self) -> io::Result<()> {
        let rest = self.take_held_back(|_| true);
        self.unstored.extend(rest);
        self.store(self.unstored.clone()).await?;
        self.unstored.clear();
        Ok(())
    }

    /// Publishes the last event.
    pub async fn finish(mut self, state: BuildState) -> io::Result<()> {
        self.publish(BuildEventKind::Finished { state }).await?;
        self.sync().await
    }

    /// Number of the newest event.
    pub fn last_sequence(&self) -> u64 {
        self.log.last_sequence()
    }

    /// Masks a fault, which may contain lines of the log.
    pub fn mask_fault(&self, mut fault: Fault) -> Fault {
        fault.message = self.mask.mask_text(&fault.message);
        fault.log_tail = fault.log_tail.iter().map(|line| self.mask.mask_text(line)).collect();
        fault
    }

    async fn store(&self, kinds: Vec<BuildEventKind>) -> io::Result<()> {
        if kinds.is_empty() {
            return Ok(());
        }
        let log = Arc::clone(&self.log);
        task::blocking("build log", move || log.append(kinds)).await.map_err(io::Error::other)?
    }

    /// Makes the published events durable.
    pub async fn sync(&self) -> io::Result<()> {
        let log = Arc::clone(&self.log);
        task::blocking("build log", move || log.sync()).await.map_err(io::Error::other)?
    }

    fn numbered(&mut self, step: u32) -> u32 {
        let step = step.saturating_add(self.earlier_steps);
        self.highest_step = self.highest_step.max(step);
        step
    }

    fn process_event(&mut self, kind: BuildEventKind, out: &mut Vec<BuildEventKind>) {
        match kind {
            BuildEventKind::StepStarted { step, name } => {
                let name = self.mask.mask_text(&name);
                let (sent, step) = (step, self.numbered(step));
                let summary = self.steps.entry(sent).or_default();
                summary.name = name.chars().take(MAX_SUMMARY_NAME).collect();
                summary.step = step;
                out.push(BuildEventKind::StepStarted { step, name });
            }
            BuildEventKind::StepLog { step, stream, data, dropped_bytes } => {
                let step = self.numbered(step);
                let entry = self.streams.entry((step, stream == LogStream::Stderr)).or_default();
                entry.dropped += dropped_bytes;
                let data = self.mask.feed(&mut entry.carry, data);
                self.process_bytes(step, stream, &data, out);
            }
            BuildEventKind::StepProgress { step, name, current, total } => {
                let step = self.numbered(step);
                // Only the newest value matters, so these events are dropped without a count.
                if let Some(rest) = self.quota.checked_sub(PROGRESS_COST)
                    && !self.is_low()
                {
                    self.quota = rest;
                    let name = self.mask.mask_text(&name);
                    out.push(BuildEventKind::StepProgress { step, name, current, total });
                }
            }
            BuildEventKind::StepFinished { step, cached, duration, error } => {
                let summary = self.steps.entry(step).or_default();
                (summary.cached, summary.duration) = (cached, duration);
                summary.succeeded = error.is_none();
                let step = self.numbered(step);
                out.extend(self.take_held_back(|of| of == step));
                let error = error.map(|error| self.mask.mask_text(&error));
                out.push(BuildEventKind::StepFinished { step, cached, duration, error });
            }
            BuildEventKind::Warning { message, url, dockerfile } => {
                out.push(BuildEventKind::Warning { message: self.mask.mask_text(&message), url, dockerfile });
            }
            other @ (BuildEventKind::StateChanged { .. }
            | BuildEventKind::Damaged { .. }
            | BuildEventKind::Finished { .. }) => {
                out.push(other);
            }
        }
    }

    fn process_bytes(&mut self, step: u32, stream: LogStream, data: &[u8], out: &mut Vec<BuildEventKind>) {
        let low = self.is_low();
        let quota = if low { 0 } else { self.quota };
        let room = usize::try_from(quota).unwrap_or(usize::MAX).min(data.len());
        let (kept, left) = data.split_at(room);
        self.quota -= room as u64;
        let entry = self.streams.entry((step, stream == LogStream::Stderr)).or_default();
        for chunk in kept.chunks(CHUNK) {
            let dropped_bytes = std::mem::take(&mut entry.dropped);
            let event = BuildEventKind::StepLog { step, stream, data: chunk.to_vec(), dropped_bytes };
            push_or_join(out, event);
        }
        entry.dropped += left.len() as u64;
        if left.is_empty() {
            return;
        }
        if low && !std::mem::replace(&mut self.warned_low_space, true) {
            let message = format!(
                "the disk of the room has less free space than the minimum: output of step {step} is not kept until \
                 enough is free, and more bytes may be lost than are counted"
            );
            out.push(BuildEventKind::Warning { message, url: None, dockerfile: None });
        } else if !low && !std::mem::replace(&mut self.warned_quota, true) {
            let message = format!(
                "the log of this build has reached its quota at step {step}: output is not kept from here on, and more \
                 bytes may be lost than are counted"
            );
            out.push(BuildEventKind::Warning { message, url: None, dockerfile: None });
        }
    }

    /// Takes the bytes held back of the selected steps, and the counts of dropped bytes.
    fn take_held_back(&mut self, of: impl Fn(u32) -> bool) -> Vec<BuildEventKind> {
        let keys: Vec<_> = self.streams.keys().filter(|(step, _)| of(*step)).copied().collect();
        let mut out = Vec::new();
        for key in keys {
            let (step, stream) = (key.0, if key.1 { LogStream::Stderr } else { LogStream::Stdout });
            let Some(entry) = self.streams.get_mut(&key) else { continue };
            let rest = self.mask.finish(&mut entry.carry);
            self.process_bytes(step, stream, &rest, &mut out);
            if let Some(StepStream { dropped: dropped_bytes @ 1.., .. }) = self.streams.remove(&key) {
                out.push(BuildEventKind::StepLog { step, stream, data: Vec::new(), dropped_bytes });
            }
        }
        out
    }
}

/// Adds an event to a batch. Output that continues that of the event before it joins this event: a process writes line by
/// line, and each event costs every follower of the build as much as many lines.
fn push_or_join(out: &mut Vec<BuildEventKind>, event: BuildEventKind) {
    if let (
        Some(BuildEventKind::StepLog { step, stream, data, .. }),
        BuildEventKind::StepLog { step: next_step, stream: next_stream, data: next, dropped_bytes: 0 },
    ) = (out.last_mut(), &event)
        && (*step, *stream) == (*next_step, *next_stream)
        && data.len() + next.len() <= CHUNK
    {
        data.extend_from_slice(next);
    } else {
        out.push(event);
    }
}

fn highest_step(log: &EventLog) -> io::Result<u32> {
    let (mut next, mut highest) = (1, 0);
    loop {
        let events = log.read(next, 1 << 20)?;
        let Some(last) = events.last() else { return Ok(highest) };
        next = last.sequence + last.kind.count();
        for event in &events {
            if let BuildEventKind::StepStarted { step, .. } = event.kind {
                highest = highest.max(step);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fault::ErrorCode;
    use crate::model::id::BuildId;
    use std::time::Duration;

    fn log(step: u32, text: &str) -> BuildEventKind {
        BuildEventKind::StepLog { step, stream: LogStream::Stdout, data: text.into(), dropped_bytes: 0 }
    }

    fn started(step: u32) -> BuildEventKind {
        BuildEventKind::StepStarted { step, name: format!("step {step}") }
    }

    fn finished(step: u32) -> BuildEventKind {
        BuildEventKind::StepFinished { step, cached: step == 1, duration: Duration::ZERO, error: None }
    }

    fn text_of(log: &EventLog) -> (String, u64) {
        let (mut text, mut dropped) = (String::new(), 0);
        for event in log.read(1, usize::MAX).unwrap() {
            if let BuildEventKind::StepLog { data, dropped_bytes, .. } = event.kind {
                text.push_str(std::str::from_utf8(&data).unwrap());
                dropped += dropped_bytes;
            }
        }
        (text, dropped)
    }

    struct Bench {
        log: Arc<EventLog>,
        id: BuildId,
        directory: tempfile::TempDir,
    }

    fn bench() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let id = BuildId::random();
        Bench { log: Arc::new(EventLog::create(directory.path(), &id).unwrap()), id, directory }
    }

    #[tokio::test]
    async fn output_that_arrives_together_is_one_event() {
        let bench = bench();
        let mut publisher = EventPublisher::new(Arc::clone(&bench.log), SecretMask::default(), 1 << 30);
        let (sender, mut events) = mpsc::channel(BATCH);
        let error = BuildEventKind::StepLog {
            step: 1,
            stream: LogStream::Stderr,
            data: b"no\n".to_vec(),
            dropped_bytes: 0,
        };
        let large = "x".repeat(CHUNK);
        for kind in [log(1, "a\n"), log(1, "b\n"), log(2, "c\n"), error, log(1, "d\n"), log(1, &large)] {
            sender.try_send(kind).unwrap();
        }
        drop(sender);
        assert_eq!(publisher.forward(&mut events).await.unwrap(), 6);
        let sizes: Vec<usize> = bench
            .log
            .read(1, usize::MAX)
            .unwrap()
            .iter()
            .filter_map(|event| match &event.kind {
                BuildEventKind::StepLog { data, .. } => Some(data.len()),
                _ => None,
            })
            .collect();
        assert_eq!(sizes, [4, 2, 3, 2, CHUNK]);
    }

    #[tokio::test]
    async fn quota_marks_dropped_bytes() {
        let bench = bench();
        let mut publisher = EventPublisher::new(Arc::clone(&bench.log), SecretMask::default(), 10);
        for kind in [started(1), log(1, "12345678"), log(1, "90abc"), log(1, "def"), finished(1)] {
            publisher.publish(kind).await.unwrap();
        }
        publisher.publish(log(2, "xyz")).await.unwrap();
        publisher.seal().await.unwrap();
        let (text, dropped) = text_of(&bench.log);
        assert_eq!((text.as_str(), dropped), ("1234567890", 9));
        let events = bench.log.read(1, usize::MAX).unwrap();
        let warnings = events.iter().filter(|event| {
            matches!(&event.kind, BuildEventKind::Warning { message, .. } if message.contains("quota at step 1"))
        });
        assert_eq!(warnings.count(), 1, "the build is told once");
        let end = events
            .iter()
            .position(|event| matches!(event.kind, BuildEventKind::StepFinished { .. }))
            .unwrap();
        assert!(
            matches!(events[end - 1].kind, BuildEventKind::StepLog { dropped_bytes: 6, .. }),
            "told before the step's end"
        );
    }

    #[tokio::test]
    async fn no_output_is_kept_on_a_disk_that_is_low_and_the_build_is_notified_once() {
        let bench = bench();
        let publisher = EventPublisher::new(Arc::clone(&bench.log), SecretMask::default(), 1 << 20);
        let mut publisher = publisher.with_space_watch(SpaceWatch::fixed(7, 8));
        for kind in [started(1), log(1, "12345678"), log(1, "90"), finished(1)] {
            publisher.publish(kind).await.unwrap();
        }
        assert_eq!(text_of(&bench.log), (String::new(), 10));
        let told = |event: &crate::model::build::BuildEvent| matches!(&event.kind, BuildEventKind::Warning { message, .. } if message.contains("step 1 is not kept"));
        assert_eq!(bench.log.read(1, usize::MAX).unwrap().iter().filter(|event| told(event)).count(), 1);
        let mut publisher = publisher.with_space_watch(SpaceWatch::fixed(8, 8));
        publisher.publish(log(2, "again")).await.unwrap();
        assert_eq!(text_of(&bench.log).0, "again", "it has the space again");
    }

    #[tokio::test]
    async fn secrets_are_masked_across_chunks_and_in_faults() {
        let bench = bench();
        let mask = SecretMask::new([b"canary-secret".as_slice()]);
        let mut publisher = EventPublisher::new(Arc::clone(&bench.log), mask, 1 << 20);
        publisher.publish(log(1, "value=canary-")).await.unwrap();
        publisher.publish(log(2, "other")).await.unwrap();
        publisher.publish(log(1, "secret; cana")).await.unwrap();
        publisher.publish(finished(1)).await.unwrap();
        assert_eq!(text_of(&bench.log).0, "value=other***; cana");
        let mut fault =
            Fault::new(crate::model::fault::FaultStage::Solve, ErrorCode::StepFailed, "echo canary-secret");
        fault.log_tail = vec!["x canary-secret".to_owned()];
        let fault = publisher.mask_fault(fault);
        assert_eq!((fault.message.as_str(), fault.log_tail[0].as_str()), ("echo ***", "x ***"));
        assert!(!std::fs::read_to_string(bench.log.path()).unwrap().contains("canary-secret"));
    }

    #[tokio::test]
    async fn secrets_are_masked_in_names_and_errors_of_steps_and_in_warnings() {
        let bench = bench();
        let mask = SecretMask::new([b"canary-secret".as_slice()]);
        let mut publisher = EventPublisher::new(Arc::clone(&bench.log), mask, 1 << 20);
        let text = || "with canary-secret in it".to_owned();
        let (duration, error) = (Duration::ZERO, Some(text()));
        for kind in [
            BuildEventKind::StepStarted { step: 1, name: text() },
            BuildEventKind::StepProgress { step: 1, name: text(), current: 1, total: 2 },
            BuildEventKind::Warning { message: text(), url: None, dockerfile: None },
            BuildEventKind::StepFinished { step: 1, cached: false, duration, error },
        ] {
            publisher.publish(kind).await.unwrap();
        }
        publisher.seal().await.unwrap();
        let masked: Vec<String> = bench
            .log
            .read(1, usize::MAX)
            .unwrap()
            .into_iter()
            .filter_map(|event| match event.kind {
                BuildEventKind::StepStarted { name, .. } | BuildEventKind::StepProgress { name, .. } => {
                    Some(name)
                }
                BuildEventKind::Warning { message, .. } => Some(message),
                BuildEventKind::StepFinished { error, .. } => error,
                _ => None,
            })
            .collect();
        assert_eq!(masked, vec!["with *** in it"; 4]);
        assert!(!std::fs::read_to_string(bench.log.path()).unwrap().contains("canary-secret"));
    }

    #[tokio::test]
    async fn steps_of_a_second_attempt_have_numbers_of_their_own() {
        let bench = bench();
        let mut publisher = EventPublisher::new(Arc::clone(&bench.log), SecretMask::default(), 1 << 20);
        for kind in [started(1), started(2), finished(1)] {
            publisher.publish(kind).await.unwrap();
        }
        assert_eq!(publisher.step_counts(), StepCounts { cached: 1, total: 2 });
        publisher.begin_attempt().await.unwrap();
        publisher.publish(started(1)).await.unwrap();
        drop(publisher);

        let log = Arc::new(EventLog::reopen(bench.directory.path(), &bench.id).unwrap());
        let mut publisher =
            EventPublisher::resume(Arc::clone(&log), SecretMask::default(), 1 << 20).await.unwrap();
        publisher.begin_attempt().await.unwrap();
        publisher.publish(started(1)).await.unwrap();
        let steps: Vec<u32> = log
            .read(1, usize::MAX)
            .unwrap()
            .iter()
            .filter_map(|event| match event.kind {
                BuildEventKind::StepStarted { step, .. } => Some(step),
                _ => None,
            })
            .collect();
        assert_eq!(steps, [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_large_chunk_is_cut_and_whole() {
        let bench = bench();
        let mut publisher = EventPublisher::new(Arc::clone(&bench.log), SecretMask::default(), 1 << 30);
        let text = "0123456789".repeat(30_000);
        let (sender, mut receiver) = mpsc::channel(4);
        sender.send(log(1, &text)).await.unwrap();
        drop(sender);
        assert_eq!(publisher.forward(&mut receiver).await.unwrap(), 1);
        assert_eq!(bench.log.last_sequence(), 5);
        assert_eq!(text_of(&bench.log), (text, 0));
    }

    #[tokio::test]
    async fn what_an_earlier_run_has_written_counts_against_the_quota() {
        const QUOTA: u64 = 4000;
        let Bench { log: first, id, directory } = bench();
        let mut publisher = EventPublisher::new(Arc::clone(&first), SecretMask::default(), QUOTA);
        publisher.publish(log(1, &"a".repeat(1000))).await.unwrap();
        drop(publisher);
        let (mut rest, mut kept, mut dropped) = (QUOTA - first.len(), 1000, 0);
        drop(first);
        // A restart does not reset the quota.
        for _ in 0..3 {
            let again = Arc::new(EventLog::reopen(directory.path(), &id).unwrap());
            let mut publisher =
                EventPublisher::resume(Arc::clone(&again), SecretMask::default(), QUOTA).await.unwrap();
            publisher.begin_attempt().await.unwrap();
            publisher.publish(log(1, &"b".repeat(2000))).await.unwrap();
            publisher.seal().await.unwrap();
            kept += rest.min(2000);
            dropped += 2000 - rest.min(2000);
            let (text, told) = text_of(&again);
            assert_eq!((text.len() as u64, told), (kept, dropped));
            rest = QUOTA.saturating_sub(again.len());
        }
        assert_eq!(rest, 0, "the quota was never reached");
    }
}
