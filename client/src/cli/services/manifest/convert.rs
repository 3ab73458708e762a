//! From a manifest to what is asked of the daemon, and from what runs to a manifest.

use std::collections::{BTreeMap, BTreeSet};

use hearth_proto::v1::{
    Annotations, CommandLine, DeploySpec, DeployStrategy, DomainNames, EmptyDirSource, EnvValue, ImageSource,
    Mount, MountMode, PortKind, ServicePort, ServicePorts, ServiceSpec, env_value, mount::Source,
};
use hearth_proto::value::{MountTarget, Reference, storage_path};

use super::text::{Command, Scope};
use super::{
    Container, EmptyDir, ImageMount, Kind, Manifest, Metadata, Port, PortType, Role, Secret, Storage,
    StorageMount, Strategy, Token, Variable, Version,
};
use crate::cli::deploy::{network, quantity};
use crate::duration;
use crate::error::Failure;

impl Manifest {
    /// A deploy of exactly this: nothing that an earlier revision had is kept.
    pub(in crate::cli::services) fn into_spec(self) -> Result<DeploySpec, Failure> {
        self.convert().map_err(|(field, why)| Failure::usage(format!("{field}: {why}")))
    }

    fn convert(self) -> Result<DeploySpec, Wrong> {
        let Self { version: Version::V1, kind: Kind::Service, metadata, container, .. } = self;
        let name = network::name(&metadata.name).map_err(|why| wrong("metadata.name", why))?;
        let image = container.image.parse::<Reference>().map_err(|error| wrong("container.image", error))?;
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
            memory_bytes: memory.map_err(|why| wrong("container.memory", why))?,
            cpu_millis: cpus.map_err(|why| wrong("container.cpus", why))?,
            liveness,
            start_limit: limit.map_err(|why| wrong("start_limit", why))?.map(duration::to_wire),
            strategy: strategy.into(),
            domains: Some(DomainNames { domains: self.domains }),
            public: Some(public),
            description: metadata.description,
            annotations: Some(Annotations { annotations: metadata.annotations }),
            replace: true,
            credentials: Vec::new(),
        })
    }

    /// What a revision of a service runs, written down.
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
            },
            ports: ports(spec),
            domains: spec.domains.clone(),
            strategy,
            start_limit: limit.map(|limit| duration::write(duration::from_wire(limit))),
        }
    }
}

/// A field, and what is wrong with it.
type Wrong = (String, String);

fn wrong(field: impl Into<String>, why: impl ToString) -> Wrong {
    (field.into(), why.to_string())
}

/// The variables, and the one name that their tokens have.
fn environment(variables: Vec<Variable>) -> Result<(BTreeMap<String, EnvValue>, Option<String>), Wrong> {
    let mut all = BTreeMap::new();
    let mut identity: Option<String> = None;
    for Variable { name, value, token, secret } in variables {
        let field = || format!("container.environment: `{name}`");
        let value = match (value, token, secret) {
            (Some(value), None, None) => env_value::Value::Plain(value),
            (None, Some(token), None) => {
                let other = token
                    .identity
                    .as_ref()
                    .filter(|given| identity.as_ref().is_some_and(|known| known != *given));
                if let Some(other) = other {
                    let known = identity.unwrap_or_default();
                    return Err(wrong(
                        field(),
                        format!("identity `{other}`: another token has `{known}`, and a service has one"),
                    ));
                }
                identity = identity.or_else(|| token.identity.clone());
                env_value::Value::TokenScope(scope(&token))
            }
            (None, None, Some(Secret { id })) => env_value::Value::Secret(id),
            _ => return Err(wrong(field(), "expected exactly one of `value`, `token` and `secret`")),
        };
        if all.insert(name.clone(), EnvValue { value: Some(value) }).is_some() {
            return Err(wrong(field(), "the variable is there twice"));
        }
    }
    Ok((all, identity))
}

fn scope(token: &Token) -> String {
    match (&token.api, token.role) {
        (Some(Scope(scope)), _) => scope.clone(),
        (None, Some(Role::User)) => "userDefault".to_owned(),
        (None, Some(Role::Agent | Role::Tool) | None) => "agentDefault".to_owned(),
    }
}

fn variable(name: &str, value: &EnvValue, identity: &str) -> Variable {
    let variable = Variable { name: name.to_owned(), ..Variable::default() };
    match &value.value {
        Some(env_value::Value::Plain(value)) => Variable { value: Some(value.clone()), ..variable },
        Some(env_value::Value::TokenScope(scope)) => {
            let identity = Some(identity.to_owned()).filter(|identity| !identity.is_empty());
            let token = Token { identity, api: Some(Scope(scope.clone())), role: None };
            Variable { token: Some(token), ..variable }
        }
        Some(env_value::Value::Secret(id)) => {
            Variable { secret: Some(Secret { id: id.clone() }), ..variable }
        }
        None => Variable { value: Some(String::new()), ..variable },
    }
}

