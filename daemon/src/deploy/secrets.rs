//! Secrets of instances are those of the room.

use async_trait::async_trait;

use super::port::Secrets;
use crate::model::secret::Secret;
use crate::secrets::Secrets as RoomSecrets;

#[async_trait]
impl Secrets for RoomSecrets {
    async fn reveal(&self, name: &str) -> Result<Option<Secret<String>>, String> {
        // What cannot be a name is the name of none.
        let Ok(name) = name.parse() else { return Ok(None) };
        Self::reveal(self, &name).await.map_err(|error| error.to_string())
    }
}
