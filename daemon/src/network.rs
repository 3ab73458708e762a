//! Network of service instances: a subnet for each daemon, a namespace and a routed veth pair for each instance
//! (`network/routed_pair.rs`), configured over netlink by this process, and one nft table (`network/firewall.rs`).
//! Instances share no layer 2: packets between them are routed by the host and filtered by the table.
//!
//! ```text
//! <state>/network/
//!   leases.json              the subnet, and the address of each instance
//!   netns/<instance>         its network namespace, bind-mounted at this file
//!   instances/<instance>/    hosts, resolv.conf, hostname
//! ```
//!
//! Instances reach each other unless one of the two is isolated, other networks behind the host, and one port of the
//! [gateway](InstanceNetwork::gateway), which is this daemon's. They reach nothing else on the host, no instances of another
//! daemon, and no link-local addresses; only the host reaches them. Packets that an instance sends from an address
//! other than its own are dropped.
//!
//! Namespaces are bind-mounted below the state directory with all other state of the daemon, and not in `/run`, so that
//! no lookup depends on a name that others use too. After a reboot the files there are regular files, and
//! [`reconcile`](InstanceNetwork::reconcile) removes them. The runtime must see this daemon's mounts: its mount namespace must
//! not be private or older than these mounts.
//!
//! The network outlives the daemon, as instances do. [`RoomNetwork::close`] removes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::deploy::port::{InstanceNetwork, NetworkAttachment, NetworkError};
use crate::disk::is_disk_full;
use crate::model::id::InstanceId;
use crate::model::service::ServiceName;
use crate::task;

mod capability;
mod files;
mod firewall;
mod group;
mod leases;
mod links;
mod namespace;
mod no_network;
mod routed_pair;
pub mod steps;
mod subnet;
#[cfg(test)]
mod tests;
mod wiring;

use crate::netlink::NetlinkSocket;
use firewall::{FirewallRules, RoomFirewall};
use group::LinkGroups;
use leases::AddressLeases;
pub use no_network::NoNetwork;
use wiring::InstanceWiring;

/// Name prefix of instance links, and, followed by a dash, of the gateway link and the table.
const LINK_PREFIX: &str = "hth";
/// Maximum number of subnet choices: daemons that start at once may choose the same subnet; each chooses again then.
const MAX_SUBNET_CHOICES: u32 = 16;
const IP_FORWARD_PATH: &str = "/proc/sys/net/ipv4/ip_forward";

#[derive(Clone, Debug)]
pub struct Options {
    /// State directory of the daemon; the network's files are in its subdirectory `network`.
    pub state_dir: PathBuf,
    /// Configured subnet; overrides automatic choice. Instances of another subnet lose their network.
    pub subnet: Option<Ipv4Net>,
    /// `nft`, looked up in `PATH` unless it has a `/`.
    pub nft: PathBuf,
    pub resolv_conf: PathBuf,
    /// Resolvers to use if the host has none that instances can reach.
    pub fallback_resolvers: Vec<Ipv4Addr>,
}

impl Options {
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            state_dir,
            subnet: None,
            nft: "nft".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            fallback_resolvers: vec![Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)],
        }
    }
}

/// Network of one daemon.
#[derive(Clone)]
pub struct RoomNetwork {
    gateway: Ipv4Addr,
    addresses: usize,
    name: String,
    /// State, changed by one task at a time: the kernel serializes these changes with one lock too.
    state: Arc<Mutex<RoomNetworkState>>,
}

struct RoomNetworkState {
    wiring: InstanceWiring,
    firewall: RoomFirewall,
    options: Options,
}

