//! What the daemon must know of a Dockerfile before BuildKit's frontend builds it.
//!
//! This only looks; the frontend decides. Where the reader here cannot follow, it stops and the
//! Dockerfile goes on as it is, so that every error about its contents is BuildKit's, with
//! BuildKit's words. Three things are settled here, since they decide what is fetched from where:
//!
//! - references that name this room ([`room_references`]): they become named contexts, pinned by digest;
//! - the frontend that a `# syntax=` line asks for ([`settle_frontend`]): the built-in one serves
//!   `docker/dockerfile:1` and its like, nothing else runs, nothing is fetched;
//! - the files that must be in the context ([`sources`]): without one of them nothing is sent.
//!
//! The reading rules (directives, continuations, comments, heredocs, flags) are those of BuildKit's
//! `frontend/dockerfile/parser`, the expansion those of its `shell` package.

mod copies;
mod lines;
mod sources;
mod stages;
mod syntax;
mod variables;
mod words;

use std::collections::BTreeMap;

use crate::model::image::Platform;
use crate::model::{Reference, RoomRegistries};

pub use copies::selection;
pub use sources::{Copied, Source, sources};
pub use syntax::{FrontendRefused, settle_frontend, settle_frontend_argument};

use lines::Instruction;

/// A reference in a Dockerfile that names this room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomReference {
    /// As BuildKit looks named contexts up: the expanded text without a `:latest` at its end.
    pub name: String,
    pub reference: Reference,
    /// Of the instruction, counted from 1.
    pub start_line: u32,
    pub end_line: u32,
    /// The text of those lines.
    pub text: String,
}

/// Every reference to this room, each name once, in the order of the Dockerfile.
pub fn room_references(
    dockerfile: &[u8],
    build_args: &BTreeMap<String, String>,
    platform: &Platform,
    target: Option<&str>,
    rooms: &RoomRegistries,
) -> Vec<RoomReference> {
    let text = String::from_utf8_lossy(dockerfile);
    let (instructions, escape) = lines::instructions(&text);
    let mut arguments = Arguments::new(build_args, platform, target);
    let mut found: Vec<RoomReference> = Vec::new();
    let mut in_stage = false;
    for instruction in &instructions {
        let names = match instruction.keyword.as_str() {
            "arg" if !in_stage => {
                arguments.declare(&instruction.rest, escape);
                continue;
            }
            "from" => {
                in_stage = true;
                base_of(instruction, &arguments.values, escape).into_iter().collect()
            }
            "copy" => instruction.flag_values("from").map(str::to_owned).collect(),
            "run" => instruction.flag_values("mount").filter_map(lines::mount_source).collect(),
            _ => Vec::new(),
        };
        for name in names {
            let Ok(reference) = name.parse::<Reference>() else { continue };
            if !rooms.owns_source(&reference) {
                continue;
            }
            let name = reference.to_string();
            let name = name.strip_suffix(":latest").unwrap_or(&name).to_owned();
            if found.iter().all(|known| known.name != name) {
                found.push(RoomReference {
                    name,
                    reference,
                    start_line: instruction.start_line,
                    end_line: instruction.end_line,
                    text: lines::text_of(&text, instruction.start_line, instruction.end_line),
                });
            }
        }
    }
    found
}

fn base_of(instruction: &Instruction, values: &BTreeMap<String, String>, escape: char) -> Option<String> {
    let base = instruction.rest.split_whitespace().next()?;
    words::expand(base, values, escape).ok()
}

/// Global ARGs: those above the first FROM, with the platform's own beneath them.
struct Arguments<'a> {
    given: &'a BTreeMap<String, String>,
    values: BTreeMap<String, String>,
}

impl<'a> Arguments<'a> {
    fn new(given: &'a BTreeMap<String, String>, platform: &Platform, target: Option<&str>) -> Self {
        let mut values = BTreeMap::new();
        for (prefix, platform) in [("BUILD", &Platform::host()), ("TARGET", platform)] {
            let mut parts = platform.as_str().split('/');
            for (name, value) in [
                ("PLATFORM", Some(platform.as_str())),
                ("OS", parts.next()),
                ("ARCH", parts.next()),
                ("VARIANT", parts.next()),
            ] {
                values.insert(format!("{prefix}{name}"), value.unwrap_or_default().to_owned());
            }
        }
        values.insert("TARGETSTAGE".to_owned(), target.unwrap_or("default").to_owned());
        for (name, value) in &mut values {
            if let Some(given) = given.get(name) {
                value.clone_from(given);
            }
        }
        Self { given, values }
    }

    fn declare(&mut self, rest: &str, escape: char) {
        for word in words::split_raw(rest, escape) {
            let (name, default) = match word.split_once('=') {
                Some((name, default)) => (name.to_owned(), Some(default)),
                None => (word.clone(), None),
            };
            let value = match (self.given.get(&name), default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => words::expand(default, &self.values, escape).ok(),
                (None, None) => None,
            };
            if let Some(value) = value {
                self.values.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests;
