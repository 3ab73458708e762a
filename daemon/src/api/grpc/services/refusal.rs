//! Conversion of deploy errors.

use tonic::Code;

use super::super::super::error::{ApiError, fault_detail};
use crate::deploy::port::RuntimeError;
use crate::deploy::{DeployError, MergeError};
use crate::model::fault::Fault;

impl From<DeployError> for ApiError {
    fn from(error: DeployError) -> Self {
        let (code, message, hint) = (error.code().to_owned(), error.to_string(), error.hint());
        let new = |status| Self::new(status, &code, message.clone());
        let retryable = error.retryable();
        let refusal = match error {
            DeployError::NotFound { .. }
            | DeployError::NoRevision { .. }
            | DeployError::NoInstance { .. }
            | DeployError::NoRoute(_) => new(Code::NotFound),
            DeployError::NoEarlierRevision { .. }
            | DeployError::Removing { .. }
            | DeployError::NotReady(_)
            | DeployError::NotRunning { .. }
            | DeployError::Runtime(RuntimeError::NotRunning(_) | RuntimeError::StartFailed { .. }) => {
                new(Code::FailedPrecondition)
            }
            DeployError::Denied(denied) => return Self::from(denied),
            DeployError::Merge(error @ MergeError::OtherRepository { .. }) => {
                new(Code::AlreadyExists).field(field(&error))
            }
            DeployError::Merge(error) => Self::invalid(field(&error), &code, message),
            DeployError::Limit(_) => new(Code::ResourceExhausted),
            DeployError::Capability(_) => new(Code::FailedPrecondition).field("spec.capabilities"),
            DeployError::DomainTaken { .. } => new(Code::AlreadyExists).field("spec.domains"),
            DeployError::PublicSuffix { .. } => Self::invalid("spec.domains", &code, message),
            DeployError::InvalidScope { variable, .. } => {
                Self::invalid(format!("spec.env.{variable}"), &code, message)
            }
            DeployError::UnknownSecret { variable, .. } => {
                new(Code::FailedPrecondition).field(format!("spec.env.{variable}"))
            }
            DeployError::Image(fault) => {
                let status = image_status(&fault);
                return Self::with_detail(status, fault_detail(*fault)).field("spec.image");
            }
            DeployError::MountedImage(fault) => {
                let status = image_status(&fault);
                return Self::with_detail(status, fault_detail(*fault)).field("spec.mounts");
            }
            DeployError::Runtime(RuntimeError::Unavailable(_)) | DeployError::ShuttingDown => {
                new(Code::Unavailable)
            }
            DeployError::Secret { .. }
            | DeployError::Store(_)
            | DeployError::Runtime(_)
            | DeployError::Log(_) => return Self::internal("the service could not be used", message),
        };
        let refusal = if retryable { refusal.retryable(None) } else { refusal };
        match hint {
            Some(hint) => refusal.hint(hint),
            None => refusal,
        }
    }
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

fn image_status(fault: &Fault) -> Code {
    match fault.code.as_str() {
        _ if fault.retryable => Code::Unavailable,
        "image_not_found" => Code::NotFound,
        // The same code as for a pull.
        "registry_denied" => Code::PermissionDenied,
        "internal" | "registry_credentials" => Code::Internal,
        _ => Code::FailedPrecondition,
    }
}
