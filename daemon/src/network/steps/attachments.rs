//! Attachments of the network namespaces of RUN steps: the address and the veth pair of each namespace.
//!
//! Attachments are not stored on disk. Steps do not outlive the daemon, so the next run of the daemon removes all links
//! that it finds ([`StepAttachments::sweep`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use ipnet::Ipv4Net;
use netlink_packet_route::RouteNetlinkMessage;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::plugin_protocol::{StepInterface, code};
use crate::netlink::{NetlinkRequest, NetlinkSocket};
use crate::network::routed_pair::RoutedPair;
use crate::network::{links, namespace, subnet};
use crate::task;

/// Name of the network interface in the builders' namespace.
const INSIDE: &str = "eth0";
/// Link group of the host ends. It is the default group, because firewall rules match steps by the names of their
/// links.
const NO_GROUP: u32 = 0;

/// Number of a builder of this daemon, never reused.
pub(super) type BuilderKey = u64;

/// Reason why a namespace was not attached: a CNI error code and a message.
#[derive(Debug)]
pub(super) struct AttachError {
    pub(super) code: u32,
    pub(super) message: String,
}

struct StepAttachment {
    builder: BuilderKey,
    container: String,
    pair: RoutedPair,
    namespace: OwnedFd,
}

pub(super) struct StepAttachments {
    netlink: NetlinkSocket,
    /// Prefix of the names of all links.
    name: String,
    pub(super) subnet: Ipv4Net,
    by_address: BTreeMap<Ipv4Addr, StepAttachment>,
    last: Option<Ipv4Addr>,
}

/// Namespace of the builders and the resolver.
pub(super) struct BuildersNamespace {
    pub(super) descriptor: OwnedFd,
    pub(super) address: Ipv4Addr,
}

impl StepAttachments {
    pub(super) fn new(name: String, subnet: Ipv4Net) -> io::Result<Self> {
        let netlink = NetlinkSocket::open()?;
        Ok(Self {
            netlink,
            name,
            subnet,
            by_address: BTreeMap::new(),
            last: Some(address_of_builders(subnet)),
        })
    }

    /// Creates the namespace of the builders. The host end of its veth pair has the gateway address and the route to the
    /// whole subnet, so that no other program on this machine takes the subnet for unused.
    pub(super) fn make_builders_namespace(&mut self) -> io::Result<BuildersNamespace> {
        let (descriptor, mut inside) = new_namespace()?;
        let (gateway, address) = (subnet::gateway(self.subnet), address_of_builders(self.subnet));
        let pair = RoutedPair {
            outside: format!("{}-b", self.name),
            inside: INSIDE.to_owned(),
            address,
            gateway,
            source: gateway,
            group: NO_GROUP,
        };
        pair.create_links(&mut self.netlink, descriptor.as_fd())?;
        let index = links::link(&mut self.netlink, &pair.outside)?
            .ok_or_else(|| io::Error::other(format!("link {} disappeared", pair.outside)))?
            .index;
        let message = links::address(index, gateway, self.subnet);
        let what = format!("address {gateway}");
        self.netlink.run(vec![NetlinkRequest::replace(what, RouteNetlinkMessage::NewAddress(message))])?;
        pair.set_up_outside(&mut self.netlink)?;
        pair.set_up_inside(&mut inside)?;
        pair.wait(&mut self.netlink)?;
        Ok(BuildersNamespace { descriptor, address })
    }

    /// Attaches the namespace of a container to the step network. An earlier attachment of the same container is
    /// replaced.
    pub(super) fn attach(
        &mut self,
        builder: BuilderKey,
        container: &str,
        interface: &str,
        namespace: OwnedFd,
    ) -> Result<StepInterface, AttachError> {
        let failed = |error: io::Error| AttachError { code: code::WIRING, message: error.to_string() };
        if let Some(outside) = self.outside_of(builder, container) {
            self.netlink.run(vec![links::delete_link(&outside)]).map_err(failed)?;
            self.release(builder, container);
        }
        let (gateway, builders) = (subnet::gateway(self.subnet), address_of_builders(self.subnet));
        let address = subnet::next_free(self.subnet, self.last, |attachment| {
            attachment == builders || self.by_address.contains_key(&attachment)
        })
        .ok_or_else(|| AttachError {
            code: code::NO_ADDRESS,
            message: format!(
                "no address of {} is free for another step; wait until others have ended",
                self.subnet
            ),
        })?;
        let pair = RoutedPair {
            outside: format!("{}{:04x}", self.name, u32::from(address) - u32::from(self.subnet.network())),
            inside: interface.to_owned(),
            address,
            gateway,
            source: gateway,
            group: NO_GROUP,
        };
        let created = configure_inside(namespace.as_fd())
            .and_then(|mut inside| pair.create(&mut self.netlink, namespace.as_fd(), &mut inside));
        if let Err(error) = created {
            // The next step that gets this address uses the same link name, and replaces the link.
            if let Err(cleanup_error) = self.netlink.run(vec![links::delete_link(&pair.outside)]) {
                tracing::warn!(link = pair.outside, error = %cleanup_error, "failed to remove an incomplete step link");
            }
            return Err(failed(error));
        }
        self.last = Some(address);
        let attached_interface = StepInterface { address, gateway, outside: pair.outside.clone() };
        let attachment = StepAttachment { builder, container: container.to_owned(), pair, namespace };
        self.by_address.insert(address, attachment);
        Ok(attached_interface)
    }

