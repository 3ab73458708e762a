//! Events as JSON lines:
//!
//! ```text
//! {"sequence":4,"time":"2026-11-23T09:00:00Z","event":"step_started","step":3,"name":"[2/3] RUN make"}
//! {"sequence":5,"time":"2026-11-23T09:00:00.4Z","event":"step_log","step":3,"stream":"stdout","text":"cc main.c"}
//! ```
//!
//! `step_log` occurs once for each complete line of a step's output, without its line end; the lines of
//! one event share its sequence number.

use std::io::Write;

use hearth_proto::v1::build_event::Event;
use hearth_proto::v1::{BuildEvent, BuildState};
use serde_json::{Map, Value, json};

use super::{BuildRenderer, StepLineBuffer, StepLogLine};
use crate::exit::DockerfileRangeView;
use crate::{duration, output};

pub struct JsonBuildRenderer<W> {
    out: W,
    lines: StepLineBuffer,
}

impl<W: Write + Send> JsonBuildRenderer<W> {
    pub fn new(out: W) -> Self {
        Self { out, lines: StepLineBuffer::default() }
    }

    fn object(&mut self, head: &Map<String, Value>, kind: &str, fields: Value) {
        let mut object = head.clone();
        object.insert("event".to_owned(), kind.into());
        if let Value::Object(fields) = fields {
            object.extend(fields);
        }
        let _ = writeln!(self.out, "{}", Value::Object(object));
    }

    fn log(&mut self, head: &Map<String, Value>, step: u32, lines: Vec<StepLogLine>) {
        for line in lines {
            let stream = if line.stderr { "stderr" } else { "stdout" };
            self.object(head, "step_log", json!({"step": step, "stream": stream, "text": line.text}));
        }
    }
}

impl<W: Write + Send> BuildRenderer for JsonBuildRenderer<W> {
    fn event(&mut self, event: &BuildEvent) {
        let mut head = Map::new();
        head.insert("sequence".to_owned(), event.sequence.into());
        let time = output::timestamp(event.time.as_ref()).map(|time| time.to_string());
        head.insert("time".to_owned(), time.into());
        match &event.event {
            Some(Event::StateChanged(state)) => {
                self.object(&head, "state_changed", json!({"state": state_name(*state)}));
            }
            Some(Event::StepStarted(step)) => {
                self.object(&head, "step_started", json!({"step": step.step, "name": step.name}));
            }
            Some(Event::StepLog(log)) => {
                if log.dropped_bytes > 0 {
                    self.object(&head, "log_dropped", json!({"step": log.step, "bytes": log.dropped_bytes}));
                }
                let lines = self.lines.push(log);
                self.log(&head, log.step, lines);
            }
            Some(Event::StepProgress(at)) => {
                let fields =
                    json!({"step": at.step, "name": at.name, "current": at.current, "total": at.total});
                self.object(&head, "step_progress", fields);
            }
            Some(Event::StepFinished(step)) => {
                let rest = self.lines.finish(step.step);
                self.log(&head, step.step, rest);
                let took = step.duration.map(duration::from_wire).unwrap_or_default().as_secs_f64();
                let error = Some(&step.error).filter(|error| !error.is_empty());
                let fields = json!({"step": step.step, "cached": step.cached, "duration_seconds": took, "error": error});
                self.object(&head, "step_finished", fields);
            }
            Some(Event::Warning(warning)) => {
                let range = warning.dockerfile.as_ref().map(DockerfileRangeView::from);
                let mut fields = json!({"message": warning.message, "url": warning.url, "dockerfile": range});
                if event.damaged_events > 0 {
                    fields["damaged_events"] = event.damaged_events.into();
                }
                self.object(&head, "warning", fields);
            }
            Some(Event::Finished(build)) => {
                for (step, line) in self.lines.finish_all() {
                    self.log(&head, step, vec![line]);
                }
                let fields = json!({"build_id": build.build_id, "state": state_name(build.state)});
                self.object(&head, "finished", fields);
            }
            None => {}
        }
    }

    fn note(&mut self, text: &str) {
        self.object(&Map::new(), "note", json!({"message": text}));
    }

    fn clear(&mut self) {
        let _ = self.out.flush();
    }

    fn shows_log_of(&self, _step: &str) -> bool {
        true
    }
}

/// Returns the lower-case name of a build state: `queued`, `running`, ...
pub(crate) fn state_name(state: i32) -> String {
    let state = BuildState::try_from(state).unwrap_or_default();
    state.as_str_name().trim_start_matches("BUILD_STATE_").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_proto::v1::{StepFinished, StepLog};

    #[test]
    fn every_event_is_one_object_and_every_line_is_whole() {
        let mut out = Vec::new();
        let mut json = JsonBuildRenderer::new(&mut out);
        let log = |data: &'static [u8]| {
            Event::StepLog(StepLog { step: 3, stream: 2, data: data.into(), dropped_bytes: 0 })
        };
        let ended = StepFinished { step: 3, cached: false, duration: None, error: "exit code 7".into() };
        let events = [Event::StateChanged(2), log(b"a\nb\xc3"), log(b"\xa4"), Event::StepFinished(ended)];
        for (sequence, event) in (1..).zip(events) {
            json.event(&BuildEvent { sequence, event: Some(event), ..BuildEvent::default() });
        }
        drop(json);
        let objects: Vec<Value> =
            String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(objects.len(), 4);
        assert_eq!(
            objects[0],
            json!({"sequence": 1, "time": null, "event": "state_changed", "state": "running"})
        );
        assert_eq!((&objects[1]["text"], &objects[1]["stream"]), (&json!("a"), &json!("stderr")));
        assert_eq!(objects[2]["text"], "bä");
        assert_eq!(objects[3]["error"], "exit code 7");
    }
}
