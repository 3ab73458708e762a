//! Event log of one build: a file with one JSON event per line, event *n* on line *n*.
//!
//! ```text
//! create / reopen --append--> file + index --wake--> readers (each reads the file at its own pace)
//!                  '--sync (fsync)                    '-- read(from, limit)
//! ```
//!
//! The build's publisher is the only writer. Readers read the file, so they block neither each other nor the writer.
//! Reopening a log removes a line that a crash cut short. A sparse index in memory maps event numbers to file
//! positions; it is rebuilt on opening from the numbers that the lines begin with. Damaged lines are read as one event
//! that stands for the missing ones ([`BuildEventKind::Damaged`]), and the events after them keep their numbers.

mod scan;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

use scan::{EventNumbers, LineReader, ScannedLog, scan};

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
    extent: Mutex<ScannedLog>,
    /// Number of the newest event.
    newest: watch::Sender<u64>,
}

impl EventLog {
    /// Creates the log of a new build.
    pub fn create(directory: &Path, id: &BuildId) -> io::Result<Self> {
        let path = path_of(directory, id);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self::new(file, path, ScannedLog::default()))
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

    fn new(file: File, path: PathBuf, written: ScannedLog) -> Self {
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

    /// Number of bytes after the last event: damage, or the beginning of an event that was not stored.
    pub fn bytes_after_end(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len().saturating_sub(self.len()))
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
            sequence += 1;
            positions.push((sequence, written.end_position + lines.len() as u64));
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
        positions.into_iter().for_each(|(sequence, position)| written.note(sequence, position));
        drop(written);
        self.newest.send_replace(sequence);
        Ok(())
    }

    /// Removes all events after number `last`. Must not be called while others read.
    pub fn truncate_after(&self, last: u64) -> io::Result<()> {
        let mut written = self.extent.lock();
        let (first, position) = written.start_for(last);
        let mut numbers = EventNumbers::starting_at(first);
        let mut lines = LineReader::new(&self.file, position, written.end_position);
        let (mut kept, mut kept_last) = (0, 0);
        while let Some((start, line)) = lines.next()? {
            match numbers.number_of(line) {
                Some(number) if number > last => break,
                Some(number) => {
                    numbers.event(number);
                    (kept, kept_last) = (start + line.len() as u64, number);
                }
                None => numbers.damage(line),
            }
        }
        self.file.set_len(kept)?;
        (written.end_position, written.last_sequence) = (kept, kept_last);
        written.index.retain(|(_, position)| *position < kept);
        drop(written);
        self.newest.send_replace(kept_last);
        Ok(())
    }

    /// Makes the appended events durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Returns the events from number `from` on, up to about `limit` bytes but at least one. Empty at the end.
    pub fn read(&self, from: u64, limit: usize) -> io::Result<Vec<BuildEvent>> {
        let from = from.max(1);
        let (first, position, end, last) = {
            let written = self.extent.lock();
            if from > written.last_sequence {
                return Ok(Vec::new());
            }
            let (first, position) = written.start_for(from);
            (first, position, written.end_position, written.last_sequence)
        };
        let mut numbers = EventNumbers::starting_at(first);
        let mut lines = LineReader::new(&self.file, position, end);
        let mut events = Vec::new();
        let mut bytes_read = 0;
        while bytes_read < limit
            && let Some((_, line)) = lines.next()?
        {
            let number = numbers.number_of(line);
            if let Some(number) = number.filter(|number| *number < from) {
                numbers.event(number);
                continue;
            }
            let Some(event) = number.and_then(|number| scan::parse(line, number)) else {
                numbers.damage(line);
                continue;
            };
            let first_missing = numbers.expected.max(from);
            if let Some(count) = event.sequence.checked_sub(first_missing).filter(|count| *count > 0) {
                let bytes = numbers.damaged_bytes;
                tracing::warn!(path = %self.path.display(), bytes, events = count, "found damage in a build log");
                let kind = BuildEventKind::Damaged { events: count, bytes };
                events.push(BuildEvent { sequence: first_missing, time: event.time, kind });
            }
            numbers.event(event.sequence);
            bytes_read += line.len();
            events.push(event);
        }
        if events.is_empty() {
            // Nothing from `from` on can be read. A reader that got no event would ask again at once.
            let bytes = numbers.damaged_bytes + lines.unterminated_bytes();
            let kind = BuildEventKind::Damaged { events: last + 1 - from, bytes };
            events.push(BuildEvent { sequence: from, time: Timestamp::now(), kind });
        }
        Ok(events)
    }
}

