//! Remote sources of a build: images, downloads and repositories that its Dockerfile names.
//!
//! The scan covers the stages that the target can need, in BuildKit's order of lookups: a name in `--from` refers to a
//! stage first, then to an image. The ONBUILD triggers of a base image count for the stage that begins with it and are
//! known only after that image was resolved, so [`remote_sources`] runs again with the resolved images until it finds
//! nothing new. A superfluous source costs a fetch; a missing one fails the build, since the source policy of the
//! solve denies unlisted sources.

use std::collections::{BTreeMap, BTreeSet};

use super::arguments::Arguments;
use super::downloads::{self, Download, NamedRepository};
use super::lines::{self, Instruction};
use super::variables::Variables;
use crate::model::Reference;
use crate::model::image::{ImageDefaults, Platform};

/// Maximum number of images; no real Dockerfile names more.
const MAX_IMAGES: usize = 256;

/// Build parameters that, besides the Dockerfile, decide which sources it names.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub build_args: &'a BTreeMap<String, String>,
    pub platform: &'a Platform,
    pub target: Option<&'a str>,
}

/// Lines of the Dockerfile, counted from 1, with their text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub start_line: u32,
    pub end_line: u32,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedImage {
    pub reference: Reference,
    pub platform: Platform,
    /// First instruction that names the image.
    pub place: Place,
}

#[derive(Debug, Default)]
pub struct Named {
    /// Images, each name once for each platform.
    pub images: Vec<NamedImage>,
    pub downloads: Vec<Download>,
    pub repositories: Vec<NamedRepository>,
    /// The Dockerfile names more images than the scan covers.
    pub has_more: bool,
}

/// Looks up the defaults of an image found by an earlier scan; returns `None` for one that is not resolved yet.
pub type Known<'a> = &'a dyn Fn(&Reference, &Platform) -> Option<ImageDefaults>;

pub fn named(dockerfile: &[u8], inputs: Inputs<'_>, known: Known<'_>) -> Named {
    let text = String::from_utf8_lossy(dockerfile);
    let (instructions, escape) = lines::instructions(&text);
    let arguments = Arguments::new(inputs.build_args, inputs.platform, inputs.target);
    let mut reader = Reader::new(&text, &instructions, escape, arguments, inputs, known);
    let last = reader.stages.len().checked_sub(1);
    let target = match inputs.target {
        Some(target) => reader.stage_named(target),
        None => last,
    };
    reader.read(target);
    reader.found
}

struct Stage<'i> {
    /// Name in lower case.
    name: Option<String>,
    base: Base,
    platform: Platform,
    place: Place,
    instructions: &'i [Instruction],
}

#[derive(Clone, PartialEq, Eq)]
enum Base {
    /// Index of an earlier stage.
    Stage(usize),
    Nothing,
    Image(Reference),
    /// Base that BuildKit fails on.
    Unreadable,
}

struct Reader<'a> {
    text: &'a str,
    escape: char,
    inputs: Inputs<'a>,
    known: Known<'a>,
    /// Variables of the instructions above all stages.
    global: Variables,
    stages: Vec<Stage<'a>>,
    /// ONBUILD triggers of the base, for each stage that is needed.
    triggers: BTreeMap<usize, Vec<Instruction>>,
    seen: BTreeSet<(String, String)>,
    found: Named,
}

