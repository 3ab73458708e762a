//! Where services of the room are reached: an HTTP reverse proxy that leads hosts to instances.
//!
//! ```text
//! client --serve--> exchange --host, table--> Entry --enter--> Backend --kept or new--> Upstream --> instance
//! ```
//!
//! HTTP/1.1 and HTTP/2 (prior knowledge, or chosen within TLS) from clients, HTTP/1.1 to instances. The
//! table is replaced as a whole; requests in flight go on where they are, and each backend counts its
//! own, so that it can be drained. Nothing is gathered: bodies and upgraded connections are streamed at the
//! reader's pace.
//!
//! What a client may count on:
//! - a request for a service without a healthy instance, or whose instance takes no connections, is held
//!   for a moment ([`Options::hold`]) and then told 503 or 502;
//! - a request that met a kept connection which the instance closed is sent again on a new one: always if
//!   nothing of it was written, else once, where its method is idempotent and its body none or small;
//! - `Expect: 100-continue` is answered here, when the request has been let through;
//! - the first byte of the answer comes within [`Options::first_byte`] or it is 504; then it may last.

mod backend;
mod body;
mod exchange;
mod frames;
mod headers;
mod host;
mod options;
mod page;
mod serve;
mod table;
mod tls;
mod token;
mod tunnel;
mod upgrade;
mod upstream;
mod workers;

use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use metrics::Counter;
use tokio::sync::{Notify, Semaphore};

use crate::access::Access;
use crate::audit::AuditTrail;
use crate::connections::Connections;
use crate::deploy::port::{Route, Router};
use backend::Backend;
use table::{Entry, Table};
use workers::Workers;

pub use options::{Options, TlsSource};
pub use tls::{Tls, TlsError};

/// Connections that are told at a time why they are not served.
const MAX_REFUSALS: usize = 64;

/// Classes of status that answers are counted by.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The room's routes, and all that serving them needs. One for all its listeners.
pub struct Ingress {
    options: Options,
    access: Arc<Access>,
    /// Where requests that were denied are recorded.
    trail: Option<AuditTrail>,
    table: RwLock<Arc<Table>>,
    /// Grows with each table.
    version: AtomicU64,
    /// Wakes requests that are held when there is a new table.
    changed: Notify,
    /// Everything that is routed, and what is left in flight of what no longer is.
    backends: Mutex<HashMap<SocketAddr, Arc<Backend>>>,
    connections: Connections,
    /// For connections that are told why they are not served.
    refusals: Arc<Semaphore>,
    workers: Workers,
    answers: [Counter; CLASSES.len()],
}

/// A route and what goes on there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    pub route: Route,
    pub in_flight: usize,
}

impl Ingress {
    /// Starts the threads that serve. The recorder of metrics is to be there before.
    pub fn new(options: Options, access: Arc<Access>) -> io::Result<Self> {
        metrics::describe_counter!(
            "hearth_ingress_answers_total",
            "Answers of the ingress, by class of status."
        );
        let connections = Connections::new(options.connections);
        let workers = Workers::start(options.workers)?;
        Ok(Self {
            options,
            access,
            trail: None,
            table: RwLock::default(),
            version: AtomicU64::new(0),
            changed: Notify::new(),
            backends: Mutex::default(),
            connections,
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            workers,
            answers: CLASSES
                .map(|class| metrics::counter!("hearth_ingress_answers_total", "status" => class)),
        })
    }

    /// Records who was denied what.
    #[must_use]
    pub fn with_audit(self, trail: AuditTrail) -> Self {
        Self { trail: Some(trail), ..self }
    }

    /// What is routed at the moment, by domain.
    pub fn traffic(&self) -> Vec<Traffic> {
        let mut traffic: Vec<_> = self
            .table()
            .entries()
            .map(|entry| Traffic {
                route: Route {
                    domain: entry.domain.clone(),
                    service: entry.service.clone(),
                    revision: entry.revision,
                    backend: entry.backend.as_ref().map(|backend| backend.address),
                    private: entry.private,
                },
                in_flight: entry.backend.as_ref().map_or(0, |backend| backend.in_flight()),
            })
            .collect();
        traffic.sort_by(|a, b| a.route.domain.cmp(&b.route.domain));
        traffic
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read())
    }

    fn find(&self, host: &str) -> Option<Arc<Entry>> {
        self.table.read().find(host).cloned()
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// Closes a worker's kept connections that have grown old or were closed by their instance.
    fn sweep(&self, worker: usize) {
        let backends: Vec<_> = self.backends().values().cloned().collect();
        for backend in backends {
            backend.sweep(worker, self.options.kept_idle);
        }
    }

    fn backends(&self) -> parking_lot::MutexGuard<'_, HashMap<SocketAddr, Arc<Backend>>> {
        self.backends.lock()
    }
}

#[async_trait]
impl Router for Ingress {
    fn set(&self, routes: Vec<Route>) {
        // Held to the end, so that of two tables at once the later one stays.
        let mut backends = self.backends();
        let mut routed = Vec::new();
        let entries: Vec<_> = routes
            .into_iter()
            .map(|route| {
                let backend = route.backend.map(|address| {
                    let known = backends.get(&address).filter(|backend| !backend.is_retired());
                    let backend = known
                        .cloned()
                        .unwrap_or_else(|| Arc::new(Backend::new(address, self.workers.count())));
                    backends.insert(address, Arc::clone(&backend));
                    routed.push(address);
                    backend
                });
                let Route { domain, service, revision, private, .. } = route;
                Entry { domain, service, revision, private, backend }
            })
            .collect();
        let table = Arc::new(Table::new(entries));
        *self.table.write() = table;
        self.version.fetch_add(1, Ordering::SeqCst);
        // Whoever read the old table and has not yet entered must read the new one.
        backends.retain(|address, backend| {
            if routed.contains(address) {
                return true;
            }
            backend.retire();
            backend.in_flight() > 0
        });
        drop(backends);
        self.changed.notify_waiters();
    }

    async fn drain(&self, address: SocketAddr, limit: Duration) -> usize {
        let Some(backend) = self.backends().get(&address).cloned() else { return 0 };
        let cut = backend.drain(limit).await;
        let mut backends = self.backends();
        if backends.get(&address).is_some_and(|known| Arc::ptr_eq(known, &backend)) {
            backends.remove(&address);
        }
        cut
    }
}

#[cfg(test)]
mod tests;
