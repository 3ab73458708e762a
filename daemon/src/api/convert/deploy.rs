//! Conversion and validation of deploy requests. Rules about a service as a whole are checked by `deploy::merge`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hearth_proto::v1;

use super::super::error::ApiError;
use super::mounts::service_mounts;
use super::spec::pairs;
use super::{duration, registry_credentials};
use crate::model::confinement::AddedCapability;
use crate::model::deploy::{DeployRequest, ServiceSetting};
use crate::model::fault::ErrorCode;
use crate::model::secret::{RegistryCredential, SecretName};
use crate::model::service::{DeployStrategy, EnvValue, PortKind, ServiceDomain, ServicePort};
use crate::model::{Reference, RoomRegistries};

/// Bounds on a request; each is far above practical use.
const MAX_ENV: usize = 512;
/// Names occur in error messages, which are sent in headers.
const MAX_ENV_NAME: usize = 256;
const MAX_PORTS: usize = 64;
const MAX_DOMAINS: usize = 64;
const MAX_COMMAND_BYTES: usize = 128 << 10;
const MAX_DESCRIPTION: usize = 8 << 10;
const MAX_LIVENESS: usize = 2048;
/// Maximum length in bytes, equal to that of the name in a token.
const MAX_IDENTITY: usize = 200;
const MAX_START_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Validates a request and splits it: the credentials are only kept in memory.
pub fn deploy_spec(
    wire: v1::DeploySpec,
    rooms: &RoomRegistries,
) -> Result<(DeployRequest, BTreeMap<String, RegistryCredential>), ApiError> {
    let strategy = strategy(wire.strategy)?;
    let request = DeployRequest {
        image: image(&wire.image, rooms)?,
        name: match wire.name {
            None => None,
            Some(name) => Some(name.parse().map_err(|error| {
                ApiError::invalid("spec.name", ErrorCode::InvalidName, format!("{error}"))
                    .hint("give the service a name of its own with --name")
            })?),
        },
        env: env(wire.env)?,
        mounts: service_mounts(wire.mounts, "spec.mounts")?,
        ports: wire.ports.map(|ports| self::ports(&ports.ports)).transpose()?,
        command: wire.command.map(|command| arguments("spec.command", command.arguments)).transpose()?,
        workdir: match wire.working_dir {
            None => None,
            Some(path) => Some(path.parse().map_err(|error| {
                ApiError::invalid(
                    "spec.working_dir",
                    ErrorCode::InvalidWorkingDir,
                    format!("working directory: {error}"),
                )
            })?),
        },
        identity: wire.identity.map(identity).transpose()?,
        memory_bytes: wire.memory_bytes,
        cpu_millis: wire.cpu_millis,
        liveness: bounded("spec.liveness", wire.liveness, MAX_LIVENESS)?,
        start_limit: start_limit(wire.start_limit)?,
        strategy,
        domains: wire.domains.map(|domains| self::domains(&domains.domains)).transpose()?,
        public: wire.public,
        description: bounded("spec.description", wire.description, MAX_DESCRIPTION)?,
        annotations: match wire.annotations {
            None => None,
            Some(annotations) => Some(pairs("spec.annotations", annotations.annotations)?),
        },
        isolated: wire.isolated,
        capabilities: wire.capabilities.map(|wire| capabilities(&wire.names)).transpose()?,
        replace: wire.replace,
        unset_env: unset_env(wire.unset_env)?,
        unset: wire.unset.into_iter().map(setting).collect::<Result<_, _>>()?,
    };
    let credentials = registry_credentials("spec.credentials", wire.credentials, &request.image, rooms)?;
    Ok((request, credentials))
}

fn capabilities(names: &[String]) -> Result<BTreeSet<AddedCapability>, ApiError> {
    let parsed = names.iter().map(|name| name.parse::<AddedCapability>()).collect::<Result<_, _>>();
    parsed.map_err(|error| {
        ApiError::invalid("spec.capabilities", ErrorCode::InvalidCapability, error.to_string())
    })
}

