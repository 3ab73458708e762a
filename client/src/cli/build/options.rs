//! Flags that `hearth build` and `hearth deploy --pack` share.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use hearth_proto::value::{BuildCompression, ProvenanceMode};

/// Build options that `hearth build` and `hearth deploy --pack` share.
#[derive(Debug, Default, PartialEq, Args)]
pub(in crate::cli) struct BuildOptions {
    /// Keep the pack as this file of room storage; a path that ends with `/` is its directory
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    pub(super) pack_room_path: Option<String>,
    /// Directory that COPY reads from; needed with more than one mount
    #[arg(long, value_name = "PATH", help_heading = "Files")]
    pub(super) context_path: Option<String>,
    /// Dockerfile: absolute inside the mounts, or relative to the context
    /// [default: Containerfile, then Dockerfile]
    #[arg(long, short = 'f', visible_alias = "file", value_name = "PATH", help_heading = "Files")]
    pub(super) dockerfile_path: Option<String>,

    /// Value of an ARG, `KEY=VALUE`; `KEY` alone takes its value from the environment
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Build")]
    pub(super) build_arg: Vec<String>,
    /// Secret for `RUN --mount=type=secret`: `id=ID,src=FILE`, `id=ID,env=VARIABLE`, or a secret of the room,
    /// `id=ID,room=SECRET`
    #[arg(long, value_name = "SECRET", help_heading = "Build")]
    pub(super) secret: Vec<String>,
    /// Stage to build
    #[arg(long, value_name = "STAGE", help_heading = "Build")]
    pub(super) target: Option<String>,
    /// Platform of the image, such as `linux/arm64`; several, separated by commas, make an index with an image for each
    #[arg(long, value_delimiter = ',', conflicts_with = "arch", help_heading = "Build")]
    pub(super) platform: Vec<String>,
    /// Architecture of the image, such as `arm64`
    #[arg(long, help_heading = "Build")]
    pub(super) arch: Option<String>,
    /// Label of the image, `KEY=VALUE`
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Build")]
    pub(super) label: Vec<String>,
    /// Annotation of the image, `KEY=VALUE` for its manifests, or `SCOPE:KEY=VALUE` with the scopes manifest, index,
    /// manifest-descriptor and index-descriptor, of which those of manifests take a `[PLATFORM]`
    #[arg(long, value_name = "ANNOTATION", help_heading = "Build")]
    pub(super) annotation: Vec<String>,
    /// Run every step again, or only those of one stage. A next word that cannot be a stage, or without which there are
    /// no files to build, is PATH; `--no-cache=STAGE` is always a stage
    #[arg(long, value_name = "STAGE", num_args = 0..=1, default_missing_value = "", help_heading = "Build")]
    pub(super) no_cache: Vec<NoCacheValue>,
    /// Cache whose steps need not run: `type=registry,ref=TAG`, `type=local,src=PATH` or `type=oci-archive,src=PATH`, with
    /// paths of room storage
    #[arg(long, value_name = "CACHE", help_heading = "Build")]
    pub(super) cache_from: Vec<String>,
    /// Cache to write: `type=inline`, `type=registry,ref=TAG`, `type=local,dest=PATH` or `type=oci-archive,dest=PATH`; with
    /// `mode=max` it holds the steps of all stages
    #[arg(long, value_name = "CACHE", help_heading = "Build")]
    pub(super) cache_to: Vec<String>,
    /// Resolve the tags of base images again
    #[arg(long, help_heading = "Build")]
    pub(super) pull: bool,
    /// Network of RUN steps
    #[arg(long, value_parser = ["default", "none"], help_heading = "Build")]
    pub(super) network: Option<String>,
    /// Compression of the layers that the build adds: gzip, zstd, estargz or none
    #[arg(long, default_value_t, help_heading = "Build")]
    pub(super) compression: BuildCompression,
    /// Make an image that starts faster: the layers that the build adds are compressed with zstd
    #[arg(long, overrides_with = "no_optimize", conflicts_with = "compression", help_heading = "Build")]
    pub(super) optimize: bool,
    /// Make an image that every client can read, which is the default
    #[arg(long, overrides_with = "optimize", help_heading = "Build")]
    pub(super) no_optimize: bool,
    /// Set the tag `latest` of the image's repository too
    #[arg(long, help_heading = "Build")]
    pub(super) latest: bool,
    /// Provenance in the index of the image: `mode=min` says what went in, `mode=max` also arguments and the
    /// Dockerfile; `true` is `mode=min`, `false` attaches none [default: mode=min, attached as a referrer]
    #[arg(long, value_name = "MODE", help_heading = "Build")]
    pub(super) provenance: Option<ProvenanceMode>,
    /// Attach a list of the packages in the image, as an SPDX document
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Build")]
    pub(super) sbom: Option<bool>,
    /// Additional tag of the image
    #[arg(long, value_name = "TAG", help_heading = "Build")]
    pub(super) also_tag: Vec<String>,

