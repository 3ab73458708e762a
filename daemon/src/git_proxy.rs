//! Git proxy: builders run `git` for repositories that builds name, and git reaches only this proxy.
//!
//! ```text
//! buildkitd -- git -- CONNECT host:443 ----------.
//!                     GET http://host/repo.git --+--> password of a builder? --> host and address allowed? --> host
//!                                                |         '-- 407                     '-- 403
//! ```
//!
//! Redirects, submodules and names that resolve differently later are all new connections of git, so the proxy checks
//! each of them against the egress policy of builds. It also resolves the name, and connects to an address that it has
//! checked. The proxy listens on loopback, where other processes of this machine can connect, so each builder has its
//! own password. Build steps cannot reach it.

mod dial;
mod serve;
mod upstream;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_util::client::proxy::matcher::Matcher;
use parking_lot::{Mutex, MutexGuard};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::fetch_policy::FetchPolicy;
use crate::model::egress::EgressPolicy;
use crate::task;

/// Maximum number of concurrent connections of one builder.
const MAX_CONNECTIONS_PER_BUILDER: usize = 64;
/// Maximum number of refusals remembered for one builder.
const MAX_REFUSALS: usize = 64;
const USER: &str = "builder";

/// The git proxy. Cheap to clone; it runs until the last clone, and the last access, is dropped.
#[derive(Clone)]
pub struct GitProxy(Arc<GitProxyState>);

struct GitProxyState {
    address: SocketAddr,
    builders: Arc<GitProxyBuilders>,
    _serving: DropGuard,
}

/// Builders by the value of their `Proxy-Authorization` header.
#[derive(Default)]
struct GitProxyBuilders(Mutex<HashMap<String, Arc<GitProxyBuilder>>>);

struct GitProxyBuilder {
    connections: Arc<Semaphore>,
    refusals: Mutex<VecDeque<GitRefusal>>,
}

/// A git connection that the proxy refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitRefusal {
    pub host: String,
    pub port: u16,
    /// Refused address; `None` when the name was refused before it was resolved.
    pub address: Option<IpAddr>,
    pub at: Instant,
}

/// Access of one builder to the proxy, valid until the last clone is dropped.
#[derive(Clone)]
pub struct GitAccess(Arc<GitAccessGrant>);

struct GitAccessGrant {
    proxy: GitProxy,
    builder: Arc<GitProxyBuilder>,
    url: String,
    authorization: String,
}

impl GitProxy {
    /// Starts the proxy. `operator_proxies` are the proxies that the operator has configured for this machine.
    pub async fn start(policy: EgressPolicy, operator_proxies: Matcher) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (address, stop) = (listener.local_addr()?, CancellationToken::new());
        let builders = Arc::new(GitProxyBuilders::default());
        let policy = FetchPolicy::new(policy);
        let (known, stopped) = (Arc::clone(&builders), stop.clone());
        let way = serve::GitProxyForwarding { policy, operator_proxies };
        task::spawn("git-proxy", async move {
            stopped.run_until_cancelled(serve::serve(listener, way, known)).await;
        });
        Ok(Self(Arc::new(GitProxyState { address, builders, _serving: stop.drop_guard() })))
    }

    /// Creates access to the proxy for one more builder.
    pub fn grant_access(&self) -> GitAccess {
        let password = format!("{:032x}", rand::random::<u128>());
        let authorization = format!("Basic {}", STANDARD.encode(format!("{USER}:{password}")));
        let builder = Arc::new(GitProxyBuilder {
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS_PER_BUILDER)),
            refusals: Mutex::default(),
        });
        self.0.builders.0.lock().insert(authorization.clone(), Arc::clone(&builder));
        let url = format!("http://{USER}:{password}@{}", self.0.address);
        GitAccess(Arc::new(GitAccessGrant { proxy: self.clone(), builder, url, authorization }))
    }
}

impl GitAccess {
    /// URL of the proxy, with the password.
    pub fn url(&self) -> &str {
        &self.0.url
    }

    pub fn refused_since(&self, moment: Instant) -> Vec<GitRefusal> {
        self.0.builder.refusals().iter().filter(|refusal| refusal.at >= moment).cloned().collect()
    }
}

impl fmt::Debug for GitAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GitAccess")
    }
}

impl Drop for GitAccessGrant {
    fn drop(&mut self) {
        self.proxy.0.builders.0.lock().remove(&self.authorization);
    }
}

impl GitProxyBuilders {
    fn find(&self, authorization: &str) -> Option<Arc<GitProxyBuilder>> {
        self.0.lock().get(authorization).cloned()
    }
}

impl GitProxyBuilder {
    fn record_refusal(&self, refusal: GitRefusal) {
        let GitRefusal { host, port, address, .. } = &refusal;
        tracing::info!(host, port, ?address, "refused a git connection of a build");
        let mut refusals = self.refusals();
        if refusals.len() == MAX_REFUSALS {
            refusals.pop_front();
        }
        refusals.push_back(refusal);
    }

    fn refusals(&self) -> MutexGuard<'_, VecDeque<GitRefusal>> {
        self.refusals.lock()
    }
}

#[cfg(test)]
mod tests;
