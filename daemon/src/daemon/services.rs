//! What services of the room run on: the network, containerd, the ingress; and deploys, which drive them.
//!
//! Services outlive the daemon. Its end leaves instances and their network as they are, and its next start takes them
//! back; only a daemon that runs none takes its link and its table along.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::watch;

use super::DRAIN_GRACE;
use super::listeners::{Addresses, Listeners};
use crate::api::grpc::Entrance;
use crate::config::Config;
use crate::connections::ConnectionLimits;
use crate::containerd::{self, Containerd, managed, of_state_dir};
use crate::deploy::mounts::InstanceMounts;
use crate::deploy::port::{Network, NetworkError, Runtime as _};
use crate::deploy::{self, Ports};
use crate::image::port::{Blobs, LayerCheck};
use crate::ingress::{self, Tls, TlsSource};
use crate::model::component::Component;
use crate::network::{self, NoNetwork, RoomNetwork};
use crate::store::Store;
use crate::supervise::watched::Status;
use crate::{supervise, task};

/// For each step of the network's end.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// A daemon without a network builds as any other; what is missing is said by `/readyz` and to who deploys.
pub(super) async fn open_network(config: &Config) -> Result<RoomNetwork, NetworkError> {
    let mut options = network::Options::new(config.state_dir.clone());
    options.subnet = config.services.subnet;
    let opened = RoomNetwork::open(options).await;
    if let Err(error) = &opened {
        tracing::error!(%error, "services cannot be run");
    }
    opened
}

/// The configured containerd, or our own under supervision.
pub(super) fn start_containerd(
    config: &Config,
    blobs: Arc<dyn Blobs>,
    layers: Arc<dyn LayerCheck>,
) -> Result<(Containerd, Option<supervise::Handle>)> {
    let namespace = of_state_dir(&config.state_dir).context("state directory")?;
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
        return Ok((Containerd::connect(options, blobs, layers), None));
    }
    let mut options = managed::Options::new(config.state_dir.join("containerd"), namespace, keeper);
    options.program.clone_from(&config.services.containerd_program);
    options.runc.clone_from(&config.services.runc_program);
    let (child, connect) = options.plan()?;
    let child = supervise::start(child)?;
    let connected = Containerd::connect(connect.options(child.status()), blobs, layers);
    Ok((connected, Some(child)))
}

/// Over TLS where it serves that.
pub(super) fn entrance(addresses: &Addresses) -> Entrance {
    let tls = addresses.ingress_tls;
    Entrance { tls: tls.is_some(), port: tls.unwrap_or(addresses.ingress).port() }
}

pub(super) fn ingress_options(config: &Config, connections: ConnectionLimits) -> ingress::Options {
    let trusted_proxies = config.services.trusted_proxies.clone();
    ingress::Options { trusted_proxies, connections, ..ingress::Options::default() }
}

/// What the ingress shows over TLS, where it serves that.
pub(super) async fn open_tls(config: &Config) -> Result<Option<Arc<Tls>>> {
    if config.ingress_tls.is_none() {
        return Ok(None);
    }
    let source = match config.services.certificates.as_slice() {
        [] => TlsSource::SelfSigned,
        pairs => TlsSource::Files(pairs.to_vec()),
    };
    let tls = task::blocking("certificates", move || Tls::open(source)).await??;
    Ok(Some(Arc::new(tls)))
}

/// Brings what an earlier version left to where images of other registries lie.
pub(super) async fn relocate_images(store: &Store) -> Result<()> {
    let moved = store.relocate_service_images().await.context("images of services")?;
    if moved > 0 {
        tracing::info!(moved, "images of other registries that services run were moved to the cached images");
    }
    Ok(())
}

/// Deploys, and what they run on.
pub(super) struct Services {
    deploys: deploy::Service,
    network: Result<RoomNetwork, NetworkError>,
    containerd: Containerd,
    child: Option<supervise::Handle>,
    mounts: InstanceMounts,
}

/// Where services reach this daemon, and nothing else of the machine. Without that they are not run.
pub(super) async fn reachable(
    network: Result<RoomNetwork, NetworkError>,
    listeners: &mut Listeners,
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
            tracing::error!(%error, "services cannot be run");
            (Err(error), String::new())
        }
    }
}

/// The network as deploys see it.
pub(super) fn port_of(network: &Result<RoomNetwork, NetworkError>) -> Arc<dyn Network> {
    match network {
        Ok(network) => Arc::new(network.clone()),
        Err(reason) => Arc::new(NoNetwork { reason: reason.clone() }),
    }
}

impl Services {
    pub(super) async fn start(
        options: deploy::Options,
        ports: Ports,
        network: Result<RoomNetwork, NetworkError>,
        (containerd, child): (Containerd, Option<supervise::Handle>),
        mounts: InstanceMounts,
    ) -> Result<Self> {
        let deploys = deploy::Service::start(options, ports).await?;
        Ok(Self { deploys, network, containerd, child, mounts })
    }

    pub(super) fn containerd(&self) -> watch::Receiver<Status> {
        self.containerd.status()
    }

    pub(super) fn handle(&self) -> deploy::Handle {
        self.deploys.handle()
    }

    /// Reads how everything that services need is at this moment.
    pub(super) fn components(&self) -> impl Fn() -> Vec<Component> + Send + Sync + use<> {
        let (containerd, deploys) = (self.containerd(), self.handle().ready());
        move || {
            let compared = deploys.borrow().clone();
            vec![
                component("containerd", &containerd.borrow()),
                Component {
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

    /// Instances run on; without any, nothing of ours stays in the kernel.
    pub(super) async fn end(self) {
        let Self { deploys, network, containerd, child, mounts } = self;
        let left = tokio::time::timeout(CLOSE_LIMIT, containerd.list()).await;
        drop((deploys, containerd));
        match (left, network) {
            (Ok(Ok(left)), network) if left.is_empty() => {
                if let Err(error) = mounts.end().await {
                    tracing::warn!(%error, "a mount of storage is left; the next start takes it back");
                }
                if let Ok(network) = network {
                    close(network).await;
                }
            }
            (Ok(Ok(left)), _) => {
                let ids: Vec<_> = left.iter().map(|one| one.label.instance.as_str()).collect();
                tracing::info!(instances = ids.join(" "), "services run on");
            }
            (left, _) => {
                let error = left.map(|listed| listed.err().map(|error| error.to_string()));
                tracing::warn!(?error, "it is not known whether services run on; their network stays");
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
        Ok(Err(error)) => tracing::warn!(%error, "the network is left; the next start takes it back"),
        Err(_) => tracing::warn!("the network is left: its end takes too long"),
    }
}

pub(super) fn component(name: &'static str, status: &Status) -> Component {
    let detail = if status.ready { &status.version } else { &status.detail };
    Component { name, ready: status.ready, detail: detail.clone().unwrap_or_default() }
}
