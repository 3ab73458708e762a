//! Calls of the Secrets service. No call returns a value.

use bytes::Bytes;
use hearth_proto::v1::{
    ListSecretsRequest, RemoveSecretRequest, RemoveSecretResponse, Secret, SetSecretRequest,
};

use super::{Client, ClientError, unary_request};

impl Client {
    /// Creates a secret, or replaces the value of an existing one.
    pub async fn set_secret(&self, name: &str, value: Bytes) -> Result<Option<Secret>, ClientError> {
        let request = SetSecretRequest { name: name.to_owned(), value };
        Ok(self.message_or_error(self.secrets().set(unary_request(request)).await)?.secret)
    }

    /// Names and times of all secrets.
    pub async fn list_secrets(&self) -> Result<Vec<Secret>, ClientError> {
        Ok(self.message_or_error(self.secrets().list(unary_request(ListSecretsRequest {})).await)?.secrets)
    }

    /// Removes a secret. The answer names the services that use it.
    pub async fn remove_secret(&self, name: &str) -> Result<RemoveSecretResponse, ClientError> {
        let request = RemoveSecretRequest { name: name.to_owned() };
        self.message_or_error(self.secrets().remove(unary_request(request)).await)
    }
}
