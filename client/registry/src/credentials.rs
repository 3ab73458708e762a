//! Credentials for registries, from the caller or from the configuration of Docker.

use std::collections::BTreeMap;
use std::fmt;

use docker_credential::{CredentialRetrievalError, DockerCredential};

use super::host::DOCKER_HUB;

/// Credential for one registry. `Debug` prints a placeholder, so it never appears in logs.
#[derive(Clone, PartialEq, Eq)]
pub enum HostCredential {
    Password {
        username: String,
        password: String,
    },
    /// OAuth 2 refresh token, as `docker login` stores it for some registries.
    IdentityToken(String),
}

impl fmt::Debug for HostCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<credential>")
    }
}

/// Credentials by registry.
#[derive(Clone, Debug, Default)]
pub struct HostCredentials(BTreeMap<String, HostCredential>);

impl HostCredentials {
    /// Adds a credential and replaces an earlier one for the same registry.
    #[must_use]
    pub fn with(mut self, registry: &str, credential: HostCredential) -> Self {
        self.0.insert(registry_key(registry), credential);
        self
    }

    /// Adds the credentials of `others` for registries without one here.
    #[must_use]
    pub fn or(mut self, others: Self) -> Self {
        for (registry, credential) in others.0 {
            self.0.entry(registry).or_insert(credential);
        }
        self
    }

    pub fn get(&self, registry: &str) -> Option<&HostCredential> {
        self.0.get(&registry_key(registry))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Returns the canonical name of a registry: lower-case `host[:port]`, and `docker.io` for all names of Docker Hub.
pub fn registry_key(registry: &str) -> String {
    let host = registry.trim().trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or_default().to_ascii_lowercase();
    match host.as_str() {
        "" | "docker.io" | "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => {
            DOCKER_HUB.to_owned()
        }
        _ => host,
    }
}

/// Returns the credential that `docker login` stored for a registry: in `config.json`, or in the credential helper
/// that is configured there. This call blocks, and a helper may prompt the user, so run it in a thread with a time
/// limit.
pub fn docker_login_credential(registry: &str) -> Result<Option<HostCredential>, String> {
    let key = registry_key(registry);
    let server = if key == DOCKER_HUB { "https://index.docker.io/v1/" } else { key.as_str() };
    match docker_credential::get_credential(server) {
        Ok(DockerCredential::UsernamePassword(username, password)) => {
            Ok(Some(HostCredential::Password { username, password }))
        }
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(HostCredential::IdentityToken(token))),
        Err(
            CredentialRetrievalError::NoCredentialConfigured
            | CredentialRetrievalError::ConfigNotFound
            // A helper also fails like this when it has no credential: the protocol has no other answer for that.
            | CredentialRetrievalError::HelperFailure { .. },
        ) => Ok(None),
        Err(CredentialRetrievalError::ConfigReadError) if !config_exists() => Ok(None),
        Err(error) => Err(format!("Docker's credentials for {key}: {error}")),
    }
}

fn config_exists() -> bool {
    let directory = std::env::var_os("DOCKER_CONFIG")
        .map(std::path::PathBuf::from)
        .or_else(|| Some(std::path::Path::new(&std::env::var_os("HOME")?).join(".docker")));
    directory.is_some_and(|directory| directory.join("config.json").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(username: &str) -> HostCredential {
        HostCredential::Password { username: username.to_owned(), password: "hunter2".to_owned() }
    }

    #[test]
    fn every_name_of_docker_hub_finds_its_credential_and_others_are_exact() {
        for given in ["", "docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"] {
            let credentials = HostCredentials::default().with(given, password("a"));
            assert!(credentials.get("docker.io").is_some() && credentials.get("example.com").is_none());
        }
        let credentials = HostCredentials::default().with("R.example:5000", password("a"));
        assert!(credentials.get("r.example:5000").is_some() && credentials.get("r.example").is_none());
    }

    #[test]
    fn what_was_given_first_wins_over_what_was_configured_and_nothing_is_shown() {
        let given = HostCredentials::default().with("a.example", password("given"));
        let configured =
            HostCredentials::default().with("a.example", password("c")).with("b.example", password("c"));
        let all = given.or(configured);
        assert_eq!(all.get("a.example"), Some(&password("given")));
        assert_eq!(all.get("b.example"), Some(&password("c")));
        assert!(!format!("{all:?}").contains("hunter2"));
    }
}
