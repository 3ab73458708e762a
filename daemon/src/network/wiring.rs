//! The links, namespaces, leases and files of instances, changed by one at a time.
//!
//! ```text
//! attach:  lease -> files -> namespace -> pair of links -> inside -> neighbour
//! detach:  neighbour, pair of links, namespace, files, lease
//! ```
//!
//! The lease is the first to come and the last to go: whatever a daemon that was killed left, a lease names, and every
//! step may be done again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use super::files::{Files, Resolvers};
use super::leases::{Lease, Leases};
use super::netlink::Netlink;
use super::{PREFIX, links, namespace};
use crate::deploy::port::{Attached, NetworkError};
use crate::model::id::InstanceId;
use crate::model::service::ServiceName;

/// How long a new pair may take until packets pass; the kernel takes well under a millisecond.
const PASSES: Duration = Duration::from_secs(1);

pub(super) struct Wiring {
    pub(super) netlink: Netlink,
    pub(super) leases: Leases,
    pub(super) bridge: String,
    pub(super) subnet: Ipv4Net,
    pub(super) resolvers: Resolvers,
    pub(super) names: BTreeMap<ServiceName, Ipv4Addr>,
    /// `<state>/network`.
    pub(super) dir: PathBuf,
}

/// What a step works for.
pub(super) struct Instance {
    id: InstanceId,
    lease: Lease,
}

type Step = fn(&mut Wiring, &Instance) -> io::Result<()>;

/// How a lease becomes a network.
pub(super) const STEPS: [(&str, Step); 5] = [
    ("files", Wiring::files),
    ("namespace", Wiring::namespace),
    ("links", Wiring::links),
    ("inside", Wiring::inside),
    ("neighbour", Wiring::neighbour),
];

impl Wiring {
    pub(super) fn attach(&mut self, id: &InstanceId, name: &ServiceName) -> Result<Attached, NetworkError> {
        let known = self.leases.get(id).is_some();
        let instance = self.lease(id, name)?;
        if known && self.is_whole(&instance).unwrap_or(false) {
            self.files(&instance).map_err(|error| about(id, "files", &error))?;
            return Ok(self.attached(&instance));
        }
        match self.build(&instance, STEPS.len()) {
            Ok(()) => Ok(self.attached(&instance)),
            Err(error) => {
                if let Err(left) = self.detach(id) {
                    tracing::warn!(instance = %id, error = %left, "a network that was not made whole is left for now");
                }
                Err(error)
            }
        }
    }

    pub(super) fn lease(&mut self, id: &InstanceId, name: &ServiceName) -> Result<Instance, NetworkError> {
        let lease = self.leases.take(id, name, self.subnet)?;
        Ok(Instance { id: id.clone(), lease })
    }

    /// Does the first `count` steps.
    pub(super) fn build(&mut self, instance: &Instance, count: usize) -> Result<(), NetworkError> {
        for (name, step) in STEPS.iter().take(count) {
            step(self, instance).map_err(|error| about(&instance.id, name, &error))?;
        }
        Ok(())
    }

    fn files(&mut self, instance: &Instance) -> io::Result<()> {
        self.files_of(&instance.id).write(&instance.lease, &self.names, &self.resolvers.resolv_conf)
    }

    fn namespace(&mut self, instance: &Instance) -> io::Result<()> {
        let file = self.namespace_of(&instance.id);
        if namespace::is_at(&file)? { Ok(()) } else { namespace::make(&file).map(drop) }
    }

    fn links(&mut self, instance: &Instance) -> io::Result<()> {
        let bridge = links::ensure_bridge(&mut self.netlink, &self.bridge, self.subnet)?;
        let name = link_of(&instance.id);
        // One that is there is not whole; its other end goes with it.
        if links::link(&mut self.netlink, &name)?.is_some() {
            self.netlink.run(vec![links::delete(&name)])?;
        }
        let namespace = File::open(self.namespace_of(&instance.id))?;
        links::make_pair(&mut self.netlink, &name, bridge, namespace.as_fd(), instance.lease.address)
    }

    fn inside(&mut self, instance: &Instance) -> io::Result<()> {
        let mut netlink = namespace::open(&self.namespace_of(&instance.id))?;
        links::set_up_inside(&mut netlink, instance.lease.address, self.subnet)
    }

