use std::path::PathBuf;

use super::port::SecretStoreError;
use super::{MAX_SECRETS, MAX_VALUE_BYTES};
use crate::access::SecretFileError;
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
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "secret_not_found",
            Self::TooLarge { .. } => "secret_too_large",
            Self::Nul { .. } => "invalid_secret_value",
            Self::TooMany => "too_many_secrets",
            Self::KeyMissing { .. } => "secret_key_missing",
            Self::OtherKey { .. } => "secret_key_replaced",
            Self::Damaged { .. } => "secret_damaged",
            Self::KeyFile(_) | Self::Key => "secret_key_unusable",
            Self::Store(_) => "internal",
            Self::Ending => "draining",
        }
    }

    pub const fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotFound { .. } => "`hearth secrets ls` shows those that there are",
            Self::TooLarge { .. } => "put it into a file of room storage, and mount that",
            Self::TooMany => "remove what is not needed: hearth secrets rm NAME",
            Self::KeyMissing { .. } | Self::OtherKey { .. } => {
                "put the earlier key file back, or remove these secrets with `hearth secrets rm` and set them again"
            }
            Self::Damaged { .. } => "set it again: hearth secrets set NAME",
            Self::Nul { .. } | Self::KeyFile(_) | Self::Key | Self::Store(_) | Self::Ending => return None,
        })
    }
}