impl<'a> Reader<'a> {
    fn new(
        text: &'a str,
        instructions: &'a [Instruction],
        escape: char,
        mut arguments: Arguments<'a>,
        inputs: Inputs<'a>,
        known: Known<'a>,
    ) -> Self {
        let mut global = Variables::with_platforms(arguments.values.clone());
        let froms: Vec<usize> =
            (0..instructions.len()).filter(|&at| instructions[at].keyword == "from").collect();
        let head = &instructions[..froms.first().copied().unwrap_or(instructions.len())];
        for instruction in head.iter().filter(|instruction| instruction.keyword == "arg") {
            arguments.declare(&instruction.rest, escape);
            global.declare(&instruction.rest, inputs.build_args, None, escape);
        }
        let mut stages: Vec<Stage<'a>> = Vec::with_capacity(froms.len());
        for (number, &from) in froms.iter().enumerate() {
            let end = froms.get(number + 1).copied().unwrap_or(instructions.len());
            let from = &instructions[from];
            let mut words = lines::blank_separated(&from.rest);
            let base = words.next().and_then(|word| arguments.expand(word, escape));
            let name = match (words.next(), words.next()) {
                (Some(by), Some(name)) if by.eq_ignore_ascii_case("as") => Some(name.to_lowercase()),
                _ => None,
            };
            let base = match base {
                None => Base::Unreadable,
                Some(base) => match position(&stages, &base) {
                    Some(stage) => Base::Stage(stage),
                    None if base == "scratch" => Base::Nothing,
                    None => base.parse().map_or(Base::Unreadable, Base::Image),
                },
            };
            let platform = from.flag_values("platform").last();
            let platform =
                platform.and_then(|flag| Platform::parse_loosely(&arguments.expand(flag, escape)?));
            stages.push(Stage {
                name,
                base,
                platform: platform.unwrap_or_else(|| inputs.platform.clone()),
                place: place(text, from),
                instructions: &instructions[froms[number] + 1..end],
            });
        }
        Self {
            text,
            escape,
            inputs,
            known,
            global,
            stages,
            triggers: BTreeMap::new(),
            seen: BTreeSet::new(),
            found: Named::default(),
        }
    }

    fn stage_named(&self, name: &str) -> Option<usize> {
        position(&self.stages, name)
    }

    /// Collects the sources of the stages in `first` and of all stages that they need.
    fn read(&mut self, first: impl IntoIterator<Item = usize>) {
        let mut pending: Vec<usize> = first.into_iter().collect();
        while let Some(at) = pending.pop() {
            if self.triggers.contains_key(&at) {
                continue;
            }
            let (base, platform, from) = (
                self.stages[at].base.clone(),
                self.stages[at].platform.clone(),
                self.stages[at].place.clone(),
            );
            let mut triggers = Vec::new();
            match base {
                Base::Stage(base) => {
                    pending.push(base);
                    let left = self.stages[base].instructions.iter();
                    let left = left.filter(|instruction| instruction.keyword == "onbuild");
                    triggers.extend(left.flat_map(|trigger| lines::instructions(&trigger.rest).0));
                }
                Base::Image(reference) => triggers = self.image(reference, platform, &from),
                Base::Nothing | Base::Unreadable => {}
            }
            for trigger in &triggers {
                self.sources(trigger, &from, &mut pending);
            }
            let instructions = self.stages[at].instructions;
            for instruction in instructions {
                if matches!(instruction.keyword.as_str(), "copy" | "run") {
                    self.sources(instruction, &place(self.text, instruction), &mut pending);
                }
            }
            self.triggers.insert(at, triggers);
        }
        self.found.images.sort_by_key(|image| image.place.start_line);
        self.downloads();
    }

    /// Adds an image and returns its ONBUILD triggers.
    fn image(&mut self, reference: Reference, platform: Platform, at: &Place) -> Vec<Instruction> {
        if !self.seen.insert((reference.to_string(), platform.as_str().to_owned())) {
            self.name_again(&reference, &platform, at);
            return self.triggers_of(&reference, &platform);
        }
        if self.found.images.len() >= MAX_IMAGES {
            self.found.has_more = true;
            return Vec::new();
        }
        let triggers = self.triggers_of(&reference, &platform);
        self.found.images.push(NamedImage { reference, platform, place: at.clone() });
        triggers
    }

    /// Moves the excerpt of a known image to `at` if that is an earlier line: stages are not read in line order.
    fn name_again(&mut self, reference: &Reference, platform: &Platform, at: &Place) {
        let same = |image: &&mut NamedImage| image.reference == *reference && image.platform == *platform;
        if let Some(image) = self.found.images.iter_mut().find(same)
            && at.start_line < image.place.start_line
        {
            image.place = at.clone();
        }
    }

