//! Conversion of errors of services and deploys.

use hearth_proto::status::catalogue_status;
use tonic::Code;

use super::ApiError;
use crate::deploy::port::RuntimeError;
use crate::deploy::{DeployError, MergeError};
use crate::model::fault::{ErrorCode, Fault};

impl From<DeployError> for ApiError {
    fn from(error: DeployError) -> Self {
        let (code, hint, message) = (error.code(), error.hint(), error.to_string());
        let converted = match error {
            DeployError::Denied(denied) => return denied.into(),
            DeployError::Image(fault) => return image_error(*fault).field("spec.image"),
            DeployError::MountedImage(fault) => return image_error(*fault).field("spec.mounts"),
            DeployError::Merge(error @ MergeError::OtherRepository { .. }) => {
                Self::new(code, message).field(field(&error))
            }
            DeployError::Mount(_) => Self::new(code, message).field("spec.mounts"),
            DeployError::Merge(error) => Self::invalid(field(&error), code, message),
            DeployError::Capability(_) => Self::new(code, message).field("spec.capabilities"),
            DeployError::DomainTaken { .. } => Self::new(code, message).field("spec.domains"),
            DeployError::PublicSuffix { .. } => Self::invalid("spec.domains", code, message),
            DeployError::InvalidScope { variable, .. } => {
                Self::invalid(format!("spec.env.{variable}"), code, message)
            }
            DeployError::UnknownSecret { variable, .. } => Self::new(code, message)
                .status(Code::FailedPrecondition)
                .field(format!("spec.env.{variable}")),
            // The service itself exists; its state does not allow the operation.
            DeployError::NoEarlierRevision { .. }
            | DeployError::NotReady(_)
            | DeployError::Runtime(RuntimeError::StartFailed { .. }) => {
                Self::new(code, message).status(Code::FailedPrecondition)
            }
            DeployError::Runtime(
                RuntimeError::NotRunning(_) | RuntimeError::Unavailable(_) | RuntimeError::DiskFull,
            )
            | DeployError::NotFound { .. }
            | DeployError::NoRevision { .. }
            | DeployError::NoInstance { .. }
            | DeployError::NoRoute(_)
            | DeployError::Removing { .. }
            | DeployError::NotRunning { .. }
            | DeployError::Limit(_)
            | DeployError::ShuttingDown => Self::new(code, message),
            error @ (DeployError::Secret { .. }
            | DeployError::Store(_)
            | DeployError::Runtime(_)
            | DeployError::Log(_)) => return Self::of_failure("the service could not be used", &error),
        };
        converted.maybe_hint(hint)
    }
}

/// Converts the fault of an image that cannot be resolved or fetched.
fn image_error(fault: Fault) -> ApiError {
    let status = match fault.code.known() {
        _ if fault.retryable => Code::Unavailable,
        Some(
            code @ (ErrorCode::ImageNotFound
            // The same status as for a pull.
            | ErrorCode::RegistryDenied
            | ErrorCode::RegistryCredentials
            | ErrorCode::Internal),
        ) => catalogue_status(code),
        _ => Code::FailedPrecondition,
    };
    ApiError::from_fault(fault).status(status)
}

/// Field of the request that corresponds to a command-line `--flag`.
fn field(error: &MergeError) -> String {
    let name = match error.flag() {
        "--name" => "name",
        "--port" => "ports",
        "--domain" => "domains",
        "--env" => "env",
        "--mount" => "mounts",
        "--liveness" => "liveness",
        "--command" => "command",
        "--memory" => "memory_bytes",
        "--cpus" => "cpu_millis",
        other => other,
    };
    format!("spec.{name}")
}
