use hearth_proto::v1::{ErrorDetail, PortKind, Probe, ServiceSpec};

use super::*;

fn at(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

fn service() -> Service {
    let probe = Probe { text: "http://10.88.0.2:8000/ answered 503".into(), ..Probe::default() };
    let instance = Instance {
        instance_id: "m7xh7f3k9wq2".into(),
        revision: 2,
        address: "10.88.0.2".into(),
        phase: InstancePhase::Healthy.into(),
        routed: true,
        last_probe: Some(probe),
    };
    let spec = |image: &str| {
        Some(ServiceSpec { image: image.into(), digest: "sha256:9b2c".into(), ..ServiceSpec::default() })
    };
    let live = Revision {
        number: 2,
        spec: spec("web:1"),
        created_at: at(880),
        created_by: "ann".into(),
        state: RevisionState::Live.into(),
        live_at: at(881),
        ..Revision::default()
    };
    let error =
        ErrorDetail { code: "exited".into(), message: "the app ended".into(), ..ErrorDetail::default() };
    let failed = Revision {
        number: 3,
        spec: spec("web:2"),
        created_at: at(940),
        created_by: "bob".into(),
        state: RevisionState::Failed.into(),
        error: Some(error),
        ..Revision::default()
    };
    Service {
        service_id: "7f3k9wq2m7xh".into(),
        name: "web".into(),
        repository: "web".into(),
        created_at: at(880),
        created_by: "ann".into(),
        desired_revision: 3,
        live_revision: Some(2),
        status: ServiceStatus::CrashLoop.into(),
        reason: "revision 3: the app ended\nwith more".into(),
        restarts: 4,
        next_start_at: at(1008),
        last_exit: Some(Exit { code: Some(3), out_of_memory: false, time: at(995) }),
        last_exits: [(3, 995), (3, 990)]
            .map(|(code, time)| Exit { code: Some(code), out_of_memory: false, time: at(time) })
            .to_vec(),
        instances: vec![instance],
        image: "web:1@sha256:0000000000000000000000000000000000000000000000000000000000000000".into(),
        digest: "sha256:9b2c".into(),
        ports: vec![
            ServicePort { number: 8000, kind: PortKind::Http.into(), published: None },
            ServicePort { number: 9, kind: PortKind::Tcp.into(), published: Some(false) },
        ],
        domains: vec!["www.example.com".into()],
        urls: vec!["http://www.example.com:4380/".into()],
        revisions: vec![live, failed],
        ..Service::default()
    }
}

fn now() -> Timestamp {
    Timestamp::from_second(1000).unwrap()
}

#[test]
fn a_row_says_how_a_service_is_and_why() {
    assert_eq!(
        row(&service(), now()),
        [
            "web",
            "restarting (exit 3, 4 times, next in 8s)",
            "2 -> 3",
            "web:1",
            "http://www.example.com:4380/",
            "4",
            "2m ago",
            "revision 3: the app ended"
        ]
    );
    let live = ServiceStatus::Live.into();
    let again = Service { status: live, next_start_at: None, ..service() };
    assert_eq!(row(&again, now())[1], "live (restarted after exit 3, 4 times)");
    let killed = Exit { code: Some(137), out_of_memory: true, time: None };
    let due = Service { restarts: 1, last_exit: Some(killed), next_start_at: at(990), ..service() };
    assert_eq!(row(&due, now())[1], "restarting (out of memory, 1 time, next now)");
    assert_eq!(row(&Service { status: live, restarts: 0, ..service() }, now())[1], "live");
    let fresh = Service { name: "new".into(), desired_revision: 1, ..Service::default() };
    assert_eq!(row(&fresh, now()), ["new", "unspecified", "1", "", "-", "0", "-", ""]);
}

#[test]
fn a_page_has_what_there_is_and_no_empty_lines() {
    assert_eq!(
        service_text(&service(), now()),
        "service      web (7f3k9wq2m7xh)\n\
         status       restarting (exit 3, 4 times, next in 8s)\n\
         reason       revision 3: the app ended\n\
         \u{20}            with more\n\
         last exits   exit code 3, 5s ago\n\
         \u{20}            exit code 3, 10s ago\n\
         next start   1970-01-01T00:16:48Z\n\
         revision     2 -> 3\n\
         image        web:1\n\
         digest       sha256:9b2c\n\
         ports        8000, 9/tcp (not published)\n\
         domains      www.example.com (private)\n\
         url          http://www.example.com:4380/\n\
         command      of the image\n\
         memory       unlimited\n\
         cpus         unlimited\n\
         created      2m ago by ann\n\
         instance     m7xh7f3k9wq2 of revision 2 at 10.88.0.2: healthy, takes the traffic\n\
         \u{20}            http://10.88.0.2:8000/ answered 503\n\
         history      3 web:2 failed, 60s ago by bob\n\
         \u{20}            the app ended\n\
         history      2 web:1 live, 2m ago by ann"
    );
}

#[test]
fn programs_read_typed_fields() {
    let value = serde_json::to_value(ServiceView::from(&service())).unwrap();
    assert_eq!((&value["status"], &value["live_revision"]), (&"crash_loop".into(), &2.into()));
    assert_eq!(value["ports"][1], serde_json::json!({"number": 9, "kind": "tcp", "published": false}));
    assert_eq!(value["last_exit"]["code"], 3);
    assert_eq!(value["instances"][0]["phase"], "healthy");
    assert_eq!(value["revisions"][1]["error"]["code"], "exited");
    assert_eq!(value["revisions"][0]["manifest"]["container"]["image"], "web:1");
    let listed = Service { revisions: Vec::new(), ..service() };
    assert_eq!(serde_json::to_value(ServiceView::from(&listed)).unwrap().get("revisions"), None);
}
