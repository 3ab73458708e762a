//! Converts a manifest to a deploy request, and a running revision to a manifest.

mod environment;
mod storage;
mod traffic;

use hearth_proto::v1::{
    Annotations, Capabilities, CommandLine, DeploySpec, DeployStrategy, DomainNames, ServicePorts,
    ServiceSpec,
};
use hearth_proto::value::Reference;

use super::text::Command;
use super::{Container, Kind, Manifest, Metadata, Strategy, Version};
use crate::cli::deploy::{confinement, network, quantity};
use crate::duration;
use crate::error::Failure;
use environment::{environment, variable};
use storage::{mounts, storage};
use traffic::{Traffic, ports, traffic};

impl Manifest {
    /// Converts the manifest to a request that replaces all settings: nothing of an earlier revision is
    /// kept.
    pub(in crate::cli::services) fn into_spec(self) -> Result<DeploySpec, Failure> {
        self.convert().map_err(|(field, why)| Failure::usage(format!("{field}: {why}")))
    }

    fn convert(self) -> Result<DeploySpec, Wrong> {
        let Self { version: Version::V1, kind: Kind::Service, metadata, container, .. } = self;
        let name = network::name(&metadata.name).map_err(|why| wrong("metadata.name", &why))?;
        let image = container.image.parse::<Reference>().map_err(|error| wrong("container.image", &error))?;
        let command = container.command.map(|Command(arguments)| match arguments.first() {
            Some(program) if !program.is_empty() => Ok(CommandLine { arguments }),
            _ => Err(wrong("container.command", "the command is empty")),
        });
        let (env, identity) = environment(container.environment)?;
        let memory = container.memory.as_deref().map(quantity::memory).transpose();
        let cpus = container.cpus.as_deref().map(quantity::cpus).transpose();
        let limit = self.start_limit.as_deref().map(duration::parse).transpose();
        let strategy = match self.strategy {
            None => DeployStrategy::Unspecified,
            Some(Strategy::Rolling) => DeployStrategy::Rolling,
            Some(Strategy::Recreate) => DeployStrategy::Recreate,
        };
        let names = container.capabilities.iter().map(|name| confinement::capability(name));
        let names = names.collect::<Result<Vec<_>, _>>();
        let names = names.map_err(|why| wrong("container.capabilities", &why))?;
        let Traffic { ports, liveness, public } = traffic(self.ports)?;
        Ok(DeploySpec {
            image: image.to_string(),
            name: Some(name),
            env,
            mounts: mounts(container.storage)?,
            ports: Some(ports).filter(|ports| !ports.is_empty()).map(|ports| ServicePorts { ports }),
            command: command.transpose()?,
            working_dir: container.working_dir,
            identity,
            memory_bytes: memory.map_err(|why| wrong("container.memory", &why))?,
            cpu_millis: cpus.map_err(|why| wrong("container.cpus", &why))?,
            liveness,
            start_limit: limit.map_err(|why| wrong("start_limit", &why))?.map(duration::to_wire),
            strategy: strategy.into(),
            domains: Some(DomainNames { domains: self.domains }),
            public: Some(public),
            description: metadata.description,
            annotations: Some(Annotations { annotations: metadata.annotations }),
            replace: true,
            isolated: Some(self.isolated.unwrap_or(false)),
            capabilities: Some(Capabilities { names }),
            credentials: Vec::new(),
        })
    }

    /// Describes what a revision of a service runs as a manifest.
    pub(in crate::cli::services) fn of(name: &str, spec: &ServiceSpec) -> Self {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let environment = spec.env.iter().map(|(name, value)| variable(name, value, &spec.identity));
        let strategy = match spec.strategy() {
            DeployStrategy::Unspecified => None,
            DeployStrategy::Rolling => Some(Strategy::Rolling),
            DeployStrategy::Recreate => Some(Strategy::Recreate),
        };
        let limit = spec.health.as_ref().and_then(|health| health.start_limit);
        Self {
            version: Version::V1,
            kind: Kind::Service,
            metadata: Metadata {
                name: name.to_owned(),
                description: text(&spec.description),
                annotations: spec.annotations.clone(),
            },
            container: Container {
                image: without_digest(&spec.image),
                command: spec.command.as_ref().map(|command| Command(command.arguments.clone())),
                working_dir: text(&spec.working_dir),
                environment: environment.collect(),
                storage: storage(&spec.mounts),
                memory: spec.memory_bytes.map(quantity::show_memory),
                cpus: spec.cpu_millis.map(quantity::show_cpus),
                capabilities: spec.capabilities.clone(),
            },
            ports: ports(spec),
            domains: spec.domains.clone(),
            strategy,
            start_limit: limit.map(|limit| duration::write(duration::from_wire(limit))),
            isolated: spec.isolated.then_some(true),
        }
    }
}

/// Path of a manifest field, and what is wrong with it.
type Wrong = (String, String);

fn wrong(field: impl Into<String>, why: &(impl std::fmt::Display + ?Sized)) -> Wrong {
    (field.into(), why.to_string())
}

/// Removes the digest: a manifest names the tag that was requested, while the revision records the
/// digest it had.
pub(in crate::cli::services) fn without_digest(image: &str) -> String {
    match image.parse::<Reference>() {
        Ok(Reference { tag: Some(tag), registry, repository, .. }) => {
            Reference { tag: Some(tag), registry, repository, digest: None }.to_string()
        }
        _ => image.to_owned(),
    }
}
