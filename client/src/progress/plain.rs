//! Plain progress, for logs and pipes:
//!
//! ```text
//! #3 [2/3] RUN make
//! #3 0.412 cc main.c
//! #3 0.501 ! warning: unused variable
//! #3 DONE 1.2s
//! ```

use std::collections::BTreeMap;
use std::io::Write;

use hearth_proto::v1::build_event::Event;
use hearth_proto::v1::{BuildEvent, BuildState, StepFinished, StepProgress};
use jiff::Timestamp;

use super::{BuildRenderer, StepLineBuffer, StepLogLine};
use crate::{duration, output};

/// Minimum time between two reports of a transfer, in milliseconds.
const TRANSFER_EVERY_MS: i64 = 5000;

pub struct PlainBuildRenderer<W> {
    out: W,
    lines: StepLineBuffer,
    steps: BTreeMap<u32, ShownStep>,
    /// Step of the last printed line; an empty line separates the output of another step.
    last_step: u32,
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
        Self { out, lines: StepLineBuffer::default(), steps: BTreeMap::new(), last_step: 0 }
    }

    fn line(&mut self, step: u32, text: &str) {
        // A write error on standard error does not stop the build.
        if step != self.last_step {
            let name = self.steps.get(&step).map_or("", |step| &step.name);
            let gap = if self.last_step == 0 { "" } else { "\n" };
            let _ = writeln!(self.out, "{gap}#{step} {name}");
            self.last_step = step;
        }
        if !text.is_empty() {
            let _ = writeln!(self.out, "#{step} {text}");
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
        let step = self.steps.entry(progress.step).or_default();
        let complete = progress.total > 0 && progress.current >= progress.total;
        let due = match (step.transfer_shown.or(step.started), at) {
            (Some(last), Some(at)) => at.as_millisecond() - last.as_millisecond() >= TRANSFER_EVERY_MS,
            _ => false,
        };
        if !complete && !due {
            return;
        }
        step.transfer_shown = at;
        let of =
            if progress.total > 0 { format!(" / {}", output::size(progress.total)) } else { String::new() };
        let text = format!("{}: {}{of}", output::printable(&progress.name), output::size(progress.current));
        self.line(progress.step, &text);
    }

    fn finished(&mut self, step: &StepFinished, at: Option<Timestamp>) {
        let rest = self.lines.finish(step.step);
        self.log(step.step, rest, at);
        let took = duration::format_short(step.duration.map(duration::from_wire).unwrap_or_default());
        let end = match (step.cached, step.error.is_empty()) {
            (_, false) => format!("ERROR: {}", output::printable(&step.error)),
            (true, _) => "CACHED".to_owned(),
            (false, _) => format!("DONE {took}"),
        };
        let ended = self.steps.get(&step.step).is_some_and(|step| step.ended);
        if !ended || step.cached || !step.error.is_empty() {
            self.line(step.step, &end);
        }
        self.steps.entry(step.step).or_default().ended = true;
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
                let known = self.steps.entry(step.step).or_default();
                let again = !known.name.is_empty();
                (known.name, known.started) = (output::printable(&step.name), at);
                if !again {
                    self.line(step.step, "");
                }
            }
            Some(Event::StepLog(log)) => {
                if log.dropped_bytes > 0 {
                    let gap = format!(
                        "({} of log left out: the build's quota is used up)",
                        output::size(log.dropped_bytes)
                    );
                    self.line(log.step, &gap);
                }
                let lines = self.lines.push(log);
                self.log(log.step, lines, at);
            }
            Some(Event::StepProgress(progress)) => self.transfer(progress, at),
            Some(Event::StepFinished(step)) => self.finished(step, at),
            Some(Event::Warning(warning)) => self.note(&warning_text(warning)),
            Some(Event::Finished(_)) => {
                for (step, line) in self.lines.finish_all() {
                    self.log(step, vec![line], at);
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

    fn shows_whole_log(&self) -> bool {
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
