//! Last log lines of a build step, which are included in the fault of a failed step.

use std::collections::VecDeque;

use crate::model::whole_characters;

const LINES: usize = 50;
const LINE_BYTES: usize = 2048;

/// The last lines of a step's log, bounded in number and length.
#[derive(Debug, Default)]
pub(super) struct LogTail {
    lines: VecDeque<String>,
    unfinished: Vec<u8>,
}

impl LogTail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let mut parts = bytes.split(|b| *b == b'\n').peekable();
        while let Some(part) = parts.next() {
            let room = LINE_BYTES.saturating_sub(self.unfinished.len());
            self.unfinished.extend_from_slice(&part[..part.len().min(room)]);
            if part.len() > room {
                self.unfinished.truncate(whole_characters(&self.unfinished));
            }
            if parts.peek().is_some() {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        let bytes = std::mem::take(&mut self.unfinished);
        // A progress bar rewrites its line after a carriage return, so only the last text is kept.
        let end = bytes.strip_suffix(b"\r").unwrap_or(&bytes);
        let visible = end.rsplit(|b| *b == b'\r').next().unwrap_or(end);
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(String::from_utf8_lossy(visible).into_owned());
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.lines.iter().cloned().collect();
        if !self.unfinished.is_empty() {
            lines.push(String::from_utf8_lossy(&self.unfinished).into_owned());
        }
        lines.split_off(lines.len().saturating_sub(LINES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_a_line_may_come_in_parts() {
        let mut tail = LogTail::default();
        for i in 0..60 {
            tail.push(format!("line {i}\n").as_bytes());
        }
        tail.push(b"10%\r100%\r\nno ");
        tail.push(b"newline");
        let lines = tail.lines();
        assert_eq!(lines.len(), LINES);
        assert_eq!(lines[47..], ["line 59", "100%", "no newline"].map(str::to_owned));
        tail.push(&[b'x'; 10 * LINE_BYTES]);
        assert_eq!(tail.lines().last().unwrap().len(), LINE_BYTES);
        let mut tail = LogTail::default();
        tail.push("\u{20ac}".repeat(LINE_BYTES).as_bytes());
        assert_eq!(tail.lines(), ["\u{20ac}".repeat(LINE_BYTES / 3)]);
    }
}
