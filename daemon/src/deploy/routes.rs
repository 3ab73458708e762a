//! Routes and name records of all services, published as a whole to the router and to the instance network.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::entries::ServiceEntries;
use super::entry::ServiceEntryState;
use super::port::{DomainRoute, InstanceNetwork, TrafficRouter};
use crate::model::id::InstanceId;
use crate::model::service::{PortKind, ServiceDomain, ServiceName, ServicePort, ServiceRevision};

/// Publishes the routes and name records of all services.
pub(super) struct RoutePublisher {
    router: Arc<dyn TrafficRouter>,
    network: Arc<dyn InstanceNetwork>,
    /// Time limit for writing the name records.
    limit: Duration,
    /// Serializes updates, so that the last one published is the newest.
    update_lock: tokio::sync::Mutex<()>,
    /// Set while the last update of the name records has failed.
    names_stale: AtomicBool,
}

impl RoutePublisher {
    pub(super) fn new(
        router: Arc<dyn TrafficRouter>,
        network: Arc<dyn InstanceNetwork>,
        limit: Duration,
    ) -> Self {
        let (update_lock, names_stale) = (tokio::sync::Mutex::default(), AtomicBool::new(false));
        Self { router, network, limit, update_lock, names_stale }
    }

    /// Publishes the routes of all entries. The router has them on return. If the name records could not be written,
    /// they are stale until the next update.
    pub(super) async fn publish(&self, entries: &ServiceEntries) {
        let _updating = self.update_lock.lock().await;
        let mut routes = Vec::new();
        let mut names = BTreeMap::new();
        for entry in entries.all() {
            let state = entry.state();
            routes.extend(routes_of(&state));
            names.extend(name_record(&state));
        }
        self.router.set_routes(routes);
        let named = tokio::time::timeout(self.limit, self.network.set_names(names)).await;
        let stale = match named {
            Ok(Ok(())) => false,
            Ok(Err(error)) => {
                tracing::warn!(%error, "failed to update service name records");
                true
            }
            Err(_) => {
                tracing::warn!("failed to update service name records in time");
                true
            }
        };
        self.names_stale.store(stale, Ordering::Relaxed);
    }

    /// Reports whether the last update of the name records has failed.
    pub(super) fn has_stale_names(&self) -> bool {
        self.names_stale.load(Ordering::Relaxed)
    }
}

/// Returns the address of an instance's published port, for the router.
pub(super) fn backend_of(state: &ServiceEntryState, instance: &InstanceId) -> Option<SocketAddr> {
    let known = state.instances.get(instance)?;
    backend(state.service.revision(known.label.revision)?, known.address())
}

fn name_record(state: &ServiceEntryState) -> Option<(ServiceName, Ipv4Addr)> {
    let known = state.instances.get(state.routed.as_ref()?)?;
    Some((state.service.name.clone(), known.address()?))
}

/// Returns the routes of the revision that receives the traffic. While there is none, the service's domains have routes
/// without a backend, and requests wait for a short time.
fn routes_of(state: &ServiceEntryState) -> Vec<DomainRoute> {
    if state.service.removing {
        return Vec::new();
    }
    let routed = state.routed.as_ref().and_then(|id| state.instances.get(id));
    let revision = match routed {
        Some(known) => state.service.revision(known.label.revision),
        None => state.service.live_revision().or_else(|| state.service.target_revision()),
    };
    let Some(revision) = revision else { return Vec::new() };
    let backend = routed.and_then(|known| backend(revision, known.address()));
    let route = |domain: &ServiceDomain| DomainRoute {
        domain: domain.clone(),
        service: state.service.name.clone(),
        revision: revision.number,
        backend,
        http2: published_port(revision).is_some_and(|port| port.kind == PortKind::H2c),
        private: !revision.spec.public,
    };
    revision.spec.domains.iter().map(route).collect()
}

fn backend(revision: &ServiceRevision, address: Option<Ipv4Addr>) -> Option<SocketAddr> {
    Some(SocketAddr::from((address?, published_port(revision)?.number)))
}

fn published_port(revision: &ServiceRevision) -> Option<&ServicePort> {
    revision.spec.ports.iter().find(|port| port.published)
}
