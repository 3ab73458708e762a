//! Remote sources of a build: images, downloads and repositories that its Dockerfile names.
//!
//! The scan covers the stages that the target can need, in BuildKit's order of lookups: a name in `--from` refers to a
//! stage first, then to an image. The ONBUILD triggers of a base image count for the stage that begins with it and are
//! known only after that image was resolved, so [`Dockerfile::remote_sources`] runs again with the resolved images until
//! it finds nothing new. A superfluous source costs a fetch; a missing one fails the build, since the source policy of
//! the solve denies unlisted sources.

use std::collections::{BTreeMap, BTreeSet};

use super::arguments::GlobalArguments;
use super::downloads::{self, NamedDownload, NamedRepository};
use super::lines::{self, Instruction};
use super::stage_names::StageNames;
use super::variables::StageVariables;
use super::{Dockerfile, DockerfileExcerpt};
use crate::model::Reference;
use crate::model::image::{ImageDefaults, Platform};

/// Maximum number of images; no real Dockerfile names more.
const MAX_IMAGES: usize = 256;

/// Build parameters that, besides the Dockerfile, decide which sources it names.
#[derive(Clone, Copy)]
pub struct DockerfileInputs<'a> {
    pub build_args: &'a BTreeMap<String, String>,
    pub platform: &'a Platform,
    pub target: Option<&'a str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedImage {
    pub reference: Reference,
    pub platform: Platform,
    /// First instruction that names the image.
    pub excerpt: DockerfileExcerpt,
}

/// A RUN, which needs a machine or an emulator that runs programs of the platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformRun {
    pub platform: Platform,
    pub excerpt: DockerfileExcerpt,
}

#[derive(Debug, Default)]
pub struct RemoteSources {
    /// Images, each name once for each platform.
    pub images: Vec<NamedImage>,
    pub downloads: Vec<NamedDownload>,
    pub repositories: Vec<NamedRepository>,
    /// First RUN of the needed stages of each platform.
    pub runs: Vec<PlatformRun>,
    /// Image with which the target begins, through any stages in between.
    pub base: Option<(Reference, Platform)>,
    /// The Dockerfile names more images than the scan covers.
    pub has_more: bool,
}

impl RemoteSources {
    /// Adds what the same Dockerfile names for another platform; [`base`](Self::base) stays.
    pub fn extend(&mut self, other: Self) {
        let Self { images, downloads, repositories, runs, base: _, has_more } = other;
        self.images.extend(images);
        for download in downloads {
            if self.downloads.iter().all(|known| known.url != download.url) {
                self.downloads.push(download);
            }
        }
        for repository in repositories {
            if self.repositories.iter().all(|known| known.url != repository.url) {
                self.repositories.push(repository);
            }
        }
        for run in runs {
            if self.runs.iter().all(|known| known.platform != run.platform) {
                self.runs.push(run);
            }
        }
        self.has_more |= has_more;
    }
}

/// Looks up the defaults of an image found by an earlier scan; returns `None` for one that is not resolved yet.
pub type ImageDefaultsLookup<'a> = &'a dyn Fn(&Reference, &Platform) -> Option<ImageDefaults>;

impl Dockerfile {
    pub fn remote_sources(
        &self,
        inputs: DockerfileInputs<'_>,
        known: ImageDefaultsLookup<'_>,
    ) -> RemoteSources {
        let arguments = GlobalArguments::new(inputs.build_args, inputs.platform, inputs.target);
        let mut reader = RemoteSourceScanner::new(self, arguments, inputs, known);
        let last = reader.stages.len().checked_sub(1);
        let target = match inputs.target {
            Some(target) => reader.stage_named(target),
            None => last,
        };
        reader.found.base = target.and_then(|target| reader.base_image(target));
        reader.scan(target);
        reader.found
    }
}

struct ScannedStage<'i> {
    base: ScannedBase,
    platform: Platform,
    excerpt: DockerfileExcerpt,
    instructions: &'i [Instruction],
}

#[derive(Clone, PartialEq, Eq)]
enum ScannedBase {
    /// Index of an earlier stage.
    Stage(usize),
    Scratch,
    Image(Reference),
    /// Base that BuildKit fails on.
    Unreadable,
}

struct RemoteSourceScanner<'a> {
    dockerfile: &'a Dockerfile,
    inputs: DockerfileInputs<'a>,
    known: ImageDefaultsLookup<'a>,
    /// Variables of the instructions above all stages.
    global: StageVariables,
    stages: Vec<ScannedStage<'a>>,
    names: StageNames,
    /// ONBUILD triggers of the base, for each stage that is needed.
    triggers: BTreeMap<usize, Vec<Instruction>>,
    seen: BTreeSet<(String, String)>,
    found: RemoteSources,
}

