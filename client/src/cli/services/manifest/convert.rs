//! Converts a manifest to a deploy request, and a running revision to a manifest.

mod environment;
mod storage;
mod traffic;

use hearth_proto::v1::{
    Annotations, Capabilities, CommandLine, DeploySpec, DeployStrategy, DomainNames, ServicePorts,
    ServiceSpec,
};
use hearth_proto::value::Reference;

use super::text::ManifestCommand;
use super::{
    ManifestContainer, ManifestKind, ManifestMetadata, ManifestStrategy, ManifestVersion, ServiceManifest,
};
use crate::cli::deploy::{confinement, network, quantity};
use crate::duration;
use crate::error::Failure;
use environment::{environment, variable};
use storage::{mounts, storage};
use traffic::{TrafficSettings, ports, traffic};

impl ServiceManifest {
    /// Converts the manifest to a request that replaces all settings: nothing of an earlier revision is
    /// kept.
    pub(in crate::cli::services) fn into_spec(self) -> Result<DeploySpec, Failure> {
        self.convert().map_err(|(field, why)| Failure::usage(format!("{field}: {why}")))
    }

    fn convert(self) -> Result<DeploySpec, FieldError> {
        let Self { version: ManifestVersion::V1, kind: ManifestKind::Service, metadata, container, .. } =
            self;
        let name = network::name(&metadata.name).map_err(|why| field_error("metadata.name", &why))?;
        let image =
            container.image.parse::<Reference>().map_err(|error| field_error("container.image", &error))?;
        let command = container.command.map(|ManifestCommand(arguments)| match arguments.first() {
            Some(program) if !program.is_empty() => Ok(CommandLine { arguments }),
            _ => Err(field_error("container.command", "the command is empty")),
        });
        let (env, identity) = environment(container.environment)?;
        let memory = container.memory.as_deref().map(quantity::memory).transpose();
        let cpus = container.cpus.as_deref().map(quantity::cpus).transpose();
        let limit = self.start_limit.as_deref().map(duration::parse).transpose();
        let strategy = match self.strategy {
            None => DeployStrategy::Unspecified,
            Some(ManifestStrategy::Rolling) => DeployStrategy::Rolling,
            Some(ManifestStrategy::Recreate) => DeployStrategy::Recreate,
        };
        let names = container.capabilities.iter().map(|name| confinement::capability(name));
        let names = names.collect::<Result<Vec<_>, _>>();
        let names = names.map_err(|why| field_error("container.capabilities", &why))?;
        let TrafficSettings { ports, liveness, public } = traffic(self.ports)?;
        Ok(DeploySpec {
            image: image.to_string(),
            name: Some(name),
            env,
            mounts: mounts(container.storage)?,
            ports: Some(ports).filter(|ports| !ports.is_empty()).map(|ports| ServicePorts { ports }),
            command: command.transpose()?,
            working_dir: container.working_dir,
            identity,
            memory_bytes: memory.map_err(|why| field_error("container.memory", &why))?,
            cpu_millis: cpus.map_err(|why| field_error("container.cpus", &why))?,
            liveness,
            start_limit: limit.map_err(|why| field_error("start_limit", &why))?.map(duration::to_wire),
            strategy: strategy.into(),
            domains: Some(DomainNames { domains: self.domains }),
            public: Some(public),
            description: metadata.description,
            annotations: Some(Annotations { annotations: metadata.annotations }),
            replace: true,
            isolated: Some(self.isolated.unwrap_or(false)),
            capabilities: Some(Capabilities { names }),
            credentials: Vec::new(),
            unset_env: Vec::new(),
            unset: Vec::new(),
        })
    }

    /// Describes what a revision of a service runs as a manifest.
    pub(in crate::cli::services) fn from_spec(name: &str, spec: &ServiceSpec) -> Self {
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let environment = spec.env.iter().map(|(name, value)| variable(name, value, &spec.identity));
        let strategy = match spec.strategy() {
            DeployStrategy::Unspecified => None,
            DeployStrategy::Rolling => Some(ManifestStrategy::Rolling),
            DeployStrategy::Recreate => Some(ManifestStrategy::Recreate),
        };
        let limit = spec.health.as_ref().and_then(|health| health.start_limit);
        Self {
            version: ManifestVersion::V1,
            kind: ManifestKind::Service,
            metadata: ManifestMetadata {
                name: name.to_owned(),
                description: text(&spec.description),
                annotations: spec.annotations.clone(),
            },
            container: ManifestContainer {
                image: without_digest(&spec.image),
                command: spec.command.as_ref().map(|command| ManifestCommand(command.arguments.clone())),
                working_dir: text(&spec.working_dir),
                environment: environment.collect(),
                storage: storage(&spec.mounts),
                memory: spec.memory_bytes.map(quantity::format_memory),
                cpus: spec.cpu_millis.map(quantity::format_cpus),
                capabilities: spec.capabilities.clone(),
            },
            ports: ports(spec),
            domains: spec.domains.clone(),
            strategy,
            start_limit: limit.map(|limit| duration::format_exact(duration::from_wire(limit))),
            isolated: spec.isolated.then_some(true),
        }
    }
}

/// Path of a manifest field, and what is wrong with it.
type FieldError = (String, String);

fn field_error(field: impl Into<String>, why: &(impl std::fmt::Display + ?Sized)) -> FieldError {
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
