//! `hearth build --check`, `--outline` and `--targets`: questions about a Dockerfile, without a build.

use clap::Args;
use hearth_pack::ignore::IgnorePatterns;
use hearth_pack::walk::IgnoreRules;
use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::begin_pack_request::Destination;
use hearth_proto::v1::{BuildQuestion, InspectBuildRequest, InspectBuildResponse, Mount, mount::Source};
use serde_json::Value;

use super::{BuildArgs, checked_plan, request, walk_options};
use crate::cli::{GlobalArgs, connect, pack};
use crate::error::Failure;
use crate::output;

/// Tag of a build that is not run.
const NO_TAG: &str = "not-built";

/// Questions that `hearth build` answers instead of building.
#[derive(Debug, Default, Args)]
pub(super) struct InspectArgs {
    /// Show the warnings of BuildKit's linter, and build nothing
    #[arg(long, conflicts_with_all = ["outline", "targets"], help_heading = "Questions")]
    pub(super) check: bool,
    /// With --check: exit with 1 if there are warnings
    #[arg(long, requires = "check", help_heading = "Questions")]
    strict: bool,
    /// Show the arguments, secrets and SSH agents of the target, and build nothing
    #[arg(long, conflicts_with = "targets", help_heading = "Questions")]
    pub(super) outline: bool,
    /// Show the stages that --target can name, and build nothing
    #[arg(long, help_heading = "Questions")]
    pub(super) targets: bool,
}

impl InspectArgs {
    pub(super) const fn question(&self) -> Option<BuildQuestion> {
        match self {
            Self { check: true, .. } => Some(BuildQuestion::Lint),
            Self { outline: true, .. } => Some(BuildQuestion::Outline),
            Self { targets: true, .. } => Some(BuildQuestion::Targets),
            _ => None,
        }
    }
}

pub(super) async fn run(
    mut args: BuildArgs,
    question: BuildQuestion,
    globals: &GlobalArgs,
) -> Result<(), Failure> {
    if args.tag.is_empty() {
        NO_TAG.clone_into(&mut args.tag);
    }
    let request::BuildPlan { mut spec, pack: local, .. } = checked_plan(&args)?;
    let client = connect(globals).await?;
    if let Some(local) = local {
        // Of the directory, only the Dockerfile and the ignore files are sent.
        let mut walk = walk_options(&args.options, local.target.as_str());
        let nothing = IgnorePatterns::from_list(["**"]).map_err(|error| Failure::usage(error.to_string()))?;
        walk.rules = IgnoreRules::Patterns(nothing);
        let scanned = pack::send::scan(local.path, walk).await?;
        let sent = pack::send::send(&client, &scanned, Destination::Temporary(true), None, None).await?;
        let source = Some(Source::PackId(sent.result.pack_id));
        spec.mounts.push(Mount { source, target: local.target.to_string(), ..Mount::default() });
    }
    let request = InspectBuildRequest { spec: Some(spec), question: question.into() };
    let answer = client.inspect_build(request).await?;
    let document = parse(&answer)?;
    let failure = match question {
        BuildQuestion::Lint => check_failure(&document, args.inspect.strict),
        _ => None,
    };
    if globals.json {
        return match failure {
            None => output::json(&document),
            Some(failure) => Err(failure.partial(&document.as_object().cloned().unwrap_or_default())),
        };
    }
    let text = answer.text.trim_matches('\n');
    if !text.is_empty() {
        output::line(text)?;
    }
    match failure {
        Some(failure) => Err(failure),
        None => {
            if question == BuildQuestion::Lint && warnings(&document) == 0 {
                output::note("the Dockerfile has no warnings");
            }
            Ok(())
        }
    }
}

fn parse(answer: &InspectBuildResponse) -> Result<Value, Failure> {
    serde_json::from_str(&answer.json).map_err(|error| {
        Failure::failed(ErrorCode::Internal, format!("the answer about the Dockerfile is not JSON: {error}"))
    })
}

fn warnings(document: &Value) -> usize {
    document["warnings"].as_array().map_or(0, Vec::len)
}

/// Returns the failure of a Dockerfile that cannot be built, or that has warnings under `--strict`.
fn check_failure(document: &Value, strict: bool) -> Option<Failure> {
    if let Some(message) = document["buildError"]["message"].as_str() {
        let message = format!("the Dockerfile cannot be built: {message}");
        return Some(Failure::failed(ErrorCode::DockerfileCheckFailed, message));
    }
    let count = warnings(document);
    (strict && count > 0).then(|| {
        let plural = if count == 1 { "warning" } else { "warnings" };
        Failure::failed(ErrorCode::DockerfileCheckFailed, format!("the Dockerfile has {count} {plural}"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_strict_checks_fail_on_warnings_and_every_check_fails_on_an_error() {
        let warned = json!({"warnings": [{"ruleName": "StageNameCasing"}]});
        assert!(check_failure(&warned, false).is_none());
        assert_eq!(check_failure(&warned, true).unwrap().detail.message, "the Dockerfile has 1 warning");
        assert!(check_failure(&json!({"warnings": null}), true).is_none());
        let broken = json!({"warnings": [], "buildError": {"message": "unknown instruction: FRM"}});
        assert!(check_failure(&broken, false).unwrap().detail.message.ends_with("FRM"));
    }
}
