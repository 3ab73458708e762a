use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use super::*;
use crate::model::build::LogStream;
use crate::model::fault::{ErrorCode, Fault, FaultStage};

fn wire_event(kind: DeployEventKind) -> v1::deploy_event::Event {
    let wire = deploy_event(DeployEvent { sequence: 4, at: Timestamp::UNIX_EPOCH, kind });
    assert_eq!((wire.sequence, wire.time), (4, Some(prost_types::Timestamp::default())));
    wire.event.unwrap()
}

#[test]
fn every_action_has_a_kind_of_its_own_and_says_whom_it_is_about() {
    let (instance, revision, until) = (InstanceId::random(), 3, Timestamp::UNIX_EPOCH);
    let of = || instance.clone();
    let actions = [
        DeployAction::Start { revision, generation: 2 },
        DeployAction::Abort { instance: of(), revision },
        DeployAction::AwaitHealthy { instance: of(), revision },
        DeployAction::Settle { instance: of(), revision, until },
        DeployAction::Route { instance: of(), revision },
        DeployAction::Unroute,
        DeployAction::Retire { instance: of(), revision },
        DeployAction::Remove { instance: of(), revision },
        DeployAction::MarkLive { revision },
        DeployAction::MarkFailed { revision, cause: FailCause::Ended { instance: of() } },
        DeployAction::Backoff { until },
        DeployAction::Forget,
    ];
    let wire: Vec<v1::DeployAction> = actions.iter().map(action).collect();
    let kinds: BTreeSet<i32> = wire.iter().map(|action| action.kind).collect();
    assert_eq!(kinds, (1..=12).collect());
    for (action, wire) in actions.iter().zip(&wire) {
        assert_eq!(wire.text, action.to_string());
        let named = format!("{action:?}");
        assert_eq!(wire.revision == 3, named.contains("revision: 3"), "{named}");
        assert_eq!(wire.instance_id == instance.as_str(), named.contains("instance: "), "{named}");
        assert_eq!(wire.until.is_some(), named.contains("until: "), "{named}");
    }
    assert_eq!(wire[0].generation, 2);
    assert_eq!(wire[9].cause(), v1::FailCause::Ended);
}

#[test]
fn every_answer_of_a_probe_has_a_kind_of_its_own() {
    let http = ProbeAnswer::Http { status: 301, location: Some("/x".to_owned()), body: "moved".to_owned() };
    let answers = [
        http,
        ProbeAnswer::Other,
        ProbeAnswer::Connected,
        ProbeAnswer::Running,
        ProbeAnswer::Refused,
        ProbeAnswer::Timeout,
        ProbeAnswer::Closed,
        ProbeAnswer::Failed("no route".to_owned()),
    ];
    let probes: Vec<v1::Probe> = answers
        .into_iter()
        .map(|answer| {
            let (at, instance) = (Timestamp::UNIX_EPOCH, InstanceId::random());
            let target = "http://10.0.0.2:8080/".to_owned();
            probe(ProbeResult {
                at,
                instance,
                target,
                took: Duration::from_millis(3),
                healthy: false,
                answer,
            })
        })
        .collect();
    let kinds: Vec<i32> = probes.iter().map(|probe| probe.answer).collect();
    assert_eq!(kinds, (1..=8).collect::<Vec<_>>());
    assert_eq!(
        (probes[0].status, probes[0].location.as_str(), probes[0].body.as_str()),
        (301, "/x", "moved")
    );
    assert!(probes[7].text.contains("no route"));
}

#[test]
fn every_event_arrives_as_what_it_is() {
    use v1::deploy_event::Event;
    let took = Duration::from_millis(7);
    let wire_took = Some(prost_types::Duration { seconds: 0, nanos: 7_000_000 });
    let unroute = action(&DeployAction::Unroute);
    assert_eq!(
        wire_event(DeployEventKind::Started(DeployAction::Unroute)),
        Event::ActionStarted(unroute.clone())
    );
    let ended = DeployEventKind::Ended { action: DeployAction::Unroute, took, error: Some("no".to_owned()) };
    let (action, error) = (Some(unroute), "no".to_owned());
    assert_eq!(wire_event(ended), Event::ActionEnded(v1::ActionEnded { action, took: wire_took, error }));
    let name = "network".to_owned();
    let part = DeployEventKind::Step { name: name.clone(), took };
    assert_eq!(wire_event(part), Event::Part(v1::StartPart { name, took: wire_took }));
    let line = LogLine {
        at: Timestamp::UNIX_EPOCH,
        stream: LogStream::Stderr,
        text: b"x\xff".to_vec(),
        dropped_bytes: 9,
        unfinished: true,
    };
    let Event::Log(log) = wire_event(DeployEventKind::Log { instance: InstanceId::random(), line }) else {
        panic!("no line");
    };
    let line = log.line.unwrap();
    assert_eq!(
        (line.stream(), &line.text[..], line.dropped_bytes),
        (v1::LogStream::Stderr, &b"x\xff"[..], 9)
    );
    assert!(line.unfinished);
    let skipped = wire_event(DeployEventKind::Skipped { lines: 5 });
    assert_eq!(skipped, Event::Skipped(v1::SkippedLines { lines: 5 }));
    let message = "away".to_owned();
    let trouble = wire_event(DeployEventKind::Trouble { message: message.clone() });
    assert_eq!(trouble, Event::Trouble(v1::DeployTrouble { message }));
    assert_eq!(wire_event(DeployEventKind::Live { took }), Event::Live(v1::DeployLive { took: wire_took }));
    let superseded = wire_event(DeployEventKind::Superseded { by: 2 });
    assert_eq!(superseded, Event::Superseded(v1::DeploySuperseded { by: 2 }));
    let fault = Fault::new(FaultStage::Deploy, ErrorCode::NeverHealthy, "it never was").hint("look");
    let Event::Failed(detail) = wire_event(DeployEventKind::Failed(Box::new(fault))) else {
        panic!("no fault")
    };
    assert_eq!((detail.code.as_str(), detail.hint.as_str()), ("never_healthy", "look"));
}
