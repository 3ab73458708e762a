//! `hearth builds why`

use std::time::Duration;

use clap::Args;
use hearth_proto::v1::step_cause::{Cause, Kind};
use hearth_proto::v1::{Build, StepCause, StepReason, WhyBuildRequest, WhyBuildResponse, file_change};
use serde::Serialize;

use crate::cli::{GlobalArgs, complete, connect};
use crate::client::Client;
use crate::error::Failure;
use crate::output;

/// Time limit of the explanation of a build that the user asked for, and of the one that ends every build.
const LIMIT: Duration = Duration::from_secs(30);
const NOTE_LIMIT: Duration = Duration::from_secs(2);
/// Maximum number of characters that are shown of an instruction or a value.
const MAX_SHOWN: usize = 100;

/// Explain why steps of a build ran instead of coming from the cache
///
/// The build is compared with the latest earlier build of its tag by the same participant: the files that each step
/// reads, the build arguments, the base images, the text of the instructions, and the ids of secrets.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth builds why 7f3k9wq2m7xh
  hearth builds why 7f3k 4 --compare 2m7x")]
pub(in crate::cli) struct BuildWhyArgs {
    /// Id of the build, or a prefix of it
    #[arg(add = complete::builds())]
    build: String,
    /// Explain only this step [default: all that ran]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    step: Option<u32>,
    /// Compare with this build
    #[arg(long, value_name = "BUILD", add = complete::builds())]
    compare: Option<String>,
}

#[derive(Serialize)]
struct WhyView {
    build_id: String,
    compared_build_id: Option<String>,
    compared_files: bool,
    steps: Vec<StepView>,
}

#[derive(Serialize)]
struct StepView {
    step: u32,
    name: String,
    line: u32,
    causes: Vec<CauseView>,
    omitted_causes: u32,
}

/// One cause: its kind, the fields of this kind, and its text.
#[derive(Default, Serialize)]
struct CauseView {
    cause: &'static str,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<u32>,
}

pub(super) async fn run(args: BuildWhyArgs, globals: &GlobalArgs) -> Result<(), Failure> {
    let request = WhyBuildRequest {
        build_id: args.build,
        compared_build_id: args.compare.unwrap_or_default(),
        step: args.step.unwrap_or_default(),
    };
    let why = connect(globals).await?.why_build(request, LIMIT).await?;
    if globals.json { output::json(&why_view(why)) } else { output::line(&why_text(&why, args.step)) }
}

/// Notes after a successful build which step ran again first, and why.
pub(in crate::cli) async fn note_first_cause(client: &Client, build: &Build) {
    let is_partly_cached =
        build.result.as_ref().is_some_and(|result| result.cached_steps < result.total_steps);
    if !is_partly_cached {
        return;
    }
    let request = WhyBuildRequest { build_id: build.build_id.clone(), ..WhyBuildRequest::default() };
    // The explanation is an extra of a build that has succeeded: without an answer, such as of an older daemon or with
    // a token that may not read logs, the note is left out.
    let Ok(why) = client.why_build(request, NOTE_LIMIT).await else { return };
    if let Some(note) = first_cause_note(&why) {
        output::note(&note);
    }
}

fn first_cause_note(why: &WhyBuildResponse) -> Option<String> {
    if !why.compared_files {
        return None;
    }
    let is_own = |step: &&StepReason| {
        step.causes.iter().any(|cause| !matches!(cause.cause, None | Some(Cause::EarlierStep(_))))
    };
    let mut own = why.steps.iter().filter(is_own);
    let first = own.next()?;
    let others = own.count();
    let causes = first.causes.len() + first.omitted_causes as usize - 1;
    let and = |count: usize| if count == 0 { String::new() } else { format!(" and {count} more") };
    let cause = first.causes.first().map(cause_view)?.text;
    let see =
        if others + causes > 0 { format!(" (hearth builds why {})", why.build_id) } else { String::new() };
    Some(format!("step {} ran again: {cause}{}{see}", first.step, and(causes)))
}

