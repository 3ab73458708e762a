//! The only credential that BuildKit receives: a token of the build itself for the room's registry, created when
//! BuildKit asks for it. The credentials of other registries stay in the daemon, which fetches their images itself.

use std::sync::Arc;

use super::port::CredentialProvider;
use crate::model::Repository;
use crate::model::id::BuildId;
use crate::model::secret::RegistryCredential;

/// Access of one build to the room's registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryAccess {
    /// Repository that receives the built image, if one is built.
    pub push: Option<Repository>,
    /// Repositories of the images that the Dockerfile names.
    pub pull: Vec<Repository>,
}

/// Creates a short-lived credential of the room's registry for one build.
pub type RegistryCredentialMinter =
    Arc<dyn Fn(&BuildId, &RegistryAccess) -> RegistryCredential + Send + Sync>;

pub struct BuildCredentials {
    build: BuildId,
    /// `host:port` of the room's registry as BuildKit reaches it.
    registry: String,
    access: RegistryAccess,
    mint: RegistryCredentialMinter,
}

impl BuildCredentials {
    pub fn new(
        build: BuildId,
        registry: String,
        access: RegistryAccess,
        mint: RegistryCredentialMinter,
    ) -> Self {
        Self { build, registry, access, mint }
    }
}

impl CredentialProvider for BuildCredentials {
    fn for_registry(&self, host: &str) -> Option<RegistryCredential> {
        (host == self.registry).then(|| (self.mint)(&self.build, &self.access))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::secret::Secret;

    #[test]
    fn only_the_rooms_registry_gets_a_credential() {
        let access = RegistryAccess { push: Some("a/b".parse().unwrap()), pull: Vec::new() };
        let mint: RegistryCredentialMinter = Arc::new(|_, access| RegistryCredential {
            username: format!("build:{}", access.push.clone().unwrap()),
            password: Secret::new("p".to_owned()),
        });
        let own = "127.0.0.1:4327".to_owned();
        let credentials = BuildCredentials::new(BuildId::random(), own, access, mint);
        assert_eq!(credentials.for_registry("127.0.0.1:4327").unwrap().username, "build:a/b");
        for other in ["docker.io", "127.0.0.1:9", "127.0.0.1", "localhost:4327", ""] {
            assert!(credentials.for_registry(other).is_none(), "{other}");
        }
    }
}
