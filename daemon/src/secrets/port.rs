//! Storage of sealed secrets.

use async_trait::async_trait;
use jiff::Timestamp;

use crate::model::secret::{SecretName, SecretView};

/// Stores sealed secrets. Implemented by the SQLite store.
#[async_trait]
pub trait SecretStore: Send + Sync + 'static {
    /// Stores a secret, replacing one of the same name but keeping its creation time; durable when this
    /// returns. Returns `None` and stores nothing if the name is new and there are already `most` secrets.
    async fn put(&self, secret: SealedSecret, most: usize) -> Result<Option<SecretView>, SecretStoreError>;

    async fn get(&self, name: &SecretName) -> Result<Option<SealedSecret>, SecretStoreError>;

    /// Returns all secrets without their values, sorted by name.
    async fn list(&self) -> Result<Vec<SecretView>, SecretStoreError>;

    /// Removes a secret, and reports whether it existed.
    async fn remove(&self, name: &SecretName) -> Result<bool, SecretStoreError>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedSecret {
    pub name: SecretName,
    /// Id of the key that opens it.
    pub key_id: String,
    /// Nonce, ciphertext and authentication tag, concatenated.
    pub sealed: Vec<u8>,
    /// Time at which the value was set.
    pub at: Timestamp,
}

/// Failure of the store. Its kind is [`StorageFull`](std::io::ErrorKind::StorageFull) if the disk is full.
#[derive(Debug, thiserror::Error)]
#[error("state database: {0}")]
pub struct SecretStoreError(#[source] pub std::io::Error);
