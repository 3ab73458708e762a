//! Recipes of builds without a Dockerfile: LLB that a caller gave, and commands on a tree of files.
//!
//! Both become a checked graph. Its sources go through the same door as those of a Dockerfile: images are supplied under
//! the grants of the build, files are downloaded by the daemon, and repositories are checked by their host.

use std::collections::BTreeSet;
use std::sync::Arc;

use hearth_llb::{
    CheckedGraph, Command, CopyFiles, FileAction, Graph, LlbError, NamedSource, Policy, SourceLocation,
};
use hearth_oci::{ImageConfig, RunConfig};

use super::dockerfile::{
    Dockerfile, DockerfileExcerpt, DockerfileInputs, ImageDefaultsLookup, NamedDownload, NamedImage,
    NamedRepository, RemoteSources,
};
use super::driver::normalized_name;
use super::port::SolveProgram;
use crate::model::Reference;
use crate::model::build::{BuildNetwork, BuildRecipe, BuildSpec, TreeImage};
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::image::{ImageDefaults, Platform};

/// PATH of commands whose base image does not set it.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Reads and checks a definition that a caller gave. `secrets` are the ids of the secrets of the build.
pub fn checked_definition(bytes: &[u8], secrets: &BTreeSet<String>) -> Result<CheckedGraph, LlbError> {
    let policy = Policy { secrets, agents: &BTreeSet::new(), image_name: normalized_name };
    Graph::read(bytes)?.check(&policy)
}

/// Recipe of a running build.
pub(super) enum RunningRecipe<'a> {
    Dockerfile,
    Llb(Arc<CheckedGraph>),
    TreeImage(&'a TreeImage),
}

impl<'a> RunningRecipe<'a> {
    pub(super) fn of(spec: &'a BuildSpec) -> Result<Self, Box<Fault>> {
        Ok(match &spec.recipe {
            BuildRecipe::Dockerfile => Self::Dockerfile,
            BuildRecipe::TreeImage(image) => Self::TreeImage(image),
            BuildRecipe::Llb(bytes) => {
                let secrets = spec.secret_ids.iter().chain(spec.room_secrets.keys()).cloned().collect();
                let graph = checked_definition(bytes, &secrets)
                    .map_err(|error| Box::new(definition_fault(&error)))?;
                offline_fault(spec, &graph.sources).map_or(Ok(()), |fault| Err(Box::new(fault)))?;
                Self::Llb(Arc::new(graph))
            }
        })
    }

    /// Returns the sources outside of the build's files. Their excerpts have the number of the operation as their line.
    pub(super) fn remote_sources(
        &self,
        dockerfile: &Dockerfile,
        inputs: DockerfileInputs<'_>,
        known: ImageDefaultsLookup<'_>,
    ) -> RemoteSources {
        match self {
            Self::Dockerfile => dockerfile.remote_sources(inputs, known),
            Self::Llb(graph) => {
                let base = match graph.base() {
                    Some(SourceLocation::Image { reference, platform }) => {
                        Some((reference.clone(), platform_of(platform.as_deref(), inputs.platform)))
                    }
                    _ => None,
                };
                RemoteSources { base, ..sources_of(&graph.sources, inputs.platform) }
            }
            Self::TreeImage(image) => {
                let base = image.base.clone().map(|base| (base, inputs.platform.clone()));
                let named = |(reference, platform): &(Reference, Platform)| NamedImage {
                    reference: reference.clone(),
                    platform: platform.clone(),
                    excerpt: excerpt(1),
                };
                RemoteSources { images: base.iter().map(named).collect(), base, ..RemoteSources::default() }
            }
        }
    }

    /// Returns what is solved. `base` are the defaults of the base image of a tree.
    pub(super) fn program(
        &self,
        spec: &BuildSpec,
        base: Option<&ImageDefaults>,
    ) -> Result<SolveProgram, Box<Fault>> {
        match self {
            Self::Dockerfile => Ok(SolveProgram::Dockerfile),
            Self::Llb(graph) => Ok(SolveProgram::Llb { graph: Arc::clone(graph), config: None }),
            Self::TreeImage(image) => {
                let inherited = base.map(|base| base.run.clone()).unwrap_or_default();
                let config = tree_config(image, &inherited)?;
                let graph = tree_graph(image, &inherited, spec.network == BuildNetwork::None);
                let policy = Policy {
                    secrets: &BTreeSet::new(),
                    agents: &BTreeSet::new(),
                    image_name: normalized_name,
                };
                let graph = graph.check(&policy).map_err(|error| Box::new(definition_fault(&error)))?;
                Ok(SolveProgram::Llb { graph: Arc::new(graph), config: Some(config) })
            }
        }
    }

    /// Changes a fault about a line of a Dockerfile to one about what the build has instead.
    pub(super) fn fault(&self, mut fault: Fault) -> Fault {
        let place = match self {
            Self::Dockerfile => return fault,
            Self::Llb(_) => "operation ",
            Self::TreeImage(_) => "",
        };
        fault.dockerfile = None;
        if let Some((number, rest)) =
            fault.message.strip_prefix("line ").and_then(|rest| rest.split_once(": "))
        {
            fault.message =
                if place.is_empty() { rest.to_owned() } else { format!("{place}{number}: {rest}") };
        }
        fault
    }
}

fn definition_fault(error: &LlbError) -> Fault {
    Fault::new(FaultStage::Request, ErrorCode::InvalidDefinition, error.to_string())
}

