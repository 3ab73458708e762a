//! `hearth explain`

use clap::Args;
use hearth_proto::error_code::{ErrorCode, RetryAdvice};
use serde::Serialize;

use super::GlobalArgs;
use crate::error::{Failure, FailureKind};
use crate::output;

/// Similarity from which on a code counts as a near match; 1 is equality.
const NEAR: f64 = 0.8;
const MAX_NEAR_MATCHES: usize = 3;

/// Explain an error code: its cause, what to do about it, and whether a retry helps
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth explain step_failed
  hearth explain
      List all error codes
  hearth build --tag my-app:dev ./my-app --json
      An error as JSON has its code in `.error.code`")]
pub(super) struct ExplainArgs {
    /// Error code, such as `step_failed`; all codes are listed without one
    code: Option<String>,
}

/// Entry of the catalogue of error codes.
#[derive(Serialize)]
struct ErrorCodeView {
    code: &'static str,
    area: &'static str,
    explanation: &'static str,
    /// Next action that errors with this code suggest; null if it depends on the error.
    hint: Option<&'static str>,
    /// `no`, `yes` or `depends`.
    retry: &'static str,
    grpc_status: String,
    http_status: u16,
}

impl From<ErrorCode> for ErrorCodeView {
    fn from(code: ErrorCode) -> Self {
        let entry = code.entry();
        Self {
            code: entry.text,
            area: entry.area.title(),
            explanation: entry.explanation,
            hint: entry.hint,
            retry: match entry.retry {
                RetryAdvice::No => "no",
                RetryAdvice::Depends => "depends",
                RetryAdvice::Yes => "yes",
            },
            grpc_status: format!("{:?}", entry.grpc_status),
            http_status: code.http_status(),
        }
    }
}

pub(super) fn run(args: &ExplainArgs, globals: &GlobalArgs) -> Result<(), Failure> {
    match &args.code {
        None if globals.json => {
            output::json(&ErrorCode::ALL.iter().copied().map(ErrorCodeView::from).collect::<Vec<_>>())
        }
        None => {
            let row = |code: &ErrorCode| vec![code.to_string(), code.entry().explanation.to_owned()];
            output::table(&["CODE", "MEANING"], &ErrorCode::ALL.iter().map(row).collect::<Vec<_>>())
        }
        Some(text) => {
            let code = text.parse().map_err(|_| unknown_code(text))?;
            if globals.json {
                output::json(&ErrorCodeView::from(code))
            } else {
                output::line(&explanation_text(code))
            }
        }
    }
}

fn explanation_text(code: ErrorCode) -> String {
    let entry = code.entry();
    let hint = entry.hint.map(|hint| format!("  hint: {hint}\n")).unwrap_or_default();
    let retry = match entry.retry {
        RetryAdvice::No => "does not help as long as nothing changes",
        RetryAdvice::Depends => "depends on the cause: the error says whether it is retryable",
        RetryAdvice::Yes => "helps: the cause is temporary",
    };
    format!(
        "{code} ({})\n  {}\n{hint}  retry: {retry}\n  status: gRPC {:?}, HTTP {}",
        entry.area.title(),
        entry.explanation,
        entry.grpc_status,
        code.http_status()
    )
}

fn unknown_code(text: &str) -> Failure {
    let message = format!("there is no error code `{}` in this version", output::printable(text));
    let failure = Failure::new(FailureKind::Usage, ErrorCode::UnknownErrorCode, message);
    match near_matches(text).as_slice() {
        [] => failure.hint("`hearth explain` lists all codes"),
        near => failure.hint(format!("similar codes: {}", near.join(", "))),
    }
}

/// Returns the codes that are spelled most alike, the best first.
fn near_matches(text: &str) -> Vec<&'static str> {
    let scored = ErrorCode::ALL.iter().map(|code| (strsim::jaro(code.as_str(), text), code.as_str()));
    let mut near: Vec<(f64, &str)> = scored.filter(|(similarity, _)| *similarity >= NEAR).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().take(MAX_NEAR_MATCHES).map(|(_, code)| code).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit;

    #[test]
    fn an_entry_says_cause_hint_retry_and_status() {
        assert_eq!(
            explanation_text(ErrorCode::ContextChanged),
            "context_changed (Build contexts and mounted directories)\n  A file of the context changed while it was \
             read. Build again when nothing writes to these files.\n  hint: build again when nothing writes to these \
             files\n  retry: helps: the cause is temporary\n  status: gRPC Aborted, HTTP 409"
        );
        let view = serde_json::to_value(ErrorCodeView::from(ErrorCode::StepFailed)).unwrap();
        assert_eq!((&view["code"], &view["retry"]), (&"step_failed".into(), &"no".into()));
    }

    #[test]
    fn an_unknown_code_is_a_usage_error_with_near_matches() {
        let failure = unknown_code("step_faild");
        assert_eq!((exit::exit_code(&failure), failure.detail.code.as_str()), (2, "unknown_error_code"));
        assert!(failure.detail.hint.starts_with("similar codes: step_failed"), "{}", failure.detail.hint);
        assert_eq!(unknown_code("\u{1b}zz").detail.hint, "`hearth explain` lists all codes");
    }
}
