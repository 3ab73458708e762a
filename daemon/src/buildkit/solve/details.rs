//! Decodes the details of BuildKit's errors: `google.rpc.Status` details whose values are JSON (not protobuf), each
//! with a type URL such as `github.com/moby/buildkit/errdefs.Source+json`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard_buildkit_proto::google::rpc;
use prost::Message as _;
use serde::Deserialize;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ErrorDetails {
    /// Digest of the failed step.
    pub(super) vertex: Option<String>,
    /// Exit code of the process of a failed `RUN`.
    pub(super) exit_code: Option<u32>,
    /// Innermost location in the Dockerfile.
    pub(super) source: Option<ErrorSource>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct ErrorSource {
    pub(super) dockerfile: Vec<u8>,
    pub(super) lines: (u32, u32),
}

#[derive(Deserialize)]
struct VertexDetail {
    #[serde(default, alias = "Digest")]
    digest: String,
}

#[derive(Deserialize)]
struct ExitMessage {
    #[serde(default, alias = "Code")]
    code: u32,
}

#[derive(Deserialize)]
struct SourceDetail {
    info: Option<SourceText>,
    #[serde(default)]
    ranges: Vec<SourceRange>,
}

#[derive(Deserialize)]
struct SourceText {
    #[serde(default)]
    data: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SourceRange {
    start: SourcePosition,
    end: SourcePosition,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SourcePosition {
    line: u32,
}

pub(super) fn decode(bytes: &[u8]) -> ErrorDetails {
    let mut details = ErrorDetails::default();
    // Details that cannot be decoded are omitted; the message is still available.
    let Ok(status) = rpc::Status::decode(bytes) else { return details };
    for detail in status.details {
        match detail.type_url.rsplit('/').next() {
            Some("errdefs.Vertex+json") => {
                let vertex = serde_json::from_slice::<VertexDetail>(&detail.value).ok();
                details.vertex = details.vertex.or(vertex.map(|v| v.digest));
            }
            Some("gatewayapi.ExitMessage+json") => {
                let exit = serde_json::from_slice::<ExitMessage>(&detail.value).ok();
                details.exit_code = details.exit_code.or(exit.map(|e| e.code));
            }
            Some("errdefs.Source+json") => {
                let source = serde_json::from_slice::<SourceDetail>(&detail.value).ok().and_then(source);
                details.source = source.or(details.source);
            }
            _ => {}
        }
    }
    details
}

fn source(detail: SourceDetail) -> Option<ErrorSource> {
    let dockerfile = STANDARD.decode(detail.info?.data).ok()?;
    let start = detail.ranges.iter().map(|range| range.start.line).filter(|line| *line > 0).min()?;
    let end = detail.ranges.iter().map(|range| range.end.line).max()?;
    Some(ErrorSource { dockerfile, lines: (start, end.max(start)) })
}
