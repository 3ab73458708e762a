//! Events as JSON lines:
//!
//! ```text
//! {"sequence":1,"time":"2026-11-24T09:00:00Z","event":"action_started","action":"start","revision":2,"text":"start an ..."}
//! {"sequence":5,"time":"2026-11-24T09:00:00.2Z","event":"log","instance":"m7xh7f3k9wq2","stream":"stdout","text":"ready"}
//! ```

use std::io::Write;

use hearth_proto::v1::deploy_event::Event;
use hearth_proto::v1::{DeployAction, DeployEvent, LogLine, LogStream, Probe};
use serde_json::{Map, Value, json};

use super::DeployRenderer;
use crate::error::{Failure, FailureKind};
use crate::{duration, exit, output};

pub struct JsonDeployRenderer<W> {
    out: W,
}

impl<W: Write + Send> JsonDeployRenderer<W> {
    pub const fn new(out: W) -> Self {
        Self { out }
    }

    fn object(&mut self, mut head: Map<String, Value>, kind: &str, fields: Value) {
        head.insert("event".to_owned(), kind.into());
        if let Value::Object(fields) = fields {
            head.extend(fields);
        }
        let _ = writeln!(self.out, "{}", Value::Object(head));
    }
}

impl<W: Write + Send> DeployRenderer for JsonDeployRenderer<W> {
    fn event(&mut self, event: &DeployEvent) {
        let mut head = Map::new();
        head.insert("sequence".to_owned(), event.sequence.into());
        let time = output::timestamp(event.time.as_ref()).map(|time| time.to_string());
        head.insert("time".to_owned(), time.into());
        let seconds = |took: Option<prost_types::Duration>| {
            took.map(duration::from_wire).unwrap_or_default().as_secs_f64()
        };
        match &event.event {
            Some(Event::ActionStarted(started)) => self.object(head, "action_started", action_json(started)),
            Some(Event::ActionEnded(ended)) => {
                let mut fields = ended.action.as_ref().map(action_json).unwrap_or_default();
                fields["took_seconds"] = seconds(ended.took).into();
                fields["error"] = Some(&ended.error).filter(|error| !error.is_empty()).cloned().into();
                self.object(head, "action_ended", fields);
            }
            Some(Event::Part(part)) => {
                let fields = json!({"name": part.name, "took_seconds": seconds(part.took)});
                self.object(head, "part", fields);
            }
            Some(Event::Probed(found)) => self.object(head, "probed", probe_json(found)),
            Some(Event::Log(log)) => {
                let mut fields = log.line.as_ref().map(log_line_json).unwrap_or_default();
                fields["instance"] = log.instance_id.clone().into();
                self.object(head, "log", fields);
            }
            Some(Event::Skipped(skipped)) => {
                self.object(head, "skipped", json!({"lines": skipped.lines}));
            }
            Some(Event::Trouble(trouble)) => {
                self.object(head, "trouble", json!({"message": trouble.message}));
            }
            Some(Event::Live(live)) => {
                self.object(head, "live", json!({"took_seconds": seconds(live.took)}));
            }
            Some(Event::Failed(detail)) => {
                let failure = Failure::from_detail(FailureKind::Failed, Box::new(detail.clone()));
                let fields = serde_json::to_value(exit::error_document(&failure)).unwrap_or_default();
                self.object(head, "failed", fields);
            }
            Some(Event::Superseded(superseded)) => {
                self.object(head, "superseded", json!({"by": superseded.by}));
            }
            None => {}
        }
    }

    fn note(&mut self, text: &str) {
        self.object(Map::new(), "note", json!({"message": text}));
    }

    fn clear(&mut self) {
        let _ = self.out.flush();
    }

    fn shows_log(&self, _tail: &[String]) -> bool {
        true
    }
}

/// JSON form of an action of a deploy or of a plan.
pub(crate) fn action_json(action: &DeployAction) -> Value {
    let word = action.kind().as_str_name().trim_start_matches("DEPLOY_ACTION_KIND_").to_ascii_lowercase();
    let mut fields = json!({"action": word, "text": action.text});
    if action.revision > 0 {
        fields["revision"] = action.revision.into();
    }
    if !action.instance_id.is_empty() {
        fields["instance"] = action.instance_id.clone().into();
    }
    if let Some(until) = output::timestamp(action.until.as_ref()) {
        fields["until"] = until.to_string().into();
    }
    fields
}

/// JSON form of a probe.
pub(crate) fn probe_json(probe: &Probe) -> Value {
    let time = output::timestamp(probe.time.as_ref()).map(|time| time.to_string());
    let answer = probe.answer().as_str_name().trim_start_matches("PROBE_ANSWER_").to_ascii_lowercase();
    json!({
        "instance": probe.instance_id,
        "at": time,
        "target": probe.target,
        "healthy": probe.healthy,
        "answer": answer,
        "status": Some(probe.status).filter(|status| *status > 0),
        "location": Some(&probe.location).filter(|location| !location.is_empty()),
        "took_seconds": probe.took.map(duration::from_wire).unwrap_or_default().as_secs_f64(),
        "text": probe.text,
    })
}

/// JSON form of a line of a service's log.
pub(crate) fn log_line_json(line: &LogLine) -> Value {
    let stream = if line.stream() == LogStream::Stderr { "stderr" } else { "stdout" };
    let mut fields = json!({
        "logged_at": output::timestamp(line.time.as_ref()).map(|time| time.to_string()),
        "stream": stream,
        "text": String::from_utf8_lossy(&line.text),
    });
    if line.unfinished {
        fields["unfinished"] = true.into();
    }
    if line.dropped_bytes > 0 {
        fields["dropped_bytes"] = line.dropped_bytes.into();
    }
    fields
}

#[cfg(test)]
mod tests {
    use hearth_proto::v1::{ActionEnded, DeployActionKind, ErrorDetail, InstanceLogLine};

    use super::*;

    #[test]
    fn every_event_is_one_object() {
        let start = DeployAction {
            kind: DeployActionKind::Start.into(),
            revision: 2,
            text: "start".into(),
            ..DeployAction::default()
        };
        let ended = ActionEnded { action: Some(start.clone()), took: None, error: "no such program".into() };
        let line = LogLine { text: "boom".into(), stream: LogStream::Stderr.into(), ..LogLine::default() };
        let fault = ErrorDetail { code: "exited".into(), exit_code: Some(3), ..ErrorDetail::default() };
        let events = [
            Event::ActionStarted(start),
            Event::ActionEnded(ended),
            Event::Log(InstanceLogLine { instance_id: "i".into(), line: Some(line) }),
            Event::Failed(fault),
        ];
        let mut out = Vec::new();
        let mut shown = JsonDeployRenderer::new(&mut out);
        for (sequence, event) in (1..).zip(events) {
            shown.event(&DeployEvent { sequence, time: None, event: Some(event) });
        }
        let text = String::from_utf8(out).unwrap();
        let objects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            objects[0],
            json!({"sequence": 1, "time": null, "event": "action_started", "action": "start", "revision": 2, "text": "start"})
        );
        assert_eq!(objects[1]["error"], "no such program");
        assert_eq!((&objects[2]["stream"], &objects[2]["instance"]), (&json!("stderr"), &json!("i")));
        assert_eq!(
            (&objects[3]["error"]["code"], &objects[3]["error"]["exit_code"]),
            (&json!("exited"), &json!(3))
        );
    }
}
