//! Secrets of the room: values that services get in their environment and that no caller can read back.
//!
//! ```text
//! set --seal(key, name)--> SecretStore (SQLite) --open(key, name)--> reveal, at the start of an instance
//!              '------- <state>/secrets.key -------'
//! ```
//!
//! A value is sealed together with its name, so that sealed values cannot be swapped. The key file is created
//! with the first secret, and never while other secrets exist, because these could no longer be read. It is
//! read at each use, so that a restored key file, or one with a corrected mode, works at once.

mod error;
mod key;
pub mod port;

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use crate::access::secret_file;
use crate::model::secret::{Secret, SecretName, SecretView};
use crate::task;

pub use error::SecretsError;
use key::SealingKey;
use port::{SealedSecret, SecretStore};

/// Maximum size of a value in bytes.
pub const MAX_VALUE_BYTES: usize = 64 << 10;
/// Maximum number of secrets of a room.
pub const MAX_SECRETS: usize = 1000;

/// The room's secrets; cheap to clone.
#[derive(Clone)]
pub struct RoomSecrets {
    key_file: Arc<Path>,
    store: Arc<dyn SecretStore>,
}

impl RoomSecrets {
    /// Creates the handle. Nothing is read or created before the first secret is set.
    pub fn open(key_file: &Path, store: Arc<dyn SecretStore>) -> Self {
        Self { key_file: key_file.into(), store }
    }

    /// Sets a secret, replacing an earlier value of that name. A value becomes an environment variable, so it
    /// must not contain NUL.
    pub async fn set(&self, name: &SecretName, value: Secret<String>) -> Result<SecretView, SecretsError> {
        if value.reveal().len() > MAX_VALUE_BYTES {
            return Err(SecretsError::TooLarge { name: name.clone(), size: value.reveal().len() });
        }
        if value.reveal().contains('\0') {
            return Err(SecretsError::Nul { name: name.clone() });
        }
        let may_make_key = self.store.list().await?.is_empty();
        let (secrets, sealed_name) = (self.clone(), name.clone());
        let sealed = task::blocking("secrets.seal", move || {
            secrets.key(may_make_key)?.seal(&sealed_name, &value, Timestamp::now())
        });
        let sealed = sealed.await.unwrap_or(Err(SecretsError::Ending))?;
        self.store.put(sealed, MAX_SECRETS).await?.ok_or(SecretsError::TooMany)
    }

    /// Returns all secrets without their values, sorted by name.
    pub async fn list(&self) -> Result<Vec<SecretView>, SecretsError> {
        Ok(self.store.list().await?)
    }

    pub async fn remove(&self, name: &SecretName) -> Result<(), SecretsError> {
        if self.store.remove(name).await? {
            Ok(())
        } else {
            Err(SecretsError::NotFound { name: name.clone() })
        }
    }

    /// Returns the value, for the code that passes it to an instance. `None` if no secret has this name.
    pub async fn reveal(&self, name: &SecretName) -> Result<Option<Secret<String>>, SecretsError> {
        let Some(sealed) = self.store.get(name).await? else { return Ok(None) };
        let secrets = self.clone();
        let opened = task::blocking("secrets.open", move || secrets.unseal(&sealed));
        opened.await.unwrap_or(Err(SecretsError::Ending)).map(Some)
    }

    fn unseal(&self, sealed: &SealedSecret) -> Result<Secret<String>, SecretsError> {
        let key = self.key(false)?;
        if key.id() != sealed.key_id {
            return Err(SecretsError::OtherKey {
                name: sealed.name.clone(),
                path: self.key_file.to_path_buf(),
            });
        }
        key.unseal(sealed)
    }

    fn key(&self, make: bool) -> Result<SealingKey, SecretsError> {
        let text = if make {
            Some(secret_file::read_or_create(&self.key_file)?)
        } else {
            secret_file::read(&self.key_file)?
        };
        let missing = || SecretsError::KeyMissing { path: self.key_file.to_path_buf() };
        SealingKey::from_text(&text.ok_or_else(missing)?)
    }
}

#[cfg(test)]
mod tests;
