//! The fake network, router and mounter: they record what an instance has, and check the order of operations.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;

use super::FakeWorld;
use crate::deploy::port::{
    BindMount, DomainRoute, InstanceMounter, InstanceNetwork, MountFault, NetworkAttachment, NetworkError,
    TrafficRouter,
};
use crate::model::fault::ErrorCode;
use crate::model::id::InstanceId;
use crate::model::image::PinnedImage;
use crate::model::service::{InstanceLabel, ServiceName};
use crate::model::{MountTarget, ServiceMount};

/// Returns the loopback address of an instance.
fn address(id: &InstanceId) -> Ipv4Addr {
    let sum = id.as_str().bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let [_, b, c, d] = sum.to_be_bytes();
    Ipv4Addr::new(127, b.max(1), c, d.clamp(1, 254))
}

#[async_trait]
impl InstanceNetwork for FakeWorld {
    async fn attach(
        &self,
        instance: &InstanceId,
        name: &ServiceName,
        _isolated: bool,
    ) -> Result<NetworkAttachment, NetworkError> {
        self.live_or_die().await;
        self.state().networks.insert(instance.clone());
        self.live_or_die().await;
        let path = std::path::PathBuf::from("/nowhere");
        Ok(NetworkAttachment {
            address: address(instance),
            namespace: path.clone(),
            hostname: name.to_string(),
            hosts: path.clone(),
            resolv_conf: path.clone(),
            hostname_file: path,
        })
    }

    async fn detach(&self, instance: &InstanceId) -> Result<(), NetworkError> {
        self.live_or_die().await;
        let mut state = self.state();
        assert!(!state.instances.contains_key(instance), "the network goes from under a process");
        state.networks.remove(instance);
        Ok(())
    }

    async fn set_names(&self, names: BTreeMap<ServiceName, Ipv4Addr>) -> Result<(), NetworkError> {
        self.live_or_die().await;
        self.state().names = names;
        Ok(())
    }

    async fn reconcile(&self, instances: &BTreeSet<InstanceId>) -> Result<(), NetworkError> {
        self.live_or_die().await;
        self.state().networks.retain(|instance| instances.contains(instance));
        Ok(())
    }

    fn max_addresses(&self) -> usize {
        self.state().addresses
    }

    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::LOCALHOST
    }
}

#[async_trait]
impl TrafficRouter for FakeWorld {
    fn set_routes(&self, routes: Vec<DomainRoute>) {
        if self.dead.lock().is_cancelled() {
            return;
        }
        let mut state = self.state();
        for route in &routes {
            let Some(backend) = route.backend else { continue };
            if state.history.last() != Some(&(route.revision, backend)) {
                state.history.push((route.revision, backend));
                state.journal.push(format!("route {}", route.revision));
            }
        }
        let mut domains = BTreeSet::new();
        assert!(routes.iter().all(|route| domains.insert(route.domain.clone())), "two routes for a domain");
        state.routes = routes;
    }

    async fn drain(&self, backend: SocketAddr, _limit: Duration) -> usize {
        self.live_or_die().await;
        let mut state = self.state();
        assert!(state.routes.iter().all(|route| route.backend != Some(backend)), "drained while routed");
        state.journal.push("drain".to_owned());
        0
    }
}

#[async_trait]
impl InstanceMounter for FakeWorld {
    async fn check_sources(&self, _mounts: &[ServiceMount]) -> Result<(), MountFault> {
        Ok(())
    }

    async fn make_sources(&self, _mounts: &[ServiceMount]) -> Result<(), MountFault> {
        Ok(())
    }

    async fn open(
        &self,
        label: &InstanceLabel,
        _mounts: &[ServiceMount],
        images: &BTreeMap<MountTarget, PinnedImage>,
    ) -> Result<Vec<BindMount>, MountFault> {
        self.live_or_die().await;
        {
            let mut state = self.state();
            if let Some(kind) = state.mount_faults.pop() {
                let (target, reason) = ("/data".to_owned(), "trouble".to_owned());
                return Err(MountFault { target, code: ErrorCode::MountFailed, reason, kind });
            }
            state.mounts.insert(label.instance.clone());
            state.mounted.insert(label.instance.clone(), images.clone());
        }
        self.live_or_die().await;
        Ok(Vec::new())
    }

    async fn close(&self, instance: &InstanceId) -> Result<(), MountFault> {
        self.live_or_die().await;
        let mut state = self.state();
        assert!(!state.instances.contains_key(instance), "mounts go from under a process");
        state.mounts.remove(instance);
        Ok(())
    }

    async fn reconcile(&self, instances: &BTreeSet<InstanceId>) -> Result<BTreeSet<InstanceId>, MountFault> {
        self.live_or_die().await;
        let mut state = self.state();
        state.mounts.retain(|instance| instances.contains(instance));
        Ok(state.broken_mounts.clone())
    }
}
