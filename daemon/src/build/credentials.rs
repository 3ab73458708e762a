//! Credentials that one build hands to BuildKit, each at the moment it is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use hearth_pack::remote::registry_key;

use super::port::Credentials;
use crate::model::Repository;
use crate::model::id::BuildId;
use crate::model::secret::Credential;

/// What a build may do with the room's registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryAccess {
    /// The result goes here.
    pub push: Repository,
    /// Images of the room that the Dockerfile names.
    pub pull: Vec<Repository>,
}

/// Makes a short-lived credential of the room's registry for one build.
pub type RegistryCredential = Arc<dyn Fn(&BuildId, &RegistryAccess) -> Credential + Send + Sync>;

pub struct BuildCredentials {
    build: BuildId,
    /// `host:port` of the room's registry as BuildKit reaches it.
    registry: String,
    access: RegistryAccess,
    mint: RegistryCredential,
    /// By [`registry_key`].
    given: BTreeMap<String, Credential>,
    fallback: OwnCredential,
}

/// The daemon's own credential for a registry, where the build may use that.
pub type OwnCredential = Arc<dyn Fn(&str) -> Option<Credential> + Send + Sync>;

impl BuildCredentials {
    pub fn new(
        build: BuildId,
        registry: String,
        access: RegistryAccess,
        mint: RegistryCredential,
        given: &BTreeMap<String, Credential>,
        fallback: OwnCredential,
    ) -> Self {
        let given = given.iter().map(|(host, credential)| (registry_key(host), credential.clone())).collect();
        Self { build, registry, access, mint, given, fallback }
    }
}

impl Credentials for BuildCredentials {
    fn for_registry(&self, host: &str) -> Option<Credential> {
        // The room's registry first: a caller's credential for that address would replace the build's own.
        if host == self.registry {
            return Some((self.mint)(&self.build, &self.access));
        }
        let host = registry_key(host);
        self.given.get(&host).cloned().or_else(|| (self.fallback)(&host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::secret::Secret;

    fn credential(username: &str) -> Credential {
        Credential { username: username.to_owned(), password: Secret::new("p".to_owned()) }
    }

    fn credentials(given: &[&str]) -> BuildCredentials {
        let access = RegistryAccess { push: "a/b".parse().unwrap(), pull: Vec::new() };
        let given = given.iter().map(|host| ((*host).to_owned(), credential(host))).collect();
        let mint: RegistryCredential = Arc::new(|_, access| credential(&format!("build:{}", access.push)));
        let fallback: OwnCredential = Arc::new(|host| (host == "own.example").then(|| credential("own")));
        BuildCredentials::new(BuildId::random(), "127.0.0.1:4327".to_owned(), access, mint, &given, fallback)
    }

    #[test]
    fn every_name_of_docker_hub_finds_its_credential() {
        for given in ["", "docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"] {
            let credentials = credentials(&[given]);
            for asked in ["docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"] {
                assert!(credentials.for_registry(asked).is_some(), "{given} for {asked}");
            }
            assert!(credentials.for_registry("example.com").is_none());
        }
    }

    #[test]
    fn the_rooms_registry_gets_the_builds_own_token_and_nobody_else_does() {
        let credentials = credentials(&["127.0.0.1:4327", "example.com"]);
        assert_eq!(credentials.for_registry("127.0.0.1:4327").unwrap().username, "build:a/b");
        assert_eq!(credentials.for_registry("example.com").unwrap().username, "example.com");
        assert!(credentials.for_registry("127.0.0.1:9").is_none());
        assert!(credentials.for_registry("127.0.0.1").is_none());
    }

    #[test]
    fn what_the_build_brought_wins_over_what_the_daemon_has() {
        let credentials = credentials(&["example.com"]);
        assert_eq!(credentials.for_registry("own.example").unwrap().username, "own");
        let credentials = self::credentials(&["own.example"]);
        assert_eq!(credentials.for_registry("own.example").unwrap().username, "own.example");
    }
}