    /// Checks that the links, addresses and routes of a container are still as [`attach`](Self::attach) created them.
    pub(super) fn check(&mut self, builder: BuilderKey, container: &str) -> Result<(), AttachError> {
        let Some(attachment) = self
            .by_address
            .values()
            .find(|attachment| attachment.builder == builder && attachment.container == container)
        else {
            let message = format!("there is no container `{container}`");
            return Err(AttachError { code: code::UNKNOWN_CONTAINER, message });
        };
        let is_intact = configure_inside(attachment.namespace.as_fd())
            .and_then(|mut inside| attachment.pair.is_intact(&mut self.netlink, &mut inside));
        let message = match is_intact {
            Ok(true) => return Ok(()),
            Ok(false) => format!("link `{}` is not as it was made", attachment.pair.outside),
            Err(error) => error.to_string(),
        };
        Err(AttachError { code: code::WIRING, message })
    }

    /// Returns the name of the host end of a container's veth pair.
    pub(super) fn outside_of(&self, builder: BuilderKey, container: &str) -> Option<String> {
        let mut all = self.by_address.values();
        all.find(|attachment| attachment.builder == builder && attachment.container == container)
            .map(|attachment| attachment.pair.outside.clone())
    }

    /// Returns the names of the host ends of all veth pairs of a builder.
    pub(super) fn outsides_of(&self, builder: BuilderKey) -> Vec<String> {
        self.by_address
            .values()
            .filter(|attachment| attachment.builder == builder)
            .map(|attachment| attachment.pair.outside.clone())
            .collect()
    }

    pub(super) fn containers_of(&self, builder: BuilderKey) -> Vec<String> {
        self.by_address
            .values()
            .filter(|attachment| attachment.builder == builder)
            .map(|attachment| attachment.container.clone())
            .collect()
    }

    /// Returns the builder and the container to which an address currently belongs.
    pub(super) fn owner_of(&self, address: Ipv4Addr) -> Option<(BuilderKey, &str)> {
        self.by_address.get(&address).map(|attachment| (attachment.builder, attachment.container.as_str()))
    }

    /// Releases the address of a container. The caller has removed the container's links.
    pub(super) fn release(&mut self, builder: BuilderKey, container: &str) {
        self.by_address
            .retain(|_, attachment| attachment.builder != builder || attachment.container != container);
    }

    pub(super) fn release_builder(&mut self, builder: BuilderKey) {
        self.by_address.retain(|_, attachment| attachment.builder != builder);
    }

    /// Removes all links of this daemon's steps, also those of earlier runs.
    pub(super) fn sweep(&mut self) -> io::Result<()> {
        let all_links = links::links(&mut self.netlink)?.into_iter();
        let ours = all_links.filter(|link| link.name.starts_with(&self.name));
        let requests: Vec<_> = ours.map(|link| links::delete_link(&link.name)).collect();
        self.by_address.clear();
        if requests.is_empty() { Ok(()) } else { self.netlink.run(requests) }
    }
}

fn address_of_builders(subnet: Ipv4Net) -> Ipv4Addr {
    (u32::from(subnet::gateway(subnet)) + 1).into()
}

fn new_namespace() -> io::Result<(OwnedFd, NetlinkSocket)> {
    task::on_own_thread("netns", || {
        // SAFETY: the call changes only the network namespace of this thread, and the thread ends with this closure.
        #[expect(unsafe_code, reason = "rustix marks every unshare, for the sake of the file table")]
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        namespace::configure()?;
        Ok((File::open("/proc/thread-self/ns/net")?.into(), NetlinkSocket::open()?))
    })?
}

/// Applies our settings to a namespace that another program created (most importantly, disables IPv6), and opens a
/// netlink socket in it.
fn configure_inside(namespace: BorrowedFd<'_>) -> io::Result<NetlinkSocket> {
    within(namespace, || namespace::configure().and_then(|()| NetlinkSocket::open()))?
}

/// Runs `work` inside a namespace.
pub(super) fn within<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    task::on_own_thread("netns", || {
        rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
        Ok(work())
    })?
}
