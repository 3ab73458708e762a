//! Limits on the number of services: per owner, and in the room.

use super::service::DeployContext;
use crate::model::share_owner::ShareOwner;

/// Addresses reserved per service: it needs two while one instance takes over from another.
const ADDRESSES_PER_SERVICE: usize = 2;

/// Reason why no further service is accepted. Existing services can still be updated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceLimit {
    #[error(
        "`{owner}` has {limit} services, with those that its services deployed, and more are not accepted"
    )]
    Owner { owner: String, limit: usize },
    #[error("the room has {limit} services, and its network has no addresses for more")]
    Room { limit: usize },
}

impl ServiceLimit {
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::Owner { .. } => "service_limit",
            Self::Room { .. } => "room_full",
        }
    }

    pub(super) fn hint(&self) -> String {
        let setting = match self {
            Self::Owner { .. } => "a greater max_per_caller",
            Self::Room { .. } => "a larger subnet",
        };
        format!(
            "remove a service with: hearth services rm NAME; or set {setting} in [services] of hearthd's configuration"
        )
    }
}

impl DeployContext {
    /// Checks that `caller` may create another service, and returns the owner whose share it counts against. Two
    /// addresses are reserved per service, so that every service can start its next instance.
    pub(super) fn admit_service(&self, caller: &str) -> Result<ShareOwner, ServiceLimit> {
        let owner = self.options.owners.owner_of(caller);
        let owners: Vec<String> =
            self.all_entries().iter().map(|entry| entry.state().service.share_owner().to_owned()).collect();
        let room = self.ports.network.max_addresses() / ADDRESSES_PER_SERVICE;
        if owners.len() >= room {
            return Err(ServiceLimit::Room { limit: room });
        }
        let limit = self.options.max_per_owner;
        if owners.iter().filter(|of| self.options.owners.owner_of(of) == owner).count() >= limit {
            return Err(ServiceLimit::Owner { owner: owner.0, limit });
        }
        Ok(owner)
    }
}
