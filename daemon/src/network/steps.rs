//! Network of build steps: a namespace for each step, configured by this process, that reaches public addresses and
//! nothing of this machine.
//!
//! ```text
//! buildkitd --CNI--> hearthd as plugin (plugin.rs) --socket, namespace--> builder.rs --> attachments.rs: address, pair
//!
//!   step   eth1, A/32  ---- pair ----  hst<daemon><n>        rules.rs (nft): NAT to public addresses, all else rejected
//!   step   ...         ---- pair ----  ...
//!   builders' namespace ---- pair ----  hst<daemon>-b         resolver.rs answers here
//! ```
//!
//! No step shares a layer 2 with another, or with the host: packets that leave a step are routed, and filtered by the
//! rules. There is no IPv6. BuildKit keeps some configured namespaces ready (`cniPoolSize`), so that no step waits.
//!
//! Steps end with their builder, and builders with this process, so nothing is kept on disk. A killed daemon leaves
//! links and a table with its own name, which the next one with the same state directory removes.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    IP_FORWARD_PATH, NetworkError, blocking, capability, enable_forwarding, firewall, links, network_error,
    path_error, subnet,
};
use crate::model::egress::EgressPolicy;
use crate::netlink::NetlinkSocket;
use crate::task;

mod attachments;
mod builder;
mod dns_message;
mod plugin;
mod plugin_protocol;
mod refusals;
mod resolver;
mod rules;
mod step_firewall;

use attachments::{AttachError, BuilderKey, BuildersNamespace, StepAttachments};
pub use builder::BuilderNetwork;
pub use plugin::run_plugin;
use plugin_protocol::StepInterface;
pub use refusals::RefusedConnection;
use refusals::{SourceRefusal, StepRefusals};
use resolver::{ResolverOptions, StepResolver};
pub(super) use rules::STEP_PREFIX;
use rules::StepRules;
use step_firewall::StepFirewall;

/// Prefix length of the subnet: about 4000 steps of all builders together may have a network at once.
const SUBNET_PREFIX: u8 = 20;
/// Maximum number of subnet choices: daemons that start at once may choose the same subnet; each chooses again then.
const MAX_SUBNET_CHOICES: u32 = 16;
/// Interval between checks whether somebody has changed the table.
const FIREWALL_CHECK_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct StepNetworkOptions {
    /// State directory of the daemon; its identity distinguishes this daemon's links and table from those of others.
    pub state_dir: PathBuf,
    /// Program that BuildKit runs as its CNI plugin: hearthd.
    pub plugin: PathBuf,
    /// `nft`, looked up in `PATH` unless it has a `/`.
    pub nft: PathBuf,
    pub policy: EgressPolicy,
    /// Upstream DNS servers; if empty, those of `resolv_conf`.
    pub resolvers: Vec<SocketAddr>,
    pub resolv_conf: PathBuf,
    /// Upstream DNS servers if `resolv_conf` has none either.
    pub fallback_resolvers: Vec<Ipv4Addr>,
}

impl StepNetworkOptions {
    pub fn new(state_dir: PathBuf, plugin: PathBuf) -> Self {
        let services = super::Options::new(state_dir.clone());
        Self {
            state_dir,
            plugin,
            nft: services.nft,
            policy: EgressPolicy::default(),
            resolvers: Vec::new(),
            resolv_conf: services.resolv_conf,
            fallback_resolvers: services.fallback_resolvers,
        }
    }
}

