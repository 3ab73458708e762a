//! The key that secrets are sealed with: AES-256-GCM, a random nonce each time, the secret's name as associated data.

use jiff::Timestamp;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::SecretsError;
use super::port::SealedSecret;
use crate::model::secret::{Secret, SecretName};

/// Contexts for deriving the sealing key and the key id from the text of the key file (`derive_key` of BLAKE3).
const SEAL_CONTEXT: &str = "hearth 2026-11-24 secrets of a room, sealing key";
const ID_CONTEXT: &str = "hearth 2026-11-24 secrets of a room, id of the key";

pub(super) struct SealingKey {
    sealing: LessSafeKey,
    id: String,
}

impl SealingKey {
    pub fn from_text(text: &Secret<String>) -> Result<Self, SecretsError> {
        let derived = |context| blake3::derive_key(context, text.reveal().as_bytes());
        let unbound = UnboundKey::new(&AES_256_GCM, &derived(SEAL_CONTEXT)).map_err(|_| SecretsError::Key)?;
        Ok(Self { sealing: LessSafeKey::new(unbound), id: hex::encode(&derived(ID_CONTEXT)[..8]) })
    }

    /// Identifies the key without revealing anything about it.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn seal(
        &self,
        name: &SecretName,
        value: &Secret<String>,
        at: Timestamp,
    ) -> Result<SealedSecret, SecretsError> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce);
        let mut sealed = nonce.to_vec();
        let mut text = value.reveal().clone().into_bytes();
        self.sealing
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(name.as_str()),
                &mut text,
            )
            .map_err(|_| SecretsError::Key)?;
        sealed.append(&mut text);
        Ok(SealedSecret { name: name.clone(), key_id: self.id.clone(), sealed, at })
    }

    pub fn unseal(&self, secret: &SealedSecret) -> Result<Secret<String>, SecretsError> {
        let damaged = || SecretsError::Damaged { name: secret.name.clone() };
        let (nonce, sealed) = secret.sealed.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let mut text = sealed.to_vec();
        let name = Aad::from(secret.name.as_str());
        let length = self.sealing.open_in_place(nonce, name, &mut text).map_err(|_| damaged())?.len();
        text.truncate(length);
        String::from_utf8(text).map(Secret::new).map_err(|_| damaged())
    }
}
