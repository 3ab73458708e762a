//! Inputs of each step that BuildKit makes of a Dockerfile, as far as its cache depends on them.
//!
//! A step is a FROM with an image, a RUN, COPY or ADD, or a WORKDIR other than `/`. BuildKit numbers the steps of a
//! stage in this order, see `prefixCommand` in its `dockerfile2llb`.

use std::collections::BTreeMap;

use super::lines::{self, Instruction};
use super::stages::{self, DockerfileStage, StageBase};
use super::variables::StageVariables;
use super::{Dockerfile, words};
use crate::context::ContentHash;
use crate::model::build_inputs::StepInputs;

/// Maximum number of steps; the inputs of a Dockerfile with more are not recorded.
const MAX_STEPS: usize = 2000;
/// Maximum length in bytes of a recorded text. The hash of a longer one stands for its end.
const MAX_TEXT: usize = 2048;

/// Looks up the recorded name and digest of an image or a URL that an instruction names.
pub type SourceDigests<'a> = &'a dyn Fn(&str) -> Option<(String, String)>;

/// Options of a build that all steps of one kind depend on: the platform of images, and the network of commands.
#[derive(Clone, Copy)]
pub struct RunOptions<'a> {
    pub platform: &'a str,
    pub network: &'a str,
}

impl Dockerfile {
    /// Returns the inputs of all steps, in the order of the Dockerfile. Empty if the frontend refuses the Dockerfile.
    pub fn step_inputs(
        &self,
        build_args: &BTreeMap<String, String>,
        options: RunOptions<'_>,
        digest_of: SourceDigests<'_>,
    ) -> Vec<StepInputs> {
        let Some(file) = stages::stages(&self.instructions, build_args, self.escape) else {
            return Vec::new();
        };
        let names = self.stage_names();
        let mut reader = StepReader {
            dockerfile: self,
            build_args,
            options,
            digest_of,
            global: &file.global,
            steps: Vec::new(),
            ends: Vec::new(),
        };
        for (stage, name) in file.stages.iter().zip(names) {
            let stage_named = |name: &str| file.names.get(name).or_else(|| name.parse().ok());
            reader.read_stage(stage, &name, &stage_named);
            if reader.steps.len() > MAX_STEPS {
                return Vec::new();
            }
        }
        reader.steps
    }
}

/// State at the end of a stage.
#[derive(Clone, Default)]
struct StageEnd {
    variables: StageVariables,
    /// Known values of the ARGs that were declared; a stage that begins with this one has them, too.
    arguments: BTreeMap<String, String>,
    environment: Vec<String>,
    /// Index of the last step.
    last: Option<usize>,
}

struct StepReader<'a> {
    dockerfile: &'a Dockerfile,
    build_args: &'a BTreeMap<String, String>,
    options: RunOptions<'a>,
    digest_of: SourceDigests<'a>,
    global: &'a StageVariables,
    steps: Vec<StepInputs>,
    ends: Vec<StageEnd>,
}