/// Returns the fault of a definition that fetches files although its build has no network.
fn offline_fault(spec: &BuildSpec, sources: &[NamedSource]) -> Option<Fault> {
    let is_remote = |source: &&NamedSource| {
        matches!(source.location, SourceLocation::Http { .. } | SourceLocation::Git { .. })
    };
    let remote = sources.iter().find(is_remote).filter(|_| spec.network == BuildNetwork::None)?;
    let message = format!("operation {}: the build has no network", remote.number);
    Some(Fault::new(FaultStage::Context, ErrorCode::NetworkNone, message))
}

fn sources_of(sources: &[NamedSource], host: &Platform) -> RemoteSources {
    let mut found = RemoteSources::default();
    for NamedSource { number, location } in sources {
        let excerpt = excerpt(*number);
        match location {
            SourceLocation::Context => {}
            SourceLocation::Image { reference, platform } => {
                let platform = platform_of(platform.as_deref(), host);
                let known = found
                    .images
                    .iter()
                    .any(|image: &NamedImage| image.reference == *reference && image.platform == platform);
                if !known {
                    found.images.push(NamedImage { reference: reference.clone(), platform, excerpt });
                }
            }
            SourceLocation::Http { url, checksum } => {
                let (url, checksum) = (url.clone(), checksum.clone());
                found.downloads.push(NamedDownload { url, checksum, excerpt });
            }
            SourceLocation::Git { url, .. } => {
                found.repositories.push(NamedRepository { url: url.clone(), excerpt });
            }
        }
    }
    found
}

fn platform_of(named: Option<&str>, host: &Platform) -> Platform {
    named.and_then(Platform::parse).unwrap_or_else(|| host.clone())
}

fn excerpt(number: usize) -> DockerfileExcerpt {
    let line = u32::try_from(number).unwrap_or(u32::MAX);
    DockerfileExcerpt { start_line: line, end_line: line, text: String::new() }
}

/// Returns the config of the image: that of the base with the flags of the build.
fn tree_config(image: &TreeImage, inherited: &RunConfig) -> Result<Vec<u8>, Box<Fault>> {
    let invalid =
        |message: String| Box::new(Fault::new(FaultStage::Request, ErrorCode::InvalidConfig, message));
    let mut config = ImageConfig::new(Platform::host().to_declared());
    config.config = inherited.clone();
    // Triggers are for builds that begin with the base.
    config.config.other.remove("OnBuild");
    if config.config.env.iter().all(|variable| !variable.starts_with("PATH=")) {
        config.config.env.push(DEFAULT_PATH.to_owned());
    }
    image.config.apply(&mut config.config).map_err(|error| invalid(error.to_string()))?;
    serde_json::to_vec(&config).map_err(|error| invalid(error.to_string()))
}

/// Returns the graph of base, tree and commands.
fn tree_graph(image: &TreeImage, inherited: &RunConfig, without_network: bool) -> Graph {
    let mut graph = Graph::default();
    let base = image.base.as_ref().map(|base| graph.image(&base.to_string()));
    let context = graph.local("context");
    let tree = CopyFiles {
        from: context,
        source: "/".to_owned(),
        target: "/".to_owned(),
        contents: true,
        owner: Some((0, 0)),
        exclude: Vec::new(),
    };
    let mut last = graph.file(base, vec![FileAction::Copy(tree)]);
    let steps = image.commands.len() + 1;
    graph.set_name(last, &format!("[1/{steps}] COPY . /"));
    let mut env = inherited.env.clone();
    if env.iter().all(|variable| !variable.starts_with("PATH=")) {
        env.push(DEFAULT_PATH.to_owned());
    }
    for (index, text) in image.commands.iter().enumerate() {
        let command = Command {
            args: ["/bin/sh", "-c", text].map(str::to_owned).to_vec(),
            env: env.clone(),
            workdir: inherited.working_dir.clone().unwrap_or_default(),
            user: inherited.user.clone().unwrap_or_default(),
            without_network,
            ..Command::default()
        };
        last = graph.exec(Some(last), command).root;
        graph.set_name(last, &format!("[{}/{steps}] RUN {text}", index + 2));
    }
    graph.set_result(last);
    graph
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_run_in_the_settings_of_the_base_and_the_config_of_the_image_is_its_own() {
        let image = TreeImage {
            base: Some("debian:12".parse().unwrap()),
            commands: vec!["echo a".to_owned(), "echo b".to_owned()],
            config: hearth_pack::image::ConfigFlags {
                user: Some("7".to_owned()),
                entrypoint: Some(vec!["/app".to_owned()]),
                ..Default::default()
            },
        };
        let base = RunConfig {
            env: vec!["A=1".to_owned()],
            working_dir: Some("/srv".to_owned()),
            cmd: Some(vec!["bash".to_owned()]),
            ..RunConfig::default()
        };
        let graph = tree_graph(&image, &base, true);
        let text = graph.to_json().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        for expected in
            ["echo a", "echo b", "\"A=1\"", "PATH=/usr/local", "\"cwd\":\"/srv\"", "[3/3] RUN echo b"]
        {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        let config = ImageConfig::parse(&tree_config(&image, &base).unwrap()).unwrap().config;
        assert_eq!((config.user.as_deref(), config.cmd), (Some("7"), None));
        assert_eq!(config.working_dir.as_deref(), Some("/srv"));
        let policy =
            Policy { secrets: &BTreeSet::new(), agents: &BTreeSet::new(), image_name: normalized_name };
        let checked = graph.check(&policy).unwrap();
        let found = sources_of(&checked.sources, &Platform::host());
        assert_eq!(found.images.len(), 1);
    }
}
