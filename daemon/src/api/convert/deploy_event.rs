//! Conversion of the events of a deploy: actions, probes, log lines.

use hearth_proto::v1;

use super::super::error::fault_detail;
use super::{log_stream, timestamp, to_duration};
use crate::model::deploy::{
    DeployAction, DeployEvent, DeployEventKind, FailCause, LogLine, ProbeAnswer, ProbeResult,
};
use crate::model::id::InstanceId;
use crate::model::service::ProcessExit;

pub fn deploy_event(event: DeployEvent) -> v1::DeployEvent {
    use v1::deploy_event::Event;
    let wire_event = match event.kind {
        DeployEventKind::Started(started) => Event::ActionStarted(action(&started)),
        DeployEventKind::Ended { action: ended, took, error } => Event::ActionEnded(v1::ActionEnded {
            action: Some(action(&ended)),
            took: Some(to_duration(took)),
            error: error.unwrap_or_default(),
        }),
        DeployEventKind::Step { name, took } => {
            Event::Part(v1::StartPart { name, took: Some(to_duration(took)) })
        }
        DeployEventKind::Probed(result) => Event::Probed(probe(result)),
        DeployEventKind::Log { instance, line } => Event::Log(instance_log_line(&instance, line)),
        DeployEventKind::Skipped { lines } => Event::Skipped(v1::SkippedLines { lines }),
        DeployEventKind::Trouble { message } => Event::Trouble(v1::DeployTrouble { message }),
        DeployEventKind::Live { took } => Event::Live(v1::DeployLive { took: Some(to_duration(took)) }),
        DeployEventKind::Failed(fault) => Event::Failed(fault_detail(*fault)),
        DeployEventKind::Superseded { by } => Event::Superseded(v1::DeploySuperseded { by }),
    };
    v1::DeployEvent { sequence: event.sequence, time: Some(timestamp(event.at)), event: Some(wire_event) }
}

pub fn action(action: &DeployAction) -> v1::DeployAction {
    use v1::DeployActionKind as Kind;
    let (kind, revision, instance) = match action {
        DeployAction::Start { revision, .. } => (Kind::Start, Some(revision), None),
        DeployAction::Abort { instance, revision } => (Kind::Abort, Some(revision), Some(instance)),
        DeployAction::AwaitHealthy { instance, revision } => {
            (Kind::AwaitHealthy, Some(revision), Some(instance))
        }
        DeployAction::Settle { instance, revision, .. } => (Kind::Settle, Some(revision), Some(instance)),
        DeployAction::Route { instance, revision } => (Kind::Route, Some(revision), Some(instance)),
        DeployAction::Unroute => (Kind::Unroute, None, None),
        DeployAction::Retire { instance, revision } => (Kind::Retire, Some(revision), Some(instance)),
        DeployAction::Remove { instance, revision } => (Kind::Remove, Some(revision), Some(instance)),
        DeployAction::MarkLive { revision } => (Kind::MarkLive, Some(revision), None),
        DeployAction::MarkFailed { revision, cause } => {
            (Kind::MarkFailed, Some(revision), instance_of(cause))
        }
        DeployAction::Backoff { .. } => (Kind::Backoff, None, None),
        DeployAction::Forget => (Kind::Forget, None, None),
    };
    v1::DeployAction {
        kind: kind.into(),
        revision: revision.copied().unwrap_or_default(),
        generation: if let DeployAction::Start { generation, .. } = action { *generation } else { 0 },
        instance_id: instance.map(ToString::to_string).unwrap_or_default(),
        until: match action {
            DeployAction::Settle { until, .. } | DeployAction::Backoff { until } => Some(timestamp(*until)),
            _ => None,
        },
        cause: match action {
            DeployAction::MarkFailed { cause, .. } => fail_cause(cause),
            _ => v1::FailCause::Unspecified,
        }
        .into(),
        text: action.to_string(),
    }
}

const fn fail_cause(cause: &FailCause) -> v1::FailCause {
    match cause {
        FailCause::NotStarted => v1::FailCause::NotStarted,
        FailCause::Ended { .. } => v1::FailCause::Ended,
        FailCause::NeverHealthy { .. } => v1::FailCause::NeverHealthy,
        FailCause::Unhealthy { .. } => v1::FailCause::Unhealthy,
    }
}

const fn instance_of(cause: &FailCause) -> Option<&InstanceId> {
    match cause {
        FailCause::NotStarted => None,
        FailCause::Ended { instance }
        | FailCause::NeverHealthy { instance }
        | FailCause::Unhealthy { instance } => Some(instance),
    }
}

pub fn probe(result: ProbeResult) -> v1::Probe {
    use v1::ProbeAnswer as Answer;
    let text = result.to_string();
    let mut wire = v1::Probe {
        time: Some(timestamp(result.at)),
        instance_id: result.instance.to_string(),
        target: result.target,
        took: Some(to_duration(result.took)),
        healthy: result.healthy,
        text,
        ..v1::Probe::default()
    };
    let answer = match result.answer {
        ProbeAnswer::Http { status, location, body } => {
            wire.status = status.into();
            wire.location = location.unwrap_or_default();
            wire.body = body;
            Answer::Http
        }
        ProbeAnswer::Other => Answer::Other,
        ProbeAnswer::Connected => Answer::Connected,
        ProbeAnswer::Running => Answer::Running,
        ProbeAnswer::Refused => Answer::Refused,
        ProbeAnswer::Timeout => Answer::Timeout,
        ProbeAnswer::Closed => Answer::Closed,
        // The reason is in the text.
        ProbeAnswer::Failed(_) => Answer::Failed,
    };
    wire.answer = answer.into();
    wire
}

fn log_line(line: LogLine) -> v1::LogLine {
    v1::LogLine {
        time: Some(timestamp(line.at)),
        stream: log_stream(line.stream).into(),
        text: line.text.into(),
        dropped_bytes: line.dropped_bytes,
        unfinished: line.unfinished,
    }
}

pub fn instance_log_line(instance: &InstanceId, line: LogLine) -> v1::InstanceLogLine {
    v1::InstanceLogLine { instance_id: instance.to_string(), line: Some(log_line(line)) }
}

pub fn exit(exit: ProcessExit) -> v1::Exit {
    v1::Exit { code: exit.code, out_of_memory: exit.out_of_memory, time: Some(timestamp(exit.at)) }
}

#[cfg(test)]
mod tests;