fn path_of(directory: &Path, id: &BuildId) -> PathBuf {
    directory.join(format!("{id}.jsonl"))
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

    /// Returns a closed log of `count` events and its path.
    fn closed_log(directory: &Path, id: &BuildId, count: usize) -> (Vec<BuildEvent>, PathBuf) {
        let events = EventLog::create(directory, id).unwrap();
        events.append((0..count).map(|n| log(&n.to_string())).collect()).unwrap();
        (events.read(1, usize::MAX).unwrap(), events.path().to_owned())
    }

    #[test]
    fn damage_is_one_event_with_its_size_and_the_rest_follows() {
        let directory = tempfile::tempdir().unwrap();
        let id = BuildId::random();
        let (whole, path) = closed_log(directory.path(), &id, 300);
        let mut bytes = std::fs::read(&path).unwrap();
        let starts: Vec<usize> = std::iter::once(0)
            .chain(bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1))
            .collect();
        // Event 5 has another body, 70 and 71 are one line, 100 to 199 are zeros, and 250 is two lines.
        bytes[starts[4] + 20] = 0;
        bytes[starts[70] - 1] = b'x';
        bytes[starts[99]..starts[199] - 1].fill(0);
        bytes[starts[249] + 30] = b'\n';
        std::fs::write(&path, bytes).unwrap();
        let size = |from: usize, to: usize| (starts[to - 1] - starts[from - 1]) as u64;
        let damage =
            [(5, 1, size(5, 6)), (70, 2, size(70, 72)), (100, 100, size(100, 200)), (250, 1, size(250, 251))];

        let events = EventLog::open(directory.path(), &id).unwrap().unwrap();
        assert_eq!(events.last_sequence(), 300);
        let read = events.read(1, usize::MAX).unwrap();
        let found: Vec<_> = read
            .iter()
            .filter_map(|event| match event.kind {
                BuildEventKind::Damaged { events, bytes } => Some((event.sequence, events, bytes)),
                _ => None,
            })
            .collect();
        assert_eq!(found, damage);
        let (rest, missing): (Vec<_>, Vec<_>) = whole.iter().partition(|event| {
            damage.iter().all(|(from, count, _)| !(*from..from + count).contains(&event.sequence))
        });
        assert_eq!(missing.len(), 104);
        assert!(read.iter().filter(|event| !matches!(event.kind, BuildEventKind::Damaged { .. })).eq(rest));
        // Reading may start anywhere, inside the damage too.
        for from in [4, 5, 6, 71, 72, 150, 199, 200, 251, 300] {
            let read = events.read(from, 1).unwrap();
            assert_eq!(read[0].sequence, from, "{from}");
        }
        // The log is appended to after its last event.
        let events = EventLog::reopen(directory.path(), &id).unwrap();
        events.append(vec![log("next")]).unwrap();
        assert_eq!(texts(&events.read(301, 1).unwrap()), [(301, "next".to_owned())]);
    }

    #[test]
    fn damage_of_the_newest_events_of_an_open_log_is_one_event() {
        for keeps_last_newline in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let events = EventLog::create(directory.path(), &BuildId::random()).unwrap();
            events.append((0..10).map(|n| log(&n.to_string())).collect()).unwrap();
            let mut bytes = std::fs::read(events.path()).unwrap();
            let newlines: Vec<usize> =
                bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at).collect();
            let (start, size) = (newlines[3] + 1, bytes.len());
            bytes[start..size - usize::from(keeps_last_newline)].fill(0);
            std::fs::write(events.path(), bytes).unwrap();
            let read = events.read(5, usize::MAX).unwrap();
            let kinds: Vec<_> = read.iter().map(|event| (event.sequence, event.kind.clone())).collect();
            assert_eq!(kinds, [(5, BuildEventKind::Damaged { events: 6, bytes: (size - start) as u64 })]);
            // What follows has the next number, unless its line has become a part of the damage.
            events.append(vec![log("next")]).unwrap();
            let next = events.read(11, usize::MAX).unwrap();
            assert_eq!(next[0].sequence, 11);
            assert_eq!(texts(&next) == [(11, "next".to_owned())], keeps_last_newline);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn whatever_is_damaged_the_numbers_have_no_gap(
            count in 1usize..200,
            damage in prop::collection::vec((any::<prop::sample::Index>(), 1usize..400, any::<u8>()), 1..4),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let id = BuildId::random();
            let (whole, path) = closed_log(directory.path(), &id, count);
            let mut bytes = std::fs::read(&path).unwrap();
            for (at, length, byte) in damage {
                let start = at.index(bytes.len());
                let end = (start + length).min(bytes.len());
                bytes[start..end].fill(byte);
            }
            std::fs::write(&path, bytes).unwrap();
            let events = EventLog::open(directory.path(), &id).unwrap().unwrap();
            let mut next = 1;
            while next <= events.last_sequence() {
                for event in events.read(next, 1).unwrap() {
                    prop_assert_eq!(event.sequence, next);
                    match event.kind {
                        BuildEventKind::Damaged { events, .. } => next += events,
                        _ => next += 1,
                    }
                }
            }
            prop_assert!(next <= whole.len() as u64 + 1);
        }

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
