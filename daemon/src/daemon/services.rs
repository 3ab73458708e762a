//! Runtime environment of services: the network, containerd, the ingress; and the deploy service, which drives them.
//!
//! Services outlive the daemon. Its shutdown leaves instances and their network in place, and the next start adopts
//! them; only a daemon without instances removes its link and its nft table.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::watch;

use super::DRAIN_GRACE;
use super::listeners::{BoundListeners, DaemonAddresses};
use crate::api::grpc::IngressAddress;
use crate::config::Config;
use crate::connections::ConnectionLimits;
use crate::containerd::{self, ContainerdClient, managed, namespace_of_state_dir};
use crate::deploy::mounts::InstanceMounts;
use crate::deploy::port::{ContainerRuntime as _, InstanceNetwork, NetworkError};
use crate::deploy::{self, DeployDependencies};
use crate::image::port::{BlobStorage, LayerCheck};
use crate::ingress::{self, TlsSource, TlsTerminator};
use crate::model::component::ComponentStatus;
use crate::network::{self, NoNetwork, RoomNetwork};
use crate::store::StateStore;
use crate::supervise::readiness::ReadinessStatus;
use crate::{supervise, task};

/// Time limit for each step of the shutdown.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Opens the service network. Without a network the daemon still builds; `/readyz` and refused deploys report what is
/// missing.
pub(super) async fn open_network(config: &Config) -> Result<RoomNetwork, NetworkError> {
    let mut options = network::Options::new(config.state_dir.clone());
    options.subnet = config.services.subnet;
    let opened = RoomNetwork::open(options).await;
    if let Err(error) = &opened {
        tracing::error!(%error, "failed to open the service network; services cannot run");
    }
    opened
}

/// Connects to the configured containerd, or starts a managed one.
pub(super) fn start_containerd(
    config: &Config,
    blobs: Arc<dyn BlobStorage>,
    layers: Arc<dyn LayerCheck>,
) -> Result<(ContainerdClient, Option<supervise::Handle>)> {
    let namespace = namespace_of_state_dir(&config.state_dir).context("state directory")?;
    let keeper = std::env::current_exe().context("path of hearthd")?;
    if let Some(socket) = &config.containerd {
        let options = containerd::Options {
            socket: socket.clone(),
            namespace,
            child: None,
            runc: None,
            tasks: None,
            reserve: None,
            pipes: config.state_dir.join("containerd/pipes"),
            keeper,
        };
        return Ok((ContainerdClient::connect(options, blobs, layers), None));
    }
    let mut options = managed::Options::new(config.state_dir.join("containerd"), namespace, keeper);
    options.program.clone_from(&config.services.containerd_program);
    options.runc.clone_from(&config.services.runc_program);
    let (child, connect) = options.plan()?;
    let child = supervise::start(child)?;
    let connected = ContainerdClient::connect(connect.options(child.status()), blobs, layers);
    Ok((connected, Some(child)))
}

/// Returns the address of the ingress for clients: the TLS port if there is one.
pub(super) fn entrance(addresses: &DaemonAddresses) -> IngressAddress {
    let tls = addresses.ingress_tls;
    IngressAddress { tls: tls.is_some(), port: tls.unwrap_or(addresses.ingress).port() }
}

pub(super) fn ingress_options(config: &Config, connections: ConnectionLimits) -> ingress::Options {
    let trusted_proxies = config.services.trusted_proxies.clone();
    ingress::Options { trusted_proxies, connections, ..ingress::Options::default() }
}

/// Loads the TLS certificates of the ingress, if it serves TLS.
pub(super) async fn open_tls(config: &Config) -> Result<Option<Arc<TlsTerminator>>> {
    if config.ingress_tls.is_none() {
        return Ok(None);
    }
    let source = match config.services.certificates.as_slice() {
        [] => TlsSource::SelfSigned,
        pairs => TlsSource::Files(pairs.to_vec()),
    };
    let tls = task::blocking("certificates", move || TlsTerminator::open(source)).await??;
    Ok(Some(Arc::new(tls)))
}

/// Moves the service images of an earlier version to the cached images of other registries.
pub(super) async fn relocate_images(store: &StateStore) -> Result<()> {
    let moved = store.relocate_service_images().await.context("images of services")?;
    if moved > 0 {
        tracing::info!(moved, "moved service images of other registries to the cached images");
    }
    Ok(())
}