fn image(text: &str, rooms: &RoomRegistries) -> Result<Reference, ApiError> {
    let parsed = text.parse().map(|reference| rooms.qualify(reference));
    parsed.map_err(|error| {
        ApiError::invalid("spec.image", ErrorCode::InvalidReference, format!("image {error}"))
    })
}

fn env(wire: BTreeMap<String, v1::EnvValue>) -> Result<BTreeMap<String, EnvValue>, ApiError> {
    use v1::env_value::Value;
    at_most("spec.env", "variables", wire.len(), MAX_ENV)?;
    wire.keys().try_for_each(|name| bounded_name("spec.env", name))?;
    let value = |(name, value): (String, v1::EnvValue)| {
        let invalid =
            |code: ErrorCode, message: String| ApiError::invalid(format!("spec.env.{name}"), code, message);
        let value = match value.value {
            None => return Err(invalid(ErrorCode::InvalidEnv, format!("variable `{name}` has no value"))),
            Some(Value::Plain(text)) => EnvValue::Plain(text),
            Some(Value::TokenScope(scope)) => EnvValue::Token { scope },
            Some(Value::Secret(secret)) => {
                let parsed = secret.parse::<SecretName>();
                let secret =
                    parsed.map_err(|error| invalid(ErrorCode::InvalidSecretName, error.to_string()))?;
                EnvValue::Secret { name: secret.to_string() }
            }
        };
        Ok((name, value))
    };
    wire.into_iter().map(value).collect()
}

fn unset_env(names: Vec<String>) -> Result<BTreeSet<String>, ApiError> {
    at_most("spec.unset_env", "variables", names.len(), MAX_ENV)?;
    names.iter().try_for_each(|name| bounded_name("spec.unset_env", name))?;
    Ok(names.into_iter().collect())
}

fn bounded_name(field: &str, name: &str) -> Result<(), ApiError> {
    if name.len() <= MAX_ENV_NAME {
        return Ok(());
    }
    let begins: String = name.chars().take(50).collect();
    let message = format!("the name of variable `{begins}...` has more than {MAX_ENV_NAME} bytes");
    Err(ApiError::invalid(field, ErrorCode::TooLong, message))
}

fn setting(wire: i32) -> Result<ServiceSetting, ApiError> {
    Ok(match v1::ServiceSetting::try_from(wire) {
        Ok(v1::ServiceSetting::Liveness) => ServiceSetting::Liveness,
        Ok(v1::ServiceSetting::Command) => ServiceSetting::Command,
        Ok(v1::ServiceSetting::WorkingDir) => ServiceSetting::WorkingDir,
        Ok(v1::ServiceSetting::Memory) => ServiceSetting::Memory,
        Ok(v1::ServiceSetting::Cpus) => ServiceSetting::Cpus,
        Ok(v1::ServiceSetting::Ports) => ServiceSetting::Ports,
        Ok(v1::ServiceSetting::RoomMounts) => ServiceSetting::RoomMounts,
        Ok(v1::ServiceSetting::ProjectMounts) => ServiceSetting::ProjectMounts,
        Ok(v1::ServiceSetting::ImageMounts) => ServiceSetting::ImageMounts,
        Ok(v1::ServiceSetting::EmptyDirMounts) => ServiceSetting::EmptyDirMounts,
        Ok(v1::ServiceSetting::FileMounts) => ServiceSetting::FileMounts,
        Ok(v1::ServiceSetting::Unspecified) | Err(_) => {
            let message = format!("{wire} is not a setting that can be taken away");
            return Err(ApiError::invalid("spec.unset", ErrorCode::InvalidRequest, message));
        }
    })
}

