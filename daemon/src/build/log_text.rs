//! Renders a build's log as lines for people: `#4 | make: done`.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use jiff::Timestamp;

use super::event_log::EventLog;
use crate::model::build::{BuildEvent, BuildEventKind, LogStream};
use crate::model::{LinePattern, whole_characters};

/// Selection of log lines. Zero means the default.
#[derive(Clone, Debug, Default)]
pub struct BuildLogQuery {
    /// First event whose lines are selected.
    pub from_sequence: u64,
    /// Maximum number of lines; the last ones are selected.
    pub tail: usize,
    /// Pattern that each selected line matches.
    pub pattern: Option<LinePattern>,
    pub step: Option<u32>,
    /// Earliest time of selected lines; the time of a line is that of the output that ends it.
    pub since: Option<Timestamp>,
    /// Maximum size of the answer; the oldest lines are omitted.
    pub max_bytes: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildLogText {
    pub lines: Vec<String>,
    /// Number of matching lines that were omitted.
    pub omitted_lines: u64,
    /// Event number at which to continue reading.
    pub next_sequence: u64,
}

const DEFAULT_TAIL: usize = 200;
const DEFAULT_BYTES: usize = 64 << 10;
const MAX_BYTES: usize = 4 << 20;
/// A longer line is cut at about this number of bytes, between characters.
const LONGEST_LINE: usize = 64 << 10;
/// Bytes of events per read from the file.
const BATCH: usize = 1 << 20;

/// Describes a part of a log that is damaged on the disk, or gone without a trace of it.
pub fn damage_text(events: u64, bytes: u64) -> String {
    if bytes == 0 {
        return format!(
            "{events} events of this log are missing: the log was removed to keep its owner's logs within their limit, or \
             its end was never written"
        );
    }
    format!("{bytes} bytes of this log are damaged on the disk; {events} of its events are missing here")
}

/// Reads a whole log and returns the selected lines. Blocking.
pub fn read_log_text(log: &EventLog, query: &BuildLogQuery) -> io::Result<BuildLogText> {
    let mut collector = BuildLogCollector::new(query);
    let mut next = query.from_sequence.max(1);
    loop {
        let events = log.read(next, BATCH)?;
        let Some(last) = events.last() else { break };
        next = last.sequence + last.kind.count();
        events.into_iter().for_each(|event| collector.take(event));
    }
    Ok(collector.finish(next))
}

struct BuildLogCollector<'a> {
    query: &'a BuildLogQuery,
    tail: usize,
    max_bytes: usize,
    /// Incomplete lines, by step and whether the stream is stderr.
    open: BTreeMap<(u32, bool), Vec<u8>>,
    lines: VecDeque<String>,
    bytes: usize,
    omitted: u64,
    /// Time of the event that is taken.
    time: Timestamp,
}

impl<'a> BuildLogCollector<'a> {
    fn new(query: &'a BuildLogQuery) -> Self {
        let or = |given: usize, default: usize| if given == 0 { default } else { given };
        Self {
            query,
            tail: or(query.tail, DEFAULT_TAIL),
            max_bytes: or(query.max_bytes, DEFAULT_BYTES).min(MAX_BYTES),
            open: BTreeMap::new(),
            lines: VecDeque::new(),
            bytes: 0,
            omitted: 0,
            time: Timestamp::MIN,
        }
    }

    fn take(&mut self, event: BuildEvent) {
        self.time = event.time;
        match event.kind {
            BuildEventKind::StepLog { step, stream, data, dropped_bytes } => {
                if self.query.step.is_some_and(|wanted| wanted != step) {
                    return;
                }
                let key = (step, stream == LogStream::Stderr);
                if dropped_bytes > 0 {
                    self.end_line(key);
                    self.line(step, format!("[{dropped_bytes} bytes of log were left out here: the log quota of this build is used up]").as_bytes());
                }
                let mut line = self.open.remove(&key).unwrap_or_default();
                for part in data.split_inclusive(|&byte| byte == b'\n') {
                    line.extend_from_slice(part);
                    if line.ends_with(b"\n") {
                        self.line(step, &std::mem::take(&mut line));
                    } else if line.len() >= LONGEST_LINE {
                        let rest = line.split_off(whole_characters(&line));
                        self.line(step, &std::mem::replace(&mut line, rest));
                    }
                }
                if !line.is_empty() {
                    self.open.insert(key, line);
                }
            }
            BuildEventKind::StepFinished { step, .. } => {
                self.end_line((step, false));
                self.end_line((step, true));
            }
            BuildEventKind::Damaged { events, bytes } => {
                self.end_all();
                self.add(format!("[{}]", damage_text(events, bytes)));
            }
            _ => {}
        }
    }

