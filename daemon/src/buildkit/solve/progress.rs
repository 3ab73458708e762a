//! Translates BuildKit's status stream into events of a build.
//!
//! BuildKit identifies a step ("vertex") by a digest; events number the steps from 1 in the order in which they were
//! first seen. A vertex may start and end several times, for its cache key and for its work: it then has several
//! `StepStarted` and `StepFinished` events with one number, and the last one counts.
//!
//! BuildKit splits a message with more than one mebibyte of log. The logs in the next message then still belong to
//! steps that the first message reported as finished, so their end is held back until then.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1 as api;
use bollard_buildkit_proto::pb;

use super::tail::LogTail;
use crate::build::port::FetchedCommit;
use crate::model::MountTarget;
use crate::model::build::{BuildEventKind, LogStream};
use crate::model::fault::DockerfileRange;

/// Size of log data, in bytes, above which BuildKit splits a message between two logs.
const CUT: usize = 1 << 20;
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// Maximum number of steps, and of progress lines of one step; no real Dockerfile has more.
const STEP_LIMIT: usize = 10_000;

pub(in crate::buildkit) struct SolveProgress {
    dockerfile: Option<MountTarget>,
    steps: Vec<SolveStep>,
    by_vertex: HashMap<String, usize>,
    held_back: Vec<BuildEventKind>,
}

#[derive(Debug, Default)]
struct SolveStep {
    name: String,
    /// Start of its last run.
    started_at: Option<Instant>,
    running: bool,
    ended: bool,
    /// End of its last run; `None` for a step that came from the cache.
    ended_at: Option<Instant>,
    tail: LogTail,
    /// Commit that a step with a git repository reported.
    commit: Option<String>,
    /// Time at which each of its progress lines was last sent.
    progress_sent: HashMap<String, Instant>,
}

impl SolveStep {
    fn is_command(&self) -> bool {
        self.name.contains("] RUN ")
    }

    /// Reports whether it may be a step that fetches a repository, and surely runs no command of a Dockerfile.
    fn fetches_repository(&self) -> bool {
        self.name.contains("] ADD ") && self.name.contains("://") && !self.is_command()
    }
}

impl SolveProgress {
    pub(in crate::buildkit) fn new(dockerfile_name: &str) -> Self {
        Self {
            // Placeholder for the path of the Dockerfile in the build, which the driver knows.
            dockerfile: format!("/{dockerfile_name}").parse().ok(),
            steps: Vec::new(),
            by_vertex: HashMap::new(),
            held_back: Vec::new(),
        }
    }

    pub(super) fn process_update(
        &mut self,
        update: api::StatusResponse,
        now: Instant,
    ) -> Vec<BuildEventKind> {
        let mut events = Vec::new();
        let mut finished = Vec::new();
        let continues = update.vertexes.is_empty() && update.statuses.is_empty();
        if !continues {
            events.append(&mut self.held_back);
        }
        for vertex in update.vertexes {
            self.vertex(vertex, &mut events, &mut finished);
        }
        for status in update.statuses {
            events.extend(self.status(status, now));
        }
        let log_bytes: usize = update.logs.iter().map(|log| log.msg.len()).sum();
        for log in update.logs {
            events.extend(self.log(log));
        }
        for warning in update.warnings {
            events.push(self.warning(&warning));
        }
        self.held_back.append(&mut finished);
        if log_bytes < CUT {
            events.append(&mut self.held_back);
        }
        events
    }

    /// Returns the events held back, after the last message.
    pub(super) fn finish(&mut self) -> Vec<BuildEventKind> {
        std::mem::take(&mut self.held_back)
    }

    fn vertex(
        &mut self,
        vertex: api::Vertex,
        events: &mut Vec<BuildEventKind>,
        finished: &mut Vec<BuildEventKind>,
    ) {
        let Some(started) = vertex.started else { return };
        let Some(index) = self.step_index(&vertex.digest) else { return };
        let number = step_number(index);
        let step = &mut self.steps[index];
        if step.name.is_empty() {
            step.name.clone_from(&vertex.name);
        }
        let again = step.ended && vertex.completed.is_none();
        if again || !(step.running || step.ended) {
            (step.running, step.ended) = (true, false);
            step.started_at = instant_of(&started);
            events.push(BuildEventKind::StepStarted { step: number, name: step.name.clone() });
        }
        if let Some(completed) = vertex.completed
            && step.running
        {
            (step.running, step.ended) = (false, true);
            step.ended_at = instant_of(&completed).filter(|_| !vertex.cached);
            finished.push(BuildEventKind::StepFinished {
                step: number,
                cached: vertex.cached,
                duration: between(&started, &completed),
                error: (!vertex.error.is_empty()).then_some(vertex.error),
            });
        }
    }

    fn status(&mut self, status: api::VertexStatus, now: Instant) -> Option<BuildEventKind> {
        let index = self.step_index(&status.vertex)?;
        let number = step_number(index);
        let sent = &mut self.steps[index].progress_sent;
        let done = status.completed.is_some();
        let recent = sent.get(&status.id).is_some_and(|last| now.duration_since(*last) < PROGRESS_EVERY);
        if (recent && !done) || (sent.len() >= STEP_LIMIT && !sent.contains_key(&status.id)) {
            return None;
        }
        sent.insert(status.id.clone(), now);
        let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
        let name = if status.name.is_empty() { status.id } else { status.name };
        Some(BuildEventKind::StepProgress {
            step: number,
            name,
            current: unsigned(status.current),
            total: unsigned(status.total),
        })
    }

