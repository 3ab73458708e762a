//! `docs/reference/errors.md` is generated from the catalogue of error codes.
//! To regenerate it: `HEARTH_REGENERATE=1 cargo test -p hearth-value --test error_reference`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::path::Path;

use hearth_value::error_code::{ErrorArea, ErrorCode, RetryAdvice};

const HEAD: &str = "\
# Error codes

<!-- Made by a test from the catalogue below `proto/value/src/error_code/`. Write it again with
`HEARTH_REGENERATE=1 cargo test -p hearth-value --test error_reference`. -->

Each error of a request, a build or a deploy has a code, which never changes. It is the field `code` of
`hearth.v1.ErrorDetail`, which the gRPC status of a failed call carries in its details, and `.error.code` in the output of
`hearth ... --json`. `hearth explain CODE` prints an entry of this page.

The gRPC status is that of a call that fails with the code; a few calls have a reason for another one. The HTTP status is
the one that corresponds to it; the registry below `/v2/` answers with the codes of its own specification. A retry helps
(`yes`), does not help while nothing changes (`no`), or the field `retryable` of the error tells. A hint is the next action
that an error with the code suggests, unless it knows a more specific one.
";

fn reference() -> String {
    let mut text = HEAD.to_owned();
    for area in ErrorArea::ALL {
        let title = area.title();
        write!(
            text,
            "\n## {title}\n\n| code | gRPC | HTTP | retry | meaning | hint |\n|---|---|---|---|---|---|\n"
        )
        .unwrap();
        let mut codes: Vec<&ErrorCode> =
            ErrorCode::ALL.iter().filter(|code| code.entry().area == *area).collect();
        codes.sort_by_key(|code| code.as_str());
        for code in codes {
            let entry = code.entry();
            let retry = match entry.retry {
                RetryAdvice::No => "no",
                RetryAdvice::Depends => "the error tells",
                RetryAdvice::Yes => "yes",
            };
            writeln!(
                text,
                "| `{code}` | {:?} | {} | {retry} | {} | {} |",
                entry.grpc_status,
                code.http_status(),
                entry.explanation,
                entry.hint.unwrap_or("-")
            )
            .unwrap();
        }
    }
    text
}

#[test]
fn the_documentation_is_what_the_catalogue_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/errors.md");
    if std::env::var_os("HEARTH_REGENERATE").is_some() {
        std::fs::write(&path, reference()).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == reference(),
        "docs/reference/errors.md is stale: run HEARTH_REGENERATE=1 cargo test -p hearth-value --test error_reference"
    );
}
