//! Conversion of errors of images and registries.

use hearth_registry::RemoteError;
use tonic::Code;

use super::ApiError;
use crate::image::ImageError;

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        let new = |error: &ImageError| Self::new(error.code(), error.to_string()).maybe_hint(error.hint());
        match &error {
            ImageError::Credentials(error) => {
                Self::internal("the daemon's registry credentials cannot be used", error)
            }
            ImageError::Catalog(_)
            | ImageError::Read { .. }
            | ImageError::Scratch(_)
            | ImageError::Sweep(_) => Self::of_failure("the room's images could not be used", &error),
            ImageError::Ending => new(&error).status(Code::Unavailable),
            // The content of the request is wrong, not that of a registry.
            ImageError::Archive(_) => new(&error).status(Code::InvalidArgument),
            ImageError::Remote(remote) => {
                let converted = new(&error).status(remote_status(remote.registry_error()));
                if remote.retryable() { converted.retryable(None) } else { converted }
            }
            _ => new(&error),
        }
    }
}

const fn remote_status(error: &RemoteError) -> Code {
    match error {
        RemoteError::Refused { status: 401 | 403, .. } => Code::PermissionDenied,
        RemoteError::NotFound { .. } => Code::NotFound,
        error if error.retryable() => Code::Unavailable,
        _ => Code::FailedPrecondition,
    }
}
