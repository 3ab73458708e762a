//! Limits on the number of services: per owner, and in the room.

use super::entries::ServiceEntries;
use crate::model::fault::ErrorCode;
use crate::model::share_owner::{ShareOwner, ShareOwnerResolver};

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
    pub(super) const fn code(&self) -> ErrorCode {
        match self {
            Self::Owner { .. } => ErrorCode::ServiceLimit,
            Self::Room { .. } => ErrorCode::RoomFull,
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

/// Bounds on the number of services.
pub(super) struct ServiceBounds<'a> {
    pub(super) owners: &'a ShareOwnerResolver,
    pub(super) max_per_owner: usize,
    /// Number of instance addresses in the room's network.
    pub(super) addresses: usize,
}

impl ServiceBounds<'_> {
    /// Checks that `caller` may create another service beside `entries`, and returns the owner whose share it counts
    /// against. Two addresses are reserved per service, so that every service can start its next instance.
    pub(super) fn admit(&self, entries: &ServiceEntries, caller: &str) -> Result<ShareOwner, ServiceLimit> {
        let owner = self.owners.owner_of(caller);
        let owners: Vec<String> =
            entries.all().iter().map(|entry| entry.state().service.share_owner().to_owned()).collect();
        let room = self.addresses / ADDRESSES_PER_SERVICE;
        if owners.len() >= room {
            return Err(ServiceLimit::Room { limit: room });
        }
        let limit = self.max_per_owner;
        if owners.iter().filter(|of| self.owners.owner_of(of) == owner).count() >= limit {
            return Err(ServiceLimit::Owner { owner: owner.0, limit });
        }
        Ok(owner)
    }
}
