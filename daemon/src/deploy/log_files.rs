//! Production implementation of [`InstanceLogs`]: reads the files that log keepers write.
//!
//! The files store a long line as several records, and an unfinished line as the part that was written; both are
//! reassembled here. A line that is longer than [`MAX_LINE`], or whose end is late, is returned in pieces, which are cut
//! between characters. Dropped bytes are reported with the line after them.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream;
use jiff::Timestamp;

use super::port::{InstanceLogs, LogError, LogLines};
use crate::instance_log::format::RecordSource;
use crate::instance_log::read::{self, LogFollower, LogPosition, MOST_BYTES, RecordedLine};
use crate::model::build::LogStream;
use crate::model::deploy::{LogLine, ServiceLogQuery};
use crate::model::{LinePattern, whole_characters};
use crate::task;

/// Polling interval for a followed log.
const POLL: Duration = Duration::from_millis(100);
/// Number of polls without more of a line after which the unfinished line is returned: it may be a prompt.
const FLUSH_AFTER_POLLS: u32 = 5;
/// Maximum length in bytes of a line that is returned in one piece.
const MAX_LINE: usize = 64 << 10;

#[derive(Clone, Copy, Debug)]
pub struct LogFiles;

#[async_trait]
impl InstanceLogs for LogFiles {
    async fn read(&self, directory: &Path, query: ServiceLogQuery) -> Result<LogLines, LogError> {
        let ServiceLogQuery { tail, since, grep, follow } = query;
        let mut lines = LogLineAssembler::new(since, grep.clone());
        let mut start = LogPosition::default();
        let mut end = if follow { LogReadEnd::Never } else { LogReadEnd::At(Timestamp::now()) };
        if let Some(wanted) = tail {
            let directory = directory.to_owned();
            let query = read::ExcerptQuery { tail, since, pattern: grep, max_bytes: MOST_BYTES };
            let excerpt = task::blocking("read-log", move || read::read_excerpt(&directory, &query)).await;
            let excerpt =
                excerpt.map_err(std::io::Error::other).flatten().map_err(|error| unreadable(&error))?;
            if excerpt.omitted > 0 && excerpt.lines.len() < wanted {
                // The tail is larger than one excerpt: it is streamed, beginning with its first line.
                let all = excerpt.omitted.saturating_add(excerpt.lines.len() as u64);
                lines.skip = all.saturating_sub(wanted as u64);
            } else {
                excerpt.lines.iter().for_each(|line| lines.add(line));
                lines.flush(!follow);
                start = excerpt.end;
                if !follow {
                    end = LogReadEnd::Reached;
                }
            }
        }
        let reader = ServiceLogReader { follower: LogFollower::new(directory.to_owned(), start), lines, end };
        Ok(Box::pin(stream::unfold(reader, |mut reader| async move {
            let next = reader.next().await?;
            Some((next, reader))
        })))
    }
}

fn unreadable(error: &std::io::Error) -> LogError {
    LogError(error.to_string())
}

/// Condition at which a reader ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogReadEnd {
    Never,
    /// Return the lines written until this time: a log may grow faster than it is read.
    At(Timestamp),
    Reached,
}

/// Stream state of a log reader.
struct ServiceLogReader {
    follower: LogFollower,
    lines: LogLineAssembler,
    end: LogReadEnd,
}

impl ServiceLogReader {
    async fn next(&mut self) -> Option<Result<LogLine, LogError>> {
        let mut quiet = 0;
        loop {
            if let Some(line) = self.lines.ready.pop_front() {
                return Some(Ok(line));
            }
            if self.end == LogReadEnd::Reached {
                return self.lines.trailing_gap().map(Ok);
            }
            let more = match self.follower.rest().await {
                Ok(more) => more,
                Err(error) => {
                    self.end = LogReadEnd::Reached;
                    return Some(Err(unreadable(&error)));
                }
            };
            let over = match self.end {
                LogReadEnd::At(end) => more.is_empty() || more.iter().any(|line| line.at > end),
                LogReadEnd::Never | LogReadEnd::Reached => false,
            };
            let nothing = more.is_empty();
            more.iter().for_each(|line| self.lines.add(line));
            if over {
                self.end = LogReadEnd::Reached;
                self.lines.flush(true);
            } else if nothing {
                quiet += 1;
                if quiet == FLUSH_AFTER_POLLS {
                    self.lines.flush(false);
                } else {
                    tokio::time::sleep(POLL).await;
                }
            } else {
                quiet = 0;
            }
        }
    }
}

