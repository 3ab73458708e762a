//! Client of other registries: resolves, fetches and pushes images by the OCI distribution spec 1.1.
//!
//! Both the client (`pack --base`) and the daemon (mounts, pull, push) use it. It spawns no tasks: the caller polls its
//! futures, and dropping a future cancels the request.
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

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start threads where they need them"))]

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

pub use blob::{BlobReader, CHUNK_BUFFER};
pub use credentials::{HostCredential, HostCredentials, docker_login_credential, registry_key};
pub use error::{MirrorFailure, RemoteError};
pub use guard::{AddressGuard, AddressGuards, AddressRefused, refused_address};
pub use host::{MirrorError, MirrorList, RegistryMirror, full_name};
pub use push::{OpenContent, PushOutcome, PushTarget};
pub use resolve::{PullSource, RemoteImage, ResolvedManifest};
pub use retry::RetryPolicy;

use auth::TokenCache;
use host::RegistryHost;
use transport::HttpTransport;

/// Client of other registries with the credentials of one caller. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RegistryClient {
    transport: Arc<HttpTransport>,
    mirrors: Arc<MirrorList>,
    credentials: Arc<HostCredentials>,
    /// Keys of the registries that the operator has credentials for.
    operator_registries: Arc<BTreeSet<String>>,
    tokens: Arc<TokenCache>,
    retry: RetryPolicy,
}

impl RegistryClient {
    /// Creates a client without credentials.
    pub fn new(mirrors: MirrorList) -> Self {
        Self {
            transport: Arc::new(HttpTransport::default()),
            mirrors: Arc::new(mirrors),
            credentials: Arc::default(),
            operator_registries: Arc::default(),
            tokens: Arc::default(),
            retry: RetryPolicy::default(),
        }
    }

    /// Creates a client without credentials that connects only to addresses that the guards allow.
    pub fn guarded(mirrors: MirrorList, guards: AddressGuards) -> Self {
        Self { transport: Arc::new(HttpTransport::guarded(guards)), ..Self::new(mirrors) }
    }

    /// Marks registries for which the operator has credentials, and whose hosts are therefore configured (see
    /// [`AddressGuards`]).
    #[must_use]
    pub fn with_operator_registries<'r>(self, registries: impl IntoIterator<Item = &'r str>) -> Self {
        let known = registries.into_iter().map(registry_key).collect();
        Self { operator_registries: Arc::new(known), ..self }
    }

    fn mark_operator_host(&self, host: RegistryHost) -> RegistryHost {
        RegistryHost { has_operator_credentials: self.operator_registries.contains(&host.key), ..host }
    }

    /// Returns a client that shares the connections but has other credentials. Tokens are not shared.
    #[must_use]
    pub fn with_credentials(&self, credentials: HostCredentials) -> Self {
        Self { credentials: Arc::new(credentials), tokens: Arc::default(), ..self.clone() }
    }

    #[must_use]
    pub fn with_retry_policy(&self, retry: RetryPolicy) -> Self {
        Self { retry, ..self.clone() }
    }

    pub fn mirrors(&self) -> &MirrorList {
        &self.mirrors
    }
}

#[cfg(test)]
mod tests;
