//! Sizes of layers for the steps that made them.
//!
//! Steps and the history of an image have no common identifier. Both are in the order of the Dockerfile, so the steps of
//! the stage that became the image correspond to the end of the history. The stage is the one with the same sequence of
//! instructions; among several, the one whose steps have most of the texts. Texts alone do not decide, because the
//! name of a step has the values of its arguments, and the history has their names.

use std::collections::BTreeSet;

use crate::model::build::StepSummary;
use crate::model::image::ImageInstruction;

/// Instructions that may make a layer, and have a step of their own.
const LAYER_INSTRUCTIONS: [&str; 4] = ["RUN", "COPY", "ADD", "WORKDIR"];
/// Number of characters of an instruction that are compared: the rest may be written in another way in the history.
const COMPARED: usize = 40;

pub(super) fn add(steps: &mut [StepSummary], instructions: &[ImageInstruction]) {
    let history: Vec<&ImageInstruction> = instructions
        .iter()
        .filter(|instruction| {
            instruction.text.split(' ').next().is_some_and(|word| LAYER_INSTRUCTIONS.contains(&word))
        })
        .collect();
    let stages: BTreeSet<String> = steps.iter().filter_map(|step| Some(parse(&step.name)?.stage)).collect();
    let best = stages
        .iter()
        .filter_map(|stage| correspondence(steps, stage, &history))
        .max_by_key(|found| (found.same_texts, found.layers.last().map(|(at, _)| *at)));
    for (at, size) in best.map(|found| found.layers).unwrap_or_default() {
        steps[at].layer_bytes = size;
    }
}

/// Steps of one stage that correspond to the end of the history.
struct Correspondence {
    /// Number of steps that have the text of the history.
    same_texts: usize,
    /// Positions of the steps, with the sizes of their layers.
    layers: Vec<(usize, Option<u64>)>,
}

/// Returns `None` if the history does not end with the instructions of this stage.
fn correspondence(
    steps: &[StepSummary],
    stage: &str,
    history: &[&ImageInstruction],
) -> Option<Correspondence> {
    let named = steps.iter().enumerate().filter_map(|(at, step)| Some((at, parse(&step.name)?)));
    let own: Vec<_> = named.filter(|(_, step)| step.stage == stage).collect();
    let end = &history[history.len().checked_sub(own.len())?..];
    let mut found = Correspondence { same_texts: 0, layers: Vec::new() };
    for ((at, step), instruction) in own.iter().zip(end) {
        let text = instruction.text.strip_prefix(step.instruction)?;
        found.same_texts += usize::from(text.contains(step.compared_text()));
        found.layers.push((*at, instruction.layer_bytes));
    }
    Some(found)
}

struct NamedStep<'a> {
    /// Stage and platform: the words before the number in the brackets.
    stage: String,
    instruction: &'a str,
    arguments: &'a str,
}

impl NamedStep<'_> {
    fn compared_text(&self) -> &str {
        // The history leaves out the flags of an instruction.
        let mut words = self.arguments.trim_start();
        while words.starts_with("--")
            && let Some((_, after)) = words.split_once(' ')
        {
            words = after.trim_start();
        }
        words.char_indices().nth(COMPARED).map_or(words, |(end, _)| &words[..end])
    }
}

/// Parses a name such as `[build 2/3] RUN make`.
fn parse(name: &str) -> Option<NamedStep<'_>> {
    let (brackets, text) = name.strip_prefix('[')?.split_once("] ")?;
    let (stage, number) = brackets.rsplit_once(' ').unwrap_or(("", brackets));
    let (instruction, arguments) = text.split_once(' ')?;
    let is_step = number.contains('/') && LAYER_INSTRUCTIONS.contains(&instruction);
    is_step.then(|| NamedStep { stage: stage.to_owned(), instruction, arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(steps: &[&str], history: &[(&str, Option<u64>)]) -> Vec<Option<u64>> {
        let step = |name: &&str| StepSummary { name: (*name).to_owned(), ..StepSummary::default() };
        let mut steps: Vec<_> = steps.iter().map(step).collect();
        let instruction = |(text, layer_bytes): &(&str, _)| ImageInstruction {
            text: (*text).to_owned(),
            layer_bytes: *layer_bytes,
        };
        add(&mut steps, &history.iter().map(instruction).collect::<Vec<_>>());
        steps.into_iter().map(|step| step.layer_bytes).collect()
    }

    #[test]
    fn steps_of_the_image_have_the_sizes_of_their_layers() {
        let history = [
            ("RUN /bin/sh -c make # buildkit", Some(1)),
            ("ENV A=1", None),
            ("WORKDIR /app", Some(2)),
            ("COPY a b / # buildkit", Some(3)),
            ("RUN |1 N=2 /bin/sh -c make # buildkit", Some(4)),
            ("RUN /bin/sh -c true # buildkit", None),
            ("CMD [\"a\"]", None),
        ];
        let steps = [
            "[internal] load build definition from Dockerfile",
            "[1/5] FROM docker.io/library/base",
            "[2/5] WORKDIR /app",
            "[3/5] COPY a b /",
            "[4/5] RUN make",
            "[5/5] RUN true",
            "exporting to image",
        ];
        assert_eq!(sizes(&steps, &history), [None, None, Some(2), Some(3), Some(4), None, None]);
    }

    #[test]
    fn steps_of_other_stages_have_none() {
        let history = [("COPY /out / # buildkit", Some(7))];
        let steps = ["[build 2/2] RUN make", "[stage-1 1/1] COPY --from=build /out /"];
        assert_eq!(sizes(&steps, &history), [None, Some(7)]);
        let steps = ["[build 2/2] COPY /in /", "[stage-1 1/1] COPY /out /"];
        assert_eq!(sizes(&steps, &history), [None, Some(7)]);
        let history = [("RUN |1 N=1 /bin/sh -c echo $N", Some(8)), ("RUN /bin/sh -c make", Some(9))];
        let steps = ["[a 2/3] RUN echo 1", "[a 3/3] RUN make", "[b 2/3] RUN echo 1", "[b 3/3] RUN false"];
        assert_eq!(sizes(&steps, &history), [Some(8), Some(9), None, None]);
        assert_eq!(sizes(&["[2/2] COPY a /"], &history), [None]);
        assert_eq!(sizes(&steps, &history[..1]), [None; 4]);
    }
}
