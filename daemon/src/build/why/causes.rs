//! Causes for which steps of a build ran, derived from the inputs of this build and of an earlier one.
//!
//! ```text
//! own inputs differ              --> what differs: files, arguments, sources, instructions, ids of secrets
//! otherwise, a step before it    --> the first one that changed and ran, else that ran, else that changed
//! otherwise                      --> the step had not succeeded before, or its result was evicted
//! ```

use std::collections::BTreeSet;

use super::ChangedFile;
use super::pairs::StepPairs;
use super::step_name::StepName;
use crate::build::dockerfile::glob_matches;
use crate::model::build::{NoCache, StepSummary};
use crate::model::build_inputs::{BuildInputs, StepCause, StepInputs};

/// Inputs and outcomes of one build.
#[derive(Clone, Debug, Default)]
pub struct RecordedBuild {
    pub inputs: BuildInputs,
    pub outcomes: Vec<StepSummary>,
}

/// A step that ran, with the reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedStep {
    pub outcome: StepSummary,
    /// Index of its inputs.
    pub index: usize,
    /// At least one cause.
    pub causes: Vec<StepCause>,
}

impl RecordedBuild {
    /// Returns the index of the inputs of a step.
    fn index_of(&self, outcome: &StepSummary) -> Option<usize> {
        StepName::parse(&outcome.name)?.index_in(&self.inputs.steps)
    }

    fn indexes(&self, which: impl Fn(&StepSummary) -> bool) -> BTreeSet<usize> {
        self.outcomes.iter().filter(|step| which(step)).filter_map(|step| self.index_of(step)).collect()
    }
}

/// Returns the steps of `after` that ran, each with its causes. `files` are the differences between the contexts.
/// A FROM is included only if it changed: BuildKit reports it as run although nothing of an image runs.
pub fn explain(before: &RecordedBuild, after: &RecordedBuild, files: &[ChangedFile]) -> Vec<ExplainedStep> {
    let steps = &after.inputs.steps;
    let pairs = StepPairs::new(&before.inputs.steps, steps);
    let own: Vec<Vec<StepCause>> = (0..steps.len())
        .map(|at| own_causes(&before.inputs.steps, &after.inputs, at, &pairs, files))
        .collect();
    let ran = after.indexes(|step| !step.cached);
    let built_before = before.indexes(|step| step.succeeded);
    let causes_of = |at: usize| {
        if !own[at].is_empty() {
            return own[at].clone();
        }
        let earlier = ancestors(steps, at);
        let first = |which: &dyn Fn(usize) -> bool| earlier.iter().copied().find(|step| which(*step));
        let earlier = first(&|step| !own[step].is_empty() && ran.contains(&step))
            .or_else(|| first(&|step| ran.contains(&step) && !is_base(&steps[step])))
            .or_else(|| first(&|step| !own[step].is_empty()));
        match (earlier, pairs.of(at)) {
            (Some(index), _) => vec![StepCause::EarlierStep { index }],
            (None, Some(pair)) if built_before.contains(&pair) => vec![StepCause::Evicted],
            (None, _) => vec![StepCause::NotBuiltBefore],
        }
    };
    let explained = after.outcomes.iter().filter(|step| !step.cached).filter_map(|outcome| {
        let index = after.index_of(outcome)?;
        let is_unchanged_base = is_base(&steps[index]) && own[index].is_empty();
        (!is_unchanged_base).then(|| ExplainedStep {
            outcome: outcome.clone(),
            index,
            causes: causes_of(index),
        })
    });
    explained.collect()
}

/// Reports whether the step is a FROM.
fn is_base(step: &StepInputs) -> bool {
    step.text.get(..4).is_some_and(|keyword| keyword.eq_ignore_ascii_case("from"))
}

/// Returns the steps on whose results a step depends, in order.
fn ancestors(steps: &[StepInputs], at: usize) -> BTreeSet<usize> {
    let (mut found, mut pending) = (BTreeSet::new(), steps[at].after.clone());
    while let Some(step) = pending.pop() {
        if step < steps.len() && found.insert(step) {
            pending.extend(&steps[step].after);
        }
    }
    found
}

