//! Tokens of instances are those of participants.

use super::port::Tokens;
use crate::access::{Access, MAX_TTL};
use crate::model::id::ServiceId;
use crate::model::secret::Secret;

impl Tokens for Access {
    /// Good for as long as a token may be, and the service is there: an instance gets a new one only when it is started
    /// again.
    fn mint(&self, service: &ServiceId, name: &str, scope: &str) -> Result<Secret<String>, String> {
        let minted = self.mint_for_service(service, name, scope, MAX_TTL);
        minted.map(Secret::new).map_err(|error| error.to_string())
    }
}
