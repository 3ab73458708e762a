//! Event log of one build: a file with one JSON event per line, event *n* on line *n*.
//!
//! ```text
//! create / reopen --append--> file + index --wake--> readers (each reads the file at its own pace)
//!                  '--sync (fsync)                    '-- read(from, limit)
//! ```
//!
//! The build's publisher is the only writer. Readers read the file, so they block neither each other nor the writer.
//! Reopening a log removes a line that a crash cut short. A sparse index in memory maps event numbers to file
//! positions; it is rebuilt on opening by counting lines.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::disk::write_with_retry;
use crate::model::build::{BuildEvent, BuildEventKind};
use crate::model::id::BuildId;

/// Number of events between two index entries.
const INDEX_STRIDE: u64 = 64;
/// Maximum length of a line, in bytes. The publisher cuts log data to far less.
const LONGEST_LINE: usize = 4 << 20;

/// Event log of one build. Its methods block: call them from a blocking thread.
pub struct EventLog {
    file: File,
    path: PathBuf,
    extent: Mutex<WrittenExtent>,
    /// Number of the newest event.
    newest: watch::Sender<u64>,
}

struct WrittenExtent {
    /// File position of the next event.
    end_position: u64,
    /// Number of the newest event.
    last_sequence: u64,
    /// Position of events 1, 1 + STRIDE, 1 + 2 * STRIDE, ...
    index: Vec<u64>,
}

