//! End of the process: the only module that decides exit codes and prints errors.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | the operation failed |
//! | 2 | the command or its input is invalid |
//! | 3 | denied: the token is missing, invalid, or lacks the grant |
//! | 4 | the room's address does not answer |
//! | 130 | Ctrl-C |
//! | other | a failed build ends with the exit code of its failed step; `services exec` with that of its program, or with 127 (no such program) or 126 (cannot be run) |

use std::process::ExitCode;

use hearth_proto::v1::{DockerfileRange, ErrorDetail};
use serde::Serialize;

use crate::error::{Failure, FailureKind};
use crate::output;

/// Prints the failure, if there is one, and returns the exit code.
pub fn report(outcome: Result<(), Failure>, json: bool) -> ExitCode {
    let Err(failure) = outcome else { return ExitCode::SUCCESS };
    if !matches!(failure.kind, FailureKind::OutputClosed | FailureKind::ProgramExited(_)) {
        if output::notes_are_json() {
            output::progress_object(&error_event(&failure));
        } else {
            output::note(&error_text(&failure));
        }
        // Standard output is closed, so the error cannot be shown there.
        if json && let Err(error) = print_error_document(&failure) {
            tracing::debug!(?error, "failed to print the error");
        }
    }
    ExitCode::from(exit_code(&failure))
}

/// Prints the one JSON document of a command that failed. The error ends an array that the command has begun.
pub(crate) fn print_error_document(failure: &Failure) -> Result<(), Failure> {
    let document = error_document(failure);
    if output::end_json_items_with(&document)? { Ok(()) } else { output::json(&document) }
}

/// The error as the last object of the stream of `--progress json`.
fn error_event(failure: &Failure) -> serde_json::Value {
    let mut event = serde_json::to_value(error_document(failure)).unwrap_or_default();
    event["event"] = "error".into();
    event
}

/// Returns the exit code of a failure.
pub fn exit_code(failure: &Failure) -> u8 {
    match failure.kind {
        FailureKind::OutputClosed => 0,
        FailureKind::Failed => failed_step_exit_code(&failure.detail).unwrap_or(1),
        FailureKind::Usage => 2,
        FailureKind::Denied => 3,
        FailureKind::Unreachable => 4,
        FailureKind::Interrupted => 130,
        FailureKind::ProgramExited(code) | FailureKind::ProgramNotStarted(code) => code,
    }
}

/// Exit code of the failed build step, when it is a valid non-zero code. The exit code of a service
/// does not count: it says nothing about the command that deployed it.
fn failed_step_exit_code(detail: &ErrorDetail) -> Option<u8> {
    let code = detail.exit_code.filter(|_| detail.stage != "deploy");
    code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0)
}

/// Formats a failure as text: what failed, where, and what to do next.
pub fn error_text(failure: &Failure) -> String {
    let detail = &failure.detail;
    let denied = if failure.kind == FailureKind::Denied { "denied: " } else { "" };
    let mut text = format!("error: {denied}{}", lines(&detail.message));
    if !detail.field.is_empty() {
        text += &format!("\n  field: {}", output::printable(&detail.field));
    }
    if !detail.step.is_empty() {
        text += &format!("\n  step: {}", output::step_name(&detail.step));
    }
    if let Some(range) = &detail.dockerfile {
        text += &format!("\n  at: {}:{}", output::printable(&range.path), range.start_line);
        for (number, line) in (range.start_line..).zip(range.text.lines()) {
            text += &format!("\n  {number:>5} | {}", output::printable(line));
        }
    }
    if !detail.probes.is_empty() && !failure.probes_shown {
        text += "\n  last probes:";
        for probe in &detail.probes {
            text += &format!("\n    {}", output::printable(probe));
        }
    }
    if !detail.log_tail.is_empty() && !failure.log_shown {
        text += "\n  last lines:";
        for line in &detail.log_tail {
            text += &format!("\n        | {}", output::printable(line));
        }
    }
    if !detail.hint.is_empty() {
        text += &format!("\n  hint: {}", lines(&detail.hint));
    }
    if let Some(milliseconds) = detail.retry_after_ms {
        text +=
            &format!("\n  try again in {:.1}s", std::time::Duration::from_millis(milliseconds).as_secs_f64());
    }
    if let Some(build_id) = &failure.build_id {
        text += &format!("\n  build: {build_id} (its log: hearth builds logs {build_id})");
    }
    if let Some((name, revision)) = &failure.service {
        text += &format!(
            "\n  service: {name}, revision {revision} (its log: hearth services logs {name} --revision {revision})"
        );
    }
    text
}

