//! Whose share of the daemon a caller takes: what services do counts for whoever has deployed them, however many they
//! are, and what a build pushes for whoever has submitted it.

use std::fmt;
use std::sync::{Arc, OnceLock};

use super::access::{BUILD_NAME, SERVICE_NAME};

/// A service that a service has deployed, and so on: longer chains are not followed.
const LONGEST_CHAIN: usize = 8;

type OwnerOf = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Finds owners; cheap to clone. Until it is told of services and builds, each caller is its own.
#[derive(Clone, Default)]
pub struct ShareOwners(Arc<Known>);

#[derive(Default)]
struct Known {
    creators: OnceLock<OwnerOf>,
    submitters: OnceLock<OwnerOf>,
}

/// The owner of a request's share, in its extensions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShareOwner(pub String);

impl ShareOwners {
    /// From now on services are asked for here: who made the one with this id. Said once, at the start.
    pub fn ask_for_services(&self, creator_of: impl Fn(&str) -> Option<String> + Send + Sync + 'static) {
        if self.0.creators.set(Box::new(creator_of)).is_err() {
            tracing::warn!("it was said already where services are asked for");
        }
    }

    /// From now on builds are asked for here: who submitted the one with this id. Said once, at the start.
    pub fn ask_for_builds(&self, submitter_of: impl Fn(&str) -> Option<String> + Send + Sync + 'static) {
        if self.0.submitters.set(Box::new(submitter_of)).is_err() {
            tracing::warn!("it was said already where builds are asked for");
        }
    }

    pub fn of(&self, caller: &str) -> ShareOwner {
        let mut owner = caller.to_owned();
        for _ in 0..LONGEST_CHAIN {
            match self.behind(&owner) {
                Some(behind) => owner = behind,
                None => break,
            }
        }
        ShareOwner(owner)
    }
}

impl ShareOwners {
    /// Who has made a caller that is a service or a build.
    fn behind(&self, caller: &str) -> Option<String> {
        if let Some(service) = caller.strip_prefix(SERVICE_NAME) {
            return (self.0.creators.get()?)(service);
        }
        (self.0.submitters.get()?)(caller.strip_prefix(BUILD_NAME)?)
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
            ("build:1", "build:1"),
        ] {
            assert_eq!(owners.of(caller).0, owner);
        }
    }

    #[test]
    fn what_a_build_pushes_counts_for_whoever_submitted_it() {
        let owners = ShareOwners::default();
        owners.ask_for_services(|service| (service == "a").then(|| "ann".to_owned()));
        owners.ask_for_builds(|build| match build {
            "1" => Some("bob".to_owned()),
            "2" => Some("service:a".to_owned()),
            _ => None,
        });
        for (caller, owner) in
            [("build:1", "bob"), ("build:2", "ann"), ("build:gone", "build:gone"), ("1", "1")]
        {
            assert_eq!(owners.of(caller).0, owner);
        }
    }
}