impl StepReader<'_> {
    fn read_stage(
        &mut self,
        stage: &DockerfileStage<'_>,
        name: &str,
        stage_named: &dyn Fn(&str) -> Option<usize>,
    ) {
        let escape = self.dockerfile.escape;
        let first = self.steps.len();
        let mut now = match stage.base {
            StageBase::Stage(base) => {
                let end = self.ends.get(base).cloned().unwrap_or_default();
                StageEnd { variables: end.variables.inherited(), ..end }
            }
            StageBase::Scratch => {
                StageEnd { variables: StageVariables::for_scratch(), ..StageEnd::default() }
            }
            StageBase::Image => StageEnd::default(),
        };
        if stage.base == StageBase::Image {
            let step = self.base_step(stage.from);
            self.push(step, name, stage.from, &mut now);
        }
        for instruction in stage.instructions {
            match instruction.keyword.as_str() {
                "env" => {
                    now.variables.apply_env(&instruction.rest, escape);
                    now.environment.push(self.text(instruction));
                }
                "user" | "shell" => now.environment.push(self.text(instruction)),
                "arg" => {
                    now.variables.apply_arg(&instruction.rest, self.build_args, Some(self.global), escape);
                    let words = words::split_raw(&instruction.rest, escape);
                    for name in words.iter().filter_map(|word| word.split('=').next()) {
                        let value = now.variables.expand(&format!("${{{name}}}"), escape);
                        now.arguments.extend(value.map(|value| (name.to_owned(), bounded(value))));
                    }
                }
                "workdir" if instruction.rest == "/" => {}
                "run" | "copy" | "add" | "workdir" => {
                    let step = self.step(instruction, &now, stage_named);
                    self.push(step, name, instruction, &mut now);
                }
                _ => {}
            }
        }
        let count = u32::try_from(self.steps.len() - first).unwrap_or(u32::MAX);
        for (position, step) in (1..).zip(&mut self.steps[first..]) {
            (step.position, step.stage_steps) = (position, count);
        }
        self.ends.push(now);
    }

    /// Adds a step, which works on the result of the last one of its stage.
    fn push(&mut self, step: StepInputs, stage: &str, instruction: &Instruction, now: &mut StageEnd) {
        let mut after: Vec<usize> = now.last.into_iter().chain(step.after.iter().copied()).collect();
        after.sort_unstable();
        after.dedup();
        now.last = Some(self.steps.len());
        self.steps.push(StepInputs {
            stage: stage.to_owned(),
            line: instruction.start_line,
            text: self.text(instruction),
            after,
            ..step
        });
    }

    fn base_step(&self, from: &Instruction) -> StepInputs {
        let escape = self.dockerfile.escape;
        let word = lines::blank_separated(&from.rest).next().unwrap_or_default();
        let base = self.global.expand(word, escape);
        let mut arguments = BTreeMap::from([("--platform".to_owned(), self.options.platform.to_owned())]);
        for instruction in self.dockerfile.instructions.iter().take_while(|given| given.keyword == "arg") {
            let names = words::split_raw(&instruction.rest, escape);
            let names = names.iter().filter_map(|word| word.split('=').next());
            arguments.extend(names.filter(|name| names_variable(word, name)).filter_map(|name| {
                Some((name.to_owned(), bounded(self.global.expand(&format!("${{{name}}}"), escape)?)))
            }));
        }
        let sources = base.and_then(|base| (self.digest_of)(&base)).into_iter().collect();
        StepInputs { arguments, sources, ..StepInputs::default() }
    }

    fn step(
        &self,
        instruction: &Instruction,
        now: &StageEnd,
        stage_named: &dyn Fn(&str) -> Option<usize>,
    ) -> StepInputs {
        let escape = self.dockerfile.escape;
        let is_run = instruction.keyword == "run";
        let text = self.text(instruction);
        let received = now.arguments.iter().filter(|(name, _)| is_run || names_variable(&text, name));
        let mut step = StepInputs {
            arguments: received.map(|(name, value)| (name.clone(), value.clone())).collect(),
            ..StepInputs::default()
        };
        let mut from: Vec<String> = Vec::new();
        if is_run {
            step.environment.clone_from(&now.environment);
            step.arguments.insert("--network".to_owned(), self.options.network.to_owned());
            for mount in instruction.flag_values("mount") {
                read_mount(mount, &mut step, &mut from);
            }
        } else {
            from.extend(instruction.flag_values("from").last().map(str::to_owned));
            let words = copied_words(instruction, escape);
            for word in words.iter().filter(|word| !word.starts_with("<<")) {
                let written = now.variables.expand(word, escape);
                match written {
                    Some(url) if url.contains("://") || url.starts_with("git@") => {
                        step.sources.extend((self.digest_of)(&url));
                    }
                    _ if !from.is_empty() => {}
                    Some(path) => step.files.push(context_path(&path)),
                    None => step.files.push(String::new()),
                }
            }
        }
        for name in from {
            match stage_named(&name).filter(|stage| *stage < self.ends.len()) {
                Some(stage) => step.after.extend(self.ends[stage].last),
                None => step.sources.extend((self.digest_of)(&name)),
            }
        }
        step
    }

    fn text(&self, instruction: &Instruction) -> String {
        bounded(self.dockerfile.excerpt_of(instruction).text)
    }
}

fn bounded(text: String) -> String {
    if text.len() <= MAX_TEXT {
        return text;
    }
    let kept = &text[..text.floor_char_boundary(MAX_TEXT)];
    format!("{kept}... ({})", ContentHash::of(text.as_bytes()))
}

/// Reports whether a text names a variable: `$name`, `${name}` or `${name:-...}`.
fn names_variable(text: &str, name: &str) -> bool {
    text.split('$').skip(1).any(|rest| {
        let rest = rest.strip_prefix('{').unwrap_or(rest).strip_prefix(name);
        rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_alphanumeric() || next == '_'))
    })
}

/// Returns the sources of a COPY or ADD as written.
fn copied_words(instruction: &Instruction, escape: char) -> Vec<String> {
    let rest = &instruction.rest;
    let mut words = match serde_json::from_str(rest) {
        Ok(words) => words,
        Err(_) => words::split_raw(rest, escape),
    };
    // The last word is the destination.
    words.pop();
    words
}

