//! Client of other registries: resolves, fetches and pushes images by the OCI distribution spec 1.1.
//!
//! Unlike the rest of this crate, this module is async, because it waits for networks. It is in this crate because
//! both the client (`pack --base`) and the daemon (mounts, pull, push) use it. It spawns no tasks: the caller polls
//! its futures, and dropping a future cancels the request.
//!
//! ```text
//! Reference -> hosts: mirrors first, then the registry itself      host
//!   request -> retry with backoff -> 401: one token -> redirects   transport, auth, retry
//!     manifest by platform                                         resolve
//!     blob: streamed, hashed, resumed after an interruption        blob
//!     push: HEAD, mount, upload                                    push
//! ```
//!
//! The crate `oci-client` is not used: it sends credentials to any realm that a registry names, follows redirects by
//! itself, supports neither retry nor resume nor platform variants, and treats a 202 answer to a mount as an error.
//!
//! Answers of a registry are not trusted. The size of JSON is limited, content is verified by digest *and* size, and
//! credentials are sent only to their registry and to a token service of the same owner (see module `auth`). Plain
//! HTTP is used only for loopback addresses and for hosts that are configured as their own `http://` mirror.

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

/// Client of other registries with the credentials of one caller. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Remote {
    transport: Arc<Transport>,
    mirrors: Arc<Mirrors>,
    credentials: Arc<Credentials>,
    /// Keys of the registries that the operator has credentials for.
    known: Arc<BTreeSet<String>>,
    tokens: Arc<Tokens>,
    retry: Retry,
}

impl Remote {
    /// Creates a client without credentials.
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

    /// Creates a client without credentials that connects only to addresses that the guards allow.
    pub fn guarded(mirrors: Mirrors, guards: Guards) -> Self {
        Self { transport: Arc::new(Transport::guarded(guards)), ..Self::new(mirrors) }
    }

    /// Marks registries for which the operator has credentials, and whose hosts are therefore configured (see
    /// [`AddressGuards`]).
    #[must_use]
    pub fn knowing<'r>(self, registries: impl IntoIterator<Item = &'r str>) -> Self {
        let known = registries.into_iter().map(registry_key).collect();
        Self { known: Arc::new(known), ..self }
    }

    fn known(&self, host: Host) -> Host {
        Host { is_known: self.known.contains(&host.key), ..host }
    }

    /// Returns a client that shares the connections but has other credentials. Tokens are not shared.
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