impl RoomNetwork {
    /// Creates the gateway link and the table, or adopts those of an earlier run. An error names what this machine
    /// lacks.
    pub async fn open(options: Options) -> Result<Self, NetworkError> {
        // Checked before anything is created: nft, or its kernel support, may be missing.
        let dropping = firewall::forward_dropping_chains(&options.nft).await?;
        let given = options.clone();
        let wiring = blocking(move || open_wiring(&given)).await?;
        let name = wiring.name.clone();
        let gateway = subnet::gateway(wiring.subnet);
        for chain in dropping.iter().filter(|chain| chain.table != name) {
            tracing::warn!(
                chain = %chain, interfaces = format!("{LINK_PREFIX}*"),
                "found a chain that drops forwarded packets; services reach neither each other nor anything outside \
                 of the room unless it accepts packets from and to these interfaces"
            );
        }
        let rules = FirewallRules {
            name: name.clone(),
            group: wiring.group,
            subnet: wiring.subnet,
            gateway,
            port: None,
            resolvers: BTreeSet::new(),
            link_local_resolvers: BTreeSet::new(),
        };
        let firewall = RoomFirewall::new(options.nft.clone(), rules);
        let mut state = RoomNetworkState { wiring, firewall, options };
        let rules = state.with_resolvers()?;
        state.firewall.set(rules).await?;
        tracing::info!(table = name, subnet = %state.wiring.subnet, "service network opened");
        let addresses = subnet::instances(state.wiring.subnet);
        Ok(Self { gateway, addresses, name, state: Arc::new(Mutex::new(state)) })
    }

    /// Lets instances reach this port of the gateway, and no other.
    pub async fn allow_port(&self, port: u16) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        let rules = FirewallRules { port: Some(port), ..state.firewall.rules().clone() };
        state.firewall.set(rules).await
    }

    /// Returns the name of the gateway link and of the table.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Removes everything: the networks of all instances, the gateway link, the table and the files.
    pub async fn close(self) -> Result<(), NetworkError> {
        let state = self.state.clone().lock_owned().await;
        let state = change_on_blocking_thread(state, |state| {
            let first = state.wiring.reconcile(&BTreeSet::new());
            let gateway = links::delete_link(&state.wiring.name);
            let gone = state
                .wiring
                .netlink
                .run(vec![gateway])
                .map_err(|error| network_error("gateway's link", &error));
            first.and(gone)
        })
        .await?;
        state.firewall.remove().await?;
        change_on_blocking_thread(state, |state| {
            fs::remove_dir_all(&state.wiring.dir).map_err(|error| path_error(&state.wiring.dir, &error))
        })
        .await
        .map(drop)
    }

    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut InstanceWiring) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        // The guard moves into the work: if the caller is cancelled, no other change starts before this one is done.
        let mut state = self.state.clone().lock_owned().await;
        blocking(move || work(&mut state.wiring)).await
    }
}

#[async_trait]
impl InstanceNetwork for RoomNetwork {
    async fn attach(
        &self,
        instance: &InstanceId,
        name: &ServiceName,
        isolated: bool,
    ) -> Result<NetworkAttachment, NetworkError> {
        let (instance, name) = (instance.clone(), name.clone());
        self.change(move |wiring| wiring.attach(&instance, &name, isolated)).await
    }

    async fn detach(&self, instance: &InstanceId) -> Result<(), NetworkError> {
        // The kernel takes about 35 ms to delete a link, mostly waiting, so this runs without the lock. A change in
        // between is handled by the detach that follows.
        let link = wiring::link_of(instance);
        blocking(move || {
            let gone =
                NetlinkSocket::open().and_then(|mut netlink| netlink.run(vec![links::delete_link(&link)]));
            gone.map_err(|error| network_error("links", &error))
        })
        .await?;
        let instance = instance.clone();
        self.change(move |wiring| wiring.detach(&instance)).await
    }

    async fn set_names(&self, names: BTreeMap<ServiceName, Ipv4Addr>) -> Result<(), NetworkError> {
        self.change(move |wiring| wiring.set_names(names)).await
    }

    async fn reconcile(&self, instances: &BTreeSet<InstanceId>) -> Result<(), NetworkError> {
        let instances = instances.clone();
        let state = self.state.clone().lock_owned().await;
        let mut state = change_on_blocking_thread(state, move |state| {
            enable_forwarding()?;
            state.wiring.resolvers =
                files::resolvers(&state.options.resolv_conf, &state.options.fallback_resolvers);
            links::ensure_gateway_link(&mut state.wiring.netlink, &state.wiring.name, state.wiring.subnet)
                .map_err(|error| network_error("gateway's link", &error))?;
            state.wiring.reconcile(&instances)
        })
        .await?;
        let rules = state.with_resolvers()?;
        if rules == *state.firewall.rules() {
            return state.firewall.restore_if_changed().await;
        }
        state.firewall.set(rules).await
    }

