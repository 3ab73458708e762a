//! The text form of a service's log: the bytes that the service wrote, and for a terminal the characters that they
//! stand for.

use hearth_proto::v1::{LogLine, LogStream};

use crate::output;
use crate::progress::terminal_text;

/// Joins the pieces of lines. A line of another instance or stream begins on a line of its own.
pub(super) struct LogTextWriter {
    is_terminal: bool,
    timestamps: bool,
    prefix: bool,
    /// Instance and stream of the line that has no end yet.
    open: Option<(String, LogStream)>,
}

impl LogTextWriter {
    pub(super) const fn new(is_terminal: bool, timestamps: bool, prefix: bool) -> Self {
        Self { is_terminal, timestamps, prefix, open: None }
    }

    /// Returns the newline that is needed before a line of this instance and stream.
    pub(super) fn end_other_line(&mut self, instance: &str, stream: LogStream) -> Vec<u8> {
        let other = self.open.take_if(|(open, of)| open != instance || *of != stream);
        other.map_or(Vec::new(), |_| b"\n".to_vec())
    }

    /// Returns the bytes of a line or a piece of one.
    pub(super) fn line(&mut self, instance: &str, line: &LogLine) -> Vec<u8> {
        let mut out = self.end_other_line(instance, line.stream());
        if line.unfinished && line.text.is_empty() {
            return out;
        }
        if self.open.is_none() {
            if let Some(time) = output::timestamp(line.time.as_ref()).filter(|_| self.timestamps) {
                out.extend(format!("{time} ").bytes());
            }
            if self.prefix {
                out.extend(format!("{instance} ").bytes());
            }
        }
        if self.is_terminal {
            out.extend(terminal_text(&line.text).bytes());
        } else {
            out.extend_from_slice(&line.text);
        }
        self.open = line.unfinished.then(|| (instance.to_owned(), line.stream()));
        if self.open.is_none() {
            out.push(b'\n');
        }
        out
    }

    /// Returns the newline that a terminal needs at the end.
    pub(super) const fn end(&self) -> &'static [u8] {
        if self.is_terminal && self.open.is_some() { b"\n" } else { b"" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(stream: LogStream, text: &[u8], unfinished: bool) -> LogLine {
        let time = Some(prost_types::Timestamp { seconds: 7, nanos: 0 });
        let text = text.to_vec().into();
        LogLine { time, stream: stream.into(), text, unfinished, ..LogLine::default() }
    }

    fn written(writer: &mut LogTextWriter, lines: &[(&str, LogLine)]) -> Vec<u8> {
        let mut out: Vec<u8> =
            lines.iter().flat_map(|(instance, line)| writer.line(instance, line)).collect();
        out.extend_from_slice(writer.end());
        out
    }

    #[test]
    fn a_pipe_receives_the_bytes_that_were_written() {
        use LogStream::{Stderr, Stdout};
        let lines = [
            ("a", piece(Stdout, b"\x1b[1mlong ", true)),
            ("a", piece(Stdout, b"line\xff\r", false)),
            ("a", piece(Stdout, b"cut off", true)),
            ("a", piece(Stderr, b"error", false)),
            ("b", piece(Stdout, b"name: ", true)),
        ];
        let raw = written(&mut LogTextWriter::new(false, false, false), &lines);
        assert_eq!(raw, b"\x1b[1mlong line\xff\r\ncut off\nerror\nname: ");
        let shown = written(&mut LogTextWriter::new(true, false, false), &lines);
        assert_eq!(shown, "long line\u{fffd}\ncut off\nerror\nname: \n".as_bytes());
    }

    #[test]
    fn time_and_instance_are_at_the_beginning_of_a_line_only() {
        let lines = [
            ("a", piece(LogStream::Stdout, b"be", true)),
            ("a", piece(LogStream::Stdout, b"gin", false)),
            ("b", piece(LogStream::Stdout, b"", false)),
            ("b", piece(LogStream::Stderr, b"", true)),
        ];
        let text = written(&mut LogTextWriter::new(false, true, true), &lines);
        assert_eq!(text, b"1970-01-01T00:00:07Z a begin\n1970-01-01T00:00:07Z b \n");
    }
}
