//! HTTP reverse proxy for the services of the room: routes requests by host to service instances.
//!
//! ```text
//! client --serve--> exchange --host, table--> RouteEntry --enter--> Backend
//!                   Backend --kept or new--> UpstreamConnection --> instance
//! ```
//!
//! Clients use HTTP/1.1 or HTTP/2 (with prior knowledge, or chosen within TLS), instances HTTP/1.1, or HTTP/2 with
//! prior knowledge where their port says so. The route table is replaced as a whole; requests in flight stay with
//! their backend, and each backend counts them, so that it can be drained. Bodies and upgraded connections are
//! streamed at the reader's pace and never buffered as a whole.
//!
//! Guarantees to clients:
//! - A request for a service without a healthy instance, or whose instance accepts no connections, is held
//!   for a moment ([`Options::hold_timeout`]) and then answered with 503 or 502.
//! - A request on a kept connection that the instance had closed is sent again on a new one: always if nothing of
//!   it was written, otherwise once, if its method is idempotent and its body is empty or small.
//! - `Expect: 100-continue` is answered by the ingress, once the request has been admitted.
//! - The answer is 504 if its first byte does not come within [`Options::first_byte_timeout`]; the rest of the
//!   answer has no time limit.

mod backend;
mod body;
mod exchange;
mod frames;
mod headers;
mod host;
mod http2_upstream;
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

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use metrics::Counter;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore};

use crate::access::TokenAuthority;
use crate::audit::AuditTrail;
use crate::connections::ConnectionLimiter;
use crate::deploy::port::{DomainRoute, TrafficRouter};
use backend::{Backend, InFlight};
use table::{IngressRouteTable, RouteEntry};
use workers::IngressWorkers;

pub use options::{Options, TlsSource};
pub use tls::{TlsError, TlsTerminator};

/// Maximum number of refused connections whose clients are sent the reason at the same time.
const MAX_REFUSALS: usize = 64;

/// Classes of status codes by which answers are counted.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The routes of the room, and the state for serving them. Shared by all listeners.
pub struct Ingress {
    options: Options,
    access: Arc<TokenAuthority>,
    /// Audit trail for denied requests.
    trail: Option<AuditTrail>,
    table: RwLock<Arc<IngressRouteTable>>,
    /// Version of the table; increases with each new one.
    version: AtomicU64,
    /// Wakes held requests when there is a new table.
    changed: Notify,
    /// All backends that are routed, and those that are no longer routed but still have requests in flight.
    backends: Mutex<HashMap<SocketAddr, Arc<Backend>>>,
    connections: ConnectionLimiter,
    /// Bounds the connections that wait for a place or are sent the reason of a refusal.
    refusals: Arc<Semaphore>,
    workers: IngressWorkers,
    answers: [Counter; CLASSES.len()],
}

/// A route, and the number of its requests in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTraffic {
    pub route: DomainRoute,
    pub in_flight: usize,
}

impl Ingress {
    /// Starts the worker threads. The metrics recorder must be installed before.
    pub fn new(options: Options, access: Arc<TokenAuthority>) -> io::Result<Self> {
        metrics::describe_counter!(
            "hearth_ingress_answers_total",
            "Answers of the ingress, by class of status."
        );
        let connections = ConnectionLimiter::new(options.connections);
        let workers = IngressWorkers::start(options.workers)?;
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

    /// Records denied requests in the audit trail.
    #[must_use]
    pub fn with_audit(self, trail: AuditTrail) -> Self {
        Self { trail: Some(trail), ..self }
    }

    /// Returns the current routes with their traffic, sorted by domain.
    pub fn traffic(&self) -> Vec<RouteTraffic> {
        let mut traffic: Vec<_> = self
            .table()
            .entries()
            .map(|entry| RouteTraffic {
                route: DomainRoute {
                    domain: entry.domain.clone(),
                    service: entry.service.clone(),
                    revision: entry.revision,
                    backend: entry.backend.as_ref().map(|backend| backend.address),
                    http2: entry.http2,
                    private: entry.private,
                },
                in_flight: entry.backend.as_ref().map_or(0, |backend| backend.in_flight()),
            })
            .collect();
        traffic.sort_by(|a, b| a.route.domain.cmp(&b.route.domain));
        traffic
    }

    fn table(&self) -> Arc<IngressRouteTable> {
        Arc::clone(&self.table.read())
    }

    fn find(&self, host: &str) -> Option<Arc<RouteEntry>> {
        self.table.read().find(host).cloned()
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// Closes the kept connections of a worker that are too old or were closed by their instance.
    fn sweep(&self, worker: usize) {
        let backends: Vec<_> = self.backends().values().cloned().collect();
        for backend in backends {
            backend.sweep(worker, self.options.kept_idle_timeout);
        }
    }

    fn backends(&self) -> parking_lot::MutexGuard<'_, HashMap<SocketAddr, Arc<Backend>>> {
        self.backends.lock()
    }
}

#[async_trait]
impl TrafficRouter for Ingress {
    fn set_routes(&self, routes: Vec<DomainRoute>) {
        // Held until the end, so that of two concurrent updates the later one stays.
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
                let DomainRoute { domain, service, revision, private, http2, .. } = route;
                RouteEntry { domain, service, revision, private, http2, backend }
            })
            .collect();
        let table = Arc::new(IngressRouteTable::new(entries));
        *self.table.write() = table;
        self.version.fetch_add(1, Ordering::SeqCst);
        // A request that read the old table and has not entered its backend yet must read the new table.
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
