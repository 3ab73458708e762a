//! Merges a deploy request into the existing service: the specification of the next revision.
//!
//! Settings that the request does not mention are kept, except for those that it takes away. Environment variables
//! merge by name; the mounts of a request replace the kept mounts of the same kind; ports are those of the request,
//! else the kept ones, else those that the image exposes.

mod unset;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::mem::discriminant;

use crate::model::confinement::ServiceConfinement;
use crate::model::deploy::{DeployRequest, ImageFacts};
use crate::model::fault::ErrorCode;
use crate::model::image::PinnedImage;
use crate::model::service::{
    DeployStrategy, HealthCheck, PortKind, RESERVED_PORT, ResourceLimits, ServiceDomain, ServiceName,
    ServiceNameError, ServicePort, ServiceRecord, ServiceSpec,
};
use crate::model::{
    Assignment, MountAccess, MountOrigin, MountSource as _, MountTarget, Repository, ServiceMount,
    ServiceMountSource,
};

/// Limits of a service's specification, which is not meant to store data.
const MAX_ENV: usize = 512;
const MAX_ENV_BYTES: usize = 128 << 10;
const MAX_MOUNTS: usize = 64;
const MAX_PORTS: usize = 64;
const MAX_DOMAINS: usize = 64;
/// Minimum memory limit in bytes: less is not enough to start any process (runc needs about 4 MiB).
const MIN_MEMORY: u64 = 6 << 20;

/// Reason for which a deploy request is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    #[error("{0}")]
    Name(#[from] ServiceNameError),
    #[error("service name `{0}` is reserved: machines use it for themselves")]
    OwnHostName(ServiceName),
    #[error("service `{name}` runs images of `{holder}`, not of `{given}`")]
    OtherRepository { name: ServiceName, holder: Repository, given: Repository },
    #[error("port {RESERVED_PORT} is reserved")]
    ReservedPort,
    #[error("port 0 is not a valid port")]
    ZeroPort,
    #[error("port {0} is given twice")]
    PortTwice(u16),
    #[error("a domain needs exactly one published port, and the service has {}", ports_in_words(.ports))]
    DomainPorts { ports: Vec<u16> },
    #[error("a domain needs an http port; port {0} is tcp")]
    DomainTcp(u16),
    #[error("`{0}` is not the name of an environment variable")]
    EnvName(String),
    #[error("environment variable `{0}` has a NUL byte")]
    EnvNul(String),
    #[error("the environment is larger than {MAX_ENV} variables or {} KiB", MAX_ENV_BYTES >> 10)]
    EnvSize,
    #[error("mount target `{0}` is used twice; each target can be mounted once")]
    MountTwice(MountTarget),
    #[error("mount target `/` would hide the image")]
    MountRoot,
    #[error("more than {limit} {what}")]
    TooMany { what: &'static str, limit: usize },
    #[error("path `{0}` of the health check does not start with `/`, or has blanks in it")]
    InvalidLivenessPath(String),
    #[error("a health check by path needs an http port")]
    LivenessPort,
    #[error("the command is empty")]
    EmptyCommand,
    #[error("a memory limit of {0} bytes is less than the {MIN_MEMORY} that a process needs to start")]
    MemoryTooSmall(u64),
    #[error("a processor limit of 0 lets nothing run")]
    ZeroCpuLimit,
    #[error("variable `{0}` is both set and taken away")]
    EnvSetAndUnset(String),
    #[error("`{0}` takes away what the same deploy sets")]
    SetAndUnset(&'static str),
}

impl MergeError {
    /// Returns the command-line flag that the error is about.
    pub const fn flag(&self) -> &'static str {
        match self {
            Self::Name(_) | Self::OwnHostName(_) | Self::OtherRepository { .. } => "--name",
            Self::ReservedPort | Self::ZeroPort | Self::PortTwice(_) => "--port",
            Self::DomainPorts { .. } | Self::DomainTcp(_) => "--domain",
            Self::EnvName(_) | Self::EnvNul(_) | Self::EnvSize => "--env",
            Self::MountTwice(_) | Self::MountRoot => "--mount",
            Self::TooMany { what, .. } => what,
            Self::InvalidLivenessPath(_) | Self::LivenessPort => "--liveness",
            Self::EmptyCommand => "--command",
            Self::MemoryTooSmall(_) => "--memory",
            Self::ZeroCpuLimit => "--cpus",
            Self::EnvSetAndUnset(_) => "--unset-env",
            Self::SetAndUnset(flag) => flag,
        }
    }

    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Name(_) | Self::OwnHostName(_) => ErrorCode::InvalidName,
            Self::OtherRepository { .. } => ErrorCode::NameTaken,
            Self::ReservedPort => ErrorCode::ReservedPort,
            Self::DomainPorts { .. } | Self::DomainTcp(_) => ErrorCode::DomainPort,
            _ => ErrorCode::InvalidRequest,
        }
    }

    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Name(_) | Self::OwnHostName(_) => {
                "give the service a name of its own with --name".to_owned()
            }
            Self::OtherRepository { name, .. } => {
                format!(
                    "give this one another name with --name, or remove the other with: hearth services rm {name}"
                )
            }
            Self::ReservedPort => "let the app listen on another port".to_owned(),
            Self::DomainPorts { ports } if ports.is_empty() => {
                "say where the app listens with --port, or have the image say it with EXPOSE".to_owned()
            }
            Self::DomainPorts { .. } => "say which one is to be reached with --port".to_owned(),
            Self::DomainTcp(port) => format!("write --port {port}"),
            Self::LivenessPort => "say where the app answers http with --port".to_owned(),
            _ => return None,
        })
    }
}

