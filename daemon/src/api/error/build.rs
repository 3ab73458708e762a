//! Conversion of errors of builds.

use tonic::Code;

use super::ApiError;
use crate::build::{AdmissionError, BuildError, SubmitError};
use crate::model::fault::ErrorCode;

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let after = error.retry_after();
        let message = error.to_string();
        match error {
            SubmitError::Denied(AdmissionError::QueueFull { .. }) => {
                Self::new(ErrorCode::QueueFull, message).retryable(after)
            }
            SubmitError::Denied(AdmissionError::CallerLimit { .. }) => {
                Self::new(ErrorCode::CallerLimit, message).retryable(after)
            }
            SubmitError::Denied(AdmissionError::QueueShare { .. }) => {
                Self::new(ErrorCode::QueueShare, message).retryable(after)
            }
            SubmitError::Denied(AdmissionError::Draining) | SubmitError::Ending => {
                Self::new(ErrorCode::Draining, message)
            }
            SubmitError::DiskLow { .. } => Self::new(ErrorCode::DiskLow, message),
            SubmitError::KeyReused { .. } => Self::new(ErrorCode::IdempotencyKeyReused, message),
            // Only a missing pack is a missing object of the request; everything else is a state of the room.
            SubmitError::Refused(fault) if fault.code == ErrorCode::PackNotFound => Self::from_fault(*fault),
            SubmitError::Refused(fault) => Self::from_fault(*fault).status(Code::FailedPrecondition),
            error @ (SubmitError::Store(_) | SubmitError::Log(_)) => {
                Self::of_failure("the build could not be stored", &error)
            }
        }
    }
}

impl From<BuildError> for ApiError {
    fn from(error: BuildError) -> Self {
        let message = error.to_string();
        match error {
            BuildError::NotFound { .. } => Self::new(ErrorCode::BuildNotFound, message),
            BuildError::Ambiguous { .. } => Self::invalid("build_id", ErrorCode::AmbiguousBuildId, message),
            BuildError::TooManyPinned { .. } => Self::new(ErrorCode::TooMany, message),
            BuildError::NoInputs { .. } => Self::new(ErrorCode::BuildInputsUnrecorded, message),
            BuildError::NotEnded { .. } => Self::new(ErrorCode::BuildNotEnded, message),
            BuildError::Unstored { failure, .. } => {
                let code = if failure.disk_full { ErrorCode::NoSpace } else { ErrorCode::StateUnavailable };
                Self::new(code, message).retryable(None)
            }
            error @ (BuildError::Store(_) | BuildError::Log { .. }) => {
                Self::of_failure("the build could not be read", &error)
            }
        }
    }
}
