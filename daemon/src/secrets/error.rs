use std::path::PathBuf;

use super::port::SecretStoreError;
use super::{MAX_SECRETS, MAX_VALUE_BYTES};
use crate::access::SecretFileError;
use crate::model::fault::ErrorCode;
use crate::model::secret::SecretName;

/// Failure to set, remove or read a secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error("the room has no secret `{name}`")]
    NotFound { name: SecretName },
    #[error("the value of secret `{name}` has {size} bytes, more than {MAX_VALUE_BYTES}")]
    TooLarge { name: SecretName, size: usize },
    #[error("the value of secret `{name}` has a NUL in it, which no environment variable can have")]
    Nul { name: SecretName },
    #[error("the room has {MAX_SECRETS} secrets, and may have no more")]
    TooMany,
    #[error("there are secrets, and the file with their key is gone: {path}")]
    KeyMissing { path: PathBuf },
    #[error("secret `{name}` was sealed with another key than the one in {path}")]
    OtherKey { name: SecretName, path: PathBuf },
    #[error("what is stored of secret `{name}` was changed or damaged")]
    Damaged { name: SecretName },
    #[error(transparent)]
    KeyFile(#[from] SecretFileError),
    #[error("the key cannot be used")]
    Key,
    #[error(transparent)]
    Store(#[from] SecretStoreError),
    #[error("the daemon is ending")]
    Ending,
}

impl SecretsError {
    /// Stable error code.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::SecretNotFound,
            Self::TooLarge { .. } => ErrorCode::SecretTooLarge,
            Self::Nul { .. } => ErrorCode::InvalidSecretValue,
            Self::TooMany => ErrorCode::TooManySecrets,
            Self::KeyMissing { .. } => ErrorCode::SecretKeyMissing,
            Self::OtherKey { .. } => ErrorCode::SecretKeyReplaced,
            Self::Damaged { .. } => ErrorCode::SecretDamaged,
            Self::KeyFile(_) | Self::Key => ErrorCode::SecretKeyUnusable,
            Self::Store(_) => ErrorCode::Internal,
            Self::Ending => ErrorCode::Draining,
        }
    }

    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotFound { .. } => Some("`hearth secrets ls` shows those that there are"),
            Self::TooMany => Some("remove what is not needed: hearth secrets rm NAME"),
            other => other.code().entry().hint,
        }
    }
}
