//! Calls of the Secrets service. No call returns a value.

use bytes::Bytes;
use hearth_proto::v1::{
    ListSecretsRequest, RemoveSecretRequest, RemoveSecretResponse, Secret, SetSecretRequest,
};

use super::{Client, ClientError, limited};

impl Client {
    /// Creates a secret, or replaces the value of an existing one.
    pub async fn set_secret(&self, name: &str, value: Bytes) -> Result<Option<Secret>, ClientError> {
        let request = SetSecretRequest { name: name.to_owned(), value };
        Ok(self.answer(self.secrets().set(limited(request)).await)?.secret)
    }

    /// Names and times of all secrets.
    pub async fn list_secrets(&self) -> Result<Vec<Secret>, ClientError> {
        Ok(self.answer(self.secrets().list(limited(ListSecretsRequest {})).await)?.secrets)
    }

    /// Removes a secret. The answer names the services that use it.
    pub async fn remove_secret(&self, name: &str) -> Result<RemoveSecretResponse, ClientError> {
        let request = RemoveSecretRequest { name: name.to_owned() };
        self.answer(self.secrets().remove(limited(request)).await)
    }
}
