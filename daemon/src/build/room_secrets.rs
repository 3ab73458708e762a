//! Implementation of [`RoomSecretReader`] with the secrets of the room.

use async_trait::async_trait;

use super::port::RoomSecretReader;
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::secret::{Secret, SecretName};
use crate::secrets::{RoomSecrets, SecretsError};

#[async_trait]
impl RoomSecretReader for RoomSecrets {
    async fn reveal_for_build(&self, name: &SecretName) -> Result<Secret<String>, Fault> {
        let fault = |code: ErrorCode, message: String| Fault::new(FaultStage::Context, code, message);
        match self.reveal(name).await {
            Ok(Some(value)) => Ok(value),
            Ok(None) => {
                let missing = SecretsError::NotFound { name: name.clone() };
                Err(fault(missing.code(), missing.to_string())
                    .hint("set it with `hearth secrets set`, or correct the name after `room=`"))
            }
            Err(error) => Err(fault(error.code(), error.to_string())),
        }
    }
}