fn ports_in_words(ports: &[u16]) -> String {
    match ports {
        [] => "none".to_owned(),
        ports => {
            let list: Vec<String> = ports.iter().map(u16::to_string).collect();
            format!("{} ({})", ports.len(), list.join(", "))
        }
    }
}

/// Specification of the next revision, with notes about values that were chosen by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedSpec {
    pub spec: ServiceSpec,
    pub notes: Vec<String>,
}

/// Returns the name of the service that a request is about. An image of a remote registry gives the same name as one of
/// the room.
pub fn service_name_of(request: &DeployRequest) -> Result<ServiceName, MergeError> {
    let name = match &request.name {
        Some(name) => name.clone(),
        None => ServiceName::of_repository(&request.image.repository)?,
    };
    if name.is_own_host_name() {
        return Err(MergeError::OwnHostName(name));
    }
    Ok(name)
}

/// Merges a request into the service `existing` of that name. The base is the live revision: nothing is kept from a
/// revision that failed, or that is not live yet. `mounted` are the images of the request's mounts, by target; a kept
/// mount keeps its image.
pub fn merge(
    existing: Option<&ServiceRecord>,
    request: &DeployRequest,
    image: &ImageFacts,
    mounted: &BTreeMap<MountTarget, PinnedImage>,
) -> Result<MergedSpec, MergeError> {
    if let Some(service) = existing.filter(|service| service.repository != image.repository) {
        return Err(MergeError::OtherRepository {
            name: service.name.clone(),
            holder: service.repository.clone(),
            given: image.repository.clone(),
        });
    }
    unset::check(request)?;
    let before = existing.and_then(ServiceRecord::live_revision).map(|revision| &revision.spec);
    let mut notes = Vec::new();
    let kept = before.filter(|_| !request.replace).map(|spec| unset::remainder(spec, request, &mut notes));
    let kept = kept.as_ref();
    let mut env = kept.map(|spec| spec.env.clone()).unwrap_or_default();
    env.extend(request.env.clone());
    let ports = ports(request, kept, image, &mut notes);
    let mounts = mounts(request, kept, image, &mut notes)?;
    let mounted = pinned_images(&mounts, mounted, kept);
    let mut health = kept.map_or_else(HealthCheck::default, |spec| spec.health.clone());
    if let Some(path) = &request.liveness {
        health.path = Some(path.clone());
    }
    if let Some(limit) = request.start_limit {
        health.start_limit = limit;
    }
    let limits = kept.map(|spec| spec.limits).unwrap_or_default();
    let spec = ServiceSpec {
        image: request.image.clone(),
        repository: image.repository.clone(),
        kept_in: image.kept_in.clone(),
        digest: image.digest,
        manifest: image.manifest,
        env,
        mounts,
        mounted,
        ports,
        command: request.command.clone().or_else(|| kept?.command.clone()),
        workdir: request.workdir.clone().or_else(|| kept?.workdir.clone()),
        // The identity is kept even if the request replaces everything, so that the tokens of a service keep their
        // name.
        identity: request.identity.clone().or_else(|| before?.identity.clone()),
        limits: ResourceLimits {
            memory_bytes: request.memory_bytes.or(limits.memory_bytes),
            cpu_millis: request.cpu_millis.or(limits.cpu_millis),
        },
        health,
        strategy: request.strategy.or(kept.map(|spec| spec.strategy)).unwrap_or(DeployStrategy::Rolling),
        domains: domains(request, kept),
        public: request.public.or(kept.map(|spec| spec.public)).unwrap_or(false),
        description: request
            .description
            .clone()
            .or_else(|| Some(kept?.description.clone()))
            .unwrap_or_default(),
        annotations: request
            .annotations
            .clone()
            .or_else(|| Some(kept?.annotations.clone()))
            .unwrap_or_default(),
        confinement: ServiceConfinement {
            isolated: request.isolated.or(kept.map(|spec| spec.confinement.isolated)).unwrap_or(false),
            capabilities: request
                .capabilities
                .clone()
                .or_else(|| Some(kept?.confinement.capabilities.clone()))
                .unwrap_or_default(),
        },
    };
    check_spec(&spec)?;
    Ok(MergedSpec { spec, notes })
}

