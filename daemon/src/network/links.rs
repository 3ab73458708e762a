//! Kernel requests as netlink messages: links, addresses, neighbours and routes.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use ipnet::Ipv4Net;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{namespace, subnet};
use crate::netlink::{NetlinkRequest, NetlinkSocket};

/// Index of the loopback interface in every namespace.
pub(super) const LOOPBACK: u32 = 1;

/// Existing link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NetworkLink {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    /// True if the operational state is up, which requires the other end to be up too.
    pub(super) operational: bool,
    /// Index of the bridge that the link is a port of; `None` for all of our links.
    pub(super) bridge: Option<u32>,
    /// True if ARP is enabled.
    pub(super) arp: bool,
    pub(super) group: u32,
    pub(super) hardware: Vec<u8>,
    kind: Option<InfoKind>,
}

impl NetworkLink {
    fn of(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            up: message.header.flags.contains(LinkFlags::Up),
            operational: false,
            bridge: None,
            arp: !message.header.flags.contains(LinkFlags::Noarp),
            group: 0,
            hardware: Vec::new(),
            kind: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Controller(index) => link.bridge = Some(index),
                LinkAttribute::Group(group) => link.group = group,
                LinkAttribute::OperState(state) => link.operational = state == State::Up,
                LinkAttribute::Address(hardware) => link.hardware = hardware,
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

pub(super) fn link(netlink: &mut NetlinkSocket, name: &str) -> io::Result<Option<NetworkLink>> {
    Ok(match netlink.get(RouteNetlinkMessage::GetLink(named(name)))? {
        Some(RouteNetlinkMessage::NewLink(message)) => Some(NetworkLink::of(message)),
        _ => None,
    })
}

pub(super) fn links(netlink: &mut NetlinkSocket) -> io::Result<Vec<NetworkLink>> {
    let mut message = LinkMessage::default();
    // Statistics are half of the answer and are not used.
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let messages = netlink.dump(&RouteNetlinkMessage::GetLink(message))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(message) => Some(NetworkLink::of(message)),
            _ => None,
        })
        .collect())
}

/// Ensures the gateway link `name`, which has only the first address of `net`: the host gets that address, and no other
/// link of the host routes to `net`. Returns its index.
///
/// The link is a bridge that never gets a port: a kernel with veth pairs may lack the kind `dummy`.
pub(super) fn ensure_gateway_link(netlink: &mut NetlinkSocket, name: &str, net: Ipv4Net) -> io::Result<u32> {
    let gateway = subnet::gateway(net);
    if link(netlink, name)?.is_none() {
        let mut message = named(name);
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        let request = NetlinkRequest::create(format!("link {name}"), RouteNetlinkMessage::NewLink(message));
        netlink.run(vec![request]).map_err(|error| explain_unsupported(error, "bridge"))?;
        // IPv6 is disabled before the link is up, so that instances cannot reach the host over IPv6 either.
        namespace::set(Path::new(&format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6")), "1")?;
    }
    let found = link(netlink, name)?.ok_or_else(|| io::Error::other(format!("link {name} disappeared")))?;
    if found.kind != Some(InfoKind::Bridge) {
        return Err(io::Error::other(format!("link {name} is not a bridge; remove it")));
    }
    let mut requests = Vec::new();
    let present = addresses(netlink)?;
    for other in present.iter().filter(|one| one.link == found.index && one.address != gateway) {
        let message = address(found.index, other.address, other.net);
        requests.push(NetlinkRequest::delete(
            format!("address {}", other.address),
            RouteNetlinkMessage::DelAddress(message),
        ));
    }
    if !present.iter().any(|one| (one.link, one.address, one.net) == (found.index, gateway, net)) {
        let message = address(found.index, gateway, net);
        requests.push(NetlinkRequest::replace(
            format!("address {gateway}"),
            RouteNetlinkMessage::NewAddress(message),
        ));
    }
    if !found.up {
        let message = up(indexed(found.index));
        requests
            .push(NetlinkRequest::change(format!("link {name} up"), RouteNetlinkMessage::SetLink(message)));
    }
    if !requests.is_empty() {
        netlink.run(requests)?;
    }
    Ok(found.index)
}

/// Checks that the kernel supports veth pairs by creating and deleting one. An existing gateway link proves it, because
/// instances had pairs then.
pub(super) fn check_veth_support(netlink: &mut NetlinkSocket, gateway: &str) -> io::Result<()> {
    let [one, two] = ["a", "b"].map(|end| format!("{gateway}{end}"));
    // A killed earlier run may have left it.
    netlink.run(vec![delete_link(&one)])?;
    if link(netlink, gateway)?.is_some() {
        return Ok(());
    }
    let mut message = named(&one);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(named(&two)))),
    ]));
    let request = NetlinkRequest::create(format!("link {one}"), RouteNetlinkMessage::NewLink(message));
    netlink.run(vec![request]).map_err(|error| explain_unsupported(error, "veth"))?;
    netlink.run(vec![delete_link(&one)])
}

