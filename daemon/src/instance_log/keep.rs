//! Log keeper: the process that writes an instance's log.
//!
//! One thread reads the pipes and never blocks for long: data that the disk does not take at once is queued, up to
//! [`QUEUED`] bytes. When the queue stays full for [`PATIENCE`], new data is dropped and counted, and the count is
//! written as a gap. The other thread writes, and rotates the file at [`FILE_BYTES`].

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, FromRawFd as _, RawFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::format::{LogRecord, RecordSource, RecordSplitter};
use super::{CURRENT, OLDER};

use crate::task;

/// Size in bytes at which the file is rotated; one older file is kept.
pub const FILE_BYTES: u64 = 8 << 20;
/// Maximum number of queued bytes.
const QUEUED: usize = 4 << 20;
/// Maximum time for which a slow disk blocks the instance's output.
const PATIENCE: Duration = Duration::from_millis(200);
/// Time after which an unfinished line, such as a prompt, is written as it is.
const SETTLED: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
const CHUNK: usize = 64 << 10;
/// Pause between write attempts while the disk accepts nothing.
const RETRY: Duration = Duration::from_millis(500);
/// Number of write attempts after the last input.
const LAST_ATTEMPTS: u32 = 4;

/// Keeps the log of the inherited file descriptors that a container runtime passes.
pub(super) fn keep_inherited(dir: &Path) -> io::Result<()> {
    for fd in 3..=5 {
        // SAFETY: F_GETFD only asks about a number; it may name nothing.
        #[expect(unsafe_code, reason = "the numbers come from outside, and may be anything")]
        let open = unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
        if !open {
            return Err(io::Error::other("a container runtime starts this, with its pipes as 3, 4 and 5"));
        }
    }
    // The keeper ends when the pipes are closed. A runtime's SIGTERM arrives while they may still hold the last lines.
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: ignoring a signal installs no handler.
        #[expect(unsafe_code, reason = "rustix has no signal dispositions")]
        unsafe {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
    let take = |fd: RawFd| {
        // SAFETY: the number was found open above, and nothing else in this process has it.
        #[expect(unsafe_code, reason = "inherited file descriptors have no owner yet")]
        unsafe {
            File::from_raw_fd(fd)
        }
    };
    let (stdout, stderr, ready) = (take(3), take(4), take(5));
    keep(dir, FILE_BYTES, stdout, stderr, || drop(ready))
}

/// Keeps two streams until both have ended. `ready` is called once they are being read.
fn keep(dir: &Path, file_bytes: u64, stdout: File, stderr: File, ready: impl FnOnce()) -> io::Result<()> {
    let mut disk = LogFileWriter::open(dir, file_bytes)?;
    let queue = RecordQueue::default();
    std::thread::scope(|scope| {
        task::scoped(scope, "log-disk", || disk.run(&queue))?;
        ready();
        let outcome = read_streams(stdout, stderr, &queue);
        queue.close();
        outcome
    })
}

fn read_streams(stdout: File, stderr: File, queue: &RecordQueue) -> io::Result<()> {
    let mut streams = vec![
        (stdout, RecordSplitter::new(RecordSource::Stdout)),
        (stderr, RecordSplitter::new(RecordSource::Stderr)),
    ];
    let mut chunk = vec![0; CHUNK];
    while !streams.is_empty() {
        let open = streams.iter().any(|(_, cutter)| cutter.is_open());
        let ready = poll(&streams, open)?;
        let (at, mut records) = (Timestamp::now(), Vec::new());
        if ready.iter().all(|ready| !ready) {
            streams.iter_mut().for_each(|(_, cutter)| cutter.flush(at, &mut records));
        }
        let mut ended = vec![false; streams.len()];
        for (index, (pipe, cutter)) in streams.iter_mut().enumerate() {
            if !ready[index] {
                continue;
            }
            match pipe.read(&mut chunk) {
                Ok(0) => {
                    cutter.flush(at, &mut records);
                    ended[index] = true;
                }
                Ok(count) => cutter.take(at, &chunk[..count], &mut records),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut ended = ended.into_iter();
        streams.retain(|_| !ended.next().unwrap_or(false));
        queue.push(&records);
    }
    Ok(())
}

/// Returns which streams are readable or have ended; none after a while if `limited`.
fn poll(streams: &[(File, RecordSplitter)], limited: bool) -> io::Result<Vec<bool>> {
    let mut fds: Vec<PollFd<'_>> =
        streams.iter().map(|(pipe, _)| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)).collect();
    loop {
        match rustix::event::poll(&mut fds, limited.then_some(&SETTLED)) {
            Ok(_) => return Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Records waiting for the disk.
#[derive(Default)]
struct RecordQueue {
    state: Mutex<QueuedRecords>,
    changed: Condvar,
}

/// Content of a [`RecordQueue`].
#[derive(Default)]
struct QueuedRecords {
    records: Vec<u8>,
    /// Number of dropped bytes since the last gap was taken.
    dropped: u64,
    closed: bool,
}

impl RecordQueue {
    fn push(&self, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        let full = |waiting: &mut QueuedRecords| waiting.records.len() + records.len() > QUEUED;
        let mut waiting = self.state.lock();
        self.changed.wait_while_for(&mut waiting, full, PATIENCE);
        // A gap stays open until the disk thread has taken it.
        if waiting.dropped > 0 || waiting.records.len() + records.len() > QUEUED {
            waiting.dropped += records.len() as u64;
        } else {
            waiting.records.extend_from_slice(records);
        }
        drop(waiting);
        self.changed.notify_all();
    }

    /// Takes all queued records and the number of bytes dropped after them; `None` once the queue is closed and empty.
    fn take(&self) -> Option<(Vec<u8>, u64)> {
        let idle = |waiting: &mut QueuedRecords| {
            waiting.records.is_empty() && waiting.dropped == 0 && !waiting.closed
        };
        let mut waiting = self.state.lock();
        self.changed.wait_while(&mut waiting, idle);
        let drained = (std::mem::take(&mut waiting.records), std::mem::take(&mut waiting.dropped));
        drop(waiting);
        self.changed.notify_all();
        (!drained.0.is_empty() || drained.1 > 0).then_some(drained)
    }

    fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    fn is_closed(&self) -> bool {
        self.state.lock().closed
    }
}

/// Writer of the log files, with rotation.
struct LogFileWriter {
    dir: PathBuf,
    file_bytes: u64,
    file: File,
    length: u64,
    /// Set if the file ends with a complete record.
    ends_with_record: bool,
}

impl LogFileWriter {
    fn open(dir: &Path, file_bytes: u64) -> io::Result<Self> {
        let file = Self::append(dir)?;
        let length = file.metadata()?.len();
        let mut disk = Self { dir: dir.to_owned(), file_bytes, file, length, ends_with_record: true };
        // A killed keeper may have left a partial record.
        let mut last = [b'\n'];
        if length > 0 {
            File::open(dir.join(CURRENT))?.read_exact_at(&mut last, length - 1)?;
        }
        if last != *b"\n" {
            disk.write(&mut b"\n".as_slice())?;
        }
        Ok(disk)
    }

    fn append(dir: &Path) -> io::Result<File> {
        File::options().create(true).append(true).mode(0o600).open(dir.join(CURRENT))
    }

    fn run(&mut self, queue: &RecordQueue) {
        let mut attempts = 0;
        while let Some((records, dropped)) = queue.take() {
            let mut left = records.as_slice();
            while let Err(_full) = self.write(&mut left) {
                attempts += u32::from(queue.is_closed());
                if attempts >= LAST_ATTEMPTS {
                    // There is no way to report this: the daemon may be gone, and the log cannot be written.
                    return;
                }
                std::thread::sleep(RETRY);
            }
            if dropped > 0 {
                let (at, text) = (Timestamp::now(), dropped.to_string());
                let mut gap = Vec::new();
                LogRecord { at, source: RecordSource::Gap, ended: true, text: text.as_bytes() }
                    .write(&mut gap);
                // If this fails too, the next records fail as well and are counted.
                let _ = self.write(&mut gap.as_slice());
            }
        }
    }

    /// Writes whole records, and advances `records` past the written part.
    fn write(&mut self, records: &mut &[u8]) -> io::Result<()> {
        while !records.is_empty() {
            if self.length >= self.file_bytes && self.ends_with_record {
                self.rotate()?;
            }
            // Up to the end of the record that reaches the size, so that no record spans two files.
            let room = usize::try_from(self.file_bytes.saturating_sub(self.length)).unwrap_or(usize::MAX);
            let end = match records.get(room..) {
                Some(rest) => {
                    room + rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |at| at + 1)
                }
                None => records.len(),
            };
            let count = self.file.write(&records[..end])?;
            self.length += count as u64;
            let (written, left) = records.split_at(count);
            *records = left;
            match written.last() {
                Some(last) => self.ends_with_record = *last == b'\n',
                None => return Err(io::ErrorKind::WriteZero.into()),
            }
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        fs::rename(self.dir.join(CURRENT), self.dir.join(OLDER))?;
        self.file = Self::append(&self.dir)?;
        self.length = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::parse;
    use super::*;

    fn pipe() -> (File, File) {
        let (read, write) = rustix::pipe::pipe().unwrap();
        (read.into(), write.into())
    }

    /// Runs a keeper for the output of `out` and `err`.
    fn kept(dir: &Path, file_bytes: u64, out: impl FnOnce(File) + Send, err: impl FnOnce(File) + Send) {
        let ((stdout, to_stdout), (stderr, to_stderr)) = (pipe(), pipe());
        std::thread::scope(|scope| {
            scope.spawn(move || out(to_stdout));
            scope.spawn(move || err(to_stderr));
            let mut ready = false;
            keep(dir, file_bytes, stdout, stderr, || ready = true).unwrap();
            assert!(ready);
        });
    }

    fn texts(file: &Path) -> Vec<(RecordSource, bool, String)> {
        let content = fs::read(file).unwrap();
        assert!(content.is_empty() || content.ends_with(b"\n"));
        let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines
            .map(|line| {
                let record = parse(line).unwrap();
                (record.source, record.ended, String::from_utf8_lossy(record.text).into_owned())
            })
            .collect()
    }

    #[test]
    fn both_streams_are_kept_and_a_last_line_needs_no_newline() {
        let dir = tempfile::tempdir().unwrap();
        let out = |mut pipe: File| pipe.write_all(b"one\ntwo").unwrap();
        let err = |mut pipe: File| pipe.write_all(b"bad\n").unwrap();
        kept(dir.path(), FILE_BYTES, out, err);
        let mut found = texts(&dir.path().join(CURRENT));
        found.sort_by_key(|(source, ..)| *source == RecordSource::Stderr);
        assert_eq!(
            found,
            [
                (RecordSource::Stdout, true, "one".to_owned()),
                (RecordSource::Stdout, false, "two".to_owned()),
                (RecordSource::Stderr, true, "bad".to_owned())
            ]
        );
    }

    #[test]
    fn a_prompt_is_written_while_its_process_waits() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(CURRENT);
        let out = |mut pipe: File| {
            pipe.write_all(b"name? ").unwrap();
            let started = std::time::Instant::now();
            while fs::read(&file).unwrap_or_default().is_empty() {
                assert!(started.elapsed() < Duration::from_secs(5));
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        kept(dir.path(), FILE_BYTES, out, drop);
        assert_eq!(texts(&file), [(RecordSource::Stdout, false, "name? ".to_owned())]);
    }

    #[test]
    fn a_flood_takes_two_files_at_most_and_keeps_the_newest_lines_whole() {
        let dir = tempfile::tempdir().unwrap();
        const LIMIT: u64 = 64 << 10;
        let out = |mut pipe: File| {
            for number in 0..40_000 {
                writeln!(pipe, "line {number}").unwrap();
            }
        };
        kept(dir.path(), LIMIT, out, drop);
        let (older, current) = (dir.path().join(OLDER), dir.path().join(CURRENT));
        for file in [&older, &current] {
            assert!(fs::metadata(file).unwrap().len() < LIMIT + 100);
        }
        let kept: Vec<_> = [texts(&older), texts(&current)].concat();
        let first = 40_000 - kept.len();
        for (index, (_, _, text)) in kept.iter().enumerate() {
            assert_eq!(*text, format!("line {}", first + index));
        }
    }

    #[test]
    fn a_keeper_after_one_that_was_killed_starts_a_line_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(CURRENT);
        fs::write(&file, b"2026-11-24T09:55:07.123456Z o ha").unwrap();
        kept(dir.path(), FILE_BYTES, |mut pipe: File| pipe.write_all(b"new\n").unwrap(), drop);
        let texts: Vec<String> = texts(&file).into_iter().map(|(.., text)| text).collect();
        assert_eq!(texts, ["ha", "new"]);
    }

    #[test]
    fn what_a_stuck_disk_does_not_take_is_dropped_and_counted() {
        let queue = RecordQueue::default();
        let record = vec![b'x'; 1 << 20];
        let started = std::time::Instant::now();
        (0..6).for_each(|_| queue.push(&record));
        assert!(started.elapsed() < PATIENCE * 4);
        let (records, dropped) = queue.take().unwrap();
        assert_eq!((records.len(), dropped), (4 << 20, 2 << 20));
        queue.close();
        assert_eq!(queue.take(), None);
    }
}
