//! Stages of a Dockerfile, and the ones that a target needs.
//!
//! Uncertain cases count as not needed: a stage that counts as needed is one that BuildKit certainly runs.

use std::collections::BTreeMap;

use super::lines::{self, Instruction};
use super::stage_names::StageNames;
use super::variables::StageVariables;

/// The stages of a Dockerfile, in order.
pub(super) struct DockerfileStages<'i> {
    pub(super) stages: Vec<DockerfileStage<'i>>,
    pub(super) names: StageNames,
    /// ARGs above all stages.
    pub(super) global: StageVariables,
}

/// A FROM and the instructions below it.
pub(super) struct DockerfileStage<'i> {
    pub(super) base: StageBase,
    /// The FROM itself.
    pub(super) from: &'i Instruction,
    pub(super) instructions: &'i [Instruction],
}

/// Base of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StageBase {
    /// Index of an earlier stage.
    Stage(usize),
    Scratch,
    /// An image, or a base that cannot be determined.
    Image,
}

/// Returns the stages, and the ARGs above them. `None` when the frontend refuses the Dockerfile or two stages
/// share a name.
pub(super) fn stages<'i>(
    instructions: &'i [Instruction],
    build_args: &BTreeMap<String, String>,
    escape: char,
) -> Option<DockerfileStages<'i>> {
    let mut global = StageVariables::for_scratch();
    let mut stages: Vec<DockerfileStage<'i>> = Vec::new();
    let mut names = StageNames::default();
    if !instructions.iter().all(|instruction| KEYWORDS.contains(&instruction.keyword.as_str())) {
        return None;
    }
    let froms: Vec<usize> =
        (0..instructions.len()).filter(|&at| instructions[at].keyword == "from").collect();
    for instruction in &instructions[..*froms.first()?] {
        match instruction.keyword.as_str() {
            "arg" => global.apply_arg(&instruction.rest, build_args, None, escape),
            _ => return None,
        }
    }
    for (number, &from) in froms.iter().enumerate() {
        let words: Vec<&str> = lines::blank_separated(&instructions[from].rest).collect();
        let (base, name) = match words.as_slice() {
            [base] => (base, None),
            [base, by, name] if by.eq_ignore_ascii_case("as") => (base, Some(name)),
            _ => return None,
        };
        let base = match global.expand(base, escape) {
            Some(base) => match names.get(&base) {
                Some(stage) => StageBase::Stage(stage),
                None if base == "scratch" => StageBase::Scratch,
                None => StageBase::Image,
            },
            None => StageBase::Image,
        };
        if name.is_some_and(|name| !names.insert(name, number)) {
            return None;
        }
        let start = from + 1;
        let end = froms.get(number + 1).copied().unwrap_or(instructions.len());
        let from = &instructions[from];
        stages.push(DockerfileStage { base, from, instructions: &instructions[start..end] });
    }
    Some(DockerfileStages { stages, names, global })
}

/// Returns the names of the stages, in order. A stage without a name has the one that BuildKit shows, `stage-N`.
pub(super) fn stage_names(instructions: &[Instruction]) -> Vec<String> {
    let froms = instructions.iter().filter(|instruction| instruction.keyword == "from");
    let name = |(number, from): (usize, &Instruction)| {
        let words: Vec<&str> = lines::blank_separated(&from.rest).collect();
        match words.as_slice() {
            [_, .., by, name] if by.eq_ignore_ascii_case("as") => (*name).to_owned(),
            _ => format!("stage-{number}"),
        }
    };
    froms.enumerate().map(name).collect()
}

/// Every instruction keyword that the frontend knows.
const KEYWORDS: [&str; 18] = [
    "add",
    "arg",
    "cmd",
    "copy",
    "entrypoint",
    "env",
    "expose",
    "from",
    "healthcheck",
    "label",
    "maintainer",
    "onbuild",
    "run",
    "shell",
    "stopsignal",
    "user",
    "volume",
    "workdir",
];

/// Tells for each stage whether a build of `target` (default: the last stage) runs it. `None` when there is no such
/// stage.
pub(super) fn needed_stages(file: &DockerfileStages<'_>, target: Option<&str>) -> Option<Vec<bool>> {
    let DockerfileStages { stages, names, .. } = file;
    let mut needed = vec![false; stages.len()];
    let target = match target {
        Some(target) => names.get(target)?,
        None => stages.len().checked_sub(1)?,
    };
    let mut pending = vec![target];
    while let Some(index) = pending.pop() {
        if std::mem::replace(&mut needed[index], true) {
            continue;
        }
        if let StageBase::Stage(base) = stages[index].base {
            pending.push(base);
        }
        for instruction in stages[index].instructions {
            match instruction.keyword.as_str() {
                "copy" => pending.extend(instruction.flag_values("from").filter_map(|from| {
                    // A number is an index unless a stage has that name.
                    names.get(from).or_else(|| from.parse().ok()).filter(|&from| from < index)
                })),
                "run" => pending.extend(
                    instruction
                        .flag_values("mount")
                        .filter_map(|mount| names.get(&lines::mount_source(mount)?))
                        .filter(|&from| from < index),
                ),
                _ => {}
            }
        }
    }
    Some(needed)
}
