//! Assembles lines from the bytes that steps write. Chunks may end anywhere, even inside a character.

use std::collections::BTreeMap;

use hearth_proto::v1::{LogStream, StepLog};
use hearth_proto::value::whole_characters;

/// Maximum length of a line in bytes. Longer lines are cut between characters, so that the buffer stays bounded.
const LONGEST_LINE: usize = 64 * 1024;

/// Incomplete lines, by step and stream.
#[derive(Debug, Default)]
pub struct StepLineBuffer {
    unfinished: BTreeMap<(u32, bool), Vec<u8>>,
}

/// One line of a step's output, without its line end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepLogLine {
    pub stderr: bool,
    pub text: String,
}

impl StepLineBuffer {
    /// Adds the bytes of `log` and returns the lines that they complete.
    pub fn push(&mut self, log: &StepLog) -> Vec<StepLogLine> {
        let stderr = log.stream() == LogStream::Stderr;
        let buffer = self.unfinished.entry((log.step, stderr)).or_default();
        let mut lines = Vec::new();
        for piece in log.data.split_inclusive(|byte| *byte == b'\n') {
            buffer.extend_from_slice(piece);
            while buffer.len() > LONGEST_LINE {
                let rest = buffer.split_off(whole_characters(&buffer[..LONGEST_LINE]));
                let text = terminal_text(&std::mem::replace(buffer, rest));
                lines.push(StepLogLine { stderr, text });
            }
            if buffer.ends_with(b"\n") {
                lines.push(StepLogLine { stderr, text: terminal_text(&std::mem::take(buffer)) });
            }
        }
        lines
    }

    /// Returns the incomplete lines of a step that has ended.
    pub fn finish(&mut self, step: u32) -> Vec<StepLogLine> {
        let rest = |stderr| {
            let left = self.unfinished.remove(&(step, stderr)).filter(|left| !left.is_empty())?;
            Some(StepLogLine { stderr, text: terminal_text(&left) })
        };
        [false, true].into_iter().filter_map(rest).collect()
    }

    /// Returns the incomplete lines of all steps, at the end of the build.
    pub fn finish_all(&mut self) -> Vec<(u32, StepLogLine)> {
        let left = std::mem::take(&mut self.unfinished);
        let line = |((step, stderr), bytes): ((u32, bool), Vec<u8>)| {
            (step, StepLogLine { stderr, text: terminal_text(&bytes) })
        };
        left.into_iter().filter(|(_, bytes)| !bytes.is_empty()).map(line).collect()
    }
}

/// Decodes a line as a terminal would show it: a carriage return starts the line again. Escape
/// sequences and other control characters are removed.
pub(crate) fn terminal_text(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let written_last = line.rsplit(|byte| *byte == b'\r').find(|part| !part.is_empty()).unwrap_or_default();
    let mut text = String::with_capacity(written_last.len());
    let decoded = String::from_utf8_lossy(written_last);
    let mut rest = decoded.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' => skip_escape(&mut rest),
            '\t' => text.push(c),
            c if c.is_control() => {}
            c => text.push(c),
        }
    }
    text
}

/// Skips `ESC [ ... letter`, `ESC ] ... BEL` and two-character sequences (ECMA-48).
fn skip_escape(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match rest.next() {
        Some('[') => while rest.next().is_some_and(|c| !('\u{40}'..='\u{7e}').contains(&c)) {},
        Some(']') => {
            while let Some(c) = rest.next() {
                if c == '\u{7}' || (c == '\u{1b}' && rest.next_if_eq(&'\\').is_some()) {
                    break;
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(step: u32, stream: LogStream, data: &[u8]) -> StepLog {
        StepLog { step, stream: stream.into(), data: data.to_vec().into(), dropped_bytes: 0 }
    }

    fn texts(lines: &[StepLogLine]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn lines_are_whole_wherever_the_wire_cut_them() {
        let whole = "eins\nzwei äöü\n\ndrei";
        for cut in 0..whole.len() {
            let mut lines = StepLineBuffer::default();
            let (a, b) = whole.as_bytes().split_at(cut);
            let mut seen = lines.push(&log(1, LogStream::Stdout, a));
            seen.extend(lines.push(&log(1, LogStream::Stdout, b)));
            assert_eq!(texts(&seen), ["eins", "zwei äöü", ""], "{cut}");
            assert_eq!(texts(&lines.finish(1)), ["drei"]);
            assert_eq!(lines.finish(1), []);
        }
    }

    #[test]
    fn steps_and_streams_do_not_mix() {
        let mut lines = StepLineBuffer::default();
        assert_eq!(lines.push(&log(1, LogStream::Stdout, b"a")), []);
        assert_eq!(lines.push(&log(1, LogStream::Stderr, b"b")), []);
        assert_eq!(lines.push(&log(2, LogStream::Stdout, b"c")), []);
        let seen = lines.push(&log(1, LogStream::Stderr, b"B\n"));
        assert_eq!(seen, [StepLogLine { stderr: true, text: "bB".into() }]);
        assert_eq!(texts(&lines.finish(1)), ["a"]);
        assert_eq!(lines.finish_all(), [(2, StepLogLine { stderr: false, text: "c".into() })]);
    }

    #[test]
    fn what_would_move_the_cursor_is_taken_out() {
        for (written, shown) in [
            (&b"\x1b[1;31mred\x1b[0m\n"[..], "red"),
            (b"10%\r50%\r100%\r\n", "100%"),
            (b"\x1b]0;title\x07x\x08y\n", "xy"),
            (b"\xff\tz\n", "\u{fffd}\tz"),
        ] {
            assert_eq!(texts(&StepLineBuffer::default().push(&log(1, LogStream::Stdout, written))), [shown]);
        }
    }

    #[test]
    fn an_endless_line_is_cut() {
        let mut lines = StepLineBuffer::default();
        let seen = lines.push(&log(1, LogStream::Stdout, &vec![b'x'; 3 * LONGEST_LINE + 5]));
        assert_eq!(seen.iter().map(|line| line.text.len()).collect::<Vec<_>>(), [LONGEST_LINE; 3]);
        assert_eq!(lines.finish(1)[0].text.len(), 5);
        let mut lines = StepLineBuffer::default();
        let text = "\u{20ac}".repeat(LONGEST_LINE);
        let seen = lines.push(&log(1, LogStream::Stdout, text.as_bytes()));
        let rest = lines.finish(1);
        assert_eq!([texts(&seen), texts(&rest)].concat().concat(), text);
    }
}
