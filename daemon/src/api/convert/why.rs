//! Explanations of builds as messages.

use hearth_proto::v1;
use hearth_proto::v1::step_cause::{Cause, Kind};
use prost::Message as _;

use crate::build::{BuildExplanation, ExplainedStep};
use crate::model::build_inputs::{FileChange, StepCause};
use crate::model::id::BuildId;

/// Maximum number of causes of one step, and of bytes of all causes of an answer.
const MAX_CAUSES: usize = 20;
const MAX_CAUSE_BYTES: usize = 2 << 20;
/// Maximum number of characters of an instruction or a value.
const MAX_TEXT: usize = 500;

/// Converts an explanation, of one step only unless `step` is 0.
pub fn why_response(id: &BuildId, explanation: &BuildExplanation, step: u32) -> v1::WhyBuildResponse {
    let mut room = MAX_CAUSE_BYTES;
    let asked = explanation.steps.iter().filter(|explained| step == 0 || explained.outcome.step == step);
    let steps = asked.map(|explained| step_reason(explained, explanation, &mut room)).collect();
    v1::WhyBuildResponse {
        build_id: id.to_string(),
        compared_build_id: explanation.compared.as_ref().map(ToString::to_string).unwrap_or_default(),
        steps,
        compared_files: explanation.compared_files,
    }
}

fn step_reason(explained: &ExplainedStep, of: &BuildExplanation, room: &mut usize) -> v1::StepReason {
    let mut causes = Vec::new();
    for cause in explained.causes.iter().take(MAX_CAUSES) {
        let cause = v1::StepCause { cause: Some(step_cause(cause, of)) };
        let Some(left) = room.checked_sub(cause.encoded_len()) else { break };
        *room = left;
        causes.push(cause);
    }
    v1::StepReason {
        step: explained.outcome.step,
        name: explained.outcome.name.clone(),
        line: of.inputs.steps[explained.index].line,
        omitted_causes: u32::try_from(explained.causes.len() - causes.len()).unwrap_or(u32::MAX),
        causes,
    }
}

fn step_cause(cause: &StepCause, of: &BuildExplanation) -> Cause {
    let short = |text: &Option<String>| text.as_ref().map(|text| text.chars().take(MAX_TEXT).collect());
    match cause {
        StepCause::File { path, change } => {
            Cause::File(v1::FileChange { path: path.clone(), kind: file_change(*change).into() })
        }
        StepCause::Argument { name, before, after } => Cause::Argument(v1::ArgumentChange {
            name: name.clone(),
            before: short(before),
            after: short(after),
        }),
        StepCause::Source { name, before, after } => Cause::Source(v1::SourceChange {
            name: name.clone(),
            before: before.clone(),
            after: after.clone(),
        }),
        StepCause::Instruction { before, after } => {
            Cause::Instruction(v1::InstructionChange { before: short(before), after: short(after) })
        }
        StepCause::SecretIds { before, after } => {
            Cause::SecretIds(v1::SecretIdsChange { before: before.clone(), after: after.clone() })
        }
        StepCause::EarlierStep { index } => Cause::EarlierStep(earlier_step(*index, of)),
        StepCause::NoCache => Cause::Kind(Kind::NoCache.into()),
        StepCause::NotBuiltBefore => Cause::Kind(Kind::NotBuiltBefore.into()),
        StepCause::Evicted => Cause::Kind(Kind::Evicted.into()),
    }
}

fn earlier_step(index: usize, of: &BuildExplanation) -> v1::EarlierStep {
    let inputs = &of.inputs.steps[index];
    let ran = of.steps.iter().find(|explained| explained.index == index);
    v1::EarlierStep {
        step: ran.map(|explained| explained.outcome.step).unwrap_or_default(),
        name: match ran {
            Some(explained) => explained.outcome.name.clone(),
            None => inputs.text.lines().next().unwrap_or_default().chars().take(MAX_TEXT).collect(),
        },
        line: inputs.line,
    }
}

fn file_change(change: FileChange) -> v1::file_change::Kind {
    use v1::file_change::Kind;
    match change {
        FileChange::Added => Kind::Added,
        FileChange::Removed => Kind::Removed,
        FileChange::Content => Kind::Content,
        FileChange::Mode => Kind::Mode,
        FileChange::LinkTarget => Kind::LinkTarget,
        FileChange::Kind => Kind::FileKind,
    }
}