fn ports(
    request: &DeployRequest,
    kept: Option<&ServiceSpec>,
    image: &ImageFacts,
    notes: &mut Vec<String>,
) -> Vec<ServicePort> {
    if let Some(ports) = &request.ports {
        return ports.clone();
    }
    if let Some(spec) = kept.filter(|spec| !spec.ports.is_empty()) {
        return spec.ports.clone();
    }
    let exposed = image.exposed.iter();
    let ports: Vec<ServicePort> = exposed
        .map(|number| ServicePort { number: *number, kind: PortKind::Http, published: true })
        .collect();
    for port in &ports {
        notes.push(format!("port {} is taken from the image's EXPOSE", port.number));
    }
    ports
}

fn mounts(
    request: &DeployRequest,
    kept: Option<&ServiceSpec>,
    image: &ImageFacts,
    notes: &mut Vec<String>,
) -> Result<Vec<ServiceMount>, MergeError> {
    // Each kind of source has a mount flag.
    let given: HashSet<_> = request.mounts.iter().map(|mount| discriminant(&mount.source)).collect();
    let mut mounts = request.mounts.clone();
    let kept = kept.map(|spec| spec.mounts.as_slice()).unwrap_or_default();
    let used_targets: BTreeSet<MountTarget> = mounts.iter().map(|mount| mount.target.clone()).collect();
    // A kept mount is dropped if the request mounts another kind at the same target.
    mounts.extend(
        kept.iter()
            .filter(|mount| {
                !given.contains(&discriminant(&mount.source)) && !used_targets.contains(&mount.target)
            })
            .cloned(),
    );
    let mut seen = BTreeSet::new();
    for mount in &mounts {
        if mount.target.as_str() == "/" {
            return Err(MergeError::MountRoot);
        }
        if !seen.insert(mount.target.clone()) {
            return Err(MergeError::MountTwice(mount.target.clone()));
        }
    }
    for volume in &image.volumes {
        if volume.as_str() != "/" && seen.insert(volume.clone()) {
            notes.push(format!("volume {volume} of the image is an empty directory"));
            mounts.push(ServiceMount {
                source: ServiceMountSource::EmptyDir,
                target: volume.clone(),
                mode: MountAccess::ReadWrite,
                create: false,
            });
        }
    }
    Ok(mounts)
}

