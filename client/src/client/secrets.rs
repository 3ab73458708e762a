//! Calls on the room's secrets. No value comes back.

use bytes::Bytes;
use hearth_proto::v1::{
    ListSecretsRequest, RemoveSecretRequest, RemoveSecretResponse, Secret, SetSecretRequest,
};

use super::{Client, ClientError, limited};

impl Client {
    /// Sets a secret, new or in place of the one of that name.
    pub async fn set_secret(&self, name: &str, value: Bytes) -> Result<Option<Secret>, ClientError> {
        let request = SetSecretRequest { name: name.to_owned(), value };
        Ok(self.answer(self.secrets().set(limited(request)).await)?.secret)
    }

    /// Names and times.
    pub async fn list_secrets(&self) -> Result<Vec<Secret>, ClientError> {
        Ok(self.answer(self.secrets().list(limited(ListSecretsRequest {})).await)?.secrets)
    }

    /// Removes a secret; the answer names who uses it.
    pub async fn remove_secret(&self, name: &str) -> Result<RemoveSecretResponse, ClientError> {
        let request = RemoveSecretRequest { name: name.to_owned() };
        self.answer(self.secrets().remove(limited(request)).await)
    }
}
