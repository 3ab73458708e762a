//! Access to other registries, and the daemon's own credentials for them.
//!
//! The credentials are in a file of their own, so that the configuration can be shown. The file is read at each use, so
//! that a changed password takes effect without a reload.
//!
//! ```toml
//! ["ghcr.io"]
//! username = "me"
//! password = "token"
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use hearth_registry::{
    AddressGuard, AddressGuards, HostCredential, HostCredentials, MirrorList, RegistryClient, registry_key,
};
use serde::Deserialize;

use super::port::cached::ImageRight;
use crate::fetch_policy::FetchPolicy;
use crate::model::egress::EgressPolicy;
use crate::model::secret::{RegistryCredential, Secret};
use crate::model::{Reference, is_link_local};

const MAX_FILE: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum CredentialsFileError {
    #[error("registry credentials {}: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("registry credentials {}: mode {mode:04o} lets others read it; run chmod 600 {}", .path.display(), .path.display())]
    Mode { path: PathBuf, mode: u32 },
    #[error("registry credentials {}: it belongs to user {uid}, not to root or the daemon's own", .path.display())]
    Owner { path: PathBuf, uid: u32 },
    /// The parser's message is not shown: it repeats the line, which may contain a password.
    #[error("registry credentials {}: it is not TOML of the form [\"registry\"] username = .., password = ..", .path.display())]
    Malformed { path: PathBuf },
}

/// Client for other registries; cheap to clone.
#[derive(Clone, Debug)]
pub struct RemoteRegistries {
    remote: RegistryClient,
    file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CredentialsFileEntry {
    username: String,
    password: String,
}

impl RemoteRegistries {
    /// Creates the client. Connections to registries that neither the mirrors nor the credentials name must be allowed
    /// by the egress policy of builds; connections to named registries are allowed, except to link-local addresses.
    pub fn new(mirrors: MirrorList, credentials: Option<PathBuf>, policy: EgressPolicy) -> Self {
        let policy = FetchPolicy::new(policy);
        let guards = AddressGuards {
            configured: AddressGuard::new(|address| !is_link_local(address)),
            unconfigured: AddressGuard::new(move |address| policy.allows_resolved(address)),
        };
        Self { remote: RegistryClient::guarded(mirrors, guards), file: credentials }
    }

    /// Returns a client for one image, and the right by which the image may be fetched.
    pub fn client_for(
        &self,
        reference: &Reference,
        given: &BTreeMap<String, RegistryCredential>,
        caller: &str,
    ) -> Result<(RegistryClient, ImageRight), CredentialsFileError> {
        let hosts = self.remote.mirrors().authorities(reference);
        let opens = |credentials: &BTreeMap<String, RegistryCredential>| {
            credentials.keys().any(|registry| hosts.contains(&registry_key(registry)))
        };
        let right = if opens(given) {
            ImageRight::Caller(caller.to_owned())
        } else if opens(&self.configured()?) {
            ImageRight::Room
        } else {
            // The request uses no credential, so everybody may share the result.
            return Ok((self.remote.clone(), ImageRight::Public));
        };
        Ok((self.remote(given)?, right))
    }