impl EventLog {
    /// Creates the log of a new build.
    pub fn create(directory: &Path, id: &BuildId) -> io::Result<Self> {
        let path = path_of(directory, id);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self::new(file, path, WrittenExtent { end_position: 0, last_sequence: 0, index: Vec::new() }))
    }

    /// Opens a log for appending, and cuts off an incomplete last line that a crash left.
    pub fn reopen(directory: &Path, id: &BuildId) -> io::Result<Self> {
        let path = path_of(directory, id);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let written = scan(&file)?;
        file.set_len(written.end_position)?;
        Ok(Self::new(file, path, written))
    }

    /// Opens a log for reading only. `None` when the build has no log.
    pub fn open(directory: &Path, id: &BuildId) -> io::Result<Option<Self>> {
        let path = path_of(directory, id);
        match File::open(&path) {
            Ok(file) => {
                let written = scan(&file)?;
                Ok(Some(Self::new(file, path, written)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn new(file: File, path: PathBuf, written: WrittenExtent) -> Self {
        let newest = watch::Sender::new(written.last_sequence);
        Self { file, path, extent: Mutex::new(written), newest }
    }

    pub fn remove(directory: &Path, id: &BuildId) -> io::Result<()> {
        match std::fs::remove_file(path_of(directory, id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Size of a build's log in bytes; 0 when it has no log.
    pub fn size(directory: &Path, id: &BuildId) -> io::Result<u64> {
        match std::fs::metadata(path_of(directory, id)) {
            Ok(found) => Ok(found.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Ids of the builds that have a log in `directory`.
    pub fn ids(directory: &Path) -> io::Result<Vec<BuildId>> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let name = entry?.file_name();
            ids.extend(name.to_str().and_then(|name| name.strip_suffix(".jsonl")?.parse().ok()));
        }
        Ok(ids)
    }

    #[cfg(test)]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of the newest event; 0 when there is none.
    pub fn last_sequence(&self) -> u64 {
        *self.newest.borrow()
    }

    /// Returns a receiver that is notified of every newer event.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Size of the file in bytes.
    pub fn len(&self) -> u64 {
        self.extent.lock().end_position
    }

    /// Numbers and stores all events, or none on an error, then wakes the readers.
    pub fn append(&self, kinds: Vec<BuildEventKind>) -> io::Result<()> {
        if kinds.is_empty() {
            return Ok(());
        }
        let mut written = self.extent.lock();
        let time = jiff::Timestamp::now();
        let (mut lines, mut sequence) = (Vec::new(), written.last_sequence);
        let mut positions = Vec::new();
        for kind in kinds {
            if sequence.is_multiple_of(INDEX_STRIDE) {
                positions.push(written.end_position + lines.len() as u64);
            }
            sequence += 1;
            serde_json::to_writer(&mut lines, &BuildEvent { sequence, time, kind })?;
            lines.push(b'\n');
        }
        let mut file = &self.file;
        let outcome = write_with_retry(|| {
            file.seek(SeekFrom::Start(written.end_position))?;
            file.write_all(&lines)
        });
        if let Err(error) = outcome {
            // Cut off a partly written line. If this fails too, readers stop at `end`, and the next append overwrites
            // the partial line.
            let _ = self.file.set_len(written.end_position);
            return Err(error);
        }
        written.end_position += lines.len() as u64;
        written.last_sequence = sequence;
        written.index.extend(positions);
        drop(written);
        self.newest.send_replace(sequence);
        Ok(())
    }

    /// Removes all events after number `last`. Must not be called while others read.
    pub fn truncate_after(&self, last: u64) -> io::Result<()> {
        let mut written = self.extent.lock();
        let (mut kept, mut lines) = (0, 0);
        let mut reader = io::BufReader::new(&self.file);
        reader.seek(SeekFrom::Start(0))?;
        while lines < last.min(written.last_sequence) {
            kept += reader.skip_until(b'\n')? as u64;
            lines += 1;
        }
        self.file.set_len(kept)?;
        written.end_position = kept;
        written.last_sequence = lines;
        written.index.truncate(usize::try_from(lines.div_ceil(INDEX_STRIDE)).unwrap_or(usize::MAX));
        drop(written);
        self.newest.send_replace(lines);
        Ok(())
    }

    /// Makes the appended events durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Returns the events from number `from` on, up to about `limit` bytes but at least one. Empty at the end.
    pub fn read(&self, from: u64, limit: usize) -> io::Result<Vec<BuildEvent>> {
        let from = from.max(1);
        let (mut position, end, mut skip) = {
            let written = self.extent.lock();
            if from > written.last_sequence {
                return Ok(Vec::new());
            }
            let slot = (from - 1) / INDEX_STRIDE;
            let position = usize::try_from(slot).ok().and_then(|slot| written.index.get(slot)).copied();
            (position.unwrap_or(0), written.end_position, (from - 1) % INDEX_STRIDE)
        };
        let mut events = Vec::new();
        let mut buffer: Vec<u8> = Vec::new();
        let mut bytes_read = 0;
        while position < end && bytes_read < limit {
            let start = buffer.len();
            let size = usize::try_from(end - position).unwrap_or(usize::MAX).min(64 << 10);
            buffer.resize(start + size, 0);
            self.file.read_exact_at(&mut buffer[start..], position)?;
            position += size as u64;
            let mut consumed = 0;
            while let Some(length) = buffer[consumed..].iter().position(|&byte| byte == b'\n') {
                let line = &buffer[consumed..consumed + length];
                consumed += length + 1;
                if skip > 0 {
                    skip -= 1;
                    continue;
                }
                events.push(serde_json::from_slice(line)?);
                bytes_read += line.len();
                if bytes_read >= limit {
                    break;
                }
            }
            buffer.drain(..consumed);
            if buffer.len() > LONGEST_LINE {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{}: a line has no end", self.path.display()),
                ));
            }
        }
        Ok(events)
    }
}

fn path_of(directory: &Path, id: &BuildId) -> PathBuf {
    directory.join(format!("{id}.jsonl"))
}

/// Scans the complete lines of a log. A last line that is not an event is excluded.
fn scan(mut file: &File) -> io::Result<WrittenExtent> {
    file.seek(SeekFrom::Start(0))?;
    let mut written = WrittenExtent { end_position: 0, last_sequence: 0, index: Vec::new() };
    let mut buffer = vec![0; 64 << 10];
    let (mut position, mut last_start) = (0u64, 0u64);
    loop {
        let size = file.read(&mut buffer)?;
        if size == 0 {
            break;
        }
        for (at, _) in buffer[..size].iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
            if written.last_sequence.is_multiple_of(INDEX_STRIDE) {
                written.index.push(written.end_position);
            }
            last_start = written.end_position;
            written.last_sequence += 1;
            written.end_position = position + at as u64 + 1;
        }
        position += size as u64;
    }
    // After a power loss, a tail of zeros or old bytes can contain a newline, so the last line must parse as the event
    // with its number.
    while written.last_sequence > 0 {
        let length =
            usize::try_from(written.end_position - last_start).unwrap_or(usize::MAX).min(LONGEST_LINE);
        let mut line = vec![0; length];
        file.read_exact_at(&mut line, last_start)?;
        if serde_json::from_slice::<BuildEvent>(&line)
            .is_ok_and(|event| event.sequence == written.last_sequence)
        {
            break;
        }
        written.end_position = last_start;
        if (written.last_sequence - 1).is_multiple_of(INDEX_STRIDE) {
            written.index.pop();
        }
        written.last_sequence -= 1;
        last_start = start_of_line_before(file, written.end_position)?;
    }
    Ok(written)
}

/// Returns the start of the line that ends (with its newline) at `end`.
fn start_of_line_before(file: &File, end: u64) -> io::Result<u64> {
    let mut to = end.saturating_sub(1);
    let mut buffer = vec![0; 64 << 10];
    while to > 0 {
        let from = to.saturating_sub(buffer.len() as u64);
        let part = &mut buffer[..usize::try_from(to - from).unwrap_or(0)];
        file.read_exact_at(part, from)?;
        if let Some(at) = part.iter().rposition(|&byte| byte == b'\n') {
            return Ok(from + at as u64 + 1);
        }
        to = from;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::build::LogStream;
    use proptest::prelude::*;

    fn log(text: &str) -> BuildEventKind {
        BuildEventKind::StepLog { step: 1, stream: LogStream::Stdout, data: text.into(), dropped_bytes: 0 }
    }

    fn texts(events: &[BuildEvent]) -> Vec<(u64, String)> {
        let text = |event: &BuildEvent| match &event.kind {
            BuildEventKind::StepLog { data, .. } => String::from_utf8_lossy(data).into_owned(),
            other => format!("{other:?}"),
        };
        events.iter().map(|event| (event.sequence, text(event))).collect()
    }

    #[test]
    fn events_are_numbered_without_a_gap_and_read_from_any_number() {
        let directory = tempfile::tempdir().unwrap();
        let id = BuildId::random();
        let events = EventLog::create(directory.path(), &id).unwrap();
        for batch in 0..50 {
            events.append((0..7).map(|n| log(&format!("{batch}-{n}"))).collect()).unwrap();
        }
        let reader = EventLog::open(directory.path(), &id).unwrap().unwrap();
        for from in 0..=352 {
            let read = events.read(from, usize::MAX).unwrap();
            assert_eq!(read.len() as u64, 350u64.saturating_sub(from.max(1) - 1), "{from}");
            assert!(read.iter().zip(from.max(1)..).all(|(event, n)| event.sequence == n));
            assert_eq!(reader.read(from, usize::MAX).unwrap(), read);
        }
        assert_eq!(events.read(1, 1).unwrap().len(), 1);
        assert_eq!(events.last_sequence(), 350);
    }

    #[test]
    fn bytes_that_are_no_text_survive() {
        let directory = tempfile::tempdir().unwrap();
        let events = EventLog::create(directory.path(), &BuildId::random()).unwrap();
        let data = vec![0xff, 0, b'\n', 0xc3];
        events
            .append(vec![BuildEventKind::StepLog {
                step: 3,
                stream: LogStream::Stderr,
                data: data.clone(),
                dropped_bytes: 9,
            }])
            .unwrap();
        let BuildEventKind::StepLog { data: read, dropped_bytes: 9, .. } =
            &events.read(1, 1).unwrap()[0].kind
        else {
            panic!("another event");
        };
        assert_eq!(*read, data);
    }

    #[test]
    fn a_missing_log_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        assert!(EventLog::open(directory.path(), &BuildId::random()).unwrap().is_none());
        EventLog::remove(directory.path(), &BuildId::random()).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn a_log_cut_anywhere_reopens_with_its_whole_events_and_goes_on(
            count in 1usize..140, cut in any::<prop::sample::Index>(), garbage in "[\\x00a\n]{0,5}",
        ) {
            let directory = tempfile::tempdir().unwrap();
            let id = BuildId::random();
            let events = EventLog::create(directory.path(), &id).unwrap();
            events.append((0..count).map(|n| log(&n.to_string())).collect()).unwrap();
            let whole = events.read(1, usize::MAX).unwrap();
            let path = events.path().to_owned();
            drop(events);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.truncate(cut.index(bytes.len() + 1));
            let kept = bytes.iter().filter(|b| **b == b'\n').count();
            bytes.extend(garbage.bytes());
            std::fs::write(&path, bytes).unwrap();

            let events = EventLog::reopen(directory.path(), &id).unwrap();
            // A newline in the garbage may complete a line that lacked only that.
            let last = events.last_sequence() as usize;
            prop_assert!(last == kept || last == kept + 1, "{last} of {kept}");
            prop_assert_eq!(&events.read(1, usize::MAX).unwrap()[..], &whole[..last]);
            events.append(vec![log("next")]).unwrap();
            let read = events.read(last as u64, usize::MAX).unwrap();
            prop_assert_eq!(texts(&read).last().cloned(), Some((last as u64 + 1, "next".to_owned())));
            let reader = EventLog::open(directory.path(), &id).unwrap().unwrap();
            prop_assert_eq!(reader.last_sequence() as usize, last + 1);
        }
    }
}