/// Network of the steps of all builders of one daemon; cheap to clone.
#[derive(Clone)]
pub struct StepNetwork {
    shared: Arc<StepNetworkShared>,
    stop: CancellationToken,
    tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

struct StepNetworkShared {
    attachments: Mutex<StepAttachments>,
    firewall: Arc<StepFirewall>,
    refusals: Arc<StepRefusals>,
    resolver: Ipv4Addr,
    /// Descriptor of the builders' namespace; it keeps the namespace alive.
    _builders: OwnedFd,
    plugin: PathBuf,
    next_builder: AtomicU64,
}

impl StepNetwork {
    /// Sets up everything except steps. An error names what this machine lacks.
    pub async fn open(options: StepNetworkOptions) -> Result<Self, NetworkError> {
        // Checked before anything is created: nft, or its kernel support, may be missing.
        let dropping = firewall::forward_dropping_chains(&options.nft).await?;
        let state_dir = options.state_dir.clone();
        let (attachments, builders, name) = blocking(move || wire(&state_dir)).await?;
        for chain in &dropping {
            tracing::warn!(
                chain = %chain, interfaces = format!("{name}*"),
                "found a chain that drops forwarded packets; build steps reach nothing unless it accepts packets \
                 from and to these interfaces"
            );
        }
        let rules = StepRules {
            name: name.clone(),
            subnet: attachments.subnet,
            resolver: builders.address,
            policy: options.policy.clone(),
        };
        let subnet = rules.subnet;
        let firewall = Arc::new(StepFirewall::new(options.nft.clone(), rules));
        firewall.write().await?;
        let refusals = Arc::new(StepRefusals::default());
        let resolver_options = ResolverOptions {
            policy: options.policy,
            upstreams: options.resolvers,
            resolv_conf: options.resolv_conf,
            fallback: options.fallback_resolvers,
        };
        let gate = Arc::clone(&firewall) as Arc<dyn resolver::AddressGate>;
        let resolver = StepResolver::bind(
            std::os::fd::AsFd::as_fd(&builders.descriptor),
            resolver_options,
            gate,
            Arc::clone(&refusals),
        )
        .map_err(|error| network_error("resolver of steps", &error))?;
        let stop = CancellationToken::new();
        let tasks = vec![
            task::spawn("steps-resolver", resolver.serve(stop.clone())),
            task::spawn("steps-firewall", mend_loop(Arc::clone(&firewall), stop.clone())),
        ];
        tracing::info!(links = name, %subnet, "step network opened");
        let shared = StepNetworkShared {
            attachments: Mutex::new(attachments),
            firewall,
            refusals,
            resolver: builders.address,
            _builders: builders.descriptor,
            plugin: options.plugin,
            next_builder: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared), stop, tasks: Arc::new(Mutex::new(tasks)) })
    }

    /// Opens the network of the steps of one builder, whose files are in `directory`.
    pub fn builder(&self, directory: &Path) -> Result<BuilderNetwork, NetworkError> {
        let key = self.shared.next_builder.fetch_add(1, Ordering::Relaxed);
        BuilderNetwork::open(self, key, directory).map_err(|error| path_error(directory, &error))
    }

    /// Removes everything; all builders must have ended.
    pub async fn close(self) -> Result<(), NetworkError> {
        self.stop.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for ended in futures::future::join_all(tasks).await {
            if let Err(error) = ended {
                tracing::error!(%error, "step network task panicked");
            }
        }
        let shared = Arc::clone(&self.shared);
        let links = blocking(move || {
            shared.attachments.lock().sweep().map_err(|error| network_error("links of steps", &error))
        })
        .await;
        links.and(self.shared.firewall.remove().await)
    }
}

impl StepNetworkShared {
    fn attach(
        &self,
        builder: BuilderKey,
        container: &str,
        interface: &str,
        namespace: OwnedFd,
    ) -> Result<StepInterface, AttachError> {
        self.attachments.lock().attach(builder, container, interface, namespace)
    }

    fn check(&self, builder: BuilderKey, container: &str) -> Result<(), AttachError> {
        self.attachments.lock().check(builder, container)
    }

    /// Detaches a container; does nothing if it is not attached.
    fn detach(&self, builder: BuilderKey, container: &str) -> Result<(), AttachError> {
        let Some(outside) = self.attachments.lock().outside_of(builder, container) else { return Ok(()) };
        // The kernel takes about 35 ms to delete a link, mostly waiting, so this runs without the lock.
        delete_links(&[outside]).map_err(|error| AttachError {
            code: plugin_protocol::code::WIRING,
            message: error.to_string(),
        })?;
        self.attachments.lock().release(builder, container);
        Ok(())
    }

