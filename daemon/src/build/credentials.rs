//! Credentials that one build hands to BuildKit, each at the moment it is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// By [`host_of`].
    given: BTreeMap<String, Credential>,
}

impl BuildCredentials {
    pub fn new(
        build: BuildId,
        registry: String,
        access: RegistryAccess,
        mint: RegistryCredential,
        given: &BTreeMap<String, Credential>,
    ) -> Self {
        let given = given.iter().map(|(host, credential)| (host_of(host), credential.clone())).collect();
        Self { build, registry, access, mint, given }
    }
}

impl Credentials for BuildCredentials {
    fn for_registry(&self, host: &str) -> Option<Credential> {
        // The room's registry first: a caller's credential for that address would replace the build's own.
        if host == self.registry {
            return Some((self.mint)(&self.build, &self.access));
        }
        self.given.get(&host_of(host)).cloned()
    }
}

/// One spelling for each registry; Docker Hub has many.
fn host_of(host: &str) -> String {
    let host = host.trim().trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or_default().to_ascii_lowercase();
    match host.as_str() {
        "" | "docker.io" | "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => {
            "docker.io".to_owned()
        }
        _ => host,
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
        BuildCredentials::new(BuildId::random(), "127.0.0.1:4327".to_owned(), access, mint, &given)
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
}
