//! Context files that a build cannot do without.
//!
//! The list has only paths that BuildKit certainly looks up, and fails without: plain paths that COPY or ADD take from
//! the context, in stages that the target needs. A path with a wildcard may match nothing, and one with unknown
//! variables may be any path; both are left out.

use std::collections::BTreeMap;

use hearth_pack::ignore::clean;

use super::lines::{self, Instruction};
use super::stages::{self, DockerfileStage, DockerfileStages, StageBase};
use super::variables::StageVariables;
use super::{Dockerfile, DockerfileExcerpt};

/// A COPY or ADD that takes files from the context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextCopy {
    pub sources: Vec<CopySource>,
    /// The instruction without its flags.
    pub step: String,
    pub excerpt: DockerfileExcerpt,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopySource {
    /// Clean path relative to the context.
    pub path: String,
    /// Path as written, without quotes and escapes and with variables filled in.
    pub written: String,
}

impl Dockerfile {
    /// Returns the instructions whose sources must exist, in the order of the Dockerfile.
    pub fn context_copies(
        &self,
        build_args: &BTreeMap<String, String>,
        target: Option<&str>,
    ) -> Vec<ContextCopy> {
        let escape = self.escape;
        let Some(file) = stages::stages(&self.instructions, build_args, escape) else {
            return Vec::new();
        };
        let Some(needed) = stages::needed_stages(&file, target) else { return Vec::new() };
        let DockerfileStages { stages, global, .. } = file;
        let mut copied = Vec::new();
        let mut ends: Vec<StageVariables> = Vec::with_capacity(stages.len());
        for (stage, needed) in stages.iter().zip(needed) {
            let mut variables = match stage.base {
                StageBase::Stage(base) if has_triggers(&stages[base]) => StageVariables::default(),
                StageBase::Stage(base) => ends[base].inherited(),
                StageBase::Scratch => StageVariables::for_scratch(),
                StageBase::Image => StageVariables::default(),
            };
            for instruction in stage.instructions {
                match instruction.keyword.as_str() {
                    "env" => variables.apply_env(&instruction.rest, escape),
                    "arg" => variables.apply_arg(&instruction.rest, build_args, Some(&global), escape),
                    "copy" | "add" if needed => {
                        let sources = sources_of(instruction, &variables, escape);
                        if !sources.is_empty() {
                            copied.push(ContextCopy {
                                sources,
                                step: format!("{} {}", instruction.keyword.to_uppercase(), instruction.rest),
                                excerpt: self.excerpt_of(instruction),
                            });
                        }
                    }
                    _ => {}
                }
            }
            ends.push(variables);
        }
        copied
    }
}

/// Reports whether a stage has ONBUILD instructions, which may set variables in the stages that begin with it.
fn has_triggers(stage: &DockerfileStage<'_>) -> bool {
    stage.instructions.iter().any(|instruction| instruction.keyword == "onbuild")
}

fn sources_of(instruction: &Instruction, variables: &StageVariables, escape: char) -> Vec<CopySource> {
    let rest = &instruction.rest;
    if rest.contains("<<") || !instruction.flags.iter().all(|flag| is_understood(flag)) {
        return Vec::new();
    }
    let mut words: Vec<String> = match rest.starts_with('[') {
        true => serde_json::from_str(rest).unwrap_or_default(),
        // Quotes do not keep words together in these instructions.
        false => lines::blank_separated(rest).map(str::to_owned).collect(),
    };
    // The last word is the destination.
    words.pop();
    words.iter().filter_map(|word| source(variables.expand(word, escape)?)).collect()
}

/// Reports whether a flag keeps the sources plain context paths that must all exist.
fn is_understood(flag: &str) -> bool {
    let (name, value) = flag.split_once('=').unwrap_or((flag, "true"));
    match name {
        "--chown" | "--chmod" | "--exclude" => true,
        "--link" | "--keep-git-dir" | "--unpack" => matches!(value, "true" | "false"),
        _ => false,
    }
}

/// Returns `None` for a possible pattern, URL or repository, and for the whole context.
fn source(written: String) -> Option<CopySource> {
    let is_plain = |c: char| {
        !matches!(c, '*' | '?' | '[' | '\\' | ':' | '#' | '@' | char::REPLACEMENT_CHARACTER)
            && !c.is_control()
            && (c == ' ' || !c.is_whitespace())
    };
    // `..` at the root stays at the root.
    let path = clean(&format!("/{written}")).trim_start_matches('/').to_owned();
    (written.chars().all(is_plain) && written.trim() == written && !path.is_empty())
        .then_some(CopySource { path, written })
}

#[cfg(test)]
mod tests;