fn read_mount(mount: &str, step: &mut StepInputs, from: &mut Vec<String>) {
    let (mut kind, mut source, mut id) = ("bind".to_owned(), String::new(), None);
    let given = lines::mount_source(mount);
    for field in words::csv_fields(mount).unwrap_or_default() {
        let (key, value) = field.split_once('=').unwrap_or((&field, ""));
        match key.to_ascii_lowercase().as_str() {
            "type" => value.clone_into(&mut kind),
            "source" | "src" => value.clone_into(&mut source),
            "id" => id = Some(value.to_owned()),
            _ => {}
        }
    }
    match (kind.as_str(), given) {
        ("secret", _) => step.secret_ids.extend(id),
        ("bind" | "cache", Some(given)) => from.push(given),
        ("bind", None) => step.files.push(context_path(&source)),
        _ => {}
    }
}

/// Returns a path relative to the context, without `.` and `..`; wildcards stay.
fn context_path(written: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in written.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(dockerfile: &str, arguments: &[(&str, &str)]) -> Vec<StepInputs> {
        let arguments = arguments.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let options = RunOptions { platform: "linux/amd64", network: "default" };
        let digest_of = |name: &str| Some((name.to_owned(), format!("digest of {name}")));
        Dockerfile::parse(dockerfile.into()).step_inputs(&arguments.collect(), options, &digest_of)
    }

    #[test]
    fn steps_have_their_stage_number_files_and_predecessors() {
        let steps = steps(
            "ARG B=debian\nFROM $B AS deps\nWORKDIR /\nWORKDIR /app\nENV A=1\nCOPY p*.json ./x /app/\n\
             RUN --mount=type=secret,id=key --mount=source=in,target=/in make\nFROM scratch\n\
             ADD --link https://example.com/f /f\nCOPY --from=deps /app /app\nCOPY --from=alpine:3 /a [\"b\"] /\n",
            &[("B", "ubuntu")],
        );
        let short = |step: &StepInputs| {
            (step.stage.clone(), step.position, step.stage_steps, step.line, step.after.clone())
        };
        let found: Vec<_> = steps.iter().map(short).collect();
        let at = |stage: &str, position, count, line, after: &[usize]| {
            (stage.to_owned(), position, count, line, after.to_vec())
        };
        assert_eq!(
            found,
            [
                at("deps", 1, 4, 2, &[]),
                at("deps", 2, 4, 4, &[0]),
                at("deps", 3, 4, 6, &[1]),
                at("deps", 4, 4, 7, &[2]),
                at("stage-1", 1, 3, 9, &[]),
                at("stage-1", 2, 3, 10, &[3, 4]),
                at("stage-1", 3, 3, 11, &[5]),
            ]
        );
        assert_eq!(steps[0].sources.keys().collect::<Vec<_>>(), ["ubuntu"]);
        assert_eq!(steps[0].arguments["B"], "ubuntu");
        assert_eq!(steps[2].files, ["p*.json", "x"]);
        assert_eq!(
            (&steps[3].files, &steps[3].secret_ids),
            (&vec!["in".to_owned()], &vec!["key".to_owned()])
        );
        assert_eq!(steps[3].environment, ["ENV A=1"]);
        assert_eq!(steps[4].sources.keys().collect::<Vec<_>>(), ["https://example.com/f"]);
        assert!(steps[5].sources.is_empty());
        assert_eq!(steps[6].sources.keys().collect::<Vec<_>>(), ["alpine:3"]);
    }

    #[test]
    fn a_step_has_the_arguments_that_it_receives_or_names() {
        let file = "FROM x AS a\nARG ONE=1 TWO\nCOPY $TWO /\nRUN make\nARG THREE=3\nRUN y\nFROM a\nRUN z\n";
        let steps = steps(file, &[("TWO", "2"), ("FOUR", "4")]);
        let given = |step: &StepInputs| {
            let names = step.arguments.iter().filter(|(name, _)| !name.starts_with("--"));
            names.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        };
        let found: Vec<String> = steps.iter().map(given).collect();
        assert_eq!(found, ["", "TWO=2", "ONE=1 TWO=2", "ONE=1 THREE=3 TWO=2", "ONE=1 THREE=3 TWO=2"]);
        assert_eq!(steps[1].files, ["2"]);
    }

    #[test]
    fn what_cannot_be_read_means_everything_and_a_long_text_ends_with_its_hash() {
        let long = format!("FROM x\nCOPY $UNKNOWN /\nRUN {}\n", "y".repeat(10_000));
        let steps = steps(&long, &[]);
        assert_eq!(steps[1].files, [""]);
        assert!(steps[2].text.len() < 2200 && steps[2].text.contains("blake3:"));
        assert_eq!(super::tests::steps("NONSENSE\n", &[]), []);
    }
}