    /// Returns a client with the caller's credentials, and the daemon's own for other registries.
    pub fn remote(
        &self,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<RegistryClient, CredentialsFileError> {
        let all = |from: &BTreeMap<String, RegistryCredential>| {
            from.iter().fold(HostCredentials::default(), |all, (registry, credential)| {
                let credential = HostCredential::Password {
                    username: credential.username.clone(),
                    password: credential.password.reveal().clone(),
                };
                all.with(registry, credential)
            })
        };
        let configured = self.configured()?;
        let remote = self.remote.clone().with_operator_registries(configured.keys().map(String::as_str));
        Ok(remote.with_credentials(all(given).or(all(&configured))))
    }

    /// Checks the credentials file, so that errors are reported at start.
    pub fn check(&self) -> Result<(), CredentialsFileError> {
        self.configured().map(drop)
    }

    fn configured(&self) -> Result<BTreeMap<String, RegistryCredential>, CredentialsFileError> {
        self.file.as_deref().map_or_else(|| Ok(BTreeMap::new()), read)
    }
}

fn read(path: &Path) -> Result<BTreeMap<String, RegistryCredential>, CredentialsFileError> {
    let failed = |source| CredentialsFileError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let (mode, uid) = (metadata.mode() & 0o7777, metadata.uid());
    if mode & 0o077 != 0 {
        return Err(CredentialsFileError::Mode { path: path.to_owned(), mode });
    }
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(CredentialsFileError::Owner { path: path.to_owned(), uid });
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
    let entries: BTreeMap<String, CredentialsFileEntry> =
        toml::from_str(&text).map_err(|_| CredentialsFileError::Malformed { path: path.to_owned() })?;
    let credential = |(registry, entry): (String, CredentialsFileEntry)| {
        let credential =
            RegistryCredential { username: entry.username, password: Secret::new(entry.password) };
        (registry_key(&registry), credential)
    };
    Ok(entries.into_iter().map(credential).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn remote_registries(text: &str, mode: u32) -> (tempfile::TempDir, RemoteRegistries) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credentials.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (directory, RemoteRegistries::new(MirrorList::default(), Some(path), EgressPolicy::default()))
    }

    const FILE: &str = "['index.docker.io']\nusername = 'me'\npassword = 'hunter2'\n";

    #[test]
    fn credentials_are_found_by_any_name_of_their_registry_and_read_again_each_time() {
        let (directory, remote_registries) = remote_registries(FILE, 0o600);
        let name = |registry: &str| {
            remote_registries.configured().unwrap().get(registry).map(|found| found.username.clone())
        };
        assert_eq!(name("docker.io").as_deref(), Some("me"));
        assert!(name("ghcr.io").is_none());
        std::fs::write(directory.path().join("credentials.toml"), FILE.replace("'me'", "'other'")).unwrap();
        assert_eq!(name("docker.io").as_deref(), Some("other"));
    }

    #[test]
    fn the_right_to_an_image_is_that_of_the_credential_that_opens_it() {
        let (_directory, remote_registries) = remote_registries(FILE, 0o600);
        let given = |registry: &str| {
            let credential =
                RegistryCredential { username: "u".to_owned(), password: Secret::new("p".to_owned()) };
            BTreeMap::from([(registry.to_owned(), credential)])
        };
        let right = |image: &str, given: &BTreeMap<String, RegistryCredential>| {
            remote_registries.client_for(&image.parse().unwrap(), given, "ann").unwrap().1
        };
        assert_eq!(right("alpine", &BTreeMap::new()), ImageRight::Room);
        assert_eq!(right("ghcr.io/a/b", &BTreeMap::new()), ImageRight::Public);
        assert_eq!(right("ghcr.io/a/b", &given("docker.io")), ImageRight::Public);
        assert_eq!(right("ghcr.io/a/b", &given("https://ghcr.io/v2/")), ImageRight::Caller("ann".to_owned()));
        assert_eq!(right("alpine", &given("index.docker.io")), ImageRight::Caller("ann".to_owned()));
    }

    #[test]
    fn a_file_that_others_may_read_or_that_is_malformed_is_refused_and_shows_no_password() {
        for mode in [0o640, 0o604, 0o660] {
            let (_directory, remote_registries) = remote_registries(FILE, mode);
            assert!(matches!(remote_registries.check(), Err(CredentialsFileError::Mode { .. })), "{mode:o}");
        }
        for text in ["['x']\nusername = 'a'\npasword = 'hunter2'", "hunter2", "['x']\npassword = 'hunter2'"] {
            let (_directory, remote_registries) = remote_registries(text, 0o600);
            let error = remote_registries.check().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        let none = Some("/no/such/file".into());
        assert!(RemoteRegistries::new(MirrorList::default(), none, EgressPolicy::default()).check().is_err());
    }
}