/// Deploy service and its runtime environment.
pub(super) struct ServiceRuntime {
    deploys: deploy::Service,
    network: Result<RoomNetwork, NetworkError>,
    containerd: ContainerdClient,
    child: Option<supervise::Handle>,
    mounts: InstanceMounts,
}

/// Makes this daemon, and nothing else of the machine, reachable by services. If that fails, services do not run.
pub(super) async fn listen_for_services(
    network: Result<RoomNetwork, NetworkError>,
    listeners: &mut BoundListeners,
) -> (Result<RoomNetwork, NetworkError>, String) {
    let Ok(room) = &network else { return (network, String::new()) };
    let reached = async {
        let address = listeners.listen_for_services(room.gateway()).await;
        let address = address.map_err(|error| NetworkError::Other(format!("{error:#}")))?;
        room.allow_port(address.port()).await.map(|()| address)
    };
    match reached.await {
        Ok(address) => (network, format!("http://{address}")),
        Err(error) => {
            tracing::error!(%error, "failed to listen for services; services cannot run");
            (Err(error), String::new())
        }
    }
}

/// Returns the network as the port of the deploy service.
pub(super) fn network_port(network: &Result<RoomNetwork, NetworkError>) -> Arc<dyn InstanceNetwork> {
    match network {
        Ok(network) => Arc::new(network.clone()),
        Err(reason) => Arc::new(NoNetwork { reason: reason.clone() }),
    }
}

impl ServiceRuntime {
    pub(super) async fn start(
        options: deploy::Options,
        ports: DeployDependencies,
        network: Result<RoomNetwork, NetworkError>,
        (containerd, child): (ContainerdClient, Option<supervise::Handle>),
        mounts: InstanceMounts,
    ) -> Result<Self> {
        let deploys = deploy::Service::start(options, ports).await?;
        Ok(Self { deploys, network, containerd, child, mounts })
    }

    pub(super) fn containerd(&self) -> watch::Receiver<ReadinessStatus> {
        self.containerd.status()
    }

    pub(super) fn handle(&self) -> deploy::Handle {
        self.deploys.handle()
    }

    /// Returns a function that reads the current status of the components that services need.
    pub(super) fn components(&self) -> impl Fn() -> Vec<ComponentStatus> + Send + Sync + use<> {
        let (containerd, deploys) = (self.containerd(), self.handle().ready());
        move || {
            let compared = deploys.borrow().clone();
            vec![
                component("containerd", &containerd.borrow()),
                ComponentStatus {
                    name: "services",
                    ready: compared.is_ok(),
                    detail: compared.err().unwrap_or_default(),
                },
            ]
        }
    }

    pub(super) async fn drain(&self) {
        self.handle().drain(DRAIN_GRACE).await;
    }

    /// Shuts down. Instances keep running; if there are none, nothing of this daemon stays in the kernel.
    pub(super) async fn end(self) {
        let Self { deploys, network, containerd, child, mounts } = self;
        let left = tokio::time::timeout(CLOSE_LIMIT, containerd.list()).await;
        drop((deploys, containerd));
        match (left, network) {
            (Ok(Ok(left)), network) if left.is_empty() => {
                if let Err(error) = mounts.release_storage().await {
                    tracing::warn!(%error, "failed to remove a storage mount; the next start cleans it up");
                }
                if let Ok(network) = network {
                    close(network).await;
                }
            }
            (Ok(Ok(left)), _) => {
                let ids: Vec<_> = left.iter().map(|one| one.label.instance.as_str()).collect();
                tracing::info!(instances = ids.join(" "), "left services running");
            }
            (left, _) => {
                let error = left.map(|listed| listed.err().map(|error| error.to_string()));
                tracing::warn!(?error, "failed to list running services; keeping their network");
            }
        }
        if let Some(child) = child {
            child.stop().await;
        }
    }
}

async fn close(network: RoomNetwork) {
    match tokio::time::timeout(CLOSE_LIMIT, network.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, "failed to remove the service network; the next start adopts it");
        }
        Err(_) => tracing::warn!("failed to remove the service network in time; the next start adopts it"),
    }
}

pub(super) fn component(name: &'static str, status: &ReadinessStatus) -> ComponentStatus {
    let detail = if status.ready { &status.version } else { &status.detail };
    ComponentStatus { name, ready: status.ready, detail: detail.clone().unwrap_or_default() }
}