    fn end_all(&mut self) {
        for (key, line) in std::mem::take(&mut self.open) {
            self.line(key.0, &line);
        }
    }

    fn end_line(&mut self, key: (u32, bool)) {
        if let Some(line) = self.open.remove(&key) {
            self.line(key.0, &line);
        }
    }

    fn line(&mut self, step: u32, bytes: &[u8]) {
        if self.query.since.is_some_and(|since| self.time < since) {
            return;
        }
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_end_matches(['\r', '\n']);
        if self.query.pattern.as_ref().is_some_and(|wanted| !wanted.matches(text.as_bytes())) {
            return;
        }
        self.add(format!("#{step} | {text}"));
    }

    fn add(&mut self, line: String) {
        self.bytes += line.len() + 1;
        self.lines.push_back(line);
        while self.lines.len() > self.tail || self.bytes > self.max_bytes {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.len() + 1;
            self.omitted += 1;
        }
    }

    fn finish(mut self, next_sequence: u64) -> BuildLogText {
        self.end_all();
        BuildLogText { lines: self.lines.into(), omitted_lines: self.omitted, next_sequence }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::BuildId;
    use std::time::Duration;

    fn filled() -> (tempfile::TempDir, EventLog) {
        let directory = tempfile::tempdir().unwrap();
        let log = EventLog::create(directory.path(), &BuildId::random()).unwrap();
        let chunk = |step, stream, data: &[u8], dropped_bytes| BuildEventKind::StepLog {
            step,
            stream,
            data: data.to_vec(),
            dropped_bytes,
        };
        use LogStream::{Stderr, Stdout};
        log.append(vec![
            BuildEventKind::StepStarted { step: 1, name: "[1/2] RUN a".to_owned() },
            chunk(1, Stdout, b"one\ntw", 0),
            chunk(1, Stderr, b"warn\r\n", 0),
            chunk(2, Stdout, b"other \xff\n", 0),
            chunk(1, Stdout, b"o\nno end", 0),
            BuildEventKind::StepFinished { step: 1, cached: false, duration: Duration::ZERO, error: None },
            chunk(2, Stdout, b"", 7),
            chunk(2, Stdout, b"last", 0),
        ])
        .unwrap();
        (directory, log)
    }

    #[test]
    fn lines_are_put_together_and_carry_their_step() {
        let (_directory, log) = filled();
        let text = read_log_text(&log, &BuildLogQuery::default()).unwrap();
        assert_eq!(
            text.lines,
            [
                "#1 | one",
                "#1 | warn",
                "#2 | other \u{fffd}",
                "#1 | two",
                "#1 | no end",
                "#2 | [7 bytes of log were left out here: the log quota of this build is used up]",
                "#2 | last",
            ]
        );
        assert_eq!((text.omitted_lines, text.next_sequence), (0, 9));
    }

    #[test]
    fn tail_text_step_start_and_size_narrow_the_answer() {
        let (_directory, log) = filled();
        let ask = |query: BuildLogQuery| read_log_text(&log, &query).unwrap();
        let text = ask(BuildLogQuery { tail: 2, ..BuildLogQuery::default() });
        assert_eq!((text.lines.len(), text.omitted_lines), (2, 5));
        let text = ask(BuildLogQuery {
            pattern: LinePattern::regex("one|n. end").ok(),
            step: Some(1),
            tail: 1,
            ..BuildLogQuery::default()
        });
        assert_eq!((text.lines, text.omitted_lines), (vec!["#1 | no end".to_owned()], 1));
        let text = ask(BuildLogQuery { from_sequence: 8, ..BuildLogQuery::default() });
        assert_eq!((text.lines, text.next_sequence), (vec!["#2 | last".to_owned()], 9));
        let text = ask(BuildLogQuery { max_bytes: 12, ..BuildLogQuery::default() });
        assert_eq!((text.lines, text.omitted_lines), (vec!["#2 | last".to_owned()], 6));
        let end = log.read(1, BATCH).unwrap().last().unwrap().time;
        let text = ask(BuildLogQuery { since: Some(end), ..BuildLogQuery::default() });
        assert!(text.lines.contains(&"#2 | last".to_owned()), "{text:?}");
        let after = end + Duration::from_secs(1);
        let text = ask(BuildLogQuery { since: Some(after), ..BuildLogQuery::default() });
        assert_eq!((text.lines.len(), text.omitted_lines, text.next_sequence), (0, 0, 9));
        let text = ask(BuildLogQuery { from_sequence: 100, ..BuildLogQuery::default() });
        assert_eq!((text.lines.len(), text.next_sequence), (0, 100));
    }
}
