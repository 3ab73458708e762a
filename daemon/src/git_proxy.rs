//! The way of git to the world: builders run `git` for repositories that builds name, and it reaches only this proxy.
//!
//! ```text
//! buildkitd -- git -- CONNECT host:443 ----------.
//!                     GET http://host/repo.git --+--> whose password? --> host and address allowed? --> host
//!                                                |         '-- 407                '-- 403
//! ```
//!
//! Redirects, submodules and names that change their meaning are all connections of git, so each of them is looked at
//! here, by the egress policy of builds. The name is resolved here too, and the connection goes to an address that was
//! looked at. The proxy listens on loopback, where others of this machine are: each builder has a password of its own.
//! Steps of builds have no way to it.

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

/// Connections of one builder at a time.
const PER_BUILDER: usize = 64;
/// Refusals of one builder that are remembered.
const REMEMBERED: usize = 64;
const USER: &str = "builder";

/// Cheap to clone; served until the last clone, and the last access, is dropped.
#[derive(Clone)]
pub struct GitProxy(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    builders: Arc<Builders>,
    _serving: DropGuard,
}

/// By the value of `Proxy-Authorization`.
#[derive(Default)]
struct Builders(Mutex<HashMap<String, Arc<Builder>>>);

struct Builder {
    places: Arc<Semaphore>,
    refusals: Mutex<VecDeque<GitRefusal>>,
}

/// A connection of git that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitRefusal {
    pub host: String,
    pub port: u16,
    /// None where the name was refused, so that it was not resolved.
    pub address: Option<IpAddr>,
    pub at: Instant,
}

/// One builder's access to the proxy, until the last clone is dropped.
#[derive(Clone)]
pub struct GitAccess(Arc<Access>);

struct Access {
    proxy: GitProxy,
    builder: Arc<Builder>,
    url: String,
    authorization: String,
}

impl GitProxy {
    /// `operator_proxies` are those that the operator has set up for this machine.
    pub async fn start(policy: EgressPolicy, operator_proxies: Matcher) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (address, stop) = (listener.local_addr()?, CancellationToken::new());
        let builders = Arc::new(Builders::default());
        let policy = FetchPolicy::new(policy);
        let (known, stopped) = (Arc::clone(&builders), stop.clone());
        let way = serve::Way { policy, operator_proxies };
        task::spawn("git-proxy", async move {
            stopped.run_until_cancelled(serve::serve(listener, way, known)).await;
        });
        Ok(Self(Arc::new(Inner { address, builders, _serving: stop.drop_guard() })))
    }

    /// Lets one more builder use the proxy.
    pub fn admit(&self) -> GitAccess {
        let password = format!("{:032x}", rand::random::<u128>());
        let authorization = format!("Basic {}", STANDARD.encode(format!("{USER}:{password}")));
        let builder =
            Arc::new(Builder { places: Arc::new(Semaphore::new(PER_BUILDER)), refusals: Mutex::default() });
        self.0.builders.0.lock().insert(authorization.clone(), Arc::clone(&builder));
        let url = format!("http://{USER}:{password}@{}", self.0.address);
        GitAccess(Arc::new(Access { proxy: self.clone(), builder, url, authorization }))
    }
}

impl GitAccess {
    /// With the password.
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

impl Drop for Access {
    fn drop(&mut self) {
        self.proxy.0.builders.0.lock().remove(&self.authorization);
    }
}

impl Builders {
    fn find(&self, authorization: &str) -> Option<Arc<Builder>> {
        self.0.lock().get(authorization).cloned()
    }
}

impl Builder {
    fn refuse(&self, refusal: GitRefusal) {
        let GitRefusal { host, port, address, .. } = &refusal;
        tracing::info!(host, port, ?address, "git of a build was refused a connection");
        let mut refusals = self.refusals();
        if refusals.len() == REMEMBERED {
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
