//! Interfaces for operators and tools: health, readiness, metrics, reflection.

use integration_tests::daemon::{Daemon, Options};
use integration_tests::grpc::{Api, block_on};
use integration_tests::http::Request;
use integration_tests::process;
use integration_tests::runner::{Case, Group};
use integration_tests::service::App;
use integration_tests::shared_cases;
use integration_tests::sources::Tree;
use integration_tests::wait::{self, seconds};
use rustix::process::Signal;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

pub fn group() -> Group {
    let mut cases = shared_cases![
        health_and_readiness_answer_without_a_token,
        metrics_count_builds_bytes_and_registry_requests,
        grpc_health_reports_the_actual_state,
        reflection_lists_every_service,
        system_info_names_room_version_and_components,
        the_log_has_the_build_id,
        help_and_completions_are_there,
    ];
    cases.push(Case::alone("readiness_follows_buildkitd", readiness_follows_buildkitd));
    cases.push(Case::alone("logs_can_be_json", logs_can_be_json));
    cases.push(Case::alone("log_lines_carry_the_span_of_their_operation", log_lines_carry_spans));
    Group::new("observability", cases)
}

fn health_and_readiness_answer_without_a_token(daemon: &Daemon) {
    for path in ["/healthz", "/readyz"] {
        Request::new("GET", path).send(&daemon.listen()).expect(200);
    }
    Request::new("GET", "/nowhere").send(&daemon.listen()).expect(404);
}

fn metrics(daemon: &Daemon) -> String {
    // Where access is restricted, a token grants it.
    let answer = Request::new("GET", "/metrics").bearer(daemon.token()).send(&daemon.listen());
    answer.expect(200).text()
}

/// Returns the sum of all series of a metric whose labels contain the text.
fn value(metrics: &str, name: &str, label: &str) -> f64 {
    metrics
        .lines()
        .filter(|line| line.starts_with(name) && !line.starts_with('#') && line.contains(label))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

fn metrics_count_builds_bytes_and_registry_requests(daemon: &Daemon) {
    daemon.put("counted", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "1"));
    let before = metrics(daemon);
    daemon.build_ok("counted:1", "counted", &[]);
    daemon.build("counted:1", "counted", &["--target", "nope"]).expect_code(1);
    let total = |metrics: &str, label: &str| value(metrics, "hearth_builds_total", label);
    // A build is counted a moment after its watchers have received its end.
    wait::poll(seconds(5), || (total(&metrics(daemon), "failed") > total(&before, "failed")).then_some(()));
    let after = metrics(daemon);
    for label in ["succeeded", "failed"] {
        let grown = total(&after, label) - total(&before, label);
        assert!(grown >= 1.0, "hearth_builds_total {label} grew by {grown}\n{after}");
    }
    for part in ["hearth_build_duration_seconds", "hearth_registry_requests_total", "bytes_total"] {
        assert!(after.contains(part), "no {part} in\n{after}");
    }
}

fn grpc_health_reports_the_actual_state(daemon: &Daemon) {
    block_on(seconds(20), async {
        let api = Api::connect(&daemon.listen(), None).await;
        let mut health = HealthClient::new(api.channel());
        for service in ["", "hearth.v1.Builds"] {
            let answer =
                health.check(HealthCheckRequest { service: service.to_owned() }).await.unwrap().into_inner();
            assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
        }
    });
}