/// Formats the answer. `step` is the only step that was asked for.
fn why_text(why: &WhyBuildResponse, step: Option<u32>) -> String {
    if why.compared_build_id.is_empty() {
        return "there is no earlier build of this tag to compare with".to_owned();
    }
    let mut lines = vec![format!("compared with build {}", why.compared_build_id)];
    if why.steps.is_empty() {
        lines.push(match step {
            Some(step) => {
                format!("step {step} did not run: the cache had its result, or the build has no such step")
            }
            None => "no step ran".to_owned(),
        });
    }
    for step in &why.steps {
        lines.push(format!("#{} {} (line {})", step.step, output::step_name(&step.name), step.line));
        lines.extend(step.causes.iter().map(|cause| format!("  {}", cause_view(cause).text)));
        if step.omitted_causes > 0 {
            lines.push(format!("  and {} more", step.omitted_causes));
        }
    }
    if !why.compared_files {
        lines.push("the files of the two builds are not both recorded, so no file is named".to_owned());
    }
    lines.join("\n")
}

fn why_view(why: WhyBuildResponse) -> WhyView {
    let step = |step: StepReason| StepView {
        step: step.step,
        name: step.name,
        line: step.line,
        causes: step.causes.iter().map(cause_view).collect(),
        omitted_causes: step.omitted_causes,
    };
    WhyView {
        build_id: why.build_id,
        compared_build_id: Some(why.compared_build_id).filter(|id| !id.is_empty()),
        compared_files: why.compared_files,
        steps: why.steps.into_iter().map(step).collect(),
    }
}

fn cause_view(cause: &StepCause) -> CauseView {
    let empty = CauseView::default();
    match &cause.cause {
        Some(Cause::File(file)) => {
            let (change, what) = file_change(file.kind());
            let text = format!("{} {what}", output::printable(&file.path));
            CauseView { cause: "file", text, path: Some(file.path.clone()), change: Some(change), ..empty }
        }
        Some(Cause::Argument(change)) => {
            let kind = if change.name.starts_with("--") { "option" } else { "argument" };
            let text = format!("{kind} {} {}", change.name, difference(&change.before, &change.after));
            let (before, after) = (change.before.clone(), change.after.clone());
            CauseView { cause: "argument", text, name: Some(change.name.clone()), before, after, ..empty }
        }
        Some(Cause::Source(change)) => {
            let text = format!("{} {}", change.name, difference(&change.before, &change.after));
            let (before, after) = (change.before.clone(), change.after.clone());
            CauseView { cause: "source", text, name: Some(change.name.clone()), before, after, ..empty }
        }
        Some(Cause::Instruction(change)) => {
            let text = match (&change.before, &change.after) {
                (None, Some(new)) => format!("the instruction is new: {}", shown(new)),
                (Some(gone), None) => format!("an instruction before it is gone: {}", shown(gone)),
                _ => format!("the instruction {}", difference(&change.before, &change.after)),
            };
            let (before, after) = (change.before.clone(), change.after.clone());
            CauseView { cause: "instruction", text, before, after, ..empty }
        }
        Some(Cause::SecretIds(change)) => {
            let ids = |ids: &[String]| Some(ids.join(", ")).filter(|ids| !ids.is_empty());
            let (before, after) = (ids(&change.before), ids(&change.after));
            let text = format!("the secret's id {}", difference(&before, &after));
            CauseView { cause: "secret_ids", text, before, after, ..empty }
        }
        Some(Cause::EarlierStep(step)) => {
            let text = match step.step {
                0 => format!("line {} before it changed: {}", step.line, shown(&step.name)),
                number => format!("step {number} before it ran again"),
            };
            let (name, number) = (Some(step.name.clone()), Some(step.step).filter(|number| *number > 0));
            CauseView { cause: "earlier_step", text, name, step: number, ..empty }
        }
        Some(Cause::Kind(kind)) => {
            let (cause, text) = match Kind::try_from(*kind) {
                Ok(Kind::NoCache) => ("no_cache", "--no-cache asked for it"),
                Ok(Kind::NotBuiltBefore) => ("not_built_before", "it did not succeed in the build before"),
                Ok(Kind::Evicted) => ("evicted", "nothing changed; the builder no longer had its result"),
                Ok(Kind::Unspecified) | Err(_) => ("unknown", "for a reason that this client does not know"),
            };
            CauseView { cause, text: text.to_owned(), ..empty }
        }
        None => CauseView {
            cause: "unknown",
            text: "for a reason that this client does not know".to_owned(),
            ..empty
        },
    }
}

