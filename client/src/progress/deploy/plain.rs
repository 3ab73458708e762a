//! Plain progress, for logs and pipes:
//!
//! ```text
//! #1 start an instance of revision 2
//! #1 network 0.002s
//! #1 DONE 0.1s
//! #2 wait until revision 2 is healthy
//! #2 0.013 http://10.88.0.2:8000/ refused the connection
//! web | Listening on port 8000
//! #2 DONE 0.2s
//! ```

use std::collections::VecDeque;
use std::io::Write;

use hearth_proto::v1::DeployEvent;
use hearth_proto::v1::deploy_event::Event;
use jiff::Timestamp;

use super::{ActionTracker, DeployRenderer, FinishedAction, elapsed_between, is_failure, log_lines};
use crate::{duration, output};

pub struct PlainDeployRenderer<W> {
    out: W,
    service: String,
    actions: ActionTracker,
    /// Text of the last probe; a probe with the same text is not shown again.
    last_probe: String,
    /// The last lines of the service's log that were shown.
    last_lines: VecDeque<String>,
}

/// Maximum number of lines of the service's log that are kept; the daemon's error has as many.
const KEPT_LINES: usize = 50;

impl<W: Write + Send> PlainDeployRenderer<W> {
    pub fn new(out: W, service: &str) -> Self {
        let service = output::printable(service);
        Self {
            out,
            service,
            actions: ActionTracker::default(),
            last_probe: String::new(),
            last_lines: VecDeque::new(),
        }
    }

    fn line(&mut self, text: &str) {
        // A write error on standard error does not stop the deploy.
        let _ = writeln!(self.out, "{text}");
    }

    fn current(&mut self, text: &str) {
        match &self.actions.current {
            Some(current) => self.line(&format!("#{} {text}", current.number)),
            None => self.line(text),
        }
    }

    fn over(&mut self, over: Option<&FinishedAction>, end: &str) {
        if let Some(FinishedAction { number, took, .. }) = over {
            self.line(&format!("#{number} {end} {}", duration::format_short(*took)));
        }
    }

    fn since(&self, at: Option<Timestamp>) -> f64 {
        let since = self.actions.current.as_ref().and_then(|current| current.since);
        elapsed_between(since, at).as_secs_f64()
    }
}

impl<W: Write + Send> DeployRenderer for PlainDeployRenderer<W> {
    fn event(&mut self, event: &DeployEvent) {
        let at = output::timestamp(event.time.as_ref());
        match &event.event {
            Some(Event::ActionStarted(action)) => {
                let (number, over) = self.actions.begin(&action.text, at);
                self.over(over.as_ref(), if is_failure(action) { "FAILED" } else { "DONE" });
                self.line(&format!("#{number} {}", output::printable(&action.text)));
                self.last_probe.clear();
            }
            Some(Event::ActionEnded(ended)) => {
                let text = ended.action.as_ref().map_or("", |action| action.text.as_str());
                let took = ended.took.map(duration::from_wire).unwrap_or_default();
                let Some(over) = self.actions.end_if_current(text, took) else { return };
                if ended.error.is_empty() {
                    self.over(Some(&over), "DONE");
                } else {
                    let error = output::printable(&ended.error);
                    self.line(&format!("#{} ERROR {}: {error}", over.number, duration::format_short(took)));
                }
            }
            Some(Event::Part(part)) => {
                let took = part.took.map(duration::from_wire).unwrap_or_default();
                self.current(&format!("{} {:.3}s", output::printable(&part.name), took.as_secs_f64()));
            }
            Some(Event::Probed(probe)) if probe.text != self.last_probe => {
                let text = format!("{:.3} {}", self.since(at), output::printable(&probe.text));
                self.current(&text);
                self.last_probe.clone_from(&probe.text);
            }
            Some(Event::Log(log)) => {
                if self.last_lines.len() == KEPT_LINES {
                    self.last_lines.pop_front();
                }
                let text = log.line.as_ref().map(|line| String::from_utf8_lossy(&line.text).into_owned());
                self.last_lines.extend(text);
                for text in log.line.iter().flat_map(log_lines) {
                    self.line(&format!("{} | {text}", self.service));
                }
            }
            Some(Event::Skipped(skipped)) => {
                let lines = output::count(skipped.lines, "line");
                self.line(&format!("({lines} of the log left out: hearth services logs {})", self.service));
            }
            Some(Event::Trouble(trouble)) => {
                self.line(&format!("trouble: {}", output::printable(&trouble.message)));
            }
            Some(Event::Live(_)) => {
                let over = self.actions.end(at);
                self.over(over.as_ref(), "DONE");
            }
            Some(Event::Failed(_)) => {
                let over = self.actions.end(at);
                self.over(over.as_ref(), "FAILED");
            }
            Some(Event::Superseded(_)) => {
                let over = self.actions.end(at);
                self.over(over.as_ref(), "STOPPED");
            }
            Some(Event::Probed(_)) | None => {}
        }
    }

