//! Plain progress, for logs and pipes:
//!
//! ```text
//! #3 [2/3] RUN make
//! #3 0.412 cc main.c
//! #3 0.501 ! warning: unused variable
//! #3 DONE 1.2s
//! ```
//!
//! The error of a failed step is that of the build, which the command prints at its end.

use std::collections::BTreeMap;
use std::io::Write;

use hearth_proto::v1::build_event::Event;
use hearth_proto::v1::{BuildEvent, BuildState, StepFinished, StepProgress};
use jiff::Timestamp;

use super::steps::{BuildSteps, PREPARATION, PREPARING, StepEnd, progress_text};
use super::{BuildRenderer, StepLineBuffer, StepLogLine};
use crate::{duration, output};

/// Minimum time between two reports of a transfer, in milliseconds.
const TRANSFER_EVERY_MS: i64 = 5000;

pub struct PlainBuildRenderer<W> {
    out: W,
    lines: StepLineBuffer,
    known: BuildSteps,
    steps: BTreeMap<u32, ShownStep>,
    /// Step of the last printed line; an empty line separates the output of another step.
    last_step: Option<u32>,
}

/// State of a step as far as it was shown.
#[derive(Default)]
struct ShownStep {
    name: String,
    started: Option<Timestamp>,
    transfer_shown: Option<Timestamp>,
    /// True when the end was shown, and nothing since: BuildKit ends and restarts a step for each part of its
    /// work.
    ended: bool,
}

impl<W: Write + Send> PlainBuildRenderer<W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            lines: StepLineBuffer::default(),
            known: BuildSteps::default(),
            steps: BTreeMap::new(),
            last_step: None,
        }
    }

    fn line(&mut self, step: u32, text: &str) {
        // A write error on standard error does not stop the build.
        let label = if step == PREPARATION { format!("{PREPARING}:") } else { format!("#{step}") };
        if self.last_step != Some(step) {
            let name = self.steps.get(&step).map_or("", |step| &step.name);
            let gap = if self.last_step.is_none_or(|last| last == PREPARATION) { "" } else { "\n" };
            if step != PREPARATION {
                let _ = writeln!(self.out, "{gap}{label} {name}");
            } else if text.is_empty() {
                let _ = writeln!(self.out, "{gap}{name}");
            } else {
                let _ = write!(self.out, "{gap}");
            }
            self.last_step = Some(step);
        }
        if !text.is_empty() {
            let _ = writeln!(self.out, "{label} {text}");
            self.steps.entry(step).or_default().ended = false;
        }
    }

    fn log(&mut self, step: u32, lines: Vec<StepLogLine>, at: Option<Timestamp>) {
        let since = self.since(step, at);
        for line in lines {
            let mark = if line.stderr { "! " } else { "" };
            self.line(step, format!("{since:.3} {mark}{}", line.text).trim_end());
        }
    }

    fn since(&self, step: u32, at: Option<Timestamp>) -> f64 {
        let started = self.steps.get(&step).and_then(|step| step.started);
        started.zip(at).map_or(0.0, |(started, at)| at.duration_since(started).as_secs_f64().max(0.0))
    }

    fn transfer(&mut self, progress: &StepProgress, at: Option<Timestamp>) {
        let number = self.known.shown(progress.step);
        let step = self.steps.entry(number).or_default();
        let complete = progress.total > 0 && progress.current >= progress.total;
        let due = match (step.transfer_shown.or(step.started), at) {
            (Some(last), Some(at)) => at.as_millisecond() - last.as_millisecond() >= TRANSFER_EVERY_MS,
            _ => false,
        };
        // A short transfer of a step that is none of the Dockerfile's is not worth a line.
        let is_worth_a_line = due || (complete && number != PREPARATION);
        if !is_worth_a_line {
            return;
        }
        step.transfer_shown = at;
        let text = progress_text(progress);
        self.line(number, &text);
    }

    fn finished(&mut self, step: &StepFinished, at: Option<Timestamp>) {
        let number = self.known.shown(step.step);
        let rest = self.lines.finish(step.step);
        self.log(number, rest, at);
        let took = duration::format_short(step.duration.map(duration::from_wire).unwrap_or_default());
        let end = self.known.finish(step);
        let text = match end {
            StepEnd::Done => format!("DONE {took}"),
            StepEnd::Cached => "CACHED".to_owned(),
            StepEnd::Failed => format!("FAILED {took}"),
            StepEnd::Stopped => format!("STOPPED {took}"),
        };
        let ended = self.steps.get(&number).is_some_and(|step| step.ended);
        let is_known = ended && end == StepEnd::Done;
        let is_quiet = number == PREPARATION && end != StepEnd::Failed;
        if !(is_known || is_quiet) {
            self.line(number, &text);
        }
        self.steps.entry(number).or_default().ended = true;
    }
}

impl<W: Write + Send> BuildRenderer for PlainBuildRenderer<W> {
    fn event(&mut self, event: &BuildEvent) {
        let at = output::timestamp(event.time.as_ref());
        match &event.event {
            Some(Event::StateChanged(state)) if *state == i32::from(BuildState::Queued) => {
                self.note("queued");
            }
            Some(Event::StepStarted(step)) => {
                let (number, name) = self.known.start(step.step, &step.name);
                let known = self.steps.entry(number).or_default();
                let again = !known.name.is_empty();
                (known.name, known.started) = (name, at);
                if !again {
                    self.line(number, "");
                }
            }
            Some(Event::StepLog(log)) => {
                if log.dropped_bytes > 0 {
                    let gap = format!(
                        "({} of log left out: the build's quota is used up)",
                        output::size(log.dropped_bytes)
                    );
                    self.line(self.known.shown(log.step), &gap);
                }
                let lines = self.lines.push(log);
                self.log(self.known.shown(log.step), lines, at);
            }
            Some(Event::StepProgress(progress)) => self.transfer(progress, at),
            Some(Event::StepFinished(step)) => self.finished(step, at),
            Some(Event::Warning(warning)) => self.note(&warning_text(warning)),
            Some(Event::Finished(build)) => {
                for (step, line) in self.lines.finish_all() {
                    self.log(self.known.shown(step), vec![line], at);
                }
                for (step, error) in self.known.other_errors(build) {
                    self.line(step, &format!("ERROR: {error}"));
                }
            }
            Some(Event::StateChanged(_)) | None => {}
        }
    }

    fn note(&mut self, text: &str) {
        let _ = writeln!(self.out, "{text}");
    }

    fn clear(&mut self) {
        let _ = self.out.flush();
    }

    fn shows_log_of(&self, _step: &str) -> bool {
        true
    }
}

/// Formats a warning: `warning: message (path:line, url)`.
pub(super) fn warning_text(warning: &hearth_proto::v1::BuildWarning) -> String {
    let place = warning.dockerfile.as_ref().map(|range| format!("{}:{}", range.path, range.start_line));
    let url = Some(warning.url.clone()).filter(|url| !url.is_empty());
    let places: Vec<String> = place.into_iter().chain(url).collect();
    let places = if places.is_empty() { String::new() } else { format!(" ({})", places.join(", ")) };
    format!("warning: {}{}", output::printable(&warning.message), output::printable(&places))
}

#[cfg(test)]
mod tests;