/// Assembles the lines of a reader from the records in the files.
struct LogLineAssembler {
    since: Option<Timestamp>,
    grep: Option<LinePattern>,
    /// Number of matching lines still to be skipped.
    skip: u64,
    /// Unfinished lines of stdout and of stderr.
    open: [Option<(Timestamp, Vec<u8>)>; 2],
    dropped_bytes: u64,
    /// Time of the last gap that no line has reported yet.
    gap_at: Option<Timestamp>,
    ready: VecDeque<LogLine>,
}

impl LogLineAssembler {
    const fn new(since: Option<Timestamp>, grep: Option<LinePattern>) -> Self {
        Self {
            since,
            grep,
            skip: 0,
            open: [None, None],
            dropped_bytes: 0,
            gap_at: None,
            ready: VecDeque::new(),
        }
    }

    fn add(&mut self, line: &RecordedLine) {
        let stream = match line.source {
            RecordSource::Stdout => LogStream::Stdout,
            RecordSource::Stderr => LogStream::Stderr,
            RecordSource::Gap => {
                if self.since.is_none_or(|since| line.at >= since) {
                    // An unreadable count still means that something is missing.
                    let count = std::str::from_utf8(&line.text).ok().and_then(|count| count.parse().ok());
                    self.dropped_bytes = self.dropped_bytes.saturating_add(count.unwrap_or(1));
                    self.gap_at = Some(line.at);
                }
                return;
            }
        };
        let slot = usize::from(stream == LogStream::Stderr);
        let (at, mut text) = self.open[slot].take().unwrap_or((line.at, Vec::new()));
        text.extend_from_slice(&line.text);
        if line.ended {
            self.emit(at, stream, text, false);
        } else if text.len() >= MAX_LINE {
            let rest = text.split_off(whole_characters(&text));
            self.emit(at, stream, text, true);
            self.open[slot] = Some((line.at, rest)).filter(|(_, rest)| !rest.is_empty());
        } else {
            self.open[slot] = Some((at, text));
        }
    }

    fn emit(&mut self, at: Timestamp, stream: LogStream, text: Vec<u8>, unfinished: bool) {
        let wanted = self.since.is_none_or(|since| at >= since)
            && self.grep.as_ref().is_none_or(|wanted| wanted.matches(&text));
        if wanted {
            self.gap_at = None;
            let dropped_bytes = std::mem::take(&mut self.dropped_bytes);
            match self.skip.checked_sub(1) {
                Some(left) => self.skip = left,
                None => self.ready.push_back(LogLine { at, stream, text, dropped_bytes, unfinished }),
            }
        }
    }

