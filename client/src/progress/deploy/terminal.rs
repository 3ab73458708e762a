//! Progress that updates in place: the running action with its time, and below it the last probe and
//! the last lines of the service's log. Ended actions stay above as one line each.

use std::collections::VecDeque;
use std::time::Duration;

use hearth_proto::v1::DeployEvent;
use hearth_proto::v1::deploy_event::Event;
use indicatif::{MultiProgress, ProgressBar};

use super::{ActionTracker, DeployRenderer, FinishedAction, is_failure, log_lines};
use crate::progress::terminal::{MAX_LIVE_LINE_WIDTH, head_style, tail_style};
use crate::{duration, output};

/// Number of log lines that are shown.
const LIVE_LINES: usize = 6;

pub struct TerminalDeployRenderer {
    screen: MultiProgress,
    actions: ActionTracker,
    head: Option<ProgressBar>,
    tail: ProgressBar,
    probe: String,
    lines: VecDeque<String>,
    /// True when actions that succeeded leave no line.
    brief: bool,
}

impl TerminalDeployRenderer {
    pub fn new(brief: bool) -> Self {
        let screen = MultiProgress::new();
        let tail = screen.add(ProgressBar::no_length().with_style(tail_style()));
        Self {
            screen,
            actions: ActionTracker::default(),
            head: None,
            tail,
            probe: String::new(),
            lines: VecDeque::new(),
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

    fn over(&mut self, over: Option<FinishedAction>, mark: &str, error: &str) {
        let Some(FinishedAction { number, text, took }) = over else { return };
        if let Some(head) = self.head.take() {
            head.finish_and_clear();
        }
        if self.brief && mark == "+" {
            return;
        }
        self.print(&format!(" {mark} #{number} {text}  {}", duration::format_short(took)));
        if !error.is_empty() {
            self.print(&format!("     {}", output::printable(error)));
        }
    }

    fn show_tail(&mut self) {
        let cut = |line: &String| line.chars().take(MAX_LIVE_LINE_WIDTH).collect::<String>();
        let probe = Some(&self.probe).filter(|probe| !probe.is_empty());
        let lines = probe.into_iter().map(|probe| format!("     {}", cut(probe)));
        let lines: Vec<String> =
            lines.chain(self.lines.iter().map(|line| format!("     | {}", cut(line)))).collect();
        self.tail.set_message(lines.join("\n"));
        self.tail.tick();
    }
}

impl DeployRenderer for TerminalDeployRenderer {
    fn event(&mut self, event: &DeployEvent) {
        let at = output::timestamp(event.time.as_ref());
        match &event.event {
            Some(Event::ActionStarted(action)) => {
                let (number, over) = self.actions.begin(&action.text, at);
                self.over(over, if is_failure(action) { "x" } else { "+" }, "");
                let head = ProgressBar::no_length().with_style(head_style());
                let head = self.screen.insert_before(&self.tail, head);
                head.set_message(format!("#{number} {}", output::printable(&action.text)));
                head.enable_steady_tick(Duration::from_millis(100));
                self.head = Some(head);
                self.probe.clear();
                self.show_tail();
            }
            Some(Event::ActionEnded(ended)) => {
                let text = ended.action.as_ref().map_or("", |action| action.text.as_str());
                let took = ended.took.map(duration::from_wire).unwrap_or_default();
                let over = self.actions.end_if_current(text, took);
                self.over(over, if ended.error.is_empty() { "+" } else { "x" }, &ended.error);
            }
            Some(Event::Probed(probe)) => {
                self.probe = output::printable(&probe.text);
                self.show_tail();
            }
            Some(Event::Log(log)) => {
                self.lines.extend(log.line.iter().flat_map(log_lines));
                let excess = self.lines.len().saturating_sub(LIVE_LINES);
                self.lines.drain(..excess);
                self.show_tail();
            }
            Some(Event::Trouble(trouble)) => {
                self.print(&format!("trouble: {}", output::printable(&trouble.message)));
            }
            Some(Event::Live(_)) => {
                let over = self.actions.end(at);
                self.over(over, "+", "");
                self.clear();
            }
            // The error is the command's own.
            Some(Event::Failed(_) | Event::Superseded(_)) => {
                let over = self.actions.end(at);
                self.over(over, "x", "");
                self.clear();
            }
            Some(Event::Part(_) | Event::Skipped(_)) | None => {}
        }
    }

    fn note(&mut self, text: &str) {
        self.print(text);
    }

    fn clear(&mut self) {
        if let Some(head) = self.head.take() {
            head.finish_and_clear();
        }
        self.tail.finish_and_clear();
    }

    fn shows_log(&self, _tail: &[String]) -> bool {
        false
    }
}
