//! Progress that updates in place: a line for each running step with its time, and its last lines below
//! it. Ended steps stay above as one line each.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hearth_proto::v1::build_event::Event;
use hearth_proto::v1::{BuildEvent, BuildState, StepFinished, StepProgress};
use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use super::plain::warning_text;
use super::{BuildRenderer, StepLineBuffer, StepLogLine};
use crate::{duration, output};

/// Number of output lines below a running step.
const LIVE_LINES: usize = 4;
/// Number of output lines that are kept of each running step, for the case that it fails.
const KEPT_LINES: usize = 50;
/// Maximum width of a live line in characters; longer lines are cut, so that they do not wrap.
pub(super) const MAX_LIVE_LINE_WIDTH: usize = 100;

pub struct TerminalBuildRenderer {
    screen: MultiProgress,
    lines: StepLineBuffer,
    running: BTreeMap<u32, RunningStep>,
    /// True when steps that succeeded leave no line.
    brief: bool,
}

struct RunningStep {
    name: String,
    head: ProgressBar,
    tail: ProgressBar,
    kept_lines: VecDeque<String>,
}

impl TerminalBuildRenderer {
    pub fn new(brief: bool) -> Self {
        let screen = MultiProgress::new();
        Self { screen, lines: StepLineBuffer::default(), running: BTreeMap::new(), brief }
    }

    /// Prints a line that stays. Without a terminal it goes to standard error.
    fn print(&self, text: &str) {
        if self.screen.is_hidden() {
            output::note(text);
        } else {
            let _ = self.screen.println(text);
        }
    }

    fn start(&mut self, step: u32, name: &str) {
        let name = output::printable(name);
        let head = self.screen.add(ProgressBar::no_length().with_style(head_style()));
        head.set_message(format!("#{step} {name}"));
        head.enable_steady_tick(Duration::from_millis(100));
        let tail = self.screen.insert_after(&head, ProgressBar::no_length().with_style(tail_style()));
        self.running.insert(step, RunningStep { name, head, tail, kept_lines: VecDeque::new() });
    }

    fn log(&mut self, step: u32, lines: Vec<StepLogLine>) {
        let Some(running) = self.running.get_mut(&step) else { return };
        for line in lines {
            if running.kept_lines.len() == KEPT_LINES {
                running.kept_lines.pop_front();
            }
            running.kept_lines.push_back(line.text);
        }
        let live = running.kept_lines.iter().skip(running.kept_lines.len().saturating_sub(LIVE_LINES));
        let live: Vec<String> = live
            .map(|line| format!("     {}", line.chars().take(MAX_LIVE_LINE_WIDTH).collect::<String>()))
            .collect();
        running.tail.set_message(live.join("\n"));
        running.tail.tick();
    }

    fn transfer(&mut self, at: &StepProgress) {
        if let Some(running) = self.running.get(&at.step) {
            let of = if at.total > 0 { format!(" / {}", output::size(at.total)) } else { String::new() };
            let text = format!("     {}: {}{of}", output::printable(&at.name), output::size(at.current));
            running.tail.set_message(text);
            running.tail.tick();
        }
    }

    fn finish(&mut self, step: &StepFinished) {
        let rest = self.lines.finish(step.step);
        self.log(step.step, rest);
        let Some(running) = self.running.remove(&step.step) else { return };
        running.tail.finish_and_clear();
        running.head.finish_and_clear();
        if self.brief && step.error.is_empty() {
            return;
        }
        let took = duration::format_short(step.duration.map(duration::from_wire).unwrap_or_default());
        self.print(&ended_line(step, &running.name, &took));
        if !step.error.is_empty() {
            running.kept_lines.iter().for_each(|line| self.print(&format!("     {line}")));
            self.print(&format!("     {}", output::printable(&step.error)));
        }
    }
}

impl BuildRenderer for TerminalBuildRenderer {
    fn event(&mut self, event: &BuildEvent) {
        match &event.event {
            Some(Event::StateChanged(state)) if *state == i32::from(BuildState::Queued) => {
                self.print("queued");
            }
            Some(Event::StepStarted(step)) => self.start(step.step, &step.name),
            Some(Event::StepLog(log)) => {
                let lines = self.lines.push(log);
                self.log(log.step, lines);
            }
            Some(Event::StepProgress(progress)) => self.transfer(progress),
            Some(Event::StepFinished(step)) => self.finish(step),
            Some(Event::Warning(warning)) => self.print(&warning_text(warning)),
            Some(Event::Finished(_)) => self.clear(),
            Some(Event::StateChanged(_)) | None => {}
        }
    }

    fn note(&mut self, text: &str) {
        self.print(text);
    }

    fn clear(&mut self) {
        for running in self.running.values() {
            running.tail.finish_and_clear();
            running.head.finish_and_clear();
        }
        self.running.clear();
    }

    fn shows_whole_log(&self) -> bool {
        false
    }
}

fn ended_line(step: &StepFinished, name: &str, took: &str) -> String {
    let (mark, end) = match (step.error.is_empty(), step.cached) {
        (false, _) => ("x", took),
        (true, true) => ("-", "CACHED"),
        (true, false) => ("+", took),
    };
    format!(" {mark} #{} {name}  {end}", step.step)
}

pub(super) fn head_style() -> ProgressStyle {
    let time = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = out.write_str(&duration::format_short(state.elapsed()));
    };
    template(" {spinner} {wide_msg} {time}").with_key("time", time)
}

pub(super) fn tail_style() -> ProgressStyle {
    template("{msg:.dim}")
}

fn template(text: &str) -> ProgressStyle {
    // The templates are constants of this file.
    ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_step_says_how_it_ended() {
        let step =
            |cached, error: &str| StepFinished { step: 3, cached, duration: None, error: error.into() };
        assert_eq!(ended_line(&step(false, ""), "RUN make", "1.2s"), " + #3 RUN make  1.2s");
        assert_eq!(ended_line(&step(true, ""), "RUN make", "0.0s"), " - #3 RUN make  CACHED");
        assert_eq!(ended_line(&step(false, "exit code 1"), "RUN make", "1.2s"), " x #3 RUN make  1.2s");
    }

    #[test]
    fn the_templates_are_valid() {
        for text in [" {spinner} {wide_msg} {time}", "{msg:.dim}"] {
            assert!(ProgressStyle::with_template(text).is_ok());
        }
    }
}