    /// Emits unfinished lines as they are. Unless the log is `over`, the beginning of a character is held back.
    fn flush(&mut self, over: bool) {
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            let open = &mut self.open[usize::from(stream == LogStream::Stderr)];
            let Some((at, mut text)) = open.take() else { continue };
            let rest = text.split_off(if over { text.len() } else { whole_characters(&text) });
            *open = Some((at, rest)).filter(|(_, rest)| !rest.is_empty());
            if !text.is_empty() {
                self.emit(at, stream, text, true);
            }
        }
    }

    /// Returns a line without text that reports bytes dropped at the very end.
    fn trailing_gap(&mut self) -> Option<LogLine> {
        let at = self.gap_at.take()?;
        let dropped_bytes = std::mem::take(&mut self.dropped_bytes);
        let (stream, text) = (LogStream::Stderr, Vec::new());
        Some(LogLine { at, stream, text, dropped_bytes, unfinished: true })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;

    use futures::StreamExt as _;

    use super::*;
    use crate::instance_log::format::{LogRecord, RecordSplitter};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_764_000_000 + seconds).unwrap()
    }

    /// Appends records in the form that a log keeper writes.
    fn append(directory: &Path, seconds: i64, source: RecordSource, text: &str) {
        let (mut out, mut cutter) = (Vec::new(), RecordSplitter::new(source));
        match source {
            RecordSource::Gap => {
                LogRecord { at: at(seconds), source, ended: true, text: text.as_bytes() }.write(&mut out);
            }
            RecordSource::Stdout | RecordSource::Stderr => {
                cutter.take(at(seconds), text.as_bytes(), &mut out);
                cutter.flush(at(seconds), &mut out);
            }
        }
        let mut file = File::options().create(true).append(true).open(directory.join("log")).unwrap();
        file.write_all(&out).unwrap();
    }

    async fn all(directory: &Path, query: ServiceLogQuery) -> Vec<LogLine> {
        let lines = LogFiles.read(directory, query).await.unwrap();
        lines.map(Result::unwrap).collect().await
    }

    fn texts(lines: &[LogLine]) -> Vec<&str> {
        lines.iter().map(|line| std::str::from_utf8(&line.text).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_whole_log_joins_both_files_and_their_split_lines() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        assert_eq!(all(&directory.join("none"), ServiceLogQuery::default()).await, []);
        append(directory, 0, RecordSource::Stdout, "first\n");
        std::fs::rename(directory.join("log"), directory.join("log.1")).unwrap();
        let long = "x".repeat(40_000);
        append(directory, 1, RecordSource::Stderr, &format!("{long}\n"));
        append(directory, 2, RecordSource::Stdout, "begins");
        append(directory, 3, RecordSource::Stderr, "between\n");
        append(directory, 4, RecordSource::Stdout, " and ends\nno newline");
        let lines = all(directory, ServiceLogQuery::default()).await;
        assert_eq!(texts(&lines), ["first", &long, "between", "begins and ends", "no newline"]);
        assert_eq!(
            (lines[3].at, lines[3].stream, lines[2].stream),
            (at(2), LogStream::Stdout, LogStream::Stderr)
        );
        // More lines than an excerpt has without a tail. The first of them completes the unfinished line.
        for _ in 0..1000 {
            append(directory, 5, RecordSource::Stdout, "more\n");
        }
        let lines = all(directory, ServiceLogQuery::default()).await;
        assert_eq!((lines.len(), texts(&lines)[4]), (1004, "no newlinemore"));
    }

    #[tokio::test]
    async fn a_tail_of_more_than_is_held_at_once_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        for number in 0..100 {
            append(directory, number, RecordSource::Stdout, &format!("{number} {}\n", "x".repeat(60_000)));
        }
        let query = ServiceLogQuery { tail: Some(90), ..ServiceLogQuery::default() };
        let lines = all(directory, query.clone()).await;
        let first =
            |line: &LogLine| texts(std::slice::from_ref(line))[0].split(' ').next().unwrap().to_owned();
        assert_eq!(
            (lines.len(), first(&lines[0]), first(&lines[89])),
            (90, "10".to_owned(), "99".to_owned())
        );
        let following = ServiceLogQuery { follow: true, ..query };
        let lines: Vec<_> =
            LogFiles.read(directory, following).await.unwrap().take(90).map(Result::unwrap).collect().await;
        assert_eq!((first(&lines[0]), first(&lines[89])), ("10".to_owned(), "99".to_owned()));
    }

    #[tokio::test]
    async fn tail_since_and_grep_choose_lines() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        for second in 0..10 {
            append(
                directory,
                second,
                RecordSource::Stdout,
                &format!("{} {second}\n", ["even", "odd"][second as usize % 2]),
            );
        }
        let ask = |tail, since: Option<i64>, grep: Option<&str>| {
            let query = ServiceLogQuery {
                tail,
                since: since.map(at),
                grep: grep.map(|text| LinePattern::regex(text).unwrap()),
                follow: false,
            };
            async move { all(directory, query).await }
        };
        assert_eq!(texts(&ask(Some(2), None, None).await), ["even 8", "odd 9"]);
        assert_eq!(texts(&ask(Some(2), None, Some("even")).await), ["even 6", "even 8"]);
        assert_eq!(texts(&ask(None, Some(8), None).await), ["even 8", "odd 9"]);
        assert_eq!(texts(&ask(None, Some(6), Some("^o.d")).await), ["odd 7", "odd 9"]);
        assert_eq!(ask(Some(0), None, None).await, []);
    }

    #[tokio::test]
    async fn dropped_bytes_are_reported_with_the_next_line_or_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        append(directory, 0, RecordSource::Stdout, "a\n");
        append(directory, 1, RecordSource::Gap, "4096");
        append(directory, 2, RecordSource::Gap, "4");
        append(directory, 3, RecordSource::Stdout, "b\n");
        append(directory, 4, RecordSource::Gap, "7");
        for tail in [None, Some(50)] {
            let lines = all(directory, ServiceLogQuery { tail, ..ServiceLogQuery::default() }).await;
            let dropped = lines.iter().map(|line| line.dropped_bytes);
            let delivered: Vec<_> = texts(&lines).into_iter().zip(dropped).collect();
            assert_eq!(delivered, [("a", 0), ("b", 4100), ("", 7)]);
        }
    }

    #[tokio::test]
    async fn a_long_line_comes_in_pieces_that_are_cut_between_characters() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        // Neither a record nor a piece has a length that three divides.
        let long = "\u{20ac}".repeat(100_000);
        append(directory, 0, RecordSource::Stdout, &format!("{long}\nnext\n"));
        for tail in [None, Some(50)] {
            let lines = all(directory, ServiceLogQuery { tail, ..ServiceLogQuery::default() }).await;
            let (last, pieces) = lines.split_last().unwrap();
            assert_eq!((texts(std::slice::from_ref(last)), last.unfinished), (vec!["next"], false));
            assert_eq!(texts(pieces).concat(), long);
            let (last, others) = pieces.split_last().unwrap();
            assert!(others.len() >= 2 && others.iter().all(|line| line.unfinished) && !last.unfinished);
        }
    }

    #[tokio::test]
    async fn a_character_that_is_written_in_two_parts_is_delivered_in_one_and_other_bytes_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let write = |bytes: &[u8]| {
            let mut out = Vec::new();
            LogRecord { at: at(0), source: RecordSource::Stdout, ended: false, text: bytes }.write(&mut out);
            let mut file = File::options().create(true).append(true).open(directory.join("log")).unwrap();
            file.write_all(&out).unwrap();
        };
        write(b"a\xe2\x82");
        let query = ServiceLogQuery { tail: Some(1), follow: true, ..ServiceLogQuery::default() };
        let mut lines = LogFiles.read(directory, query).await.unwrap();
        let mut next = async || lines.next().await.unwrap().unwrap();
        assert_eq!(next().await.text, b"a");
        write(b"\xac\xff");
        let rest = next().await;
        assert_eq!((rest.text.as_slice(), rest.unfinished), (&b"\xe2\x82\xac\xff"[..], true));
    }

    #[tokio::test]
    async fn a_followed_log_continues_and_an_unterminated_prompt_is_delivered() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        append(directory, 0, RecordSource::Stdout, "old\nnew\n");
        let query = ServiceLogQuery { tail: Some(1), follow: true, ..ServiceLogQuery::default() };
        let mut lines = LogFiles.read(directory, query).await.unwrap();
        let mut next = async || {
            let line = tokio::time::timeout(Duration::from_secs(10), lines.next()).await.unwrap();
            String::from_utf8(line.unwrap().unwrap().text).unwrap()
        };
        assert_eq!(next().await, "new");
        append(directory, 1, RecordSource::Stdout, "half");
        append(directory, 1, RecordSource::Stdout, " a line\nname: ");
        assert_eq!(next().await, "half a line");
        assert_eq!(next().await, "name: ");
        std::fs::rename(directory.join("log"), directory.join("log.1")).unwrap();
        append(directory, 2, RecordSource::Stderr, "later\n");
        assert_eq!(next().await, "later");
    }
}
