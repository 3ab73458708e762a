//! Flags that `hearth build` and `hearth deploy --pack` share.

use std::path::PathBuf;

use clap::Args;
use hearth_proto::value::BuildCompression;

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
    /// Secret for `RUN --mount=type=secret`, `id=ID,src=FILE` or `id=ID,env=VARIABLE`
    #[arg(long, value_name = "SECRET", help_heading = "Build")]
    pub(super) secret: Vec<String>,
    /// Stage to build
    #[arg(long, value_name = "STAGE", help_heading = "Build")]
    pub(super) target: Option<String>,
    /// Platform of the image, such as `linux/arm64`
    #[arg(long, conflicts_with = "arch", help_heading = "Build")]
    pub(super) platform: Option<String>,
    /// Architecture of the image, such as `arm64`
    #[arg(long, help_heading = "Build")]
    pub(super) arch: Option<String>,
    /// Label of the image, `KEY=VALUE`
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Build")]
    pub(super) label: Vec<String>,
    /// Run every step again, or only those of one stage; a value that is no stage name is PATH
    #[arg(long, value_name = "STAGE", num_args = 0..=1, default_missing_value = "", help_heading = "Build")]
    pub(super) no_cache: Vec<String>,
    /// Resolve the tags of base images again
    #[arg(long, help_heading = "Build")]
    pub(super) pull: bool,
    /// Network of RUN steps
    #[arg(long, value_parser = ["default", "none"], help_heading = "Build")]
    pub(super) network: Option<String>,
    /// Compression of the layers that the build adds: gzip, zstd, estargz or none
    #[arg(long, default_value_t, help_heading = "Build")]
    pub(super) compression: BuildCompression,
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

impl BuildOptions {
    /// Takes the first word of `--no-cache` that is PATH; the flag then means all steps.
    pub(in crate::cli) fn take_path(&mut self, is_path: impl Fn(&str) -> bool) -> Option<String> {
        let word = self.no_cache.iter_mut().find(|word| !word.is_empty() && is_path(word))?;
        Some(std::mem::take(word))
    }
}

#[cfg(test)]
impl BuildOptions {
    /// Stages whose steps run again; an empty name means all of them.
    pub(in crate::cli) fn no_cache(&self) -> &[String] {
        &self.no_cache
    }
}
