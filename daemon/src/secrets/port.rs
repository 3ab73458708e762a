//! Where secrets are kept, sealed.

use async_trait::async_trait;
use jiff::Timestamp;

use crate::model::secret::{SecretName, SecretView};

/// Keeps sealed secrets. The real one is SQLite.
#[async_trait]
pub trait SecretStore: Send + Sync + 'static {
    /// Replaces what is stored under the name, and keeps when that was first; durable when this returns. None, and
    /// nothing is stored, where the name is new and there are `most` others.
    async fn put(&self, secret: SealedSecret, most: usize) -> Result<Option<SecretView>, StoreError>;

    async fn get(&self, name: &SecretName) -> Result<Option<SealedSecret>, StoreError>;

    /// Sorted by name.
    async fn list(&self) -> Result<Vec<SecretView>, StoreError>;

    /// Whether there was one.
    async fn remove(&self, name: &SecretName) -> Result<bool, StoreError>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedSecret {
    pub name: SecretName,
    /// Of the key that opens it.
    pub key_id: String,
    /// Nonce, text, tag.
    pub sealed: Vec<u8>,
    /// When the value was set.
    pub at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("state database: {0}")]
pub struct StoreError(pub String);