    fn triggers_of(&self, reference: &Reference, platform: &Platform) -> Vec<Instruction> {
        let known = (self.known)(reference, platform).unwrap_or_default();
        known.triggers.iter().flat_map(|trigger| lines::instructions(trigger).0).collect()
    }

    /// Collects the sources that one instruction copies or mounts from. The triggers of an image that is only copied
    /// from count too, because BuildKit resolves what they name.
    fn sources(&mut self, instruction: &Instruction, at: &Place, pending: &mut Vec<usize>) {
        let mut names = from(instruction);
        let mut depth = 0;
        while !names.is_empty() && depth < MAX_IMAGES {
            depth += 1;
            let mut more = Vec::new();
            for name in names {
                if let Some(stage) = self.stage_named(&name) {
                    pending.push(stage);
                    continue;
                }
                if let Ok(number) = name.parse::<usize>() {
                    pending.extend((number < self.stages.len()).then_some(number));
                    continue;
                }
                let Ok(reference) = name.parse::<Reference>() else { continue };
                if name == "scratch" {
                    continue;
                }
                let platform = self.inputs.platform.clone();
                if self.is_noted(&reference) {
                    self.name_again(&reference, &platform, at);
                    continue;
                }
                more.extend(self.image(reference, platform, at).iter().flat_map(from));
            }
            names = more;
        }
    }

    fn is_noted(&self, reference: &Reference) -> bool {
        self.seen.contains(&(reference.to_string(), self.inputs.platform.as_str().to_owned()))
    }

    /// Collects the sources that ADD fetches in the needed stages.
    fn downloads(&mut self) {
        let platforms = || Variables::with_platforms(self.global.platforms().cloned().unwrap_or_default());
        let mut ends: BTreeMap<usize, Variables> = BTreeMap::new();
        let (mut downloads, mut repositories) = (Vec::new(), Vec::new());
        for (&at, triggers) in &self.triggers {
            let stage = &self.stages[at];
            let mut variables = match &stage.base {
                // Earlier stages have smaller numbers, so the variables of the base are known.
                Base::Stage(base) => ends.get(base).map_or_else(Variables::default, Variables::inherited),
                Base::Nothing => platforms(),
                Base::Image(reference) => match (self.known)(reference, &stage.platform) {
                    Some(known) => platforms().with_environment(&known.environment),
                    None => Variables::default(),
                },
                Base::Unreadable => Variables::default(),
            };
            let triggers = triggers.iter().map(|trigger| (trigger, stage.place.clone()));
            let own = stage.instructions.iter().map(|own| (own, place(self.text, own)));
            for (instruction, place) in triggers.chain(own) {
                match instruction.keyword.as_str() {
                    "env" => variables.set(&instruction.rest, self.escape),
                    "arg" => variables.declare(
                        &instruction.rest,
                        self.inputs.build_args,
                        Some(&self.global),
                        self.escape,
                    ),
                    "add" => {
                        let fetched = downloads::of(instruction, &variables, self.escape, &place);
                        downloads.extend(fetched.0);
                        repositories.extend(fetched.1);
                    }
                    _ => {}
                }
            }
            ends.insert(at, variables);
        }
        self.found.downloads = downloads;
        self.found.repositories = repositories;
    }
}

fn position(stages: &[Stage<'_>], name: &str) -> Option<usize> {
    let name = name.to_lowercase();
    stages.iter().position(|stage| stage.name.as_ref() == Some(&name))
}

/// Returns the names in `--from` and in `from=` of mounts.
fn from(instruction: &Instruction) -> Vec<String> {
    match instruction.keyword.as_str() {
        "copy" => instruction.flag_values("from").map(str::to_owned).collect(),
        "run" => instruction.flag_values("mount").filter_map(lines::mount_source).collect(),
        _ => Vec::new(),
    }
}

fn place(text: &str, instruction: &Instruction) -> Place {
    let (start_line, end_line) = (instruction.start_line, instruction.end_line);
    Place { start_line, end_line, text: lines::text_of(text, start_line, end_line) }
}

#[cfg(test)]
mod tests;