fn reflection_lists_every_service(daemon: &Daemon) {
    let names = block_on(seconds(20), async {
        let api = Api::of(daemon).await;
        let mut client = ServerReflectionClient::new(api.channel());
        let ask = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut answers =
            client.server_reflection_info(tokio_stream::iter([ask])).await.unwrap().into_inner();
        match answers.message().await.unwrap().unwrap().message_response {
            Some(MessageResponse::ListServicesResponse(list)) => {
                list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    });
    for service in ["Builds", "Images", "Storage", "System"] {
        assert!(names.contains(&format!("hearth.v1.{service}")), "{names:?}");
    }
    assert!(names.contains(&"grpc.health.v1.Health".to_owned()), "{names:?}");
}

fn system_info_names_room_version_and_components(daemon: &Daemon) {
    let info = block_on(seconds(20), async {
        let api = Api::of(daemon).await;
        api.system().get_info(hearth_proto::v1::GetInfoRequest {}).await.unwrap().into_inner()
    });
    assert_eq!((info.room.as_str(), info.ready), ("observability", true));
    assert_eq!(info.room_registries, ["room.meshagent.com"]);
    let buildkit = info.components.iter().find(|component| component.name == "buildkit").expect("buildkit");
    assert!(buildkit.ready && buildkit.detail.contains("0.3"), "its version is shown: {buildkit:?}");
}

fn the_log_has_the_build_id(daemon: &Daemon) {
    daemon.put("logged", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "2"));
    let id = daemon.build("logged:1", "logged", &["--detach"]).expect_code(0).line().to_owned();
    wait::until(seconds(30), "the build's id is in the daemon's log", || daemon.log().contains(&id));
}

fn help_and_completions_are_there(daemon: &Daemon) {
    for verb in [
        vec![],
        vec!["pack"],
        vec!["build"],
        vec!["builds"],
        vec!["images"],
        vec!["storage"],
        vec!["room"],
        vec!["token"],
    ] {
        let help = daemon.hearth_ok(&[verb.as_slice(), &["--help"]].concat());
        assert!(help.stdout.len() > 200, "{verb:?}\n{help}");
    }
    assert!(daemon.hearth_ok(&["build", "--help"]).stdout.contains("hearth build"), "help has an example");
    for shell in ["bash", "zsh", "fish"] {
        assert!(daemon.hearth_ok(&["completions", shell]).stdout.contains("hearth"), "{shell}");
    }
    assert!(daemon.hearth_ok(&["explain", "step_failed"]).stdout.contains("retry: does not help"));
    let unknown = daemon.hearth(&["explain", "step_faild"]);
    unknown.expect_code(2);
    assert!(unknown.stderr.contains("step_failed"), "{unknown}");
    assert!(daemon.hearth_ok(&["--version"]).stdout.contains("hearth"));
}

fn readiness_follows_buildkitd() {
    let daemon = Daemon::start(Options::room("readiness"));
    let first = daemon.buildkitd().expect("a buildkitd of its own");
    process::signal(first.pid, Signal::KILL);
    wait::until(seconds(5), "/readyz turns 503", || daemon.status_of("/readyz") == Some(503));
    assert_eq!(daemon.status_of("/healthz"), Some(200), "the daemon itself is well");
    wait::until(seconds(30), "/readyz is back", || daemon.status_of("/readyz") == Some(200));
    let second = daemon.buildkitd().expect("a new buildkitd");
    assert_ne!(first.pid, second.pid);
    daemon.put("after", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", ""));
    daemon.build_ok("after:1", "after", &[]);
}

fn logs_can_be_json() {
    let options = Options::room("json-log").environment("HEARTH_LOG_FORMAT", "json");
    let daemon = Daemon::start(options);
    let log = daemon.log();
    assert!(!log.is_empty());
    for line in log.lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(parsed.is_ok_and(|value| value.is_object()), "{line}");
    }
}

/// Returns the spans `name` of the log lines with this message.
fn spans_of(log: &str, message: &str, name: &str) -> Vec<serde_json::Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let lines = lines.filter(|line| line["fields"]["message"] == message);
    let spans = lines.filter_map(|line| line["spans"].as_array().cloned()).flatten();
    spans.filter(|span| span["name"] == name).collect()
}

fn log_lines_carry_spans() {
    let filter = "info,hearthd::registry=debug,hearth_overlay=trace";
    let options = Options::room("spans").environment("HEARTH_LOG_FORMAT", "json");
    let daemon = Daemon::start(options.environment("HEARTH_LOG", filter));
    daemon.put("traced", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "1"));
    let build = daemon.build("traced:1", "traced", &["--detach"]).expect_code(0).line().to_owned();
    wait::until(seconds(30), "the build ends", || daemon.log().contains("build ended"));
    let packed = daemon.directory().join("packed");
    Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "2").write(&packed);
    daemon.hearth_ok(&["build", "--tag", "traced:2", "--pack", packed.to_str().unwrap()]);
    let point = daemon.directory().join("mounted");
    std::fs::create_dir_all(&point).unwrap();
    let at = point.to_str().unwrap();
    daemon.hearth_ok(&["context", "mount", at, "--mount-room-path", "traced"]);
    assert_eq!(std::fs::read_to_string(point.join("a")).unwrap(), "1");
    daemon.hearth_ok(&["context", "unmount", at]);
    App::page("traced\n").pack(&daemon, "traced/web:1");
    daemon.hearth_ok(&["deploy", "--tag", "traced/web:1", "--domain", "traced.test", "--public"]);
    let log = daemon.log();
    let span = |message: &str, name: &str| {
        let first = spans_of(&log, message, name).into_iter().next();
        first.unwrap_or_else(|| panic!("no line `{message}` in a span `{name}`:\n{log}"))
    };
    for message in ["build accepted", "build started", "build ended"] {
        assert_eq!(span(message, "build")["build.id"], build.as_str(), "{message}");
    }
    assert!(span("pack committed", "pack")["upload.id"].is_string());
    assert_eq!(span("context mounted", "context")["directory"], at);
    let requests = spans_of(&log, "registry request answered", "registry");
    let pushed = requests.iter().find(|span| span["method"] == "PUT" && span["repository"] == "traced");
    assert!(pushed.is_some_and(|span| span["route"].is_string()), "{requests:?}");
    assert!(requests.iter().any(|span| span["digest"].is_string()), "{requests:?}");
    let deploy = span("deploy accepted", "deploy");
    assert_eq!((&deploy["service.name"], &deploy["revision"]), (&"traced-web".into(), &1.into()));
    assert_eq!(span("revision became live", "service")["service.name"], "traced-web");
    let health = span("instance health changed", "health");
    assert!(health["service.name"] == "traced-web" && health["instance.id"].is_string(), "{health}");
    let request = span("received a request of the kernel", "fuse");
    assert!(request["operation"].is_string() && request["inode"].is_u64(), "{request}");
}
