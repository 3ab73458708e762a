//! Conversion of errors of contexts and of their mounts.

use tonic::Code;

use super::ApiError;
use crate::context::ContextError;
use crate::context::mounts::MountError;
use crate::model::fault::{ErrorCode, Fault};

impl ApiError {
    /// Converts the fault of a mount that could not be opened.
    pub fn from_mount_fault(fault: Fault) -> Self {
        let status = match fault.code.known() {
            Some(ErrorCode::PackNotFound | ErrorCode::ImageNotFound) => Code::NotFound,
            _ => Code::FailedPrecondition,
        };
        Self::from_fault(fault).status(status)
    }
}

impl From<ContextError> for ApiError {
    fn from(error: ContextError) -> Self {
        let status = match &error {
            ContextError::Changed { .. } => Code::Aborted,
            ContextError::ShuttingDown => Code::Unavailable,
            ContextError::Cancelled => Code::Cancelled,
            ContextError::ContextPathNotFound { .. } | ContextError::SubpathNotFound { .. } => Code::NotFound,
            ContextError::Io { .. } | ContextError::Layer { .. } => Code::Internal,
            _ => Code::FailedPrecondition,
        };
        Self::from_fault(error.fault()).status(status)
    }
}

impl From<MountError> for ApiError {
    fn from(error: MountError) -> Self {
        let (code, hint, message) = (error.code(), error.hint(), error.to_string());
        let converted = match error {
            MountError::Context(error) => return error.into(),
            MountError::Relative { .. } => Self::invalid("directory", code, message),
            _ => Self::new(code, message),
        };
        converted.maybe_hint(hint)
    }
}
