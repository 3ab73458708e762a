//! Conversion of errors of the room's secrets.

use super::ApiError;
use crate::secrets::SecretsError;

impl From<SecretsError> for ApiError {
    fn from(error: SecretsError) -> Self {
        if let Some(full) = Self::of_full_disk(&error) {
            return full;
        }
        let (code, hint, message) = (error.code(), error.hint(), error.to_string());
        let converted = match error {
            SecretsError::TooLarge { .. } | SecretsError::Nul { .. } => Self::invalid("value", code, message),
            SecretsError::Key | SecretsError::Store(_) => {
                return Self::internal("the room's secrets could not be used", message);
            }
            _ => Self::new(code, message),
        };
        converted.maybe_hint(hint)
    }
}