fn lines(text: &str) -> String {
    text.lines().map(output::printable).collect::<Vec<_>>().join("\n  ")
}

/// Formats a failure as `{"error": {...}}`, as the contract defines it, beside the fields of what the command has
/// done before.
pub fn error_document(failure: &Failure) -> impl Serialize {
    let detail = &failure.detail;
    let present = |text: &String| (!text.is_empty()).then(|| text.clone());
    ErrorDocument {
        partial: failure.partial.clone(),
        error: ErrorView {
            code: detail.code.clone(),
            message: detail.message.clone(),
            field: present(&detail.field),
            stage: present(&detail.stage),
            step: present(&detail.step),
            dockerfile: detail.dockerfile.as_ref().map(DockerfileRangeView::from),
            exit_code: detail.exit_code,
            log_tail: detail.log_tail.clone(),
            probes: detail.probes.clone(),
            hint: present(&detail.hint),
            retryable: detail.retryable,
            retry_after_ms: detail.retry_after_ms,
            build_id: failure.build_id.clone(),
            service: failure.service.as_ref().map(|(name, _)| name.clone()),
            revision: failure.service.as_ref().map(|(_, revision)| *revision),
        },
    }
}

#[derive(Serialize)]
struct ErrorDocument {
    #[serde(flatten)]
    partial: serde_json::Map<String, serde_json::Value>,
    error: ErrorView,
}

/// All known facts of an error; unknown ones are null.
#[derive(Serialize)]
struct ErrorView {
    code: String,
    message: String,
    field: Option<String>,
    stage: Option<String>,
    step: Option<String>,
    dockerfile: Option<DockerfileRangeView>,
    exit_code: Option<i32>,
    log_tail: Vec<String>,
    /// Results of the last probes of a service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    probes: Vec<String>,
    hint: Option<String>,
    retryable: bool,
    retry_after_ms: Option<u64>,
    build_id: Option<String>,
    service: Option<String>,
    revision: Option<u32>,
}

#[derive(Serialize)]
pub(crate) struct DockerfileRangeView {
    path: String,
    start_line: u32,
    end_line: u32,
    text: String,
}

