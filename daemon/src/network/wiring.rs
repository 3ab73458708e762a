//! Links, namespaces, leases and files of instances; changed by one task at a time.
//!
//! ```text
//! attach:  lease -> files -> namespace -> veth pair -> outside -> inside
//! detach:  veth pair with its route and neighbours, namespace, files, lease
//! ```
//!
//! The lease is created first and removed last: a lease names everything that a killed daemon left, and every step is
//! idempotent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;

use super::files::{InstanceFiles, InstanceResolvers};
use super::group::LinkGroups;
use super::leases::{AddressLease, AddressLeases};
use super::routed_pair::RoutedPair;
use super::{LINK_PREFIX, links, namespace, subnet};
use crate::deploy::port::{NetworkAttachment, NetworkError};
use crate::model::id::InstanceId;
use crate::model::service::ServiceName;
use crate::netlink::NetlinkSocket;

/// Name of the link inside an instance.
const INSIDE: &str = "eth0";

pub(super) struct InstanceWiring {
    pub(super) netlink: NetlinkSocket,
    pub(super) leases: AddressLeases,
    /// Name of the gateway link and of the nft table.
    pub(super) name: String,
    pub(super) group: LinkGroups,
    pub(super) subnet: Ipv4Net,
    pub(super) resolvers: InstanceResolvers,
    pub(super) names: BTreeMap<ServiceName, Ipv4Addr>,
    /// `<state>/network`.
    pub(super) dir: PathBuf,
}

/// Instance with its lease, the subject of each step.
pub(super) struct LeasedInstance {
    id: InstanceId,
    lease: AddressLease,
}

type AttachStep = fn(&mut InstanceWiring, &LeasedInstance) -> io::Result<()>;

/// Steps that turn a lease into a network, in order.
pub(super) const ATTACH_STEPS: [(&str, AttachStep); 5] = [
    ("files", InstanceWiring::files),
    ("namespace", InstanceWiring::namespace),
    ("links", InstanceWiring::links),
    ("outside", InstanceWiring::outside),
    ("inside", InstanceWiring::inside),
];

impl InstanceWiring {
    pub(super) fn attach(
        &mut self,
        id: &InstanceId,
        name: &ServiceName,
        isolated: bool,
    ) -> Result<NetworkAttachment, NetworkError> {
        let known = self.leases.get(id).is_some();
        let instance = self.lease(id, name, isolated)?;
        if known && self.is_intact(&instance).unwrap_or(false) {
            self.files(&instance).map_err(|error| instance_error(id, "files", &error))?;
            return Ok(self.attached(&instance));
        }
        match self.run_steps(&instance, ATTACH_STEPS.len()) {
            Ok(()) => Ok(self.attached(&instance)),
            Err(error) => {
                if let Err(left) = self.detach(id) {
                    tracing::warn!(instance.id = %id, error = %left, "failed to remove an incomplete instance network");
                }
                Err(error)
            }
        }
    }

    pub(super) fn lease(
        &mut self,
        id: &InstanceId,
        name: &ServiceName,
        isolated: bool,
    ) -> Result<LeasedInstance, NetworkError> {
        let lease = self.leases.lease(id, name, isolated, self.subnet)?;
        Ok(LeasedInstance { id: id.clone(), lease })
    }

    /// Executes the first `count` steps.
    pub(super) fn run_steps(&mut self, instance: &LeasedInstance, count: usize) -> Result<(), NetworkError> {
        for (name, step) in ATTACH_STEPS.iter().take(count) {
            step(self, instance).map_err(|error| instance_error(&instance.id, name, &error))?;
        }
        Ok(())
    }

    fn files(&mut self, instance: &LeasedInstance) -> io::Result<()> {
        self.files_of(&instance.id).write(&instance.lease, &self.names, &self.resolvers.resolv_conf)
    }

    fn namespace(&mut self, instance: &LeasedInstance) -> io::Result<()> {
        let file = self.namespace_of(&instance.id);
        if namespace::is_namespace(&file)? { Ok(()) } else { namespace::create(&file).map(drop) }
    }

    fn links(&mut self, instance: &LeasedInstance) -> io::Result<()> {
        let namespace = File::open(self.namespace_of(&instance.id))?;
        self.pair(instance).create_links(&mut self.netlink, namespace.as_fd())
    }

    fn outside(&mut self, instance: &LeasedInstance) -> io::Result<()> {
        links::ensure_gateway_link(&mut self.netlink, &self.name, self.subnet)?;
        self.pair(instance).set_up_outside(&mut self.netlink)
    }

    fn inside(&mut self, instance: &LeasedInstance) -> io::Result<()> {
        let pair = self.pair(instance);
        pair.set_up_inside(&mut namespace::open(&self.namespace_of(&instance.id))?)?;
        pair.wait(&mut self.netlink)
    }

    fn pair(&self, instance: &LeasedInstance) -> RoutedPair {
        let gateway = subnet::gateway(self.subnet);
        RoutedPair {
            outside: link_of(&instance.id),
            inside: INSIDE.to_owned(),
            address: instance.lease.address,
            gateway,
            source: gateway,
            group: if instance.lease.isolated { self.group.isolated() } else { self.group.open() },
        }
    }

    fn is_intact(&mut self, instance: &LeasedInstance) -> io::Result<bool> {
        let file = self.namespace_of(&instance.id);
        if !namespace::is_namespace(&file)? {
            return Ok(false);
        }
        links::ensure_gateway_link(&mut self.netlink, &self.name, self.subnet)?;
        self.pair(instance).is_intact(&mut self.netlink, &mut namespace::open(&file)?)
    }