    fn log(&mut self, log: api::VertexLog) -> Option<BuildEventKind> {
        let index = self.step_index(&log.vertex)?;
        let step = &mut self.steps[index];
        step.tail.push(&log.msg);
        if step.commit.is_none() && step.fetches_repository() {
            step.commit = listed_commit(&log.msg);
        }
        let stream = if log.stream == 2 { LogStream::Stderr } else { LogStream::Stdout };
        Some(BuildEventKind::StepLog { step: step_number(index), stream, data: log.msg, dropped_bytes: 0 })
    }

    fn warning(&self, warning: &api::VertexWarning) -> BuildEventKind {
        let info = warning.info.as_ref();
        BuildEventKind::Warning {
            message: String::from_utf8_lossy(&warning.short).into_owned(),
            url: (!warning.url.is_empty()).then(|| warning.url.clone()),
            dockerfile: info.and_then(|info| self.dockerfile_range(&info.data, lines_of(&warning.ranges)?)),
        }
    }

    /// Returns lines of the Dockerfile, counted from 1, with their text.
    pub(super) fn dockerfile_range(
        &self,
        dockerfile: &[u8],
        (start, end): (u32, u32),
    ) -> Option<DockerfileRange> {
        let text = String::from_utf8_lossy(dockerfile);
        let count = usize::try_from(end.checked_sub(start)?).ok()? + 1;
        let lines: Vec<&str> =
            text.lines().skip(usize::try_from(start.checked_sub(1)?).ok()?).take(count).collect();
        Some(DockerfileRange {
            path: self.dockerfile.clone()?,
            start_line: start,
            end_line: end,
            text: lines.join("\n"),
        })
    }

    /// Returns the name and the last lines of a step.
    pub(super) fn step_name_and_tail(&self, vertex: &str) -> Option<(String, Vec<String>)> {
        let step = &self.steps[*self.by_vertex.get(vertex)?];
        Some((step.name.clone(), step.tail.lines()))
    }

    /// Returns the commits of the repositories that steps fetched.
    pub(super) fn commits(&self) -> Vec<FetchedCommit> {
        let fetched =
            |step: &SolveStep| Some(FetchedCommit { step: step.name.clone(), commit: step.commit.clone()? });
        self.steps.iter().filter_map(fetched).collect()
    }

    /// Returns the start time of a step.
    pub(super) fn started_at(&self, vertex: &str) -> Option<Instant> {
        self.steps[*self.by_vertex.get(vertex)?].started_at
    }

    /// Reports whether another step of the build ran, or may have run, a command at the same time as this one.
    pub(super) fn ran_beside_another(&self, vertex: &str) -> bool {
        let Some(index) = self.by_vertex.get(vertex) else { return true };
        let Some(began) = self.steps[*index].started_at else { return true };
        self.steps.iter().enumerate().any(|(other, step)| {
            let overlaps = step.running || step.ended_at.is_some_and(|ended| ended >= began);
            other != *index && step.is_command() && overlaps
        })
    }

    /// Returns the number of steps that run a command right now.
    pub(super) fn running_commands(&self) -> usize {
        self.steps.iter().filter(|step| step.running && step.is_command()).count()
    }

    fn step_index(&mut self, vertex: &str) -> Option<usize> {
        if let Some(index) = self.by_vertex.get(vertex) {
            return Some(*index);
        }
        if self.steps.len() >= STEP_LIMIT {
            return None;
        }
        self.steps.push(SolveStep::default());
        self.by_vertex.insert(vertex.to_owned(), self.steps.len() - 1);
        Some(self.steps.len() - 1)
    }
}

/// Returns the commit from the output of `git ls-remote` for one name, which BuildKit logs: that of a branch, else the one
/// that an annotated tag names, else that of a tag.
fn listed_commit(log: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(log).ok()?;
    let lines = text.lines().filter_map(|line| {
        let (commit, name) = line.split_once('\t')?;
        let is_commit = matches!(commit.len(), 40 | 64)
            && commit.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        is_commit.then_some((commit, name.trim_end()))
    });
    let rank = |name: &str| match name {
        "HEAD" => 0,
        name if name.starts_with("refs/heads/") => 1,
        name if name.ends_with("^{}") => 2,
        _ => 3,
    };
    lines.min_by_key(|(_, name)| (rank(name), name.len())).map(|(commit, _)| commit.to_owned())
}

fn step_number(index: usize) -> u32 {
    u32::try_from(index + 1).unwrap_or(u32::MAX)
}

/// Converts a time of BuildKit's clock, which is this machine's clock for managed builders, where it matters.
fn instant_of(time: &Timestamp) -> Option<Instant> {
    let since_epoch =
        Duration::new(u64::try_from(time.seconds).ok()?, u32::try_from(time.nanos).ok()?.min(999_999_999));
    let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH.checked_add(since_epoch)?).ok()?;
    Instant::now().checked_sub(age)
}

fn between(start: &Timestamp, end: &Timestamp) -> Duration {
    let nanos = |t: &Timestamp| i128::from(t.seconds) * 1_000_000_000 + i128::from(t.nanos);
    Duration::from_nanos(u64::try_from(nanos(end) - nanos(start)).unwrap_or(0))
}

fn lines_of(ranges: &[pb::Range]) -> Option<(u32, u32)> {
    let line = |position: Option<&pb::Position>| position.and_then(|p| u32::try_from(p.line).ok());
    let start = ranges.iter().filter_map(|range| line(range.start.as_ref())).min()?;
    let end = ranges.iter().filter_map(|range| line(range.end.as_ref())).max()?;
    (start > 0).then_some((start, end.max(start)))
}

#[cfg(test)]
mod tests;