/// Returns the differences between a step's own inputs and those of its counterpart.
fn own_causes(
    before: &[StepInputs],
    after: &BuildInputs,
    at: usize,
    pairs: &StepPairs,
    files: &[ChangedFile],
) -> Vec<StepCause> {
    let step = &after.steps[at];
    let is_uncached = match &after.no_cache {
        NoCache::Nothing => false,
        NoCache::Everything => !is_base(step),
        NoCache::Stages(stages) => {
            !is_base(step) && stages.iter().any(|stage| stage.eq_ignore_ascii_case(&step.stage))
        }
    };
    if is_uncached {
        return vec![StepCause::NoCache];
    }
    let Some(pair) = pairs.of(at) else {
        return vec![StepCause::Instruction { before: None, after: Some(step.text.clone()) }];
    };
    let earlier = &before[pair];
    let mut causes = pairs.removed_before(before, at);
    causes.extend(text_cause(earlier, step));
    causes.extend(environment_causes(&earlier.environment, &step.environment));
    let values = |one: &StepInputs, name: &String| one.arguments.get(name).cloned();
    for name in earlier.arguments.keys().chain(step.arguments.keys()).collect::<BTreeSet<_>>() {
        let (before, after) = (values(earlier, name), values(step, name));
        if before != after {
            causes.push(StepCause::Argument { name: name.clone(), before, after });
        }
    }
    if earlier.text == step.text {
        let names = earlier.sources.keys().chain(step.sources.keys()).collect::<BTreeSet<_>>();
        for name in names {
            let (before, after) = (earlier.sources.get(name).cloned(), step.sources.get(name).cloned());
            if before != after {
                causes.push(StepCause::Source { name: name.clone(), before, after });
            }
        }
    }
    let read = files.iter().filter(|file| step.files.iter().any(|path| reads(path, &file.path)));
    causes.extend(read.map(|file| StepCause::File { path: file.path.clone(), change: file.change }));
    if causes.is_empty() {
        causes.extend(pairs.other_base(before, &after.steps, at));
    }
    causes
}

fn text_cause(before: &StepInputs, after: &StepInputs) -> Option<StepCause> {
    if before.text == after.text {
        return None;
    }
    let without_ids = |step: &StepInputs| {
        let blank = |text: String, id: &String| text.replacen(&format!("id={id}"), "id=", 1);
        step.secret_ids.iter().fold(step.text.clone(), blank)
    };
    Some(if before.secret_ids != after.secret_ids && without_ids(before) == without_ids(after) {
        StepCause::SecretIds { before: before.secret_ids.clone(), after: after.secret_ids.clone() }
    } else {
        StepCause::Instruction { before: Some(before.text.clone()), after: Some(after.text.clone()) }
    })
}

/// Returns one cause for each place where the instructions differ.
fn environment_causes(before: &[String], after: &[String]) -> Vec<StepCause> {
    let only = |one: &[String], other: &[String]| -> Vec<String> {
        one.iter().filter(|text| !other.contains(text)).cloned().collect()
    };
    let (mut gone, mut new) = (only(before, after).into_iter(), only(after, before).into_iter());
    let mut causes = Vec::new();
    loop {
        match (gone.next(), new.next()) {
            (None, None) => return causes,
            (before, after) => causes.push(StepCause::Instruction { before, after }),
        }
    }
}

/// Reports whether a step that reads `pattern` reads the file at `path`.
fn reads(pattern: &str, path: &str) -> bool {
    let mut parts = path.split('/');
    pattern.split('/').filter(|part| !part.is_empty()).all(|part| {
        parts.next().is_some_and(|name| match part.contains('[') {
            // A class of characters: rather one file too many than one that is missing.
            true => true,
            false if part.contains(['*', '?', '\\']) => glob_matches(part, name),
            false => part == name,
        })
    })
}

#[cfg(test)]
mod tests;
