//! A model of the builder's cache decides which steps run after one change; the explanation must name that change.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::build::dockerfile::{Dockerfile, RunOptions};
use crate::model::build_inputs::FileChange;

const PATHS: [&str; 5] = ["a/x", "a/y", "b", "c/d/e", "c/f"];
const COPIED: [&str; 6] = ["a", "a/x", "b", "c/d", ".", "a/*"];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Copy(usize),
    Run(u8),
    Secret(u8),
    Arg(u8),
    CopyFrom,
}

/// Everything that a build depends on.
#[derive(Clone, Debug)]
struct World {
    /// Content and mode by path.
    files: BTreeMap<&'static str, (u8, u8)>,
    arguments: BTreeMap<String, String>,
    digests: [u8; 2],
    stages: Vec<Vec<Line>>,
}

/// Key of one step as the cache knows it: its own part, and with those of the steps before it.
struct ModelStep {
    own: String,
    key: String,
}

impl World {
    fn dockerfile(&self) -> String {
        let mut text = String::new();
        for (stage, lines) in self.stages.iter().enumerate() {
            text += &format!("FROM img{stage} AS s{stage}\n");
            for line in lines {
                text += &match line {
                    Line::Copy(at) => format!("COPY {} /dst/\n", COPIED[*at]),
                    Line::Run(number) => format!("RUN command {number}\n"),
                    Line::Secret(id) => format!("RUN --mount=type=secret,id=key{id} use\n"),
                    Line::Arg(number) => format!("ARG A{number}=default\n"),
                    Line::CopyFrom => "COPY --from=s0 /dst /other\n".to_owned(),
                };
            }
        }
        text
    }

    fn copied(&self, at: usize) -> Vec<(&'static str, (u8, u8))> {
        let all = self.files.iter().map(|(path, file)| (*path, *file));
        all.filter(|(path, _)| copies(COPIED[at], path)).collect()
    }

    fn model(&self) -> Vec<ModelStep> {
        let mut steps: Vec<ModelStep> = Vec::new();
        let mut ends: Vec<usize> = Vec::new();
        for (stage, lines) in self.stages.iter().enumerate() {
            let own = format!("FROM {}", self.digests[stage]);
            steps.push(ModelStep { key: format!("{stage} {own}"), own });
            let mut declared = Vec::new();
            for line in lines {
                let last = &steps[steps.len() - 1].key;
                let (own, other) = match line {
                    Line::Copy(at) => (format!("COPY {at} {:?}", self.copied(*at)), ""),
                    Line::Run(number) => (format!("RUN {number} {declared:?}"), ""),
                    Line::Secret(id) => (format!("SECRET {id} {declared:?}"), ""),
                    Line::CopyFrom => ("COPY FROM".to_owned(), steps[ends[0]].key.as_str()),
                    Line::Arg(number) => {
                        let name = format!("A{number}");
                        let value = self.arguments.get(&name).map_or("default", String::as_str);
                        declared.retain(|(known, _)| *known != name);
                        declared.push((name, value.to_owned()));
                        declared.sort();
                        continue;
                    }
                };
                steps.push(ModelStep { key: format!("({last}) ({other}) {own}"), own });
            }
            ends.push(steps.len() - 1);
        }
        steps
    }

    fn recorded(&self, is_cached: impl Fn(&ModelStep) -> bool) -> RecordedBuild {
        let options = RunOptions { platform: "linux/amd64", network: "default" };
        let digest_of = |name: &str| {
            let stage: usize = name.strip_prefix("img")?.parse().ok()?;
            Some((name.to_owned(), self.digests[stage].to_string()))
        };
        let dockerfile = Dockerfile::parse(self.dockerfile().into_bytes());
        let steps = dockerfile.step_inputs(&self.arguments, options, &digest_of);
        let is_single = self.stages.len() == 1;
        let outcome = |(number, (step, model)): (u32, (&StepInputs, ModelStep))| {
            let stage = if is_single { String::new() } else { format!("{} ", step.stage) };
            StepSummary {
                step: number,
                name: format!("[{stage}{}/{}] x", step.position, step.stage_steps),
                cached: is_cached(&model),
                succeeded: true,
                ..StepSummary::default()
            }
        };
        let outcomes = (1..).zip(steps.iter().zip(self.model())).map(outcome).collect();
        RecordedBuild { inputs: BuildInputs { no_cache: NoCache::Nothing, steps }, outcomes }
    }
}

fn copies(copied: &str, path: &str) -> bool {
    match copied {
        "." => true,
        "a/*" => path.starts_with("a/"),
        copied => path == copied || path.strip_prefix(copied).is_some_and(|rest| rest.starts_with('/')),
    }
}

