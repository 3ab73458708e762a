//! Implementation of [`TokenMinter`](super::port::TokenMinter): instances get participant tokens.

use super::port::TokenMinter;
use crate::access::{MAX_TTL, TokenAuthority};
use crate::model::id::ServiceId;
use crate::model::secret::Secret;

impl TokenMinter for TokenAuthority {
    /// Mints a token with the maximum lifetime, valid while the service exists: an instance gets a new token only when
    /// it is restarted.
    fn mint(&self, service: &ServiceId, name: &str, scope: &str) -> Result<Secret<String>, String> {
        let minted = self.mint_for_service(service, name, scope, MAX_TTL);
        minted.map(Secret::new).map_err(|error| error.to_string())
    }
}
