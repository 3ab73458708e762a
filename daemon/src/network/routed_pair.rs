//! Veth pair that connects one network namespace to the host by routing alone: there is no bridge, and so no layer 2
//! that two namespaces share.
//!
//! ```text
//! host                                            namespace
//! <outside>, no address, NOARP                    <inside>, address/32
//!   route      address/32 dev <outside>             route      gateway/32 dev <inside>
//!   neighbour  address, permanent                   neighbour  gateway, permanent
//!                                                   route      default via gateway
//! ```
//!
//! Every packet that leaves the namespace is routed by the host and filtered by its rules. Neither end asks for the
//! other's hardware address, so no connection waits for ARP, and ARP cannot be spoofed. `outside` needs no address:
//! `gateway` is only the name of the next hop. The host end has no IPv6, as the namespace has none
//! ([`namespace::create`]).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteScope};

use super::links::{self, LOOPBACK};
use super::{namespace, subnet};
use crate::netlink::{NetlinkRequest, NetlinkSocket};

/// Time limit for a new pair to come up; the kernel takes well under a millisecond.
const LINK_UP_LIMIT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_micros(200);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RoutedPair {
    /// Name of the host end, at most fifteen characters.
    pub(super) outside: String,
    /// Name of the end in the namespace.
    pub(super) inside: String,
    /// The namespace's only address.
    pub(super) address: Ipv4Addr,
    /// Next hop of everything that leaves the namespace.
    pub(super) gateway: Ipv4Addr,
    /// Source address of the host's packets to the namespace; an address of the host.
    pub(super) source: Ipv4Addr,
    /// Link group of the host end, by which firewall rules match it (`iifgroup`).
    pub(super) group: u32,
}

impl RoutedPair {
    /// Creates the pair and waits until packets pass. An existing link named `outside` is replaced. `namespace`
    /// receives the inner end, and `inside` is a socket in it.
    pub(super) fn create(
        &self,
        host: &mut NetlinkSocket,
        namespace: BorrowedFd<'_>,
        inside: &mut NetlinkSocket,
    ) -> io::Result<()> {
        self.create_links(host, namespace)?;
        self.set_up_outside(host)?;
        self.set_up_inside(inside)?;
        self.wait(host)
    }

    /// Creates both links, but no routes to them.
    pub(super) fn create_links(&self, host: &mut NetlinkSocket, namespace: BorrowedFd<'_>) -> io::Result<()> {
        // Deleting one end also deletes the other.
        if links::link(host, &self.outside)?.is_some() {
            host.run(vec![links::delete_link(&self.outside)])?;
        }
        let mut peer = links::named(&self.inside);
        peer.attributes.push(hardware(self.address));
        peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        let mut message = links::named(&self.outside);
        message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
        message.attributes.push(hardware(self.gateway));
        message.attributes.push(LinkAttribute::Group(self.group));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let what = format!("link {}", self.outside);
        host.run(vec![NetlinkRequest::create(what, RouteNetlinkMessage::NewLink(message))])
            .map_err(|error| links::explain_unsupported(error, "veth"))?;
        // The link gets no IPv6 address before the inner end is up.
        namespace::set(Path::new(&format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.outside)), "1")
    }

    /// Sets up the route and neighbour entry from the host to the namespace.
    pub(super) fn set_up_outside(&self, host: &mut NetlinkSocket) -> io::Result<()> {
        let index = found(host, &self.outside)?;
        let mut route = links::route(index, self.address.into());
        route.header.scope = RouteScope::Link;
        route.attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(self.source)));
        host.run(vec![
            links::permanent_neighbour(index, self.address),
            NetlinkRequest::replace(
                format!("route to {} over {}", self.address, self.outside),
                RouteNetlinkMessage::NewRoute(route),
            ),
        ])
    }

    /// Sets up the inner end from inside the namespace. Idempotent.
    pub(super) fn set_up_inside(&self, inside: &mut NetlinkSocket) -> io::Result<()> {
        let index = found(inside, &self.inside)?;
        let mut hop = links::route(index, self.gateway.into());
        hop.header.scope = RouteScope::Link;
        let mut default = links::route(index, Ipv4Net::default());
        default.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(self.gateway)));
        let up = |index| RouteNetlinkMessage::SetLink(links::up(links::indexed(index)));
        let address = links::address(index, self.address, self.address.into());
        inside.run(vec![
            NetlinkRequest::change("loopback up", up(LOOPBACK)),
            NetlinkRequest::change(format!("{} up", self.inside), up(index)),
            NetlinkRequest::replace(
                format!("address {}", self.address),
                RouteNetlinkMessage::NewAddress(address),
            ),
            links::permanent_neighbour(index, self.gateway),
            NetlinkRequest::replace(format!("route to {}", self.gateway), RouteNetlinkMessage::NewRoute(hop)),
            NetlinkRequest::replace("default route", RouteNetlinkMessage::NewRoute(default)),
        ])
    }

    /// Waits until packets pass. A packet that is sent earlier is lost, and its sender retries only a second later.
    pub(super) fn wait(&self, host: &mut NetlinkSocket) -> io::Result<()> {
        let started = Instant::now();
        while !links::link(host, &self.outside)?.is_some_and(|link| link.operational) {
            if started.elapsed() > LINK_UP_LIMIT {
                let what = format!("link {} does not come up", self.outside);
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Reports whether both ends are in the state in which they were created.
    pub(super) fn is_intact(&self, host: &mut NetlinkSocket, inside: &mut NetlinkSocket) -> io::Result<bool> {
        Ok(self.is_set_up_outside(host)? && self.is_set_up_inside(inside)?)
    }

    fn is_set_up_outside(&self, host: &mut NetlinkSocket) -> io::Result<bool> {
        let Some(link) = links::link(host, &self.outside)? else { return Ok(false) };
        let is_intact =
            link.up && link.operational && !link.arp && link.bridge.is_none() && link.group == self.group;
        Ok(is_intact
            && link.hardware == subnet::hardware(self.gateway)
            && links::has_neighbour(host, link.index, self.address)?
            && links::route_to(host, self.address)? == Some((link.index, Some(self.source))))
    }

    fn is_set_up_inside(&self, netlink: &mut NetlinkSocket) -> io::Result<bool> {
        let Some(inside) = links::link(netlink, &self.inside)? else { return Ok(false) };
        let loopback = links::links(netlink)?.into_iter().any(|link| link.index == LOOPBACK && link.up);
        let own = links::addresses(netlink)?.into_iter().filter(|one| one.link == inside.index);
        let only = own.map(|one| (one.address, one.net)).eq([(self.address, self.address.into())]);
        let leads = links::routes(netlink)?.into_iter().any(|route| {
            route.net.prefix_len() == 0
                && route.link == Some(inside.index)
                && route.gateway == Some(self.gateway)
        });
        Ok(inside.up
            && loopback
            && only
            && leads
            && inside.hardware == subnet::hardware(self.address)
            && links::has_neighbour(netlink, inside.index, self.gateway)?)
    }
}

fn hardware(address: Ipv4Addr) -> LinkAttribute {
    LinkAttribute::Address(subnet::hardware(address).to_vec())
}

fn found(netlink: &mut NetlinkSocket, name: &str) -> io::Result<u32> {
    let link = links::link(netlink, name)?;
    Ok(link.ok_or_else(|| io::Error::other(format!("there is no link {name}")))?.index)
}
