//! Attribution of resource shares: a service counts towards whoever deployed it, and a build's pushes count towards
//! whoever submitted the build.

use std::fmt;
use std::sync::{Arc, OnceLock};

use super::access::{BUILD_NAME, SERVICE_NAME};

/// Maximum number of creators that are followed, such as a service that a service has deployed.
const LONGEST_CHAIN: usize = 8;

type OwnerLookup = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Finds share owners; cheap to clone. Until the lookups for services and builds are set, each caller is its own owner.
#[derive(Clone, Default)]
pub struct ShareOwnerResolver(Arc<OwnerLookups>);

#[derive(Default)]
struct OwnerLookups {
    creators: OnceLock<OwnerLookup>,
    submitters: OnceLock<OwnerLookup>,
}

/// Owner of a request's share, stored in the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShareOwner(pub String);

impl ShareOwnerResolver {
    /// Sets the lookup from a service id to its creator. Called once, at start.
    pub fn set_service_creators(&self, creator_of: impl Fn(&str) -> Option<String> + Send + Sync + 'static) {
        if self.0.creators.set(Box::new(creator_of)).is_err() {
            tracing::warn!("service creator lookup was already set");
        }
    }

    /// Sets the lookup from a build id to its submitter. Called once, at start.
    pub fn set_build_submitters(
        &self,
        submitter_of: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) {
        if self.0.submitters.set(Box::new(submitter_of)).is_err() {
            tracing::warn!("build submitter lookup was already set");
        }
    }

    pub fn owner_of(&self, caller: &str) -> ShareOwner {
        let mut owner = caller.to_owned();
        for _ in 0..LONGEST_CHAIN {
            match self.creator_of(&owner) {
                Some(behind) => owner = behind,
                None => break,
            }
        }
        ShareOwner(owner)
    }
}

impl ShareOwnerResolver {
    /// Returns the creator of a caller that is a service or a build.
    fn creator_of(&self, caller: &str) -> Option<String> {
        if let Some(service) = caller.strip_prefix(SERVICE_NAME) {
            return (self.0.creators.get()?)(service);
        }
        (self.0.submitters.get()?)(caller.strip_prefix(BUILD_NAME)?)
    }
}

impl fmt::Debug for ShareOwnerResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShareOwners").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_of_services_count_for_whoever_began() {
        let owners = ShareOwnerResolver::default();
        assert_eq!(owners.owner_of("service:a").0, "service:a");
        owners.set_service_creators(|service| match service {
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
            ("build:1", "build:1"),
        ] {
            assert_eq!(owners.owner_of(caller).0, owner);
        }
    }

    #[test]
    fn what_a_build_pushes_counts_for_whoever_submitted_it() {
        let owners = ShareOwnerResolver::default();
        owners.set_service_creators(|service| (service == "a").then(|| "ann".to_owned()));
        owners.set_build_submitters(|build| match build {
            "1" => Some("bob".to_owned()),
            "2" => Some("service:a".to_owned()),
            _ => None,
        });
        for (caller, owner) in
            [("build:1", "bob"), ("build:2", "ann"), ("build:gone", "build:gone"), ("1", "1")]
        {
            assert_eq!(owners.owner_of(caller).0, owner);
        }
    }
}