impl<'a> RemoteSourceScanner<'a> {
    fn new(
        dockerfile: &'a Dockerfile,
        mut arguments: GlobalArguments<'a>,
        inputs: DockerfileInputs<'a>,
        known: ImageDefaultsLookup<'a>,
    ) -> Self {
        let Dockerfile { instructions, escape, .. } = dockerfile;
        let escape = *escape;
        let mut global = StageVariables::with_predefined(arguments.values.clone());
        let froms: Vec<usize> =
            (0..instructions.len()).filter(|&at| instructions[at].keyword == "from").collect();
        let head = &instructions[..froms.first().copied().unwrap_or(instructions.len())];
        for instruction in head.iter().filter(|instruction| instruction.keyword == "arg") {
            arguments.declare(&instruction.rest, escape);
            global.apply_arg(&instruction.rest, inputs.build_args, None, escape);
        }
        let mut stages: Vec<ScannedStage<'a>> = Vec::with_capacity(froms.len());
        let mut names = StageNames::default();
        for (number, &from) in froms.iter().enumerate() {
            let end = froms.get(number + 1).copied().unwrap_or(instructions.len());
            let from = &instructions[from];
            let mut words = lines::blank_separated(&from.rest);
            let base = words.next().and_then(|word| arguments.expand(word, escape));
            let name = match (words.next(), words.next()) {
                (Some(by), Some(name)) if by.eq_ignore_ascii_case("as") => Some(name),
                _ => None,
            };
            let base = match base {
                None => ScannedBase::Unreadable,
                Some(base) => match names.get(&base) {
                    Some(stage) => ScannedBase::Stage(stage),
                    None if base == "scratch" => ScannedBase::Scratch,
                    None => base.parse().map_or(ScannedBase::Unreadable, ScannedBase::Image),
                },
            };
            let platform = from.flag_values("platform").last();
            let platform =
                platform.and_then(|flag| Platform::parse_loosely(&arguments.expand(flag, escape)?));
            if let Some(name) = name {
                names.insert(name, number);
            }
            stages.push(ScannedStage {
                base,
                platform: platform.unwrap_or_else(|| inputs.platform.clone()),
                excerpt: dockerfile.excerpt_of(from),
                instructions: &instructions[froms[number] + 1..end],
            });
        }
        Self {
            dockerfile,
            inputs,
            known,
            global,
            stages,
            names,
            triggers: BTreeMap::new(),
            seen: BTreeSet::new(),
            found: RemoteSources::default(),
        }
    }

    fn stage_named(&self, name: &str) -> Option<usize> {
        self.names.get(name)
    }

    /// Returns the image with which a stage begins, through the stages that it begins with.
    fn base_image(&self, mut at: usize) -> Option<(Reference, Platform)> {
        loop {
            let ScannedStage { base, platform, .. } = &self.stages[at];
            match base {
                // The base is an earlier stage, so the loop ends.
                ScannedBase::Stage(base) => at = *base,
                ScannedBase::Image(reference) => return Some((reference.clone(), platform.clone())),
                ScannedBase::Scratch | ScannedBase::Unreadable => return None,
            }
        }
    }

    /// Collects the sources of the stages in `first` and of all stages that they need.
    fn scan(&mut self, first: impl IntoIterator<Item = usize>) {
        let mut pending: Vec<usize> = first.into_iter().collect();
        while let Some(at) = pending.pop() {
            if self.triggers.contains_key(&at) {
                continue;
            }
            let (base, platform, from) = (
                self.stages[at].base.clone(),
                self.stages[at].platform.clone(),
                self.stages[at].excerpt.clone(),
            );
            let mut triggers = Vec::new();
            match base {
                ScannedBase::Stage(base) => {
                    pending.push(base);
                    let left = self.stages[base].instructions.iter();
                    let left = left.filter(|instruction| instruction.keyword == "onbuild");
                    triggers.extend(left.flat_map(|trigger| lines::instructions(&trigger.rest).0));
                }
                ScannedBase::Image(reference) => triggers = self.note_image(reference, platform, &from),
                ScannedBase::Scratch | ScannedBase::Unreadable => {}
            }
            for trigger in &triggers {
                self.note_sources_of(trigger, &from, &mut pending);
            }
            let instructions = self.stages[at].instructions;
            for instruction in instructions {
                if matches!(instruction.keyword.as_str(), "copy" | "run") {
                    self.note_sources_of(instruction, &self.dockerfile.excerpt_of(instruction), &mut pending);
                }
            }
            self.triggers.insert(at, triggers);
        }
        self.found.images.sort_by_key(|image| image.excerpt.start_line);
        self.collect_runs();
        self.collect_downloads();
    }

    /// Adds an image and returns its ONBUILD triggers.
    fn note_image(
        &mut self,
        reference: Reference,
        platform: Platform,
        at: &DockerfileExcerpt,
    ) -> Vec<Instruction> {
        if !self.seen.insert((reference.to_string(), platform.as_str().to_owned())) {
            self.name_again(&reference, &platform, at);
            return self.triggers_of(&reference, &platform);
        }
        if self.found.images.len() >= MAX_IMAGES {
            self.found.has_more = true;
            return Vec::new();
        }
        let triggers = self.triggers_of(&reference, &platform);
        self.found.images.push(NamedImage { reference, platform, excerpt: at.clone() });
        triggers
    }

