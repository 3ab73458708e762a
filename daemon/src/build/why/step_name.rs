//! Names that BuildKit gives to the steps of a Dockerfile: `[linux/arm64 build 2/5] RUN make`.

use crate::model::build_inputs::StepInputs;

/// Place of a step, as its name tells it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StepName<'n> {
    /// Stage; `None` in a Dockerfile with one stage.
    stage: Option<&'n str>,
    position: u32,
    stage_steps: u32,
}

impl<'n> StepName<'n> {
    /// Parses a name. `None` for a step that no instruction stands for, such as `[internal] load build context`.
    pub(super) fn parse(name: &'n str) -> Option<Self> {
        let (place, _) = name.strip_prefix('[')?.split_once("] ")?;
        let mut words = place.split_whitespace().rev();
        let (position, stage_steps) = words.next()?.split_once('/')?;
        let (position, stage_steps) = (position.parse().ok()?, stage_steps.parse().ok()?);
        // Without a stage, the next word is a platform, if there is one.
        let stage = words.next().filter(|word| !word.contains('/'));
        Some(Self { stage, position, stage_steps })
    }

    /// Returns the index of the step. The ONBUILD triggers of a base image are steps that the Dockerfile does not
    /// contain: they precede all others except FROM, and have no index.
    pub(super) fn index_in(&self, steps: &[StepInputs]) -> Option<usize> {
        let is_of_stage =
            |step: &StepInputs| self.stage.is_none_or(|stage| step.stage.eq_ignore_ascii_case(stage));
        let first = steps.iter().position(is_of_stage)?;
        let triggers = self.stage_steps.checked_sub(steps[first].stage_steps)?;
        let begins_with_base =
            steps[first].text.get(..4).is_some_and(|word| word.eq_ignore_ascii_case("from"));
        let position = match self.position {
            1 if begins_with_base => 1,
            position => position.checked_sub(triggers).filter(|at| *at > u32::from(begins_with_base))?,
        };
        steps.iter().position(|step| is_of_stage(step) && step.position == position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_the_inputs_of_their_steps() {
        let step = |stage: &str, position, stage_steps, text: &str| StepInputs {
            stage: stage.to_owned(),
            position,
            stage_steps,
            text: text.to_owned(),
            ..StepInputs::default()
        };
        let steps = [step("a", 1, 2, "FROM x"), step("a", 2, 2, "RUN y"), step("stage-1", 1, 1, "COPY z /")];
        let index = |name: &str| StepName::parse(name).and_then(|name| name.index_in(&steps));
        assert_eq!(index("[a 1/2] FROM docker.io/library/x"), Some(0));
        assert_eq!(index("[linux/arm64 A 2/2] RUN y"), Some(1));
        assert_eq!(index("[stage-1 1/1] COPY z /"), Some(2));
        assert_eq!(index("[linux/amd64 1/2] FROM x"), Some(0));
        assert_eq!(index("[ 2/2] RUN y"), Some(1));
        // The base has two triggers.
        assert_eq!(index("[a 1/4] FROM x"), Some(0));
        assert_eq!((index("[a 2/4] ONBUILD RUN t"), index("[a 3/4] ONBUILD RUN t")), (None, None));
        assert_eq!(index("[a 4/4] RUN y"), Some(1));
        for other in [
            "[internal] load build context",
            "exporting to image",
            "[image] x",
            "[b 1/1] RUN x",
            "[a 0/1] x",
            "[a 3/2] x",
        ] {
            assert_eq!(index(other), None, "{other}");
        }
    }
}
