//! Conversion of errors of packs and their uploads.

use tonic::Code;

use super::ApiError;
use crate::packs::PackError;
use crate::packs::store::AppendError;

impl From<PackError> for ApiError {
    fn from(error: PackError) -> Self {
        match error {
            PackError::Image(error) => error.into(),
            PackError::Store(AppendError::Io(_)) | PackError::Io(_) => {
                Self::of_failure("the room's packs could not be used", &error)
            }
            error => {
                let converted = Self::new(error.code(), error.to_string()).maybe_hint(error.hint());
                match error {
                    PackError::Ending => converted.status(Code::Unavailable).retryable(None),
                    _ => converted,
                }
            }
        }
    }
}