    /// Moves the excerpt of a known image to `at` if that is an earlier line: stages are not read in line order.
    fn name_again(&mut self, reference: &Reference, platform: &Platform, at: &DockerfileExcerpt) {
        let same = |image: &&mut NamedImage| image.reference == *reference && image.platform == *platform;
        if let Some(image) = self.found.images.iter_mut().find(same)
            && at.start_line < image.excerpt.start_line
        {
            image.excerpt = at.clone();
        }
    }

    fn triggers_of(&self, reference: &Reference, platform: &Platform) -> Vec<Instruction> {
        let known = (self.known)(reference, platform).unwrap_or_default();
        known.triggers.iter().flat_map(|trigger| lines::instructions(trigger).0).collect()
    }

    /// Collects the sources that one instruction copies or mounts from. The triggers of an image that is only copied
    /// from count too, because BuildKit resolves what they name.
    fn note_sources_of(
        &mut self,
        instruction: &Instruction,
        at: &DockerfileExcerpt,
        pending: &mut Vec<usize>,
    ) {
        let mut names = from_names(instruction);
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
                more.extend(self.note_image(reference, platform, at).iter().flat_map(from_names));
            }
            names = more;
        }
    }

    fn is_noted(&self, reference: &Reference) -> bool {
        self.seen.contains(&(reference.to_string(), self.inputs.platform.as_str().to_owned()))
    }

    /// Collects the first RUN of each platform in the needed stages. A stage has the platform of the stage with which it
    /// begins.
    fn collect_runs(&mut self) {
        let mut platforms: BTreeMap<usize, &Platform> = BTreeMap::new();
        let mut runs: Vec<PlatformRun> = Vec::new();
        for (&at, triggers) in &self.triggers {
            let stage = &self.stages[at];
            // Earlier stages have smaller numbers, so the platform of the base is known.
            let platform = match &stage.base {
                ScannedBase::Stage(base) => platforms.get(base).copied().unwrap_or(&stage.platform),
                ScannedBase::Scratch => self.inputs.platform,
                ScannedBase::Image(_) | ScannedBase::Unreadable => &stage.platform,
            };
            platforms.insert(at, platform);
            let is_run = |instruction: &&Instruction| instruction.keyword == "run";
            let excerpt = match triggers.iter().find(is_run) {
                Some(_) => Some(stage.excerpt.clone()),
                None => stage.instructions.iter().find(is_run).map(|run| self.dockerfile.excerpt_of(run)),
            };
            if let Some(excerpt) = excerpt
                && runs.iter().all(|run| run.platform != *platform)
            {
                runs.push(PlatformRun { platform: platform.clone(), excerpt });
            }
        }
        self.found.runs = runs;
    }

    /// Collects the sources that ADD fetches in the needed stages.
    fn collect_downloads(&mut self) {
        let platforms =
            || StageVariables::with_predefined(self.global.predefined().cloned().unwrap_or_default());
        let mut ends: BTreeMap<usize, StageVariables> = BTreeMap::new();
        let (mut downloads, mut repositories) = (Vec::new(), Vec::new());
        for (&at, triggers) in &self.triggers {
            let stage = &self.stages[at];
            let mut variables = match &stage.base {
                // Earlier stages have smaller numbers, so the variables of the base are known.
                ScannedBase::Stage(base) => {
                    ends.get(base).map_or_else(StageVariables::default, StageVariables::inherited)
                }
                ScannedBase::Scratch => platforms(),
                ScannedBase::Image(reference) => match (self.known)(reference, &stage.platform) {
                    Some(known) => platforms().with_environment(&known.environment),
                    None => StageVariables::default(),
                },
                ScannedBase::Unreadable => StageVariables::default(),
            };
            let triggers = triggers.iter().map(|trigger| (trigger, stage.excerpt.clone()));
            let own = stage.instructions.iter().map(|own| (own, self.dockerfile.excerpt_of(own)));
            for (instruction, place) in triggers.chain(own) {
                match instruction.keyword.as_str() {
                    "env" => variables.apply_env(&instruction.rest, self.dockerfile.escape),
                    "arg" => variables.apply_arg(
                        &instruction.rest,
                        self.inputs.build_args,
                        Some(&self.global),
                        self.dockerfile.escape,
                    ),
                    "add" => {
                        let fetched = downloads::remote_sources_of_add(
                            instruction,
                            &variables,
                            self.dockerfile.escape,
                            &place,
                        );
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

/// Returns the names in `--from` and in `from=` of mounts.
fn from_names(instruction: &Instruction) -> Vec<String> {
    match instruction.keyword.as_str() {
        "copy" => instruction.flag_values("from").map(str::to_owned).collect(),
        "run" => instruction.flag_values("mount").filter_map(lines::mount_source).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
