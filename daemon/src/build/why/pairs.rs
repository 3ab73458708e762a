//! Pairs the steps of a build with those of an earlier one, stage by stage.

use crate::model::build_inputs::{StepCause, StepInputs};

/// Counterpart of each step in the earlier build.
pub(super) struct StepPairs {
    pairs: Vec<Option<usize>>,
}

impl StepPairs {
    /// Equal instructions at the beginning and at the end of a stage belong together, and those in between by their
    /// order. A stage belongs to the one of its name, else to an unpaired one at its place.
    pub(super) fn new(before: &[StepInputs], after: &[StepInputs]) -> Self {
        let (stages, earlier_stages) = (stages(after), stages(before));
        let mut pairs = vec![None; after.len()];
        for (place, (name, steps)) in stages.iter().enumerate() {
            let is_unpaired =
                |earlier: &&(&str, Vec<usize>)| stages.iter().all(|(name, _)| *name != earlier.0);
            let earlier = earlier_stages
                .iter()
                .find(|earlier| earlier.0 == *name)
                .or_else(|| earlier_stages.get(place).filter(is_unpaired));
            if let Some((_, earlier)) = earlier {
                pair_stage(before, earlier, after, steps, &mut pairs);
            }
        }
        Self { pairs }
    }

    pub(super) fn of(&self, at: usize) -> Option<usize> {
        self.pairs[at]
    }

    /// Returns the instructions that stood right before the counterpart of a step and are gone.
    pub(super) fn removed_before(&self, before: &[StepInputs], at: usize) -> Vec<StepCause> {
        let Some(pair) = self.pairs[at] else { return Vec::new() };
        let stage = &before[pair].stage;
        let is_gone = |step: &usize| before[*step].stage == *stage && !self.pairs.contains(&Some(*step));
        let gone = (0..pair).rev().take_while(is_gone);
        let cause =
            |step: usize| StepCause::Instruction { before: Some(before[step].text.clone()), after: None };
        gone.map(cause).collect()
    }

    /// Returns a cause if a step works on the results of other stages than its counterpart.
    pub(super) fn other_base(
        &self,
        before: &[StepInputs],
        after: &[StepInputs],
        at: usize,
    ) -> Option<StepCause> {
        let earlier = &before[self.pairs[at]?].after;
        let now: Option<Vec<usize>> = after[at].after.iter().map(|step| self.pairs[*step]).collect();
        let now = now?;
        let gone = earlier.iter().find(|step| !now.contains(step) && self.pairs.contains(&Some(**step)));
        let new = after[at].after.iter().zip(&now).find(|(_, pair)| !earlier.contains(pair));
        if gone.is_none() && new.is_none() {
            return None;
        }
        let from = |stage: &str| format!("FROM {stage}");
        Some(StepCause::Instruction {
            before: gone.map(|step| from(&before[*step].stage)),
            after: new.map(|(step, _)| from(&after[*step].stage)),
        })
    }
}

/// Returns the stages in order, each with its name and the indexes of its steps.
fn stages(steps: &[StepInputs]) -> Vec<(&str, Vec<usize>)> {
    let mut stages: Vec<(&str, Vec<usize>)> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        match stages.last_mut() {
            Some((name, of_stage)) if *name == step.stage => of_stage.push(index),
            _ => stages.push((&step.stage, vec![index])),
        }
    }
    stages
}

fn pair_stage(
    before: &[StepInputs],
    earlier: &[usize],
    after: &[StepInputs],
    steps: &[usize],
    pairs: &mut [Option<usize>],
) {
    let is_equal = |(one, other): &(&usize, &usize)| before[**one].text == after[**other].text;
    let start = earlier.iter().zip(steps).take_while(is_equal).count();
    let (rest_before, rest_after) = (&earlier[start..], &steps[start..]);
    let end = rest_before.iter().rev().zip(rest_after.iter().rev()).take_while(is_equal).count();
    let middle = rest_before[..rest_before.len() - end].iter().zip(&rest_after[..rest_after.len() - end]);
    let equal = earlier[..start].iter().zip(&steps[..start]);
    let last = rest_before.iter().rev().zip(rest_after.iter().rev()).take(end);
    for (one, other) in equal.chain(middle).chain(last) {
        pairs[*other] = Some(*one);
    }
}