fn file_change(kind: file_change::Kind) -> (&'static str, &'static str) {
    use file_change::Kind;
    match kind {
        Kind::Added => ("added", "was added"),
        Kind::Removed => ("removed", "was removed"),
        Kind::Content | Kind::Unspecified => ("content", "changed"),
        Kind::Mode => ("mode", "has another mode"),
        Kind::LinkTarget => ("link_target", "links to another target"),
        Kind::FileKind => ("kind", "is another kind of file"),
    }
}

fn difference(before: &Option<String>, after: &Option<String>) -> String {
    match (before, after) {
        (Some(before), Some(after)) => format!("changed from {} to {}", shown(before), shown(after)),
        (None, Some(after)) => format!("is new: {}", shown(after)),
        (Some(before), None) => format!("is gone: {}", shown(before)),
        (None, None) => "changed".to_owned(),
    }
}

/// Formats a text on one line, shortened.
fn shown(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = line.chars().take(MAX_SHOWN).collect();
    let more = if short.len() < line.len() { "..." } else { "" };
    format!("`{}{more}`", output::printable(&short))
}

#[cfg(test)]
mod tests {
    use hearth_proto::v1::{ArgumentChange, EarlierStep, FileChange};

    use super::*;

    fn reason(step: u32, causes: Vec<Cause>) -> StepReason {
        StepReason {
            step,
            name: format!("[{step}/9] RUN x"),
            line: step,
            causes: causes.into_iter().map(|cause| StepCause { cause: Some(cause) }).collect(),
            omitted_causes: 0,
        }
    }

    fn file(path: &str) -> Cause {
        Cause::File(FileChange { path: path.to_owned(), kind: file_change::Kind::Content.into() })
    }

    #[test]
    fn the_note_names_the_first_step_with_a_cause_of_its_own() {
        let earlier = Cause::EarlierStep(EarlierStep { step: 4, ..EarlierStep::default() });
        let mut why = WhyBuildResponse {
            build_id: "b".to_owned(),
            steps: vec![reason(4, vec![file("app/package.json")]), reason(5, vec![earlier])],
            compared_files: true,
            ..WhyBuildResponse::default()
        };
        assert_eq!(first_cause_note(&why).unwrap(), "step 4 ran again: app/package.json changed");
        why.steps[0].omitted_causes = 2;
        assert_eq!(
            first_cause_note(&why).unwrap(),
            "step 4 ran again: app/package.json changed and 2 more (hearth builds why b)"
        );
        let unknown = WhyBuildResponse { compared_files: false, ..why.clone() };
        assert_eq!(first_cause_note(&unknown), None, "a cause may be a file that is not recorded");
        why.steps.remove(0);
        assert_eq!(first_cause_note(&why), None);
    }

    #[test]
    fn each_step_is_shown_with_its_causes() {
        let argument = Cause::Argument(ArgumentChange {
            name: "VERSION".to_owned(),
            before: Some("1".to_owned()),
            after: None,
        });
        let why = WhyBuildResponse {
            build_id: "b".to_owned(),
            compared_build_id: "a".to_owned(),
            steps: vec![reason(2, vec![file("x"), argument, Cause::Kind(Kind::Evicted.into())])],
            compared_files: true,
        };
        assert_eq!(
            why_text(&why, None),
            "compared with build a\n#2 [2/9] RUN x (line 2)\n  x changed\n  argument VERSION is gone: `1`\n  \
             nothing changed; the builder no longer had its result"
        );
        let json = serde_json::to_value(why_view(why)).unwrap();
        assert_eq!(json["steps"][0]["causes"][0]["path"], "x");
        assert_eq!(json["steps"][0]["causes"][1]["cause"], "argument");
    }
}