/// One difference between two builds.
#[derive(Clone, Debug)]
enum Change {
    File(usize),
    Mode(usize),
    AddOrRemove(usize),
    Argument(u8),
    Base(usize),
    Command(usize),
    Secret(usize),
}

/// Applies a change. Returns the cause that it is for the steps that it concerns, and the files that differ.
fn apply(change: &Change, world: &mut World) -> Option<(StepCause, Vec<ChangedFile>)> {
    let file = |at: usize, change| {
        let path = PATHS[at].to_owned();
        (StepCause::File { path: path.clone(), change }, vec![ChangedFile { path, change }])
    };
    let nth = |world: &World, is_it: fn(&Line) -> bool, at: usize| {
        let found = |(stage, lines): (usize, &Vec<Line>)| {
            let lines = lines.iter().enumerate().filter(|(_, line)| is_it(line));
            lines.map(|(line, _)| (stage, line)).collect::<Vec<_>>()
        };
        let all: Vec<(usize, usize)> = world.stages.iter().enumerate().flat_map(found).collect();
        (!all.is_empty()).then(|| all[at % all.len()])
    };
    Some(match *change {
        Change::File(at) => {
            world.files.get_mut(PATHS[at])?.0 += 1;
            file(at, FileChange::Content)
        }
        Change::Mode(at) => {
            world.files.get_mut(PATHS[at])?.1 += 1;
            file(at, FileChange::Mode)
        }
        Change::AddOrRemove(at) => match world.files.remove(PATHS[at]) {
            Some(_) => file(at, FileChange::Removed),
            None => {
                world.files.insert(PATHS[at], (0, 0));
                file(at, FileChange::Added)
            }
        },
        Change::Argument(number) => {
            let name = format!("A{number}");
            let before = world.arguments.insert(name.clone(), "changed".to_owned());
            let before = Some(before.unwrap_or_else(|| "default".to_owned()));
            (StepCause::Argument { name, before, after: Some("changed".to_owned()) }, Vec::new())
        }
        Change::Base(stage) => {
            let before = Some(world.digests[stage].to_string());
            world.digests[stage] += 1;
            let after = Some(world.digests[stage].to_string());
            (StepCause::Source { name: format!("img{stage}"), before, after }, Vec::new())
        }
        Change::Command(at) => {
            let (stage, line) = nth(world, |line| matches!(line, Line::Run(_)), at)?;
            let Line::Run(number) = &mut world.stages[stage][line] else { return None };
            let before = Some(format!("RUN command {number}"));
            *number += 100;
            let after = Some(format!("RUN command {number}"));
            (StepCause::Instruction { before, after }, Vec::new())
        }
        Change::Secret(at) => {
            let (stage, line) = nth(world, |line| matches!(line, Line::Secret(_)), at)?;
            let Line::Secret(id) = &mut world.stages[stage][line] else { return None };
            let before = vec![format!("key{id}")];
            *id += 100;
            (StepCause::SecretIds { before, after: vec![format!("key{id}")] }, Vec::new())
        }
    })
}

fn lines(first: bool) -> impl Strategy<Value = Vec<Line>> {
    let from = if first { Just(Line::Run(9)) } else { Just(Line::CopyFrom) };
    let line = prop_oneof![
        (0..COPIED.len()).prop_map(Line::Copy),
        (0..3u8).prop_map(Line::Run),
        (0..3u8).prop_map(Line::Secret),
        (0..3u8).prop_map(Line::Arg),
        from,
    ];
    prop::collection::vec(line, 0..7)
}

fn worlds() -> impl Strategy<Value = World> {
    let files = prop::collection::btree_map(prop::sample::select(&PATHS[..]), (0..9u8, 0..9u8), 0..=5);
    let arguments = prop::collection::btree_map("A[0-2]", "[a-z]{1,3}", 0..3);
    let stages = (lines(true), prop::option::of(lines(false)))
        .prop_map(|(first, second)| std::iter::once(first).chain(second).collect());
    (files, arguments, any::<[u8; 2]>(), stages).prop_map(|(files, arguments, digests, stages)| World {
        files,
        arguments,
        digests: digests.map(|digest| digest / 2),
        stages,
    })
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        (0..PATHS.len()).prop_map(Change::File),
        (0..PATHS.len()).prop_map(Change::Mode),
        (0..PATHS.len()).prop_map(Change::AddOrRemove),
        (0..3u8).prop_map(Change::Argument),
        (0..2usize).prop_map(Change::Base),
        (0..9usize).prop_map(Change::Command),
        (0..9usize).prop_map(Change::Secret),
    ]
}