/// Converts the kernel's error for an unsupported kind of link to one that names the module.
pub(super) fn explain_unsupported(error: io::Error, kind: &str) -> io::Error {
    if error.kind() == io::ErrorKind::Unsupported {
        return io::Error::new(
            error.kind(),
            format!("the kernel has no links of the kind `{kind}`; load its module `{kind}` ({error})"),
        );
    }
    error
}

/// Returns the request for a permanent neighbour entry, which needs no ARP.
pub(super) fn permanent_neighbour(link: u32, address: Ipv4Addr) -> NetlinkRequest {
    let mut message = neighbour_of(link, address);
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(subnet::hardware(address).to_vec()));
    NetlinkRequest::replace(format!("neighbour {address}"), RouteNetlinkMessage::NewNeighbour(message))
}

/// Reports whether the link has that permanent neighbour entry.
pub(super) fn has_neighbour(netlink: &mut NetlinkSocket, link: u32, address: Ipv4Addr) -> io::Result<bool> {
    let mut message = neighbour_of(link, address);
    // The kernel accepts the query only without these fields.
    message.header.state = NeighbourState::None;
    message.header.kind = RouteType::Unspec;
    let Some(RouteNetlinkMessage::NewNeighbour(found)) =
        netlink.get(RouteNetlinkMessage::GetNeighbour(message))?
    else {
        return Ok(false);
    };
    let hardware = NeighbourAttribute::LinkLayerAddress(subnet::hardware(address).to_vec());
    Ok(found.header.state == NeighbourState::Permanent && found.attributes.contains(&hardware))
}

pub(super) fn delete_link(name: &str) -> NetlinkRequest {
    NetlinkRequest::delete(format!("link {name}"), RouteNetlinkMessage::DelLink(named(name)))
}

/// IPv4 address of a link.
pub(super) struct LinkAddress {
    pub(super) link: u32,
    pub(super) address: Ipv4Addr,
    pub(super) net: Ipv4Net,
}

pub(super) fn addresses(netlink: &mut NetlinkSocket) -> io::Result<Vec<LinkAddress>> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let messages = netlink.dump(&RouteNetlinkMessage::GetAddress(message))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewAddress(message) = message else {
                return None;
            };
            // `Local` is the link's own address; on a point-to-point link, `Address` is the peer's.
            let find = |own: bool| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(IpAddr::V4(address)) if own => Some(*address),
                    AddressAttribute::Address(IpAddr::V4(address)) if !own => Some(*address),
                    _ => None,
                })
            };
            let address = find(true).or_else(|| find(false))?;
            let net = subnet::ipv4_network(find(false).unwrap_or(address).into(), message.header.prefix_len)?;
            Some(LinkAddress { link: message.header.index, address, net })
        })
        .collect())
}

/// IPv4 route of any table.
pub(super) struct KernelRoute {
    pub(super) net: Ipv4Net,
    pub(super) link: Option<u32>,
    pub(super) gateway: Option<Ipv4Addr>,
}

pub(super) fn routes(netlink: &mut NetlinkSocket) -> io::Result<Vec<KernelRoute>> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    let messages = netlink.dump(&RouteNetlinkMessage::GetRoute(message))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewRoute(message) = message else {
                return None;
            };
            let (mut destination, mut link, mut gateway) = (Ipv4Addr::UNSPECIFIED, None, None);
            for attribute in message.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = address,
                    RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(address),
                    RouteAttribute::Oif(index) => link = Some(index),
                    _ => {}
                }
            }
            let net = subnet::ipv4_network(destination.into(), message.header.destination_prefix_length)?;
            Some(KernelRoute { net, link, gateway })
        })
        .collect())
}

pub(super) fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

pub(super) fn indexed(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

pub(super) fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

pub(super) fn address(link: u32, address: Ipv4Addr, net: Ipv4Net) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = net.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = link;
    message.attributes.push(AddressAttribute::Address(address.into()));
    message.attributes.push(AddressAttribute::Local(address.into()));
    if net.prefix_len() < 31 {
        message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
    }
    message
}

/// Returns a route to `net` over a link, in the main table.
pub(super) fn route(link: u32, net: Ipv4Net) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.header.destination_prefix_length = net.prefix_len();
    if net.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(net.network())));
    }
    message.attributes.push(RouteAttribute::Oif(link));
    message
}

/// Returns the outgoing link for `address`, and the source address of packets to it.
pub(super) fn route_to(
    netlink: &mut NetlinkSocket,
    address: Ipv4Addr,
) -> io::Result<Option<(u32, Option<Ipv4Addr>)>> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 32;
    message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(address)));
    let Some(RouteNetlinkMessage::NewRoute(found)) = netlink.get(RouteNetlinkMessage::GetRoute(message))?
    else {
        return Ok(None);
    };
    let (mut link, mut source) = (None, None);
    for attribute in found.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(index),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(address),
            _ => {}
        }
    }
    Ok(link.map(|link| (link, source)))
}

fn neighbour_of(link: u32, address: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
    message
}