    pub(super) fn detach(&mut self, id: &InstanceId) -> Result<(), NetworkError> {
        let failed = |what| move |error: io::Error| instance_error(id, what, &error);
        self.netlink.run(vec![links::delete_link(&link_of(id))]).map_err(failed("links"))?;
        namespace::remove(&self.namespace_of(id)).map_err(failed("namespace"))?;
        self.files_of(id).remove().map_err(failed("files"))?;
        self.leases.release(id).map_err(failed("lease"))
    }

    pub(super) fn set_names(&mut self, names: BTreeMap<ServiceName, Ipv4Addr>) -> Result<(), NetworkError> {
        self.names = names;
        for (id, lease) in self.leases.iter() {
            self.files_of(id)
                .write_hosts(lease, &self.names)
                .map_err(|error| instance_error(id, "hosts file", &error))?;
        }
        Ok(())
    }

    /// Repairs the networks of the `wanted` instances and removes all others. Continues after an error, and returns the
    /// first one.
    pub(super) fn reconcile(&mut self, wanted: &BTreeSet<InstanceId>) -> Result<(), NetworkError> {
        let mut first = Ok(());
        for id in self.known_instances()?.difference(wanted) {
            tracing::info!(instance.id = %id, "found the network of an unknown instance; removing it");
            first = first.and(self.detach(id));
        }
        for id in wanted {
            first = first.and(self.repair(id));
        }
        first
    }

    fn repair(&mut self, id: &InstanceId) -> Result<(), NetworkError> {
        let Some(lease) = self.leases.get(id).cloned() else {
            tracing::warn!(instance.id = %id, "found an instance without an address lease; it must be attached again");
            return Ok(());
        };
        let instance = LeasedInstance { id: id.clone(), lease };
        if self.is_intact(&instance).map_err(|error| instance_error(id, "state", &error))? {
            return self.files(&instance).map_err(|error| instance_error(id, "files", &error));
        }
        tracing::warn!(instance.id = %id, "found a damaged instance network; repairing it");
        self.run_steps(&instance, ATTACH_STEPS.len())
    }

    /// Returns all instances that have a lease, files, a namespace or a link.
    fn known_instances(&mut self) -> Result<BTreeSet<InstanceId>, NetworkError> {
        let failed = |error: io::Error| NetworkError::Other(error.to_string());
        let mut found: BTreeSet<InstanceId> = self.leases.iter().map(|(id, _)| id.clone()).collect();
        for dir in [self.namespaces(), self.instances()] {
            for entry in fs::read_dir(&dir).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                found.extend(name.to_str().and_then(|name| name.parse::<InstanceId>().ok()));
            }
        }
        let links = self.own_links().map_err(failed)?.into_iter();
        found
            .extend(links.filter_map(|link| link.name.strip_prefix(LINK_PREFIX)?.parse::<InstanceId>().ok()));
        Ok(found)
    }

    /// Returns the host ends of all pairs of this daemon.
    pub(super) fn own_links(&mut self) -> io::Result<Vec<links::NetworkLink>> {
        let all = links::links(&mut self.netlink)?.into_iter();
        Ok(all.filter(|link| self.group.has(link.group)).collect())
    }

    /// Removes the pairs of instances from an older version, which were ports of the gateway link and so shared a layer
    /// 2. [`reconcile`](Self::reconcile) recreates them with the same namespaces and addresses.
    pub(super) fn remove_bridge_ports(&mut self) -> io::Result<()> {
        let Some(gateway) = links::link(&mut self.netlink, &self.name)? else { return Ok(()) };
        let ports = links::links(&mut self.netlink)?.into_iter();
        let ports: Vec<_> = ports.filter(|link| link.bridge == Some(gateway.index)).collect();
        for port in &ports {
            tracing::info!(link = port.name, "found an instance link on a shared bridge; recreating it");
        }
        let requests: Vec<_> = ports.iter().map(|port| links::delete_link(&port.name)).collect();
        if requests.is_empty() { Ok(()) } else { self.netlink.run(requests) }
    }

    fn attached(&self, instance: &LeasedInstance) -> NetworkAttachment {
        let files = self.files_of(&instance.id);
        NetworkAttachment {
            address: instance.lease.address,
            namespace: self.namespace_of(&instance.id),
            hostname: instance.lease.name.to_string(),
            hosts: files.hosts(),
            resolv_conf: files.resolv_conf(),
            hostname_file: files.hostname(),
        }
    }

    pub(super) fn namespaces(&self) -> PathBuf {
        namespaces(&self.dir)
    }

    pub(super) fn instances(&self) -> PathBuf {
        instances(&self.dir)
    }

    fn namespace_of(&self, id: &InstanceId) -> PathBuf {
        self.namespaces().join(id.as_str())
    }

    fn files_of(&self, id: &InstanceId) -> InstanceFiles {
        InstanceFiles::of(self.instances().join(id.as_str()))
    }
}

pub(super) fn namespaces(dir: &Path) -> PathBuf {
    dir.join("netns")
}

pub(super) fn instances(dir: &Path) -> PathBuf {
    dir.join("instances")
}

/// Returns the name of an instance's link on the host, which has the maximum of fifteen characters.
pub(super) fn link_of(id: &InstanceId) -> String {
    format!("{LINK_PREFIX}{id}")
}

fn instance_error(id: &InstanceId, what: &str, error: &io::Error) -> NetworkError {
    NetworkError::Other(format!("{what} of instance {id}: {error}"))
}