proptest! {
    #[test]
    fn one_change_is_named_exactly(before in worlds(), change in changes()) {
        let mut after = before.clone();
        let Some((cause, files)) = apply(&change, &mut after) else { return Ok(()) };
        let (old, new) = (before.model(), after.model());
        let is_cached = |step: &ModelStep| old.iter().any(|known| known.key == step.key);
        let is_concerned = |at: usize| old[at].own != new[at].own;
        let (one, other) = (before.recorded(|_| false), after.recorded(is_cached));
        let explained = explain(&one, &other, &files);
        let ran: Vec<usize> = (0..new.len()).filter(|at| !is_cached(&new[*at])).collect();
        prop_assert_eq!(explained.iter().map(|step| step.index).collect::<Vec<_>>(), ran);
        for step in &explained {
            let expected = if is_concerned(step.index) {
                cause.clone()
            } else {
                let earlier = ancestors(&other.inputs.steps, step.index);
                StepCause::EarlierStep { index: earlier.into_iter().find(|at| is_concerned(*at)).unwrap() }
            };
            prop_assert_eq!(&step.causes, &[expected], "step {} of\n{}", step.index, after.dockerfile());
        }
    }
}

fn recorded(dockerfile: &str, cached: &[u32]) -> RecordedBuild {
    let options = RunOptions { platform: "linux/amd64", network: "default" };
    let steps = Dockerfile::parse(dockerfile.into()).step_inputs(&BTreeMap::new(), options, &|_| None);
    let outcome = |(number, step): (u32, &StepInputs)| StepSummary {
        step: number,
        name: format!("[{} {}/{}] x", step.stage, step.position, step.stage_steps),
        cached: cached.contains(&number),
        succeeded: true,
        ..StepSummary::default()
    };
    let outcomes = (1..).zip(&steps).map(outcome).collect();
    RecordedBuild { inputs: BuildInputs { no_cache: NoCache::Nothing, steps }, outcomes }
}

fn instruction(before: Option<&str>, after: Option<&str>) -> StepCause {
    StepCause::Instruction { before: before.map(str::to_owned), after: after.map(str::to_owned) }
}

#[track_caller]
fn assert_causes(before: &RecordedBuild, after: &RecordedBuild, expected: &[(u32, StepCause)]) {
    let explained = explain(before, after, &[]);
    let found: Vec<(u32, StepCause)> = explained
        .into_iter()
        .flat_map(|step| step.causes.into_iter().map(move |cause| (step.outcome.step, cause)))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn instructions_that_are_new_or_gone_are_named_once() {
    let three = "FROM x\nRUN a\nRUN b\nRUN c\n";
    let two = "FROM x\nRUN a\nRUN c\n";
    let earlier = |index| StepCause::EarlierStep { index };
    assert_causes(
        &recorded(two, &[]),
        &recorded(three, &[1, 2]),
        &[(3, instruction(None, Some("RUN b"))), (4, earlier(2))],
    );
    assert_causes(&recorded(three, &[]), &recorded(two, &[1, 2]), &[(3, instruction(Some("RUN b"), None))]);
    let with_env = "FROM x\nENV A=1\nRUN a\nRUN c\n";
    assert_causes(
        &recorded(two, &[]),
        &recorded(with_env, &[1]),
        &[(2, instruction(None, Some("ENV A=1"))), (3, instruction(None, Some("ENV A=1")))],
    );
}

#[test]
fn a_stage_that_begins_with_another_one_is_a_cause() {
    let file = |base: &str| format!("FROM x AS a\nRUN a\nFROM x AS b\nRUN b\nFROM {base}\nRUN c\n");
    let (before, after) = (recorded(&file("a"), &[]), recorded(&file("b"), &[1, 2, 3, 4]));
    assert_causes(&before, &after, &[(5, instruction(Some("FROM a"), Some("FROM b")))]);
}

#[test]
fn equal_inputs_mean_an_evicted_result_a_failure_before_or_no_cache() {
    let file = "FROM x\nRUN a\nRUN b\n";
    let mut before = recorded(file, &[]);
    let after = recorded(file, &[1, 2]);
    assert_causes(&before, &after, &[(3, StepCause::Evicted)]);
    before.outcomes[2].succeeded = false;
    assert_causes(&before, &after, &[(3, StepCause::NotBuiltBefore)]);
    let mut after = recorded(file, &[]);
    assert_causes(
        &recorded(file, &[]),
        &after,
        &[(2, StepCause::Evicted), (3, StepCause::EarlierStep { index: 1 })],
    );
    after.inputs.no_cache = NoCache::Stages(vec!["STAGE-0".to_owned()]);
    assert_causes(&before, &after, &[(2, StepCause::NoCache), (3, StepCause::NoCache)]);
}
