//! Lines of an event log, and the numbers of the events in them.
//!
//! An event is found by the number that its line begins with, not by the number of lines before it: a damaged line may
//! have lost its newline or have gained others. What is not an event with a number that can come next is damage.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::{INDEX_STRIDE, LONGEST_LINE};
use crate::model::build::BuildEvent;

const READ_BYTES: usize = 64 << 10;
/// Size of the smallest event: damage of this many bytes can have been one.
const MIN_EVENT_BYTES: u64 = 48;
/// Number of scans that check only the last line as a whole. After that, each line is.
const QUICK_SCANS: usize = 4;

/// Whole lines of a part of a file, in order.
pub(super) struct LineReader<'a> {
    file: &'a File,
    /// Position of the next byte to read.
    position: u64,
    end: u64,
    buffer: Vec<u8>,
    /// Start of the next line in the buffer.
    next: usize,
}

impl<'a> LineReader<'a> {
    pub(super) fn new(file: &'a File, position: u64, end: u64) -> Self {
        Self { file, position, end, buffer: Vec::new(), next: 0 }
    }

    /// Returns the number of bytes after the last line, once all lines were read.
    pub(super) fn unterminated_bytes(&self) -> u64 {
        (self.buffer.len() - self.next) as u64
    }

    /// Returns the position of the next line and the line, with its newline. A line that is longer than any event is
    /// returned in parts, of which only the last has the newline. Bytes after the last newline are not returned.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, &[u8])>> {
        let mut searched = self.next;
        loop {
            let start = self.position - (self.buffer.len() - self.next) as u64;
            if let Some(at) = self.buffer[searched..].iter().position(|&byte| byte == b'\n') {
                let line = self.next..searched + at + 1;
                self.next = line.end;
                return Ok(Some((start, &self.buffer[line])));
            }
            if self.buffer.len() - self.next > LONGEST_LINE {
                let part = self.next..self.buffer.len();
                self.next = part.end;
                return Ok(Some((start, &self.buffer[part])));
            }
            if self.position == self.end {
                return Ok(None);
            }
            self.buffer.drain(..self.next);
            self.next = 0;
            searched = self.buffer.len();
            let size = usize::try_from(self.end - self.position).unwrap_or(usize::MAX).min(READ_BYTES);
            self.buffer.resize(searched + size, 0);
            self.file.read_exact_at(&mut self.buffer[searched..], self.position)?;
            self.position += size as u64;
        }
    }
}

/// Follows the numbers of a log's events from line to line.
#[derive(Clone, Copy)]
pub(super) struct EventNumbers {
    /// Number of the next event if nothing is damaged.
    pub(super) expected: u64,
    /// Bytes of damage since the last event.
    pub(super) damaged_bytes: u64,
}

impl EventNumbers {
    pub(super) const fn starting_at(expected: u64) -> Self {
        Self { expected, damaged_bytes: 0 }
    }

    /// Returns the number of the event in `line`, or `None` for damage.
    pub(super) fn number_of(&self, line: &[u8]) -> Option<u64> {
        let digits = line.strip_prefix(b"{\"sequence\":").filter(|_| line.ends_with(b"}\n"))?;
        let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
        let number: u64 = std::str::from_utf8(&digits[..end]).ok()?.parse().ok()?;
        let missing = number.checked_sub(self.expected)?;
        (missing <= self.damaged_bytes / MIN_EVENT_BYTES).then_some(number)
    }

    pub(super) const fn damage(&mut self, line: &[u8]) {
        self.damaged_bytes += line.len() as u64;
    }

    pub(super) const fn event(&mut self, number: u64) {
        (self.expected, self.damaged_bytes) = (number + 1, 0);
    }
}

pub(super) fn parse(line: &[u8], number: u64) -> Option<BuildEvent> {
    serde_json::from_slice::<BuildEvent>(line).ok().filter(|event| event.sequence == number)
}

/// Events of a file: the last one, and where some of them are.
#[derive(Default)]
pub(super) struct ScannedLog {
    /// File position after the last event. What follows it is damage, or a line that a crash cut short.
    pub(super) end_position: u64,
    pub(super) last_sequence: u64,
    /// Numbers and positions of events, at least [`INDEX_STRIDE`] numbers apart.
    pub(super) index: Vec<(u64, u64)>,
}

impl ScannedLog {
    /// Adds the next event of the file to the index if it is due.
    pub(super) fn note(&mut self, sequence: u64, position: u64) {
        if self.index.last().is_none_or(|(last, _)| sequence >= last + INDEX_STRIDE) {
            self.index.push((sequence, position));
        }
    }

    /// Returns the number and the position of an event at or before the event `from`, where reading may start.
    pub(super) fn start_for(&self, from: u64) -> (u64, u64) {
        let after = self.index.partition_point(|(sequence, _)| *sequence <= from);
        // Damage before the first event belongs to the first numbers.
        after.checked_sub(1).filter(|at| *at > 0).map_or((1, 0), |at| self.index[at])
    }
}

/// Scans the events of a file. The last line of the result is a whole event.
pub(super) fn scan(file: &File) -> io::Result<ScannedLog> {
    let mut end = file.metadata()?.len();
    for round in 0.. {
        let is_thorough = round >= QUICK_SCANS;
        let mut found = ScannedLog::default();
        let mut numbers = EventNumbers::starting_at(1);
        let mut lines = LineReader::new(file, 0, end);
        let mut last_line = Vec::new();
        let mut last_start = 0;
        while let Some((start, line)) = lines.next()? {
            let number =
                numbers.number_of(line).filter(|number| !is_thorough || parse(line, *number).is_some());
            let Some(number) = number else {
                numbers.damage(line);
                continue;
            };
            numbers.event(number);
            found.note(number, start);
            (found.last_sequence, found.end_position, last_start) =
                (number, start + line.len() as u64, start);
            last_line.clear();
            last_line.extend_from_slice(line);
        }
        if found.last_sequence == 0 || parse(&last_line, found.last_sequence).is_some() {
            return Ok(found);
        }
        // After a power loss the tail of a file may be old bytes.
        end = last_start;
    }
    Ok(ScannedLog::default())
}