    fn max_addresses(&self) -> usize {
        self.addresses
    }

    fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }
}

impl RoomNetworkState {
    /// Returns the rules with the current resolvers that are addresses of this host or link-local.
    fn with_resolvers(&mut self) -> Result<FirewallRules, NetworkError> {
        let addresses =
            links::addresses(&mut self.wiring.netlink).map_err(|error| network_error("addresses", &error))?;
        let own = |server: &Ipv4Addr| addresses.iter().any(|one| one.address == *server);
        let servers = self.wiring.resolvers.servers.iter().copied();
        let (resolvers, foreign): (BTreeSet<_>, BTreeSet<_>) = servers.partition(own);
        let link_local_resolvers = foreign.into_iter().filter(Ipv4Addr::is_link_local).collect();
        Ok(FirewallRules { resolvers, link_local_resolvers, ..self.firewall.rules().clone() })
    }
}

/// Prepares the directories, leases, subnet and gateway link.
fn open_wiring(options: &Options) -> Result<InstanceWiring, NetworkError> {
    capability::check().map_err(NetworkError::Other)?;
    let dir = options.state_dir.join("network");
    for part in [wiring::namespaces(&dir), wiring::instances(&dir)] {
        fs::create_dir_all(&part).map_err(|error| path_error(&part, &error))?;
    }
    let dir = dir.canonicalize().map_err(|error| path_error(&dir, &error))?;
    let seed = seed_of(&dir).map_err(|error| path_error(&dir, &error))?;
    let leases = dir.join("leases.json");
    let leases = AddressLeases::read(leases.clone()).map_err(|error| path_error(&leases, &error))?;
    let netlink = NetlinkSocket::open().map_err(|error| network_error("netlink", &error))?;
    enable_forwarding()?;
    let resolvers = files::resolvers(&options.resolv_conf, &options.fallback_resolvers);
    let mut wiring = InstanceWiring {
        netlink,
        leases,
        name: format!("{LINK_PREFIX}-{seed:08x}"),
        group: LinkGroups::of(seed),
        // Placeholder; set before its first use.
        subnet: Ipv4Net::default(),
        resolvers,
        names: BTreeMap::new(),
        dir,
    };
    links::check_veth_support(&mut wiring.netlink, &wiring.name)
        .and_then(|()| wiring.remove_bridge_ports())
        .map_err(|error| network_error("links", &error))?;
    choose_subnet(&mut wiring, options.subnet, seed)?;
    Ok(wiring)
}

/// Derives the seed from the inode, not the path: two daemons in containers on the host's network may have the same
/// path.
fn seed_of(dir: &Path) -> io::Result<u32> {
    let stat = fs::metadata(dir)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&stat.dev().to_le_bytes()).update(&stat.ino().to_le_bytes());
    let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
    Ok(u32::from_be_bytes([a, b, c, d]))
}

/// Returns eight hexadecimal digits that identify a directory on this machine.
fn tag_of(dir: &Path) -> io::Result<String> {
    Ok(format!("{:08x}", seed_of(dir)?))
}