fn mounts(storage: Storage) -> Result<Vec<Mount>, Wrong> {
    const FIELD: &str = "container.storage";
    if let Some(file) = storage.files.first() {
        let why = format!(
            "`{}`: files are not made from manifests here; put it in room storage and mount that",
            file.path
        );
        return Err(wrong(format!("{FIELD}.files"), why));
    }
    let mut seen = BTreeSet::new();
    let mut mounts = Vec::new();
    let mut add = |kind: &str, path: &str, read_only: Option<bool>, source| {
        let target = path.parse::<MountTarget>().map_err(|error| wrong(format!("{FIELD}.{kind}"), error))?;
        if !seen.insert(target.clone()) {
            return Err(wrong(
                format!("{FIELD}.{kind}"),
                format!("`{target}` is used twice; each target can be mounted once"),
            ));
        }
        let mode = match read_only {
            None => MountMode::Unspecified,
            Some(true) => MountMode::ReadOnly,
            Some(false) => MountMode::ReadWrite,
        };
        mounts.push(Mount { source: Some(source), target: target.to_string(), mode: mode.into() });
        Ok(())
    };
    let below = |kind: &str, subpath: Option<String>| {
        storage_path(&subpath.unwrap_or_default()).map_err(|error| wrong(format!("{FIELD}.{kind}"), error))
    };
    for StorageMount { path, subpath, read_only } in storage.room {
        add("room", &path, read_only, Source::RoomPath(below("room", subpath)?))?;
    }
    for StorageMount { path, subpath, read_only } in storage.project {
        add("project", &path, read_only, Source::ProjectPath(below("project", subpath)?))?;
    }
    for ImageMount { image, path, subpath, read_only } in storage.images {
        let reference =
            image.parse::<Reference>().map_err(|error| wrong(format!("{FIELD}.images"), error))?;
        let source = ImageSource { reference: reference.to_string(), subpath: below("images", subpath)? };
        add("images", &path, read_only, Source::Image(source))?;
    }
    for EmptyDir { path, read_only } in storage.empty_dirs {
        add("empty_dirs", &path, read_only, Source::EmptyDir(EmptyDirSource {}))?;
    }
    Ok(mounts)
}

fn storage(mounts: &[Mount]) -> Storage {
    let mut storage = Storage::default();
    for mount in mounts {
        let path = mount.target.clone();
        let read_only = match mount.mode() {
            MountMode::Unspecified => None,
            MountMode::ReadOnly => Some(true),
            MountMode::ReadWrite => Some(false),
        };
        let part = |subpath: &String| Some(subpath.clone()).filter(|subpath| !subpath.is_empty());
        match &mount.source {
            Some(Source::RoomPath(subpath)) => {
                storage.room.push(StorageMount { path, subpath: part(subpath), read_only });
            }
            Some(Source::ProjectPath(subpath)) => {
                storage.project.push(StorageMount { path, subpath: part(subpath), read_only });
            }
            Some(Source::Image(ImageSource { reference, subpath })) => {
                let image = reference.clone();
                storage.images.push(ImageMount { image, path, subpath: part(subpath), read_only });
            }
            Some(Source::EmptyDir(_)) => storage.empty_dirs.push(EmptyDir { path, read_only }),
            // No service has one.
            Some(Source::PackId(_)) | None => {}
        }
    }
    storage
}

struct Traffic {
    ports: Vec<ServicePort>,
    liveness: Option<String>,
    public: bool,
}

/// The health check is asked of the first published http port, or of the first http port.
fn probed(ports: &[Port]) -> Option<u32> {
    let mut http = ports.iter().filter(|port| port.kind == PortType::Http);
    let published = http.clone().find(|port| port.published != Some(false));
    published.or_else(|| http.next()).map(|port| port.num)
}

fn traffic(ports: Vec<Port>) -> Result<Traffic, Wrong> {
    let probed = probed(&ports);
    let mut liveness = None;
    let mut public: Option<bool> = None;
    let mut wire = Vec::new();
    for port in ports {
        let field = format!("ports: {}", port.num);
        let kind = match port.kind {
            PortType::Http => "http",
            PortType::Tcp => "tcp",
        };
        let parsed = network::port(&format!("{}/{kind}", port.num)).map_err(|why| wrong("ports", why))?;
        if let Some(path) = port.liveness {
            if probed != Some(port.num) {
                let why = "the health check is asked of the first published http port: write liveness there";
                return Err(wrong(field, why));
            }
            liveness = Some(network::liveness(&path).map_err(|why| wrong(&field, why))?);
        }
        if port.published != Some(false) {
            let given = port.public.unwrap_or(false);
            if *public.get_or_insert(given) != given {
                return Err(wrong(field, "`public` is the same for all published ports of a service"));
            }
        }
        wire.push(ServicePort { published: port.published, ..parsed });
    }
    network::check_ports(&wire).map_err(|why| wrong("ports", why))?;
    Ok(Traffic { ports: wire, liveness, public: public.unwrap_or(false) })
}

fn ports(spec: &ServiceSpec) -> Vec<Port> {
    let port = |port: &ServicePort| {
        let published = port.published.unwrap_or(true);
        Port {
            num: port.number,
            kind: if port.kind() == PortKind::Tcp { PortType::Tcp } else { PortType::Http },
            liveness: None,
            published: Some(published),
            public: published.then_some(spec.public),
        }
    };
    let mut ports: Vec<Port> = spec.ports.iter().map(port).collect();
    let path = spec.health.as_ref().map(|health| &health.path).filter(|path| !path.is_empty());
    let probed = probed(&ports);
    if let Some(port) = ports.iter_mut().find(|port| Some(port.num) == probed) {
        port.liveness = path.cloned();
    }
    ports
}

/// A manifest names the tag that was asked for: what it was at that time is in the revision.
pub(in crate::cli::services) fn without_digest(image: &str) -> String {
    match image.parse::<Reference>() {
        Ok(Reference { tag: Some(tag), registry, repository, .. }) => {
            Reference { tag: Some(tag), registry, repository, digest: None }.to_string()
        }
        _ => image.to_owned(),
    }
}
