//! A person's session: an interactive shell in a pseudo terminal, whose screen is what a terminal emulator makes of it.

use std::fmt::Write as _;
use std::num::NonZero;
use std::time::Duration;

use regex::Regex;

use crate::daemon::Daemon;
use crate::option_usage;
use crate::terminal::Terminal;
use crate::wait::{self, seconds};

/// Size of the terminal. No command of a session prints more rows.
const ROWS: NonZero<u16> = NonZero::new(120).expect("not zero");
const COLUMNS: NonZero<u16> = NonZero::new(200).expect("not zero");

/// The prompt shows the exit code of the command before.
const PROMPT: &str = "\u{1e}";

/// A shell whose commands are typed one after the other.
pub struct ShellSession {
    terminal: Terminal,
    /// Everything that was shown, as a transcript.
    transcript: String,
    /// Number of bytes that were shown before the command that runs.
    start: usize,
}

impl ShellSession {
    /// Starts a shell in the daemon's directory. The commands find `hearth` in the PATH.
    pub fn start(daemon: &Daemon) -> Self {
        let shell = format!(
            "stty rows {ROWS} cols {COLUMNS} -echo; export PATH=\"$(dirname \"$HEARTH\"):$PATH\" PS1='{PROMPT}$?{PROMPT}' \
             PS2=''; exec bash --norc --noprofile --noediting -i"
        );
        let terminal = Terminal::run(daemon, &shell);
        let mut session = Self { terminal, transcript: String::new(), start: 0 };
        session.ended();
        session
    }

    /// Types a command, and waits until it has ended; its screen and its exit code become part of the transcript.
    #[track_caller]
    pub fn run(&mut self, command: &str) {
        self.run_with_keys(command, &[]);
    }

    /// Types a command and, each time the first text of a pair is shown anew, presses the keys of the pair.
    #[track_caller]
    pub fn run_with_keys(&mut self, command: &str, keys: &[(&str, &str)]) {
        option_usage::record_shell(command);
        self.start = self.terminal.bytes().len();
        self.terminal.press(&format!("{command}\n"));
        let mut pressed = self.start;
        for (text, keys) in keys {
            let shown = || String::from_utf8_lossy(&self.terminal.bytes()[pressed..]).contains(text);
            wait::until(seconds(60), &format!("`{command}` shows {text:?}"), shown);
            // The rest of the frame that has the text.
            std::thread::sleep(Duration::from_millis(60));
            writeln!(
                self.transcript,
                "$ {command}\n{}\n--- the keys {keys:?} are pressed",
                stable(&self.screen())
            )
            .expect("a string");
            pressed = self.terminal.bytes().len();
            self.terminal.press(keys);
        }
        let code = self.ended();
        let screen = stable(&self.screen());
        let code = if code == "0" { String::new() } else { format!("--- exit code {code}\n") };
        let separator = if screen.is_empty() { "" } else { "\n" };
        writeln!(self.transcript, "$ {command}\n{screen}{separator}{code}").expect("a string");
    }

    /// Waits for the prompt, and returns the exit code in it.
    #[track_caller]
    fn ended(&mut self) -> String {
        let code = wait::poll(seconds(120), || {
            let bytes = self.terminal.bytes();
            let text = String::from_utf8_lossy(&bytes[self.start..]).into_owned();
            let mut parts = text.rsplit(PROMPT);
            let rest = parts.next()?;
            let code = parts.next()?;
            (rest.is_empty() && text.contains(PROMPT)).then(|| code.to_owned())
        });
        code.unwrap_or_else(|| panic!("no prompt after {:?}", self.screen()))
    }

    /// Returns the screen as a person sees it since the command was typed, without the prompt.
    fn screen(&self) -> String {
        let mut emulator = vt100::Parser::new(ROWS, COLUMNS, 0);
        let bytes = self.terminal.bytes();
        let shown = &bytes[self.start..];
        let end = shown.iter().position(|byte| PROMPT.as_bytes()[0] == *byte).unwrap_or(shown.len());
        emulator.process(&shown[..end]);
        let rows = emulator.screen().rows(0, COLUMNS.get());
        rows.map(|row| row.trim_end().to_owned()).collect::<Vec<_>>().join("\n").trim_end().to_owned()
    }

