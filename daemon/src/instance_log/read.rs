//! Readers of an instance's log: excerpts, and following of new lines.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use super::format::{self, RecordSource};
use super::{CURRENT, OLDER};
use crate::model::{LinePattern, whole_characters};

/// Selection of log lines for an excerpt.
#[derive(Clone, Debug, Default)]
pub struct ExcerptQuery {
    /// Maximum number of lines, counted from the end; [`DEFAULT_TAIL`] if absent.
    pub tail: Option<usize>,
    pub since: Option<Timestamp>,
    /// Pattern that the lines must match.
    pub pattern: Option<LinePattern>,
    /// Maximum size of all texts together in bytes; the oldest lines are left out. Zero means [`DEFAULT_BYTES`], and
    /// the maximum is [`MOST_BYTES`].
    pub max_bytes: usize,
}

pub const DEFAULT_TAIL: usize = 200;
pub const DEFAULT_BYTES: usize = 64 << 10;
pub const MOST_BYTES: usize = 4 << 20;
/// Maximum length of a line in bytes; a longer line is returned in several pieces.
const LONGEST_LINE: usize = 64 << 10;
/// Number of bytes per read of a file.
const BATCH: usize = 256 << 10;
const POLL: Duration = Duration::from_millis(100);
/// Maximum number of attempts to open a log that is being rotated.
const ATTEMPTS: usize = 10;

/// A line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedLine {
    pub at: Timestamp,
    pub source: RecordSource,
    /// Set if a newline ended the text. The text of a gap is the number of missing bytes.
    pub ended: bool,
    pub text: Vec<u8>,
}

/// Selected lines of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogExcerpt {
    pub lines: Vec<RecordedLine>,
    /// Number of matching lines that were left out.
    pub omitted: u64,
    /// Position after these lines, for following the log.
    pub end: LogPosition,
}

/// Position in a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPosition {
    /// Inode of the file; `None` if there was no file yet.
    file: Option<u64>,
    offset: u64,
}

/// Reads an excerpt of the log in `dir`; a missing log is empty. Blocking.
pub fn read_excerpt(dir: &Path, query: &ExcerptQuery) -> io::Result<LogExcerpt> {
    let mut collector = ExcerptCollector::new(query);
    let mut end = LogPosition::default();
    for file in open_both(dir)? {
        let mut reader = LogFileReader::new(file)?;
        while reader.batch(|record| collector.add(record))? {}
        end = reader.position();
    }
    Ok(collector.finish(end))
}

