use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard_buildkit_proto::google::{protobuf, rpc};
use prost::Message as _;

use super::*;

fn status(code: Code, message: &str, details: &[(&str, String)]) -> Status {
    let any = |(kind, json): &(&str, String)| protobuf::Any {
        type_url: format!("github.com/moby/buildkit/{kind}+json"),
        value: json.clone().into_bytes(),
    };
    let proto = rpc::Status {
        code: code as i32,
        message: message.to_owned(),
        details: details.iter().map(any).collect(),
    };
    Status::with_details(code, message, proto.encode_to_vec().into())
}

fn decoded(status: &Status) -> Fault {
    fault_of_status(status, &SolveProgress::new("Dockerfile"), false)
}

#[test]
fn an_exit_code_and_a_place_come_from_the_details() {
    let dockerfile = STANDARD.encode("FROM a\nRUN x\n");
    let source = format!(
        r#"{{"info":{{"data":"{dockerfile}"}},"ranges":[{{"start":{{"line":2}},"end":{{"line":2}}}}]}}"#
    );
    let details = [
        ("stack.Stack", "{}".to_owned()),
        ("errdefs.Vertex", r#"{"digest":"sha256:1"}"#.to_owned()),
        ("gatewayapi.ExitMessage", r#"{"Code":7}"#.to_owned()),
        ("errdefs.Source", source),
    ];
    let fault = decoded(&status(Code::Unknown, "failed to solve: process \"x\" did not complete", &details));
    assert_eq!((fault.code.as_str(), fault.exit_code), ("step_failed", Some(7)));
    assert_eq!(fault.message, "process \"x\" did not complete");
    assert_eq!(fault.dockerfile.unwrap().text, "RUN x");
}

#[test]
fn an_end_for_lack_of_memory_has_its_own_code() {
    let details = [("gatewayapi.ExitMessage", r#"{"Code":137}"#.to_owned())];
    let fault =
        decoded(&status(Code::Unknown, "process \"x\": exit code: 137: cannot allocate memory", &details));
    assert_eq!((fault.code.as_str(), fault.exit_code), ("out_of_memory", Some(137)));
    // Where the kernel does not count for the step, the count of the builder is used.
    let killed = status(Code::Unknown, "process \"x\": exit code: 137", &details);
    assert_eq!(decoded(&killed).code, "step_failed");
    assert_eq!(fault_of_builder(&killed).code, "out_of_memory");
    let failed = [("gatewayapi.ExitMessage", r#"{"Code":2}"#.to_owned())];
    let fault = fault_of_builder(&status(Code::Unknown, "process \"make\": exit code: 2", &failed));
    assert_eq!(fault.code, "step_failed");
    assert!(fault.hint.unwrap().contains("memory ran out"));
}

fn fault_of_builder(status: &Status) -> Fault {
    fault_of_status(status, &SolveProgress::new("Dockerfile"), true)
}

#[test]
fn details_that_are_not_what_they_say_are_left_out() {
    let details = [("errdefs.Source", "[".to_owned()), ("gatewayapi.ExitMessage", "null".to_owned())];
    assert_eq!(decoded(&status(Code::Unknown, "odd", &details)).code, "solve_failed");
    assert_eq!(
        decoded(&Status::with_details(Code::Unknown, "odd", vec![255, 255].into())).code,
        "solve_failed"
    );
}

#[test]
fn a_repository_that_git_did_not_fetch_is_no_registry() {
    let at = |message: &str| decoded(&status(Code::Unknown, message, &[]));
    let words = "failed to load cache key: failed to fetch remote http://e.example/a.git: git stderr:\nfatal: unable to \
                 access 'http://e.example/a.git/': The requested URL returned error:";
    let fault = at(&format!("{words} 403\n: exit status 128"));
    assert_eq!((fault.code.known(), fault.retryable), (Some(ErrorCode::RepositoryNotFetched), false));
    assert!(at(&format!("{words} 502\n: exit status 128")).retryable);
}

#[test]
fn registry_errors_are_distinguished() {
    let at = |message: &str| decoded(&status(Code::Unknown, message, &[]));
    let prefix = "a/b:1: failed to resolve source metadata for a/b:1";
    assert_eq!(at(&format!("{prefix}: docker.io/a/b:1: not found")).code, "base_image_not_found");
    assert_eq!(
        at(&format!("{prefix}: pull access denied, repository does not exist")).code,
        "base_image_denied"
    );
    let fault = at(&format!("{prefix}: dial tcp: lookup x: no such host"));
    assert_eq!((fault.code.as_str(), fault.retryable), ("registry_unreachable", true));
}