    /// Returns the transcript since the last call.
    pub fn take_transcript(&mut self) -> String {
        std::mem::take(&mut self.transcript)
    }
}

/// Replaces values that differ between runs (ids, digests, times, sizes, addresses) by values of the same kind.
fn stable(transcript: &str) -> String {
    let kinds = [
        (r"(sha256|blake3):[0-9a-f]{6,64}\b", "$1:DIGEST"),
        (r"/tmp/hearth-[A-Za-z0-9]+", "/tmp"),
        (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?", "2026-01-01 00:00:00"),
        (r":\d{5}/", ":PORT/"),
        (r"\b127\.0\.0\.1:\d+", "127.0.0.1:PORT"),
        (r"\b10\.\d+\.\d+\.\d+", "10.0.0.1"),
        (r"\b\d+[smhd] ago", "1s ago"),
        (r"\b(\d+h ?)?(\d+m ?)?\d+(\.\d+)? ?(ms|s)\b", "0.0s"),
        (r" {2,}0\.0s", "  0.0s"),
        (r"0\.0s ago {2,}", "0.0s ago  "),
        (r"(?u:[\u{2801}-\u{28ff}])", "*"),
        (r"\(\d+ times\)", "(9 times)"),
        (r"#\d+ ", "#0 "),
        (r"\b\d+ of \d+ steps from the cache", "some of the steps from the cache"),
        // A step that needed no time may be reported or not.
        (r" [+-] #0 \[1/\d\] FROM busybox(?u:[^\n]*)\n", ""),
        // Whether the first probe comes before the app listens depends on the machine.
        (r"    http://10\.0\.0\.1:8000/nope refused the connection\n", ""),
        (r"eyJ[A-Za-z0-9_.-]+", "TOKEN"),
    ];
    let mut text = transcript.to_owned();
    for (kind, value) in kinds {
        let kind = Regex::new(&format!("(?-u){kind}")).expect("a pattern");
        text = kind.replace_all(&text, value).into_owned();
    }
    // The sizes of a column keep their width; those of a line do not.
    let line = Regex::new(r"(?m)^disk: [^\n]*$").expect("a pattern");
    text = line.replace_all(&text, "disk: SIZES").into_owned();
    let size = Regex::new(r"(?-u)\b\d+(\.\d+)? +(B|kB|MB|GB)\b").expect("a pattern");
    let zeros = |found: &regex::Captures<'_>| found[0].replace(|c: char| c.is_ascii_digit(), "0");
    text = size.replace_all(&text, zeros).into_owned();
    // An id has twelve letters and digits, mostly both.
    let known = r"(?m)((?:build|logs|instance|build:|service) +|[(`]|^)([0-9a-z]{12})([)` ]|$)";
    text = Regex::new(known).expect("a pattern").replace_all(&text, "${1}ID__________$3").into_owned();
    let id = Regex::new(r"(?-u)\b[0-9a-z]{12}\b").expect("a pattern");
    let masked = |found: &regex::Captures<'_>| match found[0].contains(|c: char| c.is_ascii_digit()) {
        true => "ID__________".to_owned(),
        false => found[0].to_owned(),
    };
    id.replace_all(&text, masked).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_differ_between_runs_are_replaced() {
        let text = "build zyjjkjkjejsg (hearth builds logs zyjjkjkjejsg)\nr5s0rmcx71hz took 1.2s, 12ms and 1m 3s; 1.07 MB at 127.0.0.1:41015 repositories";
        assert_eq!(
            stable(text),
            "build ID__________ (hearth builds logs ID__________)\nID__________ took 0.0s, 0.0s and 0.0s; 0.00 MB at 127.0.0.1:PORT repositories"
        );
    }
}