/// Opens the existing files, oldest first.
fn open_both(dir: &Path) -> io::Result<Vec<File>> {
    for _ in 0..ATTEMPTS {
        // The newer file is opened first: if it is rotated now, it becomes the older one, and nothing is missed.
        let current = open(&dir.join(CURRENT))?;
        let older = open(&dir.join(OLDER))?;
        if let (Some(current), Some(older)) = (&current, &older)
            && current.metadata()?.ino() == older.metadata()?.ino()
        {
            continue;
        }
        // Between the rename and the creation of the new file only the older one exists.
        return Ok(older.into_iter().chain(current).collect());
    }
    Err(io::Error::other("the log is written faster than it can be opened"))
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads complete lines of one file.
struct LogFileReader {
    file: File,
    inode: u64,
    /// Offset of the first byte that has not been returned yet.
    offset: u64,
    /// Bytes of damage since the last record.
    damaged_bytes: u64,
    /// Time of the last record that was read, for damage that no record follows.
    last_at: Timestamp,
}

impl LogFileReader {
    fn new(file: File) -> io::Result<Self> {
        let inode = file.metadata()?.ino();
        Ok(Self { inode, file, offset: 0, damaged_bytes: 0, last_at: Timestamp::UNIX_EPOCH })
    }

    fn position(&self) -> LogPosition {
        LogPosition { file: Some(self.inode), offset: self.offset }
    }

    /// Passes the next records to `take`; returns whether there were any. Damage is a gap with its size, at the time of
    /// the record after it.
    fn batch(&mut self, mut take: impl FnMut(&format::LogRecord<'_>)) -> io::Result<bool> {
        self.file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::with_capacity(BATCH);
        self.file.by_ref().take(BATCH as u64).read_to_end(&mut bytes)?;
        let end = match bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => at + 1,
            // No record is that long.
            None if bytes.len() == BATCH => BATCH,
            None => {
                self.end_damage(&mut take);
                return Ok(false);
            }
        };
        for line in bytes[..end].split_inclusive(|byte| *byte == b'\n') {
            match format::parse(line.strip_suffix(b"\n").unwrap_or(line)) {
                Some(record) => {
                    self.last_at = record.at;
                    self.end_damage(&mut take);
                    take(&record);
                }
                None => self.damaged_bytes += line.len() as u64,
            }
        }
        self.offset += end as u64;
        Ok(true)
    }

    fn end_damage(&mut self, take: &mut impl FnMut(&format::LogRecord<'_>)) {
        if self.damaged_bytes > 0 {
            let text = std::mem::take(&mut self.damaged_bytes).to_string();
            let (at, source) = (self.last_at, RecordSource::Gap);
            take(&format::LogRecord { at, source, ended: true, text: text.as_bytes() });
        }
    }
}

/// Collects the lines of an excerpt.
struct ExcerptCollector<'a> {
    query: &'a ExcerptQuery,
    tail: usize,
    max_bytes: usize,
    /// Unfinished lines of stdout and stderr.
    open: [Option<(Timestamp, Vec<u8>)>; 2],
    lines: VecDeque<RecordedLine>,
    bytes: usize,
    omitted: u64,
}

impl<'a> ExcerptCollector<'a> {
    fn new(query: &'a ExcerptQuery) -> Self {
        Self {
            query,
            tail: query.tail.unwrap_or(DEFAULT_TAIL),
            max_bytes: match query.max_bytes {
                0 => DEFAULT_BYTES,
                bytes => bytes.min(MOST_BYTES),
            },
            open: [None, None],
            lines: VecDeque::new(),
            bytes: 0,
            omitted: 0,
        }
    }

    fn add(&mut self, record: &format::LogRecord<'_>) {
        let slot = match record.source {
            RecordSource::Stdout => 0,
            RecordSource::Stderr => 1,
            RecordSource::Gap => return self.line(record.at, record.source, true, record.text),
        };
        let (at, mut text) = self.open[slot].take().unwrap_or((record.at, Vec::new()));
        text.extend_from_slice(record.text);
        if record.ended {
            self.line(at, record.source, true, &text);
        } else if text.len() >= LONGEST_LINE {
            let rest = text.split_off(whole_characters(&text));
            self.line(at, record.source, false, &text);
            self.open[slot] = Some((record.at, rest)).filter(|(_, rest)| !rest.is_empty());
        } else {
            self.open[slot] = Some((at, text));
        }
    }

    fn line(&mut self, at: Timestamp, source: RecordSource, ended: bool, text: &[u8]) {
        if self.query.since.is_some_and(|since| at < since) {
            return;
        }
        // A gap is always shown: the missing text may contain the searched one.
        if source != RecordSource::Gap
            && self.query.pattern.as_ref().is_some_and(|wanted| !wanted.matches(text))
        {
            return;
        }
        self.bytes += text.len();
        self.lines.push_back(RecordedLine { at, source, ended, text: text.to_vec() });
        while self.lines.len() > self.tail || self.bytes > self.max_bytes {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.text.len();
            self.omitted += 1;
        }
    }

    fn finish(mut self, end: LogPosition) -> LogExcerpt {
        for (slot, source) in [(0, RecordSource::Stdout), (1, RecordSource::Stderr)] {
            if let Some((at, text)) = self.open[slot].take() {
                self.line(at, source, false, &text);
            }
        }
        LogExcerpt { lines: self.lines.into(), omitted: self.omitted, end }
    }
}

/// Follows a log from a position. Unfinished lines are returned piece by piece, as they are written.
pub struct LogFollower {
    dir: PathBuf,
    reader: Option<LogFileReader>,
    start: LogPosition,
}

impl LogFollower {
    pub fn new(dir: PathBuf, start: LogPosition) -> Self {
        Self { dir, reader: None, start }
    }

    /// Waits for the next lines. A log has no end marker: a caller that knows the instance has exited reads the
    /// [`rest`](Self::rest).
    pub async fn next(&mut self) -> io::Result<Vec<RecordedLine>> {
        loop {
            let lines = self.rest().await?;
            if !lines.is_empty() {
                return Ok(lines);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Returns the lines written since the last call, possibly only the first part of them: call again until the result
    /// is empty.
    pub async fn rest(&mut self) -> io::Result<Vec<RecordedLine>> {
        let (dir, start) = (self.dir.clone(), self.start);
        let reader = self.reader.take();
        let read = crate::task::blocking("follow-log", move || read_more(&dir, reader, start)).await;
        let (reader, lines) = read.map_err(io::Error::other)??;
        self.start = reader.as_ref().map_or(self.start, LogFileReader::position);
        self.reader = reader;
        Ok(lines)
    }
}

/// Reads the next lines of a log, and returns the reader to continue with.
fn read_more(
    dir: &Path,
    reader: Option<LogFileReader>,
    start: LogPosition,
) -> io::Result<(Option<LogFileReader>, Vec<RecordedLine>)> {
    let mut lines = Vec::new();
    let mut reader = match reader {
        Some(reader) => reader,
        None => match open_at(dir, start)? {
            Some(reader) => reader,
            None => return Ok((None, lines)),
        },
    };
    loop {
        // Looked up before reading: a file that was replaced before it is read to its end is complete.
        let current = inode(&dir.join(CURRENT))?;
        let more = reader.batch(|record| lines.push(line(record)))?;
        if more && lines.is_empty() {
            // All of it was damaged.
            continue;
        }
        if more || current.is_none_or(|current| current == reader.inode) {
            return Ok((Some(reader), lines));
        }
        match next_after(dir, reader.inode)? {
            Some(next) => reader = next,
            None => return Ok((Some(reader), lines)),
        }
    }
}

fn line(record: &format::LogRecord<'_>) -> RecordedLine {
    RecordedLine { at: record.at, source: record.source, ended: record.ended, text: record.text.to_vec() }
}

fn inode(path: &Path) -> io::Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(found.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens the file of a position at its offset; the oldest file if that one is gone.
fn open_at(dir: &Path, start: LogPosition) -> io::Result<Option<LogFileReader>> {
    let mut readers = open_both(dir)?.into_iter().map(LogFileReader::new).collect::<io::Result<Vec<_>>>()?;
    if let Some(found) = readers.iter().position(|reader| Some(reader.inode) == start.file) {
        let mut reader = readers.swap_remove(found);
        reader.offset = start.offset;
        return Ok(Some(reader));
    }
    Ok(readers.into_iter().next())
}

/// Opens the file after one: the current file, or the older one if the log was rotated twice since.
fn next_after(dir: &Path, inode: u64) -> io::Result<Option<LogFileReader>> {
    let readers = open_both(dir)?.into_iter().map(LogFileReader::new).collect::<io::Result<Vec<_>>>()?;
    let own = readers.iter().position(|reader| reader.inode == inode);
    Ok(readers.into_iter().nth(own.map_or(0, |own| own + 1)))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::instance_log::format::{LogRecord, RecordSplitter};

    const AT: &str = "2026-11-24T09:55:07Z";

    fn at(seconds: i64) -> Timestamp {
        AT.parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_secs(seconds)
    }

    fn append(dir: &Path, seconds: i64, source: RecordSource, text: &str) {
        let (mut out, mut cutter) = (Vec::new(), RecordSplitter::new(source));
        cutter.take(at(seconds), text.as_bytes(), &mut out);
        cutter.flush(at(seconds), &mut out);
        let mut file = File::options().create(true).append(true).open(dir.join(CURRENT)).unwrap();
        file.write_all(&out).unwrap();
    }

    fn turn_over(dir: &Path) {
        fs::rename(dir.join(CURRENT), dir.join(OLDER)).unwrap();
    }

    fn texts(lines: &[RecordedLine]) -> Vec<&str> {
        lines.iter().map(|line| std::str::from_utf8(&line.text).unwrap()).collect()
    }

    #[test]
    fn an_excerpt_is_the_newest_lines_that_fit_the_question() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let ask = |query: ExcerptQuery| read_excerpt(dir, &query).unwrap();
        assert_eq!(ask(ExcerptQuery::default()), LogExcerpt::default());
        append(dir, 0, RecordSource::Stdout, "a1\na2\n");
        turn_over(dir);
        append(dir, 5, RecordSource::Stderr, "b1\n");
        append(dir, 9, RecordSource::Stdout, "a3");
        append(dir, 9, RecordSource::Stdout, " goes on");
        let all = ask(ExcerptQuery::default());
        assert_eq!((texts(&all.lines), all.omitted), (vec!["a1", "a2", "b1", "a3 goes on"], 0));
        assert!(all.lines[0].ended && !all.lines[3].ended);
        let tail = ask(ExcerptQuery { tail: Some(1), ..ExcerptQuery::default() });
        assert_eq!((texts(&tail.lines), tail.omitted), (vec!["a3 goes on"], 3));
        let bytes = ask(ExcerptQuery { max_bytes: 12, ..ExcerptQuery::default() });
        assert_eq!(texts(&bytes.lines), ["b1", "a3 goes on"]);
        let since = ask(ExcerptQuery { since: Some(at(5)), ..ExcerptQuery::default() });
        assert_eq!(texts(&since.lines), ["b1", "a3 goes on"]);
        let grep = ask(ExcerptQuery {
            pattern: LinePattern::regex("^a").ok(),
            tail: Some(2),
            ..ExcerptQuery::default()
        });
        assert_eq!((texts(&grep.lines), grep.omitted), (vec!["a2", "a3 goes on"], 1));
    }

    #[test]
    fn a_gap_is_shown_whatever_is_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut out = Vec::new();
        LogRecord { at: at(0), source: RecordSource::Gap, ended: true, text: b"4096" }.write(&mut out);
        fs::write(dir.path().join(CURRENT), out).unwrap();
        let query = ExcerptQuery { pattern: LinePattern::regex("x").ok(), ..ExcerptQuery::default() };
        let lines = read_excerpt(dir.path(), &query).unwrap().lines;
        assert_eq!((texts(&lines), lines[0].source), (vec!["4096"], RecordSource::Gap));
    }

    #[tokio::test]
    async fn damage_is_a_gap_with_its_size_and_the_rest_follows() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        append(dir, 0, RecordSource::Stdout, "one\n");
        let start = fs::metadata(dir.join(CURRENT)).unwrap().len();
        append(dir, 1, RecordSource::Stdout, "two\nthree\n");
        append(dir, 2, RecordSource::Stdout, "four\n");
        let mut bytes = fs::read(dir.join(CURRENT)).unwrap();
        bytes[usize::try_from(start).unwrap()] = b'x';
        // A part of a disk that was wiped, with no newline in it.
        bytes.extend(vec![0; 2 * BATCH]);
        bytes.push(b'\n');
        fs::write(dir.join(CURRENT), &bytes).unwrap();
        append(dir, 3, RecordSource::Stdout, "five\n");
        let line = "2026-11-24T09:55:07.123456Z o two\n".len();
        let expected = ["one", &line.to_string(), "three", "four", &(2 * BATCH + 1).to_string(), "five"];
        let excerpt = read_excerpt(dir, &ExcerptQuery::default()).unwrap();
        assert_eq!(texts(&excerpt.lines), expected);
        assert_eq!(excerpt.lines[1].source, RecordSource::Gap);
        assert_eq!(excerpt.lines[1].at, excerpt.lines[2].at);
        let mut follower = LogFollower::new(dir.to_owned(), LogPosition::default());
        let mut followed = Vec::new();
        loop {
            let more = follower.rest().await.unwrap();
            if more.is_empty() {
                break;
            }
            followed.extend(more);
        }
        assert_eq!(texts(&followed), expected);
    }

    #[tokio::test]
    async fn a_follower_misses_nothing_when_the_file_is_turned_over() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        append(dir, 0, RecordSource::Stdout, "old\n");
        let end = read_excerpt(dir, &ExcerptQuery::default()).unwrap().end;
        let mut follower = LogFollower::new(dir.to_owned(), end);
        assert_eq!(follower.rest().await.unwrap(), []);
        append(dir, 1, RecordSource::Stdout, "one\n");
        assert_eq!(texts(&follower.next().await.unwrap()), ["one"]);
        append(dir, 2, RecordSource::Stdout, "two\n");
        turn_over(dir);
        append(dir, 3, RecordSource::Stdout, "three\n");
        let mut seen = follower.next().await.unwrap();
        seen.extend(follower.rest().await.unwrap());
        assert_eq!(texts(&seen), ["two", "three"]);
        // A follower that starts before the log exists.
        let empty = tempfile::tempdir().unwrap();
        let mut early = LogFollower::new(empty.path().to_owned(), LogPosition::default());
        assert_eq!(early.rest().await.unwrap(), []);
        append(empty.path(), 0, RecordSource::Stderr, "first\n");
        assert_eq!(texts(&early.next().await.unwrap()), ["first"]);
    }
}