    fn note(&mut self, text: &str) {
        self.line(text);
    }

    fn clear(&mut self) {
        let _ = self.out.flush();
    }

    fn shows_probes(&self) -> bool {
        true
    }

    /// A long log is shown in part, and its last line may arrive too late.
    fn shows_log(&self, tail: &[String]) -> bool {
        let shown = self.last_lines.iter().rev();
        tail.len() <= self.last_lines.len()
            && tail.iter().rev().zip(shown).all(|(line, shown)| shown.starts_with(line.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use hearth_proto::v1::{
        ActionEnded, DeployAction, DeployActionKind, DeployLive, InstanceLogLine, LogLine, LogStream, Probe,
        SkippedLines, StartPart,
    };

    use super::*;

    fn action(text: &str) -> DeployAction {
        DeployAction { text: text.into(), ..DeployAction::default() }
    }

    fn span(milliseconds: u64) -> Option<prost_types::Duration> {
        Some(duration::to_wire(std::time::Duration::from_millis(milliseconds)))
    }

    #[test]
    fn a_deploy_reads_like_a_log_and_equal_probes_are_printed_once() {
        let start = "start an instance of revision 2";
        let ended = ActionEnded { action: Some(action(start)), took: span(90), error: String::new() };
        let kind = DeployActionKind::MarkFailed.into();
        let failed = DeployAction { kind, ..action("revision 3 has failed") };
        let probed = |text: &str| Event::Probed(Probe { text: text.into(), ..Probe::default() });
        let line =
            LogLine { text: "Listening".into(), stream: LogStream::Stdout.into(), ..LogLine::default() };
        let events = [
            (0, Event::ActionStarted(action(start))),
            (2, Event::Part(StartPart { name: "network".into(), took: span(2) })),
            (90, Event::ActionEnded(ended)),
            (91, Event::ActionStarted(action("wait until revision 2 is healthy"))),
            (101, probed("tcp://10.88.0.2:5 refused the connection")),
            (121, probed("tcp://10.88.0.2:5 refused the connection")),
            (130, Event::Log(InstanceLogLine { instance_id: "i".into(), line: Some(line) })),
            (161, probed("tcp://10.88.0.2:5 takes connections")),
            (162, Event::Skipped(SkippedLines { lines: 1 })),
            (191, Event::Live(DeployLive { took: span(191) })),
            (192, Event::ActionStarted(action("wait until revision 3 is healthy"))),
            (193, Event::ActionStarted(failed)),
        ];
        let mut out = Vec::new();
        let mut plain = PlainDeployRenderer::new(&mut out, "web");
        for (sequence, (milliseconds, event)) in (1..).zip(events) {
            let time = Some(prost_types::Timestamp { seconds: 1000, nanos: milliseconds * 1_000_000 });
            plain.event(&DeployEvent { sequence, time, event: Some(event) });
        }
        drop(plain);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "#1 start an instance of revision 2\n\
             #1 network 0.002s\n\
             #1 DONE 0.1s\n\
             #2 wait until revision 2 is healthy\n\
             #2 0.010 tcp://10.88.0.2:5 refused the connection\n\
             web | Listening\n\
             #2 0.070 tcp://10.88.0.2:5 takes connections\n\
             (1 line of the log left out: hearth services logs web)\n\
             #2 DONE 0.1s\n\
             #3 wait until revision 3 is healthy\n\
             #3 FAILED 0.0s\n\
             #4 revision 3 has failed\n"
        );
    }
}
