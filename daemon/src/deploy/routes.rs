//! Routes and name records of all services, published as a whole to the router and to the instance network.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::entry::{ServiceEntry, ServiceEntryState};
use super::port::DomainRoute;
use super::service::DeployContext;
use crate::model::service::{ServiceName, ServiceRevision};

impl DeployContext {
    /// Publishes the routes of all entries. The router has them on return. If the name records could not be written,
    /// the housekeeping loop retries.
    pub(super) async fn publish_routes(&self) {
        let _routing = self.route_lock.lock().await;
        let mut routes = Vec::new();
        let mut names = BTreeMap::new();
        for entry in self.all_entries() {
            let state = entry.state();
            routes.extend(routes_of(&state));
            names.extend(name_record(&state));
        }
        self.ports.router.set_routes(routes);
        let limit = self.options.call_limit;
        let named = tokio::time::timeout(limit, self.ports.network.set_names(names)).await;
        let stale = match named {
            Ok(Ok(())) => false,
            Ok(Err(error)) => {
                tracing::warn!(%error, "failed to update service name records");
                true
            }
            Err(_) => {
                tracing::warn!("updating service name records timed out");
                true
            }
        };
        self.names_stale.store(stale, Ordering::Relaxed);
    }

    /// Returns the address of an instance's published port, for the router.
    pub(super) fn backend_of(
        &self,
        entry: &Arc<ServiceEntry>,
        instance: &crate::model::id::InstanceId,
    ) -> Option<SocketAddr> {
        let state = entry.state();
        let known = state.instances.get(instance)?;
        backend(state.service.revision(known.label.revision)?, known.address())
    }

    pub(super) fn service_name(&self, entry: &ServiceEntry) -> ServiceName {
        entry.state().service.name.clone()
    }
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
    let route = |domain: &crate::model::service::ServiceDomain| DomainRoute {
        domain: domain.clone(),
        service: state.service.name.clone(),
        revision: revision.number,
        backend,
        private: !revision.spec.public,
    };
    revision.spec.domains.iter().map(route).collect()
}

fn backend(revision: &ServiceRevision, address: Option<Ipv4Addr>) -> Option<SocketAddr> {
    let port = revision.spec.ports.iter().find(|port| port.published)?;
    Some(SocketAddr::from((address?, port.number)))
}