    /// Write the result of the build to this file as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) metadata_file: Option<PathBuf>,
    /// Write the image's digest to this file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) iidfile: Option<PathBuf>,
}

/// Value of `--no-cache`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum NoCacheValue {
    /// Every step runs again.
    Everything,
    /// The steps of a stage that is attached with `=` run again.
    Stage(String),
    /// The word behind the flag, which is a stage or PATH.
    Word(String),
}

impl NoCacheValue {
    fn word(&self) -> Option<&str> {
        match self {
            Self::Word(word) => Some(word),
            Self::Everything | Self::Stage(_) => None,
        }
    }

    /// Returns the stage. `None` means every step.
    pub(super) fn stage(&self) -> Option<&str> {
        match self {
            Self::Everything => None,
            Self::Stage(stage) | Self::Word(stage) => Some(stage),
        }
    }
}

/// Parses the value after [`mark_attached_stages`].
impl FromStr for NoCacheValue {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.strip_prefix('=') {
            None if text.is_empty() => Self::Everything,
            None => Self::Word(text.to_owned()),
            Some("") => Self::Everything,
            Some(stage) => Self::Stage(stage.to_owned()),
        })
    }
}

/// Marks the stages that are attached to `--no-cache` by a second `=`: clap does not tell `--no-cache=deps` from
/// `--no-cache deps`. `commands` are the names of all commands; those without the flag are left alone.
pub(in crate::cli) fn mark_attached_stages<'a>(
    words: &mut [OsString],
    commands: impl Iterator<Item = &'a str>,
) {
    const BUILDING: [&str; 4] = ["build", "deploy", "image", "up"];
    let names: Vec<&str> = commands.collect();
    let command = words.iter().skip(1).find_map(|word| names.iter().find(|name| word == *name));
    if !command.is_some_and(|command| BUILDING.contains(command)) {
        return;
    }
    for word in words.iter_mut().take_while(|word| *word != "--") {
        if let Some(stage) = word.to_str().and_then(|word| word.strip_prefix("--no-cache=")) {
            *word = format!("--no-cache=={stage}").into();
        }
    }
}

impl BuildOptions {
    /// Takes the first word of `--no-cache` that is PATH; the flag then means all steps.
    pub(in crate::cli) fn take_path(&mut self, is_path: impl Fn(&str) -> bool) -> Option<String> {
        let value = self.no_cache.iter_mut().find(|value| value.word().is_some_and(&is_path))?;
        match std::mem::replace(value, NoCacheValue::Everything) {
            NoCacheValue::Word(path) => Some(path),
            NoCacheValue::Everything | NoCacheValue::Stage(_) => None,
        }
    }
}

#[cfg(test)]
impl BuildOptions {
    /// Stages whose steps run again; an empty name means all of them.
    pub(in crate::cli) fn no_cache(&self) -> Vec<String> {
        self.no_cache.iter().map(|value| value.stage().unwrap_or_default().to_owned()).collect()
    }
}