    fn release_all(&self, builder: BuilderKey) -> io::Result<()> {
        let (outsides, containers) = {
            let attachments = self.attachments.lock();
            (attachments.outsides_of(builder), attachments.containers_of(builder))
        };
        delete_links(&outsides)?;
        self.attachments.lock().release_builder(builder);
        builder::remove_cni_results(&containers);
        Ok(())
    }

    async fn refused_since(
        &self,
        builder: BuilderKey,
        moment: Instant,
    ) -> io::Result<Vec<RefusedConnection>> {
        let listed = self.firewall.list_refused().await.map_err(io::Error::other)?;
        let found = self.refusals.since(moment, &listed)?;
        let attachments = self.attachments.lock();
        let of_builder = |refusal: SourceRefusal| {
            let container = match attachments.owner_of(refusal.from) {
                Some((owner, container)) if owner == builder => Some(container.to_owned()),
                None if refusal.from == self.resolver => None,
                _ => return None,
            };
            let SourceRefusal { host, to, at, .. } = refusal;
            Some(RefusedConnection { container, host, to, at })
        };
        Ok(found.into_iter().filter_map(of_builder).collect())
    }
}

fn delete_links(names: &[String]) -> io::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    NetlinkSocket::open()?.run(names.iter().map(|name| links::delete_link(name)).collect())
}

/// Chooses the subnet and creates the builders' namespace.
fn wire(state_dir: &Path) -> Result<(StepAttachments, BuildersNamespace, String), NetworkError> {
    capability::check().map_err(NetworkError::Other)?;
    let name = super::tag_of(state_dir).map_err(|error| path_error(state_dir, &error))?;
    let name = format!("{STEP_PREFIX}{}", &name[..6]);
    let failed = |error: io::Error| network_error("network of steps", &error);
    enable_forwarding()?;
    let mut seed = u32::from_str_radix(&name[STEP_PREFIX.len()..], 16).unwrap_or_default();
    for _ in 0..MAX_SUBNET_CHOICES {
        let chosen = subnet::choose_with_prefix(SUBNET_PREFIX, seed, &taken(&name).map_err(failed)?)
            .ok_or_else(|| {
                NetworkError::Other(
                    "every private subnet overlaps a network of this host: none is left for steps".to_owned(),
                )
            })?;
        let mut attachments = StepAttachments::new(name.clone(), chosen).map_err(failed)?;
        attachments.sweep().map_err(failed)?;
        let builders = attachments.make_builders_namespace().map_err(failed)?;
        // Another daemon may have chosen it at the same moment.
        if !subnet::overlaps(chosen, &taken(&name).map_err(failed)?) {
            return Ok((attachments, builders, name));
        }
        attachments.sweep().map_err(failed)?;
        seed = rand::random();
    }
    Err(NetworkError::Other("no free subnet for steps: others took each one that was chosen".to_owned()))
}

/// Returns the networks that this host reaches over links that are not ours.
fn taken(name: &str) -> io::Result<Vec<Ipv4Net>> {
    let mut netlink = NetlinkSocket::open()?;
    let all = links::links(&mut netlink)?;
    let own: BTreeSet<u32> =
        all.iter().filter(|link| link.name.starts_with(name)).map(|link| link.index).collect();
    let routes = links::routes(&mut netlink)?.into_iter();
    let routes = routes.filter(|route| route.net.prefix_len() > 0);
    let others = routes.filter(|route| route.link.is_none_or(|link| !own.contains(&link)));
    let mut taken: Vec<_> = others.map(|route| route.net).collect();
    let addresses = links::addresses(&mut netlink)?.into_iter();
    taken.extend(addresses.filter(|one| !own.contains(&one.link)).map(|one| one.net));
    Ok(taken)
}

async fn mend_loop(firewall: Arc<StepFirewall>, stop: CancellationToken) {
    while tokio::time::timeout(FIREWALL_CHECK_INTERVAL, stop.cancelled()).await.is_err() {
        if let Err(error) = firewall.restore_if_changed().await {
            tracing::warn!(%error, "failed to check the step network's nft table; the next check retries");
        }
        if let Err(error) = blocking(enable_forwarding).await {
            tracing::error!(%error, path = IP_FORWARD_PATH, "failed to enable IP forwarding for build steps");
        }
    }
}
