//! Credentials and mirrors for the commands that access other registries.

use std::time::Duration;

use clap::Args;
use hearth_proto::v1::RegistryCredential;
use hearth_proto::value::Reference;
use hearth_registry::{
    HostCredential, HostCredentials, MirrorList, RegistryClient, RegistryMirror, RemoteError,
    docker_login_credential,
};

use crate::error::{Failure, FailureKind};
use crate::{output, task};

/// Registry of names that name none.
const DOCKER_HUB: &str = "docker.io";
/// Time limit for a Docker credential helper, which may prompt a user who is not there.
const CREDENTIAL_HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// Credentials, with the same meaning in every command that has them.
#[derive(Clone, Debug, Default, PartialEq, Args)]
pub(super) struct CredentialArgs {
    /// Credentials of a registry, `[registry,]username,password`. Without a registry they are for the one that the
    /// command's image names, or for Docker Hub if it names none or is in the room
    #[arg(long, value_name = "CRED", help_heading = "Other registries")]
    cred: Vec<String>,
}

impl CredentialArgs {
    /// Parses the credentials. The daemon fills in a registry that is left out.
    pub(super) fn to_wire(&self) -> Result<Vec<RegistryCredential>, Failure> {
        self.cred.iter().map(|text| parse_credential(text)).collect()
    }
}

/// Flags for access to other registries from this machine. Without credentials, those of `docker login` are used.
#[derive(Debug, Args)]
pub(super) struct RegistryArgs {
    #[command(flatten)]
    credentials: CredentialArgs,
    /// Mirror URL to ask before the registry HOST, such as `docker.io=https://mirror.example`
    #[arg(
        long,
        value_name = "HOST=URL",
        env = "HEARTH_REGISTRY_MIRROR",
        value_delimiter = ',',
        help_heading = "Other registries"
    )]
    registry_mirror: Vec<RegistryMirror>,
}

impl RegistryArgs {
    pub(super) fn credentials(&self) -> CredentialArgs {
        self.credentials.clone()
    }

    /// Returns a registry client with the credentials that `reference` may need.
    pub(super) async fn remote(&self, reference: &Reference) -> Result<RegistryClient, Failure> {
        let mirrors = MirrorList::new(self.registry_mirror.clone());
        let hosts = mirrors.authorities(reference);
        let spoken_to = reference.registry.as_ref().map_or(DOCKER_HUB, |registry| registry.as_str());
        let given = self.credentials.to_wire()?;
        let mut credentials = given.into_iter().fold(HostCredentials::default(), |all, given| {
            let RegistryCredential { registry, username, password } = given;
            let registry = if registry.is_empty() { spoken_to } else { &registry };
            all.with(registry, HostCredential::Password { username, password })
        });
        for host in hosts {
            if credentials.get(&host).is_some() {
                continue;
            }
            let asked = host.clone();
            match task::blocking_with_timeout(CREDENTIAL_HELPER_TIMEOUT, move || {
                docker_login_credential(&asked)
            })
            .await
            {
                Some(Ok(Some(credential))) => credentials = credentials.with(&host, credential),
                Some(Ok(None)) => {}
                // Public images need no credentials.
                Some(Err(reason)) => {
                    output::note(&format!("warning: {reason}; asking {host} without credentials"));
                }
                None => output::note(&format!(
                    "warning: Docker's credential helper gave no answer; asking {host} without credentials"
                )),
            }
        }
        Ok(RegistryClient::new(mirrors).with_credentials(credentials))
    }
}

/// Parses a credential: `username,password` or `registry,username,password`.
fn parse_credential(text: &str) -> Result<RegistryCredential, Failure> {
    let parts: Vec<&str> = text.splitn(3, ',').collect();
    let (registry, username, password) = match parts[..] {
        [username, password] => ("", username, password),
        [registry, username, password] => (registry, username, password),
        // The text may contain a password, so the error does not show it.
        _ => {
            return Err(Failure::usage(
                "--cred: expected `username,password` or `registry,username,password`",
            ));
        }
    };
    if username.is_empty() || password.is_empty() {
        return Err(Failure::usage("--cred: user name and password must not be empty"));
    }
    Ok(RegistryCredential {
        registry: registry.to_owned(),
        username: username.to_owned(),
        password: password.to_owned(),
    })
}

/// Converts an error of another registry to the failure of a command.
pub(super) fn remote_failure(what: &str, error: &RemoteError) -> Failure {
    let kind = match error {
        RemoteError::Refused { status: 401 | 403, .. } => FailureKind::Denied,
        RemoteError::Unreachable { .. } | RemoteError::Untrusted { .. } | RemoteError::TimedOut { .. } => {
            FailureKind::Unreachable
        }
        _ => FailureKind::Failed,
    };
    let mut failure = Failure::new(kind, error.code(), format!("{what}: {error}"));
    failure.detail.retryable = error.retryable();
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_credential_is_not_repeated_in_its_error() {
        assert_eq!(parse_credential("r.example,u,p,w").unwrap().password, "p,w");
        assert_eq!(parse_credential("u,p").unwrap().registry, "");
        let error = parse_credential("hunter2").unwrap_err();
        assert!(!error.detail.message.contains("hunter2"));
    }
}
