//! Progress that updates in place: a line for each running step with its time, and its last lines below
//! it. Ended steps stay above as one line each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hearth_proto::v1::build_event::Event;
use hearth_proto::v1::{BuildEvent, BuildState, StepFinished, StepProgress};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::plain::warning_text;
use super::steps::{BuildSteps, PREPARATION, StepEnd, has_parts, progress_text};
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
    known: BuildSteps,
    /// Running steps, by the number under which they are shown.
    running: BTreeMap<u32, RunningStep>,
    /// Line of a build that waits.
    queue: Option<ProgressBar>,
    /// Steps whose line is printed when the next one starts, since they may start again: how they ended, and how long
    /// their parts took.
    held_back: BTreeMap<u32, (String, StepEnd, Duration)>,
    /// Numbers of the steps that failed, whose lines stay visible.
    failed: BTreeSet<u32>,
    /// True when steps that succeeded leave no line.
    brief: bool,
}

struct RunningStep {
    name: String,
    /// Number of BuildKit's steps that run under this number; more than one for the preparation.
    count: usize,
    head: ProgressBar,
    tail: ProgressBar,
    kept_lines: VecDeque<String>,
}

impl TerminalBuildRenderer {
    pub fn new(brief: bool) -> Self {
        Self {
            screen: MultiProgress::new(),
            lines: StepLineBuffer::default(),
            known: BuildSteps::default(),
            running: BTreeMap::new(),
            queue: None,
            held_back: BTreeMap::new(),
            failed: BTreeSet::new(),
            brief,
        }
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
        let (number, name) = self.known.start(step, name);
        if let Some(running) = self.running.get_mut(&number) {
            running.count += 1;
            return;
        }
        let is_new = number != PREPARATION && !self.held_back.contains_key(&number);
        if is_new {
            self.print_held_back();
        }
        let head = self.screen.add(ProgressBar::no_length().with_style(head_style()));
        head.set_message(labeled(number, &name));
        head.enable_steady_tick(Duration::from_millis(100));
        let tail = self.screen.insert_after(&head, ProgressBar::no_length().with_style(tail_style()));
        self.running.insert(number, RunningStep { name, count: 1, head, tail, kept_lines: VecDeque::new() });
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
        if let Some(running) = self.running.get(&self.known.shown(at.step)) {
            let text = format!("     {}", progress_text(at));
            running.tail.set_message(text);
            running.tail.tick();
        }
    }

    fn finish(&mut self, step: &StepFinished) {
        let number = self.known.shown(step.step);
        let rest = self.lines.finish(step.step);
        self.log(number, rest);
        let end = self.known.finish(step);
        let Some(running) = self.running.get_mut(&number) else { return };
        running.count = running.count.saturating_sub(1);
        if running.count > 0 && end != StepEnd::Failed {
            return;
        }
        let Some(running) = self.running.remove(&number) else { return };
        running.tail.finish_and_clear();
        running.head.finish_and_clear();
        if end != StepEnd::Failed && (self.brief || number == PREPARATION) {
            return;
        }
        let took = step.duration.map(duration::from_wire).unwrap_or_default();
        if end != StepEnd::Failed && has_parts(&running.name) {
            let held = self.held_back.entry(number).or_insert((running.name, end, Duration::ZERO));
            (held.1, held.2) = (end, held.2 + took);
            return;
        }
        self.print_held_back();
        self.print(&ended_line(number, &running.name, end, took));
        if end == StepEnd::Failed {
            running.kept_lines.iter().for_each(|line| self.print(&format!("     {line}")));
            self.failed.insert(number);
        }
    }

    fn print_held_back(&mut self) {
        for (number, (name, end, took)) in std::mem::take(&mut self.held_back) {
            self.print(&ended_line(number, &name, end, took));
        }
    }

    /// Removes what still runs from the terminal.
    fn end(&mut self) {
        for running in self.running.values() {
            running.tail.finish_and_clear();
            running.head.finish_and_clear();
        }
        self.running.clear();
        if let Some(queue) = self.queue.take() {
            queue.finish_and_clear();
        }
        self.print_held_back();
    }
}

impl BuildRenderer for TerminalBuildRenderer {
    fn event(&mut self, event: &BuildEvent) {
        match &event.event {
            Some(Event::StateChanged(state)) => {
                let is_queued = *state == i32::from(BuildState::Queued);
                if is_queued {
                    self.queued("queued");
                } else if let Some(queue) = self.queue.take() {
                    queue.finish_and_clear();
                }
            }
            Some(Event::StepStarted(step)) => self.start(step.step, &step.name),
            Some(Event::StepLog(log)) => {
                let lines = self.lines.push(log);
                self.log(self.known.shown(log.step), lines);
            }
            Some(Event::StepProgress(progress)) => self.transfer(progress),
            Some(Event::StepFinished(step)) => self.finish(step),
            Some(Event::Warning(warning)) => self.print(&warning_text(warning)),
            Some(Event::Finished(build)) => {
                self.end();
                for (step, error) in self.known.other_errors(build) {
                    self.print(&format!(" x {}", labeled(step, &error)));
                }
            }
            None => {}
        }
    }

    fn note(&mut self, text: &str) {
        self.print(text);
    }

    fn queued(&mut self, place: &str) {
        let screen = &self.screen;
        let line = self.queue.get_or_insert_with(|| {
            let line = screen.add(ProgressBar::no_length().with_style(head_style()));
            line.enable_steady_tick(Duration::from_millis(100));
            line
        });
        line.set_message(place.to_owned());
    }

    fn clear(&mut self) {
        let _ = self.screen.clear();
        self.screen.set_draw_target(ProgressDrawTarget::hidden());
    }

    fn resume(&mut self) {
        self.screen.set_draw_target(ProgressDrawTarget::stderr());
    }

    fn shows_log_of(&self, step: &str) -> bool {
        self.known.number(step).is_some_and(|number| self.failed.contains(&number))
    }
}

fn ended_line(number: u32, name: &str, end: StepEnd, took: Duration) -> String {
    let took = duration::format_short(took);
    let (mark, end) = match end {
        StepEnd::Done => ("+", took.as_str()),
        StepEnd::Cached => ("-", "CACHED"),
        StepEnd::Failed => ("x", took.as_str()),
        StepEnd::Stopped => ("x", "STOPPED"),
    };
    format!(" {mark} {}  {end}", labeled(number, name))
}

/// Puts the number of a step before a text. The preparation has none.
fn labeled(number: u32, text: &str) -> String {
    if number == PREPARATION { text.to_owned() } else { format!("#{number} {text}") }
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
        let line = |number, end| ended_line(number, "RUN make", end, Duration::from_millis(1200));
        assert_eq!(line(3, StepEnd::Done), " + #3 RUN make  1.2s");
        assert_eq!(line(3, StepEnd::Cached), " - #3 RUN make  CACHED");
        assert_eq!(line(3, StepEnd::Failed), " x #3 RUN make  1.2s");
        assert_eq!(line(3, StepEnd::Stopped), " x #3 RUN make  STOPPED");
        assert_eq!(line(PREPARATION, StepEnd::Failed), " x RUN make  1.2s");
    }

    #[test]
    fn the_templates_are_valid() {
        for text in [" {spinner} {wide_msg} {time}", "{msg:.dim}"] {
            assert!(ProgressStyle::with_template(text).is_ok());
        }
    }
}
