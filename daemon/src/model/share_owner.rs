//! Whose share of the daemon a caller takes: what services do counts for whoever has deployed them, however many they are.

use std::fmt;
use std::sync::{Arc, OnceLock};

use super::access::SERVICE_NAME;

/// A service that a service has deployed, and so on: longer chains are not followed.
const LONGEST_CHAIN: usize = 8;

type CreatorOf = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Finds owners; cheap to clone. Until it is told of services, each caller is its own.
#[derive(Clone, Default)]
pub struct ShareOwners(Arc<OnceLock<CreatorOf>>);

/// The owner of a request's share, in its extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareOwner(pub String);

impl ShareOwners {
    /// From now on services are asked for here: who made the one with this id. Said once, at the start.
    pub fn ask_for_services(&self, creator_of: impl Fn(&str) -> Option<String> + Send + Sync + 'static) {
        if self.0.set(Box::new(creator_of)).is_err() {
            tracing::warn!("it was said already where services are asked for");
        }
    }

    pub fn of(&self, caller: &str) -> ShareOwner {
        let mut owner = caller.to_owned();
        for _ in 0..LONGEST_CHAIN {
            let creator = owner.strip_prefix(SERVICE_NAME).and_then(|service| (self.0.get()?)(service));
            match creator {
                Some(creator) => owner = creator,
                None => break,
            }
        }
        ShareOwner(owner)
    }
}

impl fmt::Debug for ShareOwners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShareOwners").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_of_services_count_for_whoever_began() {
        let owners = ShareOwners::default();
        assert_eq!(owners.of("service:a").0, "service:a");
        owners.ask_for_services(|service| match service {
            "a" | "b" => Some("ann".to_owned()),
            "c" => Some("service:a".to_owned()),
            "loop" => Some("service:loop".to_owned()),
            _ => None,
        });
        for (caller, owner) in [
            ("ann", "ann"),
            ("service:a", "ann"),
            ("service:b", "ann"),
            ("service:c", "ann"),
            ("a", "a"),
            ("service:gone", "service:gone"),
            ("service:loop", "service:loop"),
        ] {
            assert_eq!(owners.of(caller).0, owner);
        }
    }
}