/// Returns the images of all mounts. Mounts of the request and kept mounts are never of the same kind, so the target
/// identifies the image.
fn pinned_images(
    mounts: &[ServiceMount],
    given: &BTreeMap<MountTarget, PinnedImage>,
    kept: Option<&ServiceSpec>,
) -> BTreeMap<MountTarget, PinnedImage> {
    let images = mounts.iter().filter(|mount| matches!(mount.source.origin(), MountOrigin::Image(_)));
    let pin = |mount: &ServiceMount| {
        let image = given.get(&mount.target).or_else(|| kept?.mounted.get(&mount.target))?;
        Some((mount.target.clone(), image.clone()))
    };
    images.filter_map(pin).collect()
}

fn domains(request: &DeployRequest, kept: Option<&ServiceSpec>) -> Vec<ServiceDomain> {
    let domains = request.domains.clone().or_else(|| Some(kept?.domains.clone())).unwrap_or_default();
    let mut seen = BTreeSet::new();
    domains.into_iter().filter(|domain| seen.insert(domain.clone())).collect()
}

fn check_spec(spec: &ServiceSpec) -> Result<(), MergeError> {
    let mut numbers = BTreeSet::new();
    for port in &spec.ports {
        match port.number {
            0 => return Err(MergeError::ZeroPort),
            RESERVED_PORT => return Err(MergeError::ReservedPort),
            number if !numbers.insert(number) => return Err(MergeError::PortTwice(number)),
            _ => {}
        }
    }
    if !spec.domains.is_empty() {
        let published: Vec<&ServicePort> = spec.ports.iter().filter(|port| port.published).collect();
        match published.as_slice() {
            [port] if port.kind.is_routable() => {}
            [port] => return Err(MergeError::DomainTcp(port.number)),
            ports => {
                return Err(MergeError::DomainPorts {
                    ports: ports.iter().map(|port| port.number).collect(),
                });
            }
        }
    }
    if let Some(path) = &spec.health.path {
        if !path.starts_with('/') || path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err(MergeError::InvalidLivenessPath(path.chars().take(200).collect()));
        }
        if !spec.ports.iter().any(|port| port.kind.is_routable()) {
            return Err(MergeError::LivenessPort);
        }
    }
    if spec.command.as_ref().is_some_and(|command| command.first().is_none_or(String::is_empty)) {
        return Err(MergeError::EmptyCommand);
    }
    match spec.limits {
        ResourceLimits { memory_bytes: Some(bytes), .. } if bytes < MIN_MEMORY => {
            return Err(MergeError::MemoryTooSmall(bytes));
        }
        ResourceLimits { cpu_millis: Some(0), .. } => return Err(MergeError::ZeroCpuLimit),
        _ => {}
    }
    check_env(spec)?;
    for (what, count, limit) in [
        ("mounts", spec.mounts.len(), MAX_MOUNTS),
        ("ports", spec.ports.len(), MAX_PORTS),
        ("domains", spec.domains.len(), MAX_DOMAINS),
    ] {
        if count > limit {
            return Err(MergeError::TooMany { what, limit });
        }
    }
    Ok(())
}

/// Reports whether a name could be that of a flag or of a line of an environment file.
fn is_variable_name(name: &str) -> bool {
    Assignment::parse_variable(name).is_ok_and(|parsed| parsed.value.is_none())
}

fn check_env(spec: &ServiceSpec) -> Result<(), MergeError> {
    use crate::model::service::EnvValue;
    let mut bytes = 0;
    for (name, value) in &spec.env {
        if !is_variable_name(name) {
            return Err(MergeError::EnvName(name.chars().take(100).collect()));
        }
        let text = match value {
            EnvValue::Plain(text) | EnvValue::Token { scope: text } | EnvValue::Secret { name: text } => text,
        };
        if text.contains('\0') {
            return Err(MergeError::EnvNul(name.clone()));
        }
        bytes += name.len() + text.len();
    }
    if spec.env.len() > MAX_ENV || bytes > MAX_ENV_BYTES { Err(MergeError::EnvSize) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