    /// And waits until packets pass: the first that is sent too early is asked for again a second later.
    fn neighbour(&mut self, instance: &Instance) -> io::Result<()> {
        let bridge = links::ensure_bridge(&mut self.netlink, &self.bridge, self.subnet)?;
        self.netlink.run(vec![links::neighbour(bridge, instance.lease.address)])?;
        let begun = Instant::now();
        let name = link_of(&instance.id);
        while !links::link(&mut self.netlink, &name)?.is_some_and(|link| link.passes) {
            if begun.elapsed() > PASSES {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("link {name} does not come up")));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    fn is_whole(&mut self, instance: &Instance) -> io::Result<bool> {
        let file = self.namespace_of(&instance.id);
        if !namespace::is_at(&file)? {
            return Ok(false);
        }
        let bridge = links::ensure_bridge(&mut self.netlink, &self.bridge, self.subnet)?;
        let link = links::link(&mut self.netlink, &link_of(&instance.id))?;
        let outside = link.is_some_and(|link| link.up && link.passes && link.bridge == Some(bridge))
            && links::neighbours(&mut self.netlink, bridge)?.contains(&instance.lease.address);
        Ok(outside
            && links::is_set_up_inside(&mut namespace::open(&file)?, instance.lease.address, self.subnet)?)
    }

    pub(super) fn detach(&mut self, id: &InstanceId) -> Result<(), NetworkError> {
        let failed = |what| move |error: io::Error| about(id, what, &error);
        let mut requests = vec![links::delete(&link_of(id))];
        let bridge = links::link(&mut self.netlink, &self.bridge).map_err(failed("bridge"))?;
        if let (Some(bridge), Some(lease)) = (bridge, self.leases.get(id)) {
            requests.push(links::forget_neighbour(bridge.index, lease.address));
        }
        self.netlink.run(requests).map_err(failed("links"))?;
        namespace::remove(&self.namespace_of(id)).map_err(failed("namespace"))?;
        self.files_of(id).remove().map_err(failed("files"))?;
        self.leases.release(id).map_err(failed("lease"))
    }

    pub(super) fn set_names(&mut self, names: BTreeMap<ServiceName, Ipv4Addr>) -> Result<(), NetworkError> {
        self.names = names;
        for (id, lease) in self.leases.iter() {
            self.files_of(id)
                .write_hosts(lease, &self.names)
                .map_err(|error| about(id, "hosts file", &error))?;
        }
        Ok(())
    }

    /// Mends what `wanted` have, and takes away what others have. Goes on after an error, and gives the first.
    pub(super) fn reconcile(&mut self, wanted: &BTreeSet<InstanceId>) -> Result<(), NetworkError> {
        let mut first = Ok(());
        for id in self.present()?.difference(wanted) {
            tracing::info!(instance = %id, "the network of an instance that is gone is taken away");
            first = first.and(self.detach(id));
        }
        first = first.and(self.forget_neighbours().map_err(|error| NetworkError::Other(error.to_string())));
        for id in wanted {
            first = first.and(self.mend(id));
        }
        first
    }

    fn mend(&mut self, id: &InstanceId) -> Result<(), NetworkError> {
        let Some(lease) = self.leases.get(id).cloned() else {
            tracing::warn!(instance = %id, "an instance has no lease of an address; it must be attached again");
            return Ok(());
        };
        let instance = Instance { id: id.clone(), lease };
        if self.is_whole(&instance).map_err(|error| about(id, "state", &error))? {
            return self.files(&instance).map_err(|error| about(id, "files", &error));
        }
        tracing::warn!(instance = %id, "the network of an instance is mended");
        self.build(&instance, STEPS.len())
    }

    /// All instances that there is something of.
    fn present(&mut self) -> Result<BTreeSet<InstanceId>, NetworkError> {
        let failed = |error: io::Error| NetworkError::Other(error.to_string());
        let mut found: BTreeSet<InstanceId> = self.leases.iter().map(|(id, _)| id.clone()).collect();
        for dir in [self.namespaces(), self.instances()] {
            for entry in fs::read_dir(&dir).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                found.extend(name.to_str().and_then(|name| name.parse::<InstanceId>().ok()));
            }
        }
        // Ports of the bridge that are named as ours; another daemon's have its own bridge.
        let bridge = links::link(&mut self.netlink, &self.bridge).map_err(failed)?;
        if let Some(bridge) = bridge {
            let ports = links::links(&mut self.netlink).map_err(failed)?.into_iter();
            let ours = ports.filter(|link| link.bridge == Some(bridge.index));
            found.extend(ours.filter_map(|link| link.name.strip_prefix(PREFIX)?.parse::<InstanceId>().ok()));
        }
        Ok(found)
    }

    /// Takes away neighbours that no lease names.
    fn forget_neighbours(&mut self) -> io::Result<()> {
        let Some(bridge) = links::link(&mut self.netlink, &self.bridge)? else {
            return Ok(());
        };
        let leased: BTreeSet<_> = self.leases.iter().map(|(_, lease)| lease.address).collect();
        let known = links::neighbours(&mut self.netlink, bridge.index)?;
        let stale = known.into_iter().filter(|address| !leased.contains(address));
        let requests: Vec<_> = stale.map(|address| links::forget_neighbour(bridge.index, address)).collect();
        if requests.is_empty() { Ok(()) } else { self.netlink.run(requests) }
    }

    fn attached(&self, instance: &Instance) -> Attached {
        let files = self.files_of(&instance.id);
        Attached {
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

    fn files_of(&self, id: &InstanceId) -> Files {
        Files::of(self.instances().join(id.as_str()))
    }
}

pub(super) fn namespaces(dir: &Path) -> PathBuf {
    dir.join("netns")
}

pub(super) fn instances(dir: &Path) -> PathBuf {
    dir.join("instances")
}

/// The name of an instance's link on the host: fifteen letters, as many as there may be.
pub(super) fn link_of(id: &InstanceId) -> String {
    format!("{PREFIX}{id}")
}

fn about(id: &InstanceId, what: &str, error: &io::Error) -> NetworkError {
    NetworkError::Other(format!("{what} of instance {id}: {error}"))
}
