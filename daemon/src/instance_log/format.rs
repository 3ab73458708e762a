//! File format, one record per line: `2026-11-24T09:55:07.123456Z o text`.
//!
//! The letter is the stream: `o` stdout, `e` stderr. It is upper case if no newline ended the text: the next record of
//! the same stream continues it, or the stream ended there. `-` is a gap, with the number of dropped bytes as its text.

use std::io::Write as _;

use jiff::Timestamp;

/// Maximum length of a record's text in bytes; a longer line becomes several records.
pub const MAX_RECORD_TEXT: usize = 16 << 10;
/// Length of the time and of the stream letter, with the blanks after them.
const HEAD: usize = "2026-11-24T09:55:07.123456Z o ".len();

/// Origin of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordSource {
    Stdout,
    Stderr,
    /// A gap: bytes were dropped here because the disk was full or too slow.
    Gap,
}

/// One record of a log file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord<'a> {
    pub at: Timestamp,
    pub source: RecordSource,
    /// Set if a newline ended the text.
    pub ended: bool,
    pub text: &'a [u8],
}

impl LogRecord<'_> {
    /// Appends the record and a newline to `out`. The text must not contain a newline.
    pub fn write(&self, out: &mut Vec<u8>) {
        let letter = match (self.source, self.ended) {
            (RecordSource::Stdout, true) => 'o',
            (RecordSource::Stdout, false) => 'O',
            (RecordSource::Stderr, true) => 'e',
            (RecordSource::Stderr, false) => 'E',
            (RecordSource::Gap, _) => '-',
        };
        // Writing to memory cannot fail.
        let _ = write!(out, "{:.6} {letter} ", self.at);
        out.extend_from_slice(self.text);
        out.push(b'\n');
    }
}

/// Parses a line of a file, without its newline. Returns `None` for a line that no keeper wrote, such as the end of a
/// line that was cut by a crash of the machine.
pub fn parse(line: &[u8]) -> Option<LogRecord<'_>> {
    let (head, text) = line.split_at_checked(HEAD)?;
    let head = std::str::from_utf8(head).ok()?;
    let mut words = head.split(' ');
    let at = words.next()?.parse().ok()?;
    let (source, ended) = match words.next()? {
        "o" => (RecordSource::Stdout, true),
        "O" => (RecordSource::Stdout, false),
        "e" => (RecordSource::Stderr, true),
        "E" => (RecordSource::Stderr, false),
        "-" => (RecordSource::Gap, true),
        _ => return None,
    };
    Some(LogRecord { at, source, ended, text })
}

/// Splits a byte stream into records as it arrives.
#[derive(Debug)]
pub struct RecordSplitter {
    source: RecordSource,
    /// Text without a newline yet; shorter than [`MAX_RECORD_TEXT`].
    open: Vec<u8>,
}

impl RecordSplitter {
    pub const fn new(source: RecordSource) -> Self {
        Self { source, open: Vec::new() }
    }

    pub fn take(&mut self, at: Timestamp, mut bytes: &[u8], out: &mut Vec<u8>) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.lengthen(at, &bytes[..end], out);
            self.record(at, true, out);
            bytes = &bytes[end + 1..];
        }
        self.lengthen(at, bytes, out);
    }

    fn lengthen(&mut self, at: Timestamp, mut text: &[u8], out: &mut Vec<u8>) {
        while self.open.len() + text.len() > MAX_RECORD_TEXT {
            let (now, later) = text.split_at(MAX_RECORD_TEXT - self.open.len());
            self.open.extend_from_slice(now);
            self.record(at, false, out);
            text = later;
        }
        self.open.extend_from_slice(text);
    }

    fn record(&mut self, at: Timestamp, ended: bool, out: &mut Vec<u8>) {
        LogRecord { at, source: self.source, ended, text: &self.open }.write(out);
        self.open.clear();
    }

    /// Reports whether there is an unfinished line.
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Writes the unfinished line as a record without a newline.
    pub fn flush(&mut self, at: Timestamp, out: &mut Vec<u8>) {
        if self.is_open() {
            self.record(at, false, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at() -> Timestamp {
        "2026-11-24T09:55:07.1234567Z".parse().unwrap()
    }

    fn text_of(records: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for line in records.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let record = parse(line).unwrap();
            assert!(record.text.len() <= MAX_RECORD_TEXT);
            text.extend_from_slice(record.text);
            if record.ended {
                text.push(b'\n');
            }
        }
        text
    }

    #[test]
    fn a_record_is_one_line_with_time_and_stream() {
        let mut out = Vec::new();
        let mut cutter = RecordSplitter::new(RecordSource::Stderr);
        cutter.take(at(), b"one\n\ntw", &mut out);
        cutter.take(at(), b"o", &mut out);
        cutter.flush(at(), &mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "2026-11-24T09:55:07.123456Z e one\n2026-11-24T09:55:07.123456Z e \n2026-11-24T09:55:07.123456Z E two\n"
        );
        for line in ["", "x", "2026-11-24T09:55:07.123456Z x one", "2026-11-24T09:55:07 o one and more text"]
        {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
    }

    /// Generates lines of all lengths, many of them close to the maximum: single random bytes would take minutes.
    fn run() -> impl Strategy<Value = Vec<u8>> {
        let any_of =
            |lengths| (any::<u8>(), lengths).prop_map(|(byte, count): (u8, usize)| vec![byte; count]);
        prop_oneof![
            Just(vec![b'\n']),
            proptest::collection::vec(any::<u8>(), 0..40),
            any_of(0..MAX_RECORD_TEXT / 2),
            any_of(MAX_RECORD_TEXT - 2..MAX_RECORD_TEXT + 3),
        ]
    }

    proptest! {
        #[test]
        fn no_byte_of_a_stream_is_lost_however_it_arrives(
            pieces in proptest::collection::vec(
                proptest::collection::vec(run(), 0..8).prop_map(|runs| runs.concat()), 0..6)
        ) {
            let mut out = Vec::new();
            let mut cutter = RecordSplitter::new(RecordSource::Stdout);
            for piece in &pieces {
                cutter.take(at(), piece, &mut out);
            }
            cutter.flush(at(), &mut out);
            prop_assert_eq!(text_of(&out), pieces.concat());
        }
    }
}
