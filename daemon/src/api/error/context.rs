//! Conversion of errors of contexts and of their mounts.

use tonic::Code;

use super::ApiError;
use crate::context::{ContextError, MountError};
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
        let converted = Self::from_fault(error.fault());
        match error {
            ContextError::SubpathNotFound { .. } => converted.status(Code::NotFound),
            ContextError::ShuttingDown => converted.status(Code::Unavailable),
            ContextError::Layer { .. } => converted.status(Code::Internal),
            ContextError::ImageNotOpened { .. } | ContextError::LinkLoop { .. } => {
                converted.status(Code::FailedPrecondition)
            }
            _ => converted,
        }
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