/// Sets the room's subnet: the configured one, the present one or the one before the last reboot, or a new one that
/// overlaps no network that this host reaches.
fn choose_subnet(
    wiring: &mut InstanceWiring,
    wanted: Option<Ipv4Net>,
    mut seed: u32,
) -> Result<(), NetworkError> {
    let failed = |error: io::Error| network_error("subnet", &error);
    if let Some(wanted) = wanted.map(|net| net.trunc()) {
        if wanted.prefix_len() > 30 {
            return Err(NetworkError::Other(format!(
                "subnet {wanted} has no room for an instance; give a /30 or larger"
            )));
        }
        if let Some(taken) =
            taken_networks(wiring).map_err(failed)?.iter().find(|net| subnet::overlaps(wanted, &[**net]))
        {
            return Err(NetworkError::Other(format!(
                "subnet {wanted} overlaps {taken}, which this host already reaches"
            )));
        }
        return adopt(wiring, wanted).map_err(failed);
    }
    if let Some(last) = wiring.leases.subnet() {
        let running = links::link(&mut wiring.netlink, &wiring.name).map_err(failed)?.is_some();
        if running || !subnet::overlaps(last, &taken_networks(wiring).map_err(failed)?) {
            return adopt(wiring, last).map_err(failed);
        }
        tracing::warn!(subnet = %last, "found the room's subnet in use by another network; choosing another one");
    }
    for _ in 0..MAX_SUBNET_CHOICES {
        let chosen = subnet::choose(seed, &taken_networks(wiring).map_err(failed)?).ok_or_else(|| {
            NetworkError::Other(
                "every private subnet overlaps a network of this host; configure a free one".to_owned(),
            )
        })?;
        adopt(wiring, chosen).map_err(failed)?;
        // Another daemon may have chosen it at the same moment.
        if !subnet::overlaps(chosen, &taken_networks(wiring).map_err(failed)?) {
            return Ok(());
        }
        wiring.netlink.run(vec![links::delete_link(&wiring.name)]).map_err(failed)?;
        seed = rand::random();
    }
    Err(NetworkError::Other("no free subnet: others took each one that was chosen".to_owned()))
}

fn adopt(wiring: &mut InstanceWiring, subnet: Ipv4Net) -> io::Result<()> {
    links::ensure_gateway_link(&mut wiring.netlink, &wiring.name, subnet)?;
    match wiring.leases.set_subnet(subnet) {
        // The first lease stores it.
        Err(error) if is_disk_full(&error) => {
            tracing::warn!(%error, %subnet, "failed to store the subnet of services on a full disk");
        }
        stored => stored?,
    }
    wiring.subnet = subnet;
    Ok(())
}

/// Returns the networks that this host reaches over other links, and its resolvers, which may lie behind the default
/// route.
fn taken_networks(wiring: &mut InstanceWiring) -> io::Result<Vec<Ipv4Net>> {
    let gateway = links::link(&mut wiring.netlink, &wiring.name)?;
    let own: BTreeSet<u32> = wiring.own_links()?.into_iter().chain(gateway).map(|link| link.index).collect();
    let others = |link: Option<u32>| link.is_none_or(|link| !own.contains(&link));
    let routes = links::routes(&mut wiring.netlink)?.into_iter();
    let routes = routes.filter(|route| route.net.prefix_len() > 0 && others(route.link));
    let mut taken: Vec<_> = routes.map(|route| route.net).collect();
    let addresses = links::addresses(&mut wiring.netlink)?.into_iter();
    taken.extend(addresses.filter(|one| others(Some(one.link))).map(|one| one.net));
    taken.extend(wiring.resolvers.servers.iter().map(|server| Ipv4Net::from(*server)));
    Ok(taken)
}

/// Enables IP forwarding on the host. It is never disabled again, because others may rely on it by then.
fn enable_forwarding() -> Result<(), NetworkError> {
    let path = Path::new(IP_FORWARD_PATH);
    let now = fs::read_to_string(path).map_err(|error| path_error(path, &error))?;
    if now.trim() == "0" {
        fs::write(path, "1").map_err(|error| path_error(path, &error))?;
        tracing::info!("enabled net.ipv4.ip_forward, so that services reach other networks");
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    task::blocking("network", work).await.unwrap_or_else(|error| Err(NetworkError::Other(error.to_string())))
}

/// Changes the state on a blocking thread, and returns it still locked.
async fn change_on_blocking_thread(
    mut state: OwnedMutexGuard<RoomNetworkState>,
    work: impl FnOnce(&mut RoomNetworkState) -> Result<(), NetworkError> + Send + 'static,
) -> Result<OwnedMutexGuard<RoomNetworkState>, NetworkError> {
    blocking(move || work(&mut state).map(|()| state)).await
}

fn network_error(what: &str, error: &io::Error) -> NetworkError {
    NetworkError::Other(format!("{what}: {error}"))
}

fn path_error(path: &Path, error: &io::Error) -> NetworkError {
    NetworkError::Other(format!("{}: {error}", path.display()))
}
