//! Other registries: images are resolved, fetched and pushed by the OCI distribution spec 1.1.
//!
//! Unlike the rest of this crate, this part is async: it waits for networks. It lies here because it is
//! what client (`pack --base`) and daemon (mounts, pull, push) share, and this crate is the one that both
//! stand on. It spawns nothing; whoever calls drives it, and dropping a call ends it.
//!
//! ```text
//! Reference -> hosts: mirrors first, then the registry itself      host
//!   request -> retry with back-off -> 401: one token -> redirects  transport, auth, retry
//!     manifest by platform                                         resolve
//!     blob: streamed, summed, resumed where it was cut             blob
//!     push: HEAD, mount, upload                                    push
//! ```
//!
//! `oci-client` is not used: it sends credentials to whatever realm a registry names, follows redirects
//! by itself, knows neither retry nor resume nor variants of a platform, and takes a 202 to a mount for an
//! error. What is left of it after all that is what is here.
//!
//! What a registry says is not trusted. JSON is bounded, content is checked by digest *and* size, and
//! credentials go nowhere but to the registry they are for and to a token service of the same owner (see
//! [`auth`]). Plain HTTP is spoken only to loopback addresses and to hosts that are their own `http://`
//! mirror.

mod auth;
mod blob;
mod credentials;
mod error;
mod guard;
mod host;
mod push;
mod resolve;
mod retry;
mod transport;

use std::collections::BTreeSet;
use std::sync::Arc;

pub use blob::{BlobReader, CHUNKS_AHEAD};
pub use credentials::{Credential, Credentials, docker_config, registry_key};
pub use error::{MirrorFailure, RemoteError};
pub use guard::{AddressGuard, AddressRefused, Guards, refused_address};
pub use host::{Mirror, MirrorError, Mirrors, full_name};
pub use push::{OpenContent, Pushed, Target};
pub use resolve::{Found, RemoteImage, Source};
pub use retry::Retry;

use auth::Tokens;
use host::Host;
use transport::Transport;

/// A client of other registries with the credentials of one caller; cheap to clone.
#[derive(Clone, Debug)]
pub struct Remote {
    transport: Arc<Transport>,
    mirrors: Arc<Mirrors>,
    credentials: Arc<Credentials>,
    /// Registries that the operator has credentials for.
    known: Arc<BTreeSet<String>>,
    tokens: Arc<Tokens>,
    retry: Retry,
}

impl Remote {
    /// Without credentials.
    pub fn new(mirrors: Mirrors) -> Self {
        Self {
            transport: Arc::new(Transport::default()),
            mirrors: Arc::new(mirrors),
            credentials: Arc::default(),
            known: Arc::default(),
            tokens: Arc::default(),
            retry: Retry::default(),
        }
    }

    /// The same, which connects only to addresses that the guards allow.
    pub fn guarded(mirrors: Mirrors, guards: Guards) -> Self {
        Self { transport: Arc::new(Transport::guarded(guards)), ..Self::new(mirrors) }
    }

    /// The same for an operator who has credentials for these registries, and so knows their hosts.
    #[must_use]
    pub fn knowing<'r>(self, registries: impl IntoIterator<Item = &'r str>) -> Self {
        let known = registries.into_iter().map(registry_key).collect();
        Self { known: Arc::new(known), ..self }
    }

    fn known(&self, host: Host) -> Host {
        Host { is_known: self.known.contains(&host.key), ..host }
    }

    /// The same connections with other credentials; tokens that were got with the old ones are not shared.
    #[must_use]
    pub fn with_credentials(&self, credentials: Credentials) -> Self {
        Self { credentials: Arc::new(credentials), tokens: Arc::default(), ..self.clone() }
    }

    #[must_use]
    pub fn with_retry(&self, retry: Retry) -> Self {
        Self { retry, ..self.clone() }
    }

    pub fn mirrors(&self) -> &Mirrors {
        &self.mirrors
    }
}

#[cfg(test)]
mod tests;
