//! Implementation of [`SecretReader`](super::port::SecretReader) with the secrets of the room.

use async_trait::async_trait;

use super::port::SecretReader;
use crate::model::secret::Secret;
use crate::secrets::RoomSecrets;

#[async_trait]
impl SecretReader for RoomSecrets {
    async fn reveal(&self, name: &str) -> Result<Option<Secret<String>>, String> {
        // No secret has an invalid name.
        let Ok(name) = name.parse() else { return Ok(None) };
        Self::reveal(self, &name).await.map_err(|error| error.to_string())
    }
}