fn ports(wire: &[v1::ServicePort]) -> Result<Vec<ServicePort>, ApiError> {
    at_most("spec.ports", "ports", wire.len(), MAX_PORTS)?;
    let port = |(i, port): (usize, &v1::ServicePort)| {
        let invalid = |part: &str, message: String| {
            ApiError::invalid(format!("spec.ports.ports[{i}].{part}"), ErrorCode::InvalidPort, message)
        };
        let number = u16::try_from(port.number).ok().filter(|number| *number > 0);
        Ok(ServicePort {
            number: number
                .ok_or_else(|| invalid("number", format!("{} is not a port: 1 to 65535", port.number)))?,
            kind: match v1::PortKind::try_from(port.kind) {
                Ok(v1::PortKind::Unspecified | v1::PortKind::Http) => PortKind::Http,
                Ok(v1::PortKind::Tcp) => PortKind::Tcp,
                Ok(v1::PortKind::H2c) => PortKind::H2c,
                Err(_) => return Err(invalid("kind", "unknown kind of port".to_owned())),
            },
            published: port.published.unwrap_or(true),
        })
    };
    wire.iter().enumerate().map(port).collect()
}

/// Validates a command line: a program with its arguments.
pub fn arguments(field: &str, arguments: Vec<String>) -> Result<Vec<String>, ApiError> {
    let invalid = |message: String| Err(ApiError::invalid(field, ErrorCode::InvalidCommand, message));
    if arguments.first().is_none_or(String::is_empty) {
        return invalid("the command is empty".to_owned());
    }
    if arguments.iter().map(|argument| argument.len() + 1).sum::<usize>() > MAX_COMMAND_BYTES {
        return invalid(format!("the command has more than {} KiB", MAX_COMMAND_BYTES >> 10));
    }
    if arguments.iter().any(|argument| argument.contains('\0')) {
        return invalid("the command has a NUL byte".to_owned());
    }
    Ok(arguments)
}

fn identity(text: String) -> Result<String, ApiError> {
    if text.is_empty() || text.len() > MAX_IDENTITY {
        let message = format!("an identity has 1 to {MAX_IDENTITY} bytes");
        return Err(ApiError::invalid("spec.identity", ErrorCode::InvalidIdentity, message));
    }
    Ok(text)
}

fn start_limit(wire: Option<prost_types::Duration>) -> Result<Option<Duration>, ApiError> {
    let limit = duration("spec.start_limit", wire)?;
    if limit.is_some_and(|limit| limit.is_zero() || limit > MAX_START_LIMIT) {
        let hours = MAX_START_LIMIT.as_secs() / 3600;
        let message = format!("the limit for a start must be above 0 and at most {hours} hours");
        return Err(ApiError::invalid("spec.start_limit", ErrorCode::InvalidTimeout, message));
    }
    Ok(limit)
}

fn strategy(wire: i32) -> Result<Option<DeployStrategy>, ApiError> {
    match v1::DeployStrategy::try_from(wire) {
        Ok(v1::DeployStrategy::Unspecified) => Ok(None),
        Ok(v1::DeployStrategy::Rolling) => Ok(Some(DeployStrategy::Rolling)),
        Ok(v1::DeployStrategy::Recreate) => Ok(Some(DeployStrategy::Recreate)),
        Err(_) => Err(ApiError::invalid("spec.strategy", ErrorCode::InvalidStrategy, "unknown strategy")),
    }
}

fn domains(wire: &[String]) -> Result<Vec<ServiceDomain>, ApiError> {
    at_most("spec.domains", "domains", wire.len(), MAX_DOMAINS)?;
    let domain = |(i, text): (usize, &String)| domain(&format!("spec.domains.domains[{i}]"), text);
    wire.iter().enumerate().map(domain).collect()
}

pub fn domain(field: &str, text: &str) -> Result<ServiceDomain, ApiError> {
    text.parse().map_err(|error| ApiError::invalid(field, ErrorCode::InvalidDomain, format!("{error}")))
}

fn bounded(field: &str, text: Option<String>, max: usize) -> Result<Option<String>, ApiError> {
    match text {
        Some(text) if text.len() > max => {
            Err(ApiError::invalid(field, ErrorCode::TooLong, format!("{field} has more than {max} bytes")))
        }
        text => Ok(text),
    }
}

fn at_most(field: &str, what: &str, count: usize, max: usize) -> Result<(), ApiError> {
    if count <= max {
        return Ok(());
    }
    Err(ApiError::invalid(field, ErrorCode::TooMany, format!("at most {max} {what}")))
}

#[cfg(test)]
mod tests;