impl From<&DockerfileRange> for DockerfileRangeView {
    fn from(range: &DockerfileRange) -> Self {
        Self {
            path: range.path.clone(),
            start_line: range.start_line,
            end_line: range.end_line,
            text: range.text.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use hearth_proto::error_code::ErrorCode;

    use super::*;
    use crate::client::ClientError;

    fn failed_step(exit_code: i32) -> Failure {
        let mut failure =
            Failure::failed(ErrorCode::StepFailed, "the step failed with exit code 7").build("abc");
        failure.detail.exit_code = Some(exit_code);
        failure.detail.stage = "solve".into();
        failure.detail.step = "[2/3] RUN make".into();
        failure.detail.dockerfile = Some(DockerfileRange {
            path: "/context/Dockerfile".into(),
            start_line: 3,
            end_line: 4,
            text: "RUN make \\\n  all".into(),
        });
        failure.detail.log_tail = vec!["make: *** no rule".into()];
        failure.hint("add the rule")
    }

    #[test]
    fn every_kind_of_failure_has_its_code() {
        use FailureKind::{Denied, Failed, Interrupted, OutputClosed, Unreachable, Usage};
        for (kind, expected) in
            [(Failed, 1), (Usage, 2), (Denied, 3), (Unreachable, 4), (Interrupted, 130), (OutputClosed, 0)]
        {
            assert_eq!(exit_code(&Failure::new(kind, ErrorCode::Internal, "m")), expected);
        }
    }

    #[test]
    fn a_failed_step_gives_its_own_code_where_it_is_one() {
        for (ended, expected) in [(7, 7), (137, 137), (0, 1), (-1, 1), (256, 1)] {
            assert_eq!(exit_code(&failed_step(ended)), expected);
        }
    }

    #[test]
    fn the_exit_code_of_a_service_is_not_that_of_its_deploy() {
        let mut failure =
            Failure::failed(ErrorCode::Exited, "the app ended with exit code 3").service("web", 2);
        (failure.detail.exit_code, failure.detail.stage) = (Some(3), "deploy".into());
        assert_eq!(exit_code(&failure), 1);
        assert!(
            error_text(&failure)
                .ends_with("\n  service: web, revision 2 (its log: hearth services logs web --revision 2)")
        );
        assert_eq!(exit_code(&Failure::program_exited(3)), 3);
    }

    #[test]
    fn errors_of_the_client_keep_their_class() {
        let detail = || Box::new(ErrorDetail { message: "m".into(), ..Default::default() });
        let unreachable = ClientError::Unreachable { address: "http://x:1".into(), reason: "refused".into() };
        for (error, expected) in [
            (unreachable, 4),
            (ClientError::Denied(detail()), 3),
            (ClientError::Invalid(detail()), 2),
            (ClientError::Failed(detail()), 1),
            (ClientError::Protocol("x".into()), 1),
        ] {
            assert_eq!(exit_code(&Failure::from(error)), expected);
        }
    }

    #[test]
    fn people_read_what_where_and_what_next() {
        let shown = error_text(&failed_step(7));
        assert_eq!(
            shown,
            "error: the step failed with exit code 7\n  step: [2/3] RUN make\n  at: /context/Dockerfile:3\n      \
             3 | RUN make \\\n      4 |   all\n  last lines:\n        | make: *** no rule\n  hint: add the rule\n  \
             build: abc (its log: hearth builds logs abc)"
        );
        let mut streamed = failed_step(7);
        streamed.detail.probes = vec!["http://10.88.0.2:8000/ answered 503 (3 times)".into()];
        assert!(
            error_text(&streamed)
                .contains("\n  last probes:\n    http://10.88.0.2:8000/ answered 503 (3 times)")
        );
        (streamed.log_shown, streamed.probes_shown) = (true, true);
        let shown = error_text(&streamed);
        assert!(!shown.contains("last lines") && !shown.contains("answered 503"), "{shown}");
    }

    #[test]
    fn programs_read_a_typed_error() {
        let value = serde_json::to_value(error_document(&failed_step(7))).unwrap();
        let error = &value["error"];
        assert_eq!(error["code"], "step_failed");
        assert_eq!(error["stage"], "solve");
        assert_eq!(error["dockerfile"]["start_line"], 3);
        assert_eq!(error["exit_code"], 7);
        assert_eq!(error["log_tail"][0], "make: *** no rule");
        assert_eq!(error["retryable"], false);
        assert_eq!(error["field"], serde_json::Value::Null);
    }

    #[test]
    fn the_error_is_a_field_of_the_document_that_was_begun() {
        let failure = failed_step(7).partial(&serde_json::json!({"removed": ["a"]}));
        let value = serde_json::to_value(error_document(&failure)).unwrap();
        assert_eq!((&value["removed"][0], &value["error"]["code"]), (&"a".into(), &"step_failed".into()));
        assert_eq!(error_event(&failure)["event"], "error");
    }
}
