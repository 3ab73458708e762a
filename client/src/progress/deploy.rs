//! Display of the events of a deploy on standard error, in the same three forms as for builds.
//!
//! An action without an end event of its own ends when the next action starts; it has failed if that marks the revision
//! as failed.

mod json;
mod plain;
mod terminal;

use std::time::Duration;

use hearth_proto::v1::{DeployAction, DeployActionKind, DeployEvent, LogLine, LogStream};
use jiff::Timestamp;

pub use json::JsonDeployRenderer;
pub(crate) use json::{action_json, log_line_json as log_line, probe_json};
pub use plain::PlainDeployRenderer;
pub use terminal::TerminalDeployRenderer;

use super::ProgressMode;
use crate::output;

/// Displays the events of one deploy.
pub trait DeployRenderer: Send {
    fn event(&mut self, event: &DeployEvent);
    /// Shows a message between events.
    fn note(&mut self, text: &str);
    /// Removes the parts that update in place from the terminal.
    fn clear(&mut self);
    /// True when these last lines of the service's log were shown and stay visible.
    fn shows_log(&self, tail: &[String]) -> bool;
    /// True when the results of all probes were shown and stay visible.
    fn shows_probes(&self) -> bool {
        false
    }
}

impl ProgressMode {
    /// Creates the renderer. `service` is the label of the service's log lines. On a terminal, a brief one shows
    /// actions only while they run and when they fail.
    pub fn deploy_renderer(self, service: &str, brief: bool) -> Box<dyn DeployRenderer> {
        match self {
            Self::Auto if output::is_live_terminal() => Box::new(TerminalDeployRenderer::new(brief)),
            Self::Tty => Box::new(TerminalDeployRenderer::new(brief)),
            Self::Auto | Self::Plain => Box::new(PlainDeployRenderer::new(std::io::stderr(), service)),
            Self::Json => Box::new(JsonDeployRenderer::new(std::io::stderr())),
        }
    }
}

/// Tracks the running action, and numbers actions from 1.
#[derive(Default)]
struct ActionTracker {
    count: u32,
    current: Option<RunningAction>,
}

struct RunningAction {
    number: u32,
    text: String,
    since: Option<Timestamp>,
}

/// An action that has ended.
#[derive(Debug, PartialEq, Eq)]
struct FinishedAction {
    number: u32,
    text: String,
    took: Duration,
}

impl ActionTracker {
    /// Starts the next action. Returns its number, and the action that this ends.
    fn begin(&mut self, text: &str, at: Option<Timestamp>) -> (u32, Option<FinishedAction>) {
        let over = self.end(at);
        self.count += 1;
        self.current = Some(RunningAction { number: self.count, text: output::printable(text), since: at });
        (self.count, over)
    }

    fn end(&mut self, at: Option<Timestamp>) -> Option<FinishedAction> {
        let RunningAction { number, text, since } = self.current.take()?;
        Some(FinishedAction { number, text, took: elapsed_between(since, at) })
    }

    /// Ends the current action if it has this text.
    fn end_if_current(&mut self, text: &str, took: Duration) -> Option<FinishedAction> {
        let RunningAction { number, text, .. } =
            self.current.take_if(|current| current.text == output::printable(text))?;
        Some(FinishedAction { number, text, took })
    }
}

/// Reports whether the start of this action means that the one before has failed.
fn is_failure(action: &DeployAction) -> bool {
    action.kind() == DeployActionKind::MarkFailed
}

fn elapsed_between(since: Option<Timestamp>, until: Option<Timestamp>) -> Duration {
    let span = since.zip(until).map(|(since, until)| until.duration_since(since));
    span.and_then(|span| Duration::try_from(span).ok()).unwrap_or_default()
}

/// Formats a line of the service's log for a terminal. A gap before the line is reported as a line of
/// its own.
fn log_lines(line: &LogLine) -> Vec<String> {
    let gap =
        (line.dropped_bytes > 0).then(|| format!("({} of log left out)", output::size(line.dropped_bytes)));
    let mark = if line.stream() == LogStream::Stderr { "! " } else { "" };
    let text = output::printable(&String::from_utf8_lossy(&line.text));
    gap.into_iter().chain([format!("{mark}{text}")]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_ends_with_its_own_end_or_with_the_next() {
        let at = |milliseconds| Timestamp::from_millisecond(milliseconds).ok();
        let mut actions = ActionTracker::default();
        assert_eq!(actions.begin("start", at(0)), (1, None));
        assert_eq!(actions.end_if_current("another", Duration::ZERO), None);
        let took = Duration::from_millis(70);
        assert_eq!(
            actions.end_if_current("start", took),
            Some(FinishedAction { number: 1, text: "start".into(), took })
        );
        assert_eq!(actions.begin("wait", at(100)), (2, None));
        let (number, over) = actions.begin("route", at(350));
        let took = Duration::from_millis(250);
        assert_eq!((number, over), (3, Some(FinishedAction { number: 2, text: "wait".into(), took })));
        assert_eq!(actions.end(at(350)).map(|over| over.number), Some(3));
        assert_eq!(actions.end(at(400)), None);
    }

    #[test]
    fn a_log_line_says_its_stream_and_what_is_missing_and_moves_no_cursor() {
        let line = LogLine {
            stream: LogStream::Stderr.into(),
            text: "\u{1b}[2Jboom".into(),
            dropped_bytes: 2000,
            ..LogLine::default()
        };
        assert_eq!(log_lines(&line), ["(2.00 kB of log left out)", "! \\u{1b}[2Jboom"]);
    }
}
