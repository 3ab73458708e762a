//! Finds instructions that ask for network access that the build does not get.

use std::collections::BTreeMap;

use super::lines::{self, Instruction};
use super::stages::{self, DockerfileStages, StageBase};
use super::variables::StageVariables;
use super::{Dockerfile, DockerfileExcerpt};

/// Prefixes by which ADD recognizes the address of a file or a repository.
const REMOTE: [&str; 5] = ["http://", "https://", "git://", "ssh://", "git@"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkRequest {
    /// `RUN --network=host`
    Host,
    /// ADD of a remote source, in a build without network.
    Remote(String),
}

/// An instruction that cannot run, in a stage that the target needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedNetwork {
    pub request: NetworkRequest,
    pub excerpt: DockerfileExcerpt,
}

impl Dockerfile {
    /// Returns the first instruction that asks for network access that the build does not get. `offline` is a build
    /// with `--network none`. Where this reader cannot interpret the Dockerfile, it returns `None` and BuildKit refuses
    /// the instruction.
    pub fn find_refused_network(
        &self,
        build_args: &BTreeMap<String, String>,
        target: Option<&str>,
        offline: bool,
    ) -> Option<RefusedNetwork> {
        let escape = self.escape;
        let file = stages::stages(&self.instructions, build_args, escape)?;
        let needed = stages::needed_stages(&file, target)?;
        let DockerfileStages { stages, global, .. } = file;
        let mut ends: Vec<StageVariables> = Vec::with_capacity(stages.len());
        for (stage, needed) in stages.iter().zip(needed) {
            let mut variables = match stage.base {
                StageBase::Stage(base) => ends[base].inherited(),
                StageBase::Scratch => StageVariables::for_scratch(),
                StageBase::Image => StageVariables::default(),
            };
            for instruction in stage.instructions {
                let asked = match instruction.keyword.as_str() {
                    "env" => {
                        variables.apply_env(&instruction.rest, escape);
                        None
                    }
                    "arg" => {
                        variables.apply_arg(&instruction.rest, build_args, Some(&global), escape);
                        None
                    }
                    "run" => instruction
                        .flag_values("network")
                        .any(|mode| mode == "host")
                        .then_some(NetworkRequest::Host),
                    "add" if offline => remote(instruction, &variables, escape).map(NetworkRequest::Remote),
                    _ => None,
                };
                if let Some(asked) = asked.filter(|_| needed) {
                    return Some(RefusedNetwork { request: asked, excerpt: self.excerpt_of(instruction) });
                }
            }
            ends.push(variables);
        }
        None
    }
}

fn remote(instruction: &Instruction, variables: &StageVariables, escape: char) -> Option<String> {
    let rest = &instruction.rest;
    let mut words: Vec<String> = match rest.starts_with('[') {
        true => serde_json::from_str(rest).unwrap_or_default(),
        false => lines::blank_separated(rest).map(str::to_owned).collect(),
    };
    // The last word is the destination.
    words.pop();
    let written = words.into_iter().map(|word| variables.expand(&word, escape).unwrap_or(word));
    let mut remote =
        written.filter(|word| REMOTE.iter().any(|start| word.to_ascii_lowercase().starts_with(start)));
    remote.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(dockerfile: &str, offline: bool) -> Option<(NetworkRequest, u32)> {
        let found =
            Dockerfile::parse(dockerfile.into()).find_refused_network(&BTreeMap::new(), None, offline)?;
        Some((found.request, found.excerpt.start_line))
    }

    #[test]
    fn the_network_of_the_machine_is_found_in_stages_that_are_built() {
        let text = "FROM a\nRUN --network=none true\nRUN --network=default true\nRUN --mount=type=cache,target=/x \\\n \
                    --network=host true\n";
        assert_eq!(asked(text, false), Some((NetworkRequest::Host, 4)));
        assert_eq!(asked("FROM a AS unused\nRUN --network=host true\nFROM b\nRUN true\n", false), None);
    }

    #[test]
    fn remote_files_are_found_through_variables_in_builds_without_network() {
        let text = "FROM a\nARG U=https://e.example\nADD x y /d/\nADD ${U}/f /\n";
        let found = NetworkRequest::Remote("https://e.example/f".to_owned());
        assert_eq!(asked(text, true), Some((found, 4)));
        assert_eq!(asked(text, false), None);
        for source in ["HTTP://e/f", "git@e.example:a/b.git", "[\"git://e/a\", \"/\"]"] {
            let text = if source.starts_with('[') { source.to_owned() } else { format!("{source} /") };
            assert!(asked(&format!("FROM a\nADD {text}\n"), true).is_some(), "{source}");
        }
        assert_eq!(asked("FROM a\nADD http /\nCOPY https://e /\n", true), None);
    }
}
