//! What is asked of the kernel, as its messages: the bridge, an instance's pair of links, addresses, neighbours.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::Path;

use ipnet::Ipv4Net;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Netlink, Request};
use super::{namespace, subnet};

/// The loopback interface's index in every namespace.
pub(super) const LOOPBACK: u32 = 1;
/// The link's name inside of an instance.
const INSIDE: &str = "eth0";

/// A link that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    /// Whether packets pass: the other end is up too.
    pub(super) passes: bool,
    /// The bridge that it is a port of.
    pub(super) bridge: Option<u32>,
    /// Whether it asks for hardware addresses and answers who asks.
    pub(super) arp: bool,
    pub(super) group: u32,
    pub(super) hardware: Vec<u8>,
    kind: Option<InfoKind>,
}

impl Link {
    fn of(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            up: message.header.flags.contains(LinkFlags::Up),
            passes: false,
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
                LinkAttribute::OperState(state) => link.passes = state == State::Up,
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

pub(super) fn link(netlink: &mut Netlink, name: &str) -> io::Result<Option<Link>> {
    Ok(match netlink.get(RouteNetlinkMessage::GetLink(named(name)))? {
        Some(RouteNetlinkMessage::NewLink(message)) => Some(Link::of(message)),
        _ => None,
    })
}

pub(super) fn links(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let messages = netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(message) => Some(Link::of(message)),
            _ => None,
        })
        .collect())
}

/// The bridge `name`, with the first address of `subnet` alone; made if it is missing. Gives its index.
pub(super) fn ensure_bridge(netlink: &mut Netlink, name: &str, net: Ipv4Net) -> io::Result<u32> {
    let gateway = subnet::gateway(net);
    let hardware = subnet::hardware(gateway).to_vec();
    if link(netlink, name)?.is_none() {
        let mut message = named(name);
        // Without one of its own it would have that of a port, and another after that one has gone.
        message.attributes.push(LinkAttribute::Address(hardware.clone()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        let request = Request::create(format!("bridge {name}"), RouteNetlinkMessage::NewLink(message));
        netlink.run(vec![request]).map_err(|error| unsupported(error, "bridge"))?;
        // Before it is up: instances shall not find the host by an address of IPv6 either.
        namespace::set(Path::new(&format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6")), "1")?;
    }
    let found =
        link(netlink, name)?.ok_or_else(|| io::Error::other(format!("bridge {name} is gone again")))?;
    if found.kind != Some(InfoKind::Bridge) {
        return Err(io::Error::other(format!("link {name} is not a bridge; remove it")));
    }
    let mut requests = Vec::new();
    if found.hardware != hardware {
        let mut message = indexed(found.index);
        message.attributes.push(LinkAttribute::Address(hardware));
        requests.push(Request::change(format!("bridge {name}"), RouteNetlinkMessage::SetLink(message)));
    }
    let present = addresses(netlink)?;
    for other in present.iter().filter(|one| one.link == found.index && one.address != gateway) {
        let message = address(found.index, other.address, other.net);
        requests.push(Request::delete(
            format!("address {}", other.address),
            RouteNetlinkMessage::DelAddress(message),
        ));
    }
    if !present.iter().any(|one| (one.link, one.address, one.net) == (found.index, gateway, net)) {
        let message = address(found.index, gateway, net);
        requests
            .push(Request::replace(format!("address {gateway}"), RouteNetlinkMessage::NewAddress(message)));
    }
    if !found.up {
        let message = up(indexed(found.index));
        requests.push(Request::change(format!("bridge {name} up"), RouteNetlinkMessage::SetLink(message)));
    }
    if !requests.is_empty() {
        netlink.run(requests)?;
    }
    Ok(found.index)
}

/// An instance's pair in one step: one end a port of the bridge and up, the other inside. (The kernel refuses a pair
/// whose inner end is up before there is an outer one.)
pub(super) fn make_pair(
    netlink: &mut Netlink,
    name: &str,
    bridge: u32,
    namespace: BorrowedFd<'_>,
    inside: Ipv4Addr,
) -> io::Result<()> {
    let mut peer = named(INSIDE);
    peer.attributes.push(LinkAttribute::Address(subnet::hardware(inside).to_vec()));
    peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
    let mut message = up(named(name));
    message.attributes.push(LinkAttribute::Controller(bridge));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    let request = Request::create(format!("link {name}"), RouteNetlinkMessage::NewLink(message));
    netlink.run(vec![request]).map_err(|error| unsupported(error, "veth"))
}

/// Whether the kernel has links in pairs: makes one and takes it away. Where the bridge is there already, instances
/// had some.
pub(super) fn check_pairs(netlink: &mut Netlink, bridge: &str) -> io::Result<()> {
    let [one, two] = ["a", "b"].map(|end| format!("{bridge}{end}"));
    // Of an earlier run that was killed here.
    netlink.run(vec![delete(&one)])?;
    if link(netlink, bridge)?.is_some() {
        return Ok(());
    }
    let mut message = named(&one);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(named(&two)))),
    ]));
    let request = Request::create(format!("link {one}"), RouteNetlinkMessage::NewLink(message));
    netlink.run(vec![request]).map_err(|error| unsupported(error, "veth"))?;
    netlink.run(vec![delete(&one)])
}

/// The kernel's word for a kind of link that it does not have.
pub(super) fn unsupported(error: io::Error, kind: &str) -> io::Error {
    if error.kind() == io::ErrorKind::Unsupported {
        return io::Error::new(
            error.kind(),
            format!("the kernel has no links of the kind `{kind}`; load its module `{kind}` ({error})"),
        );
    }
    error
}

/// The inner half of an instance's network, asked from inside.
pub(super) fn set_up_inside(netlink: &mut Netlink, lease: Ipv4Addr, net: Ipv4Net) -> io::Result<()> {
    let index = link(netlink, INSIDE)?
        .ok_or_else(|| io::Error::other(format!("there is no {INSIDE} in the namespace")))?
        .index;
    let gateway = subnet::gateway(net);
    let mut route = route(index, Ipv4Net::default());
    route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
    netlink.run(vec![
        Request::change("loopback up", RouteNetlinkMessage::SetLink(up(indexed(LOOPBACK)))),
        Request::change(format!("{INSIDE} up"), RouteNetlinkMessage::SetLink(up(indexed(index)))),
        Request::replace(
            format!("address {lease}"),
            RouteNetlinkMessage::NewAddress(address(index, lease, net)),
        ),
        neighbour(index, gateway),
        Request::replace("default route", RouteNetlinkMessage::NewRoute(route)),
    ])
}

/// Whether the inner half is as it was set up.
pub(super) fn is_set_up_inside(netlink: &mut Netlink, lease: Ipv4Addr, net: Ipv4Net) -> io::Result<bool> {
    let Some(inside) = link(netlink, INSIDE)? else {
        return Ok(false);
    };
    let loopback = links(netlink)?.into_iter().any(|link| link.index == LOOPBACK && link.up);
    let own: Vec<_> = addresses(netlink)?.into_iter().filter(|one| one.link == inside.index).collect();
    let only = matches!(own.as_slice(), [one] if (one.address, one.net) == (lease, net));
    let gateway = subnet::gateway(net);
    let leads = routes(netlink)?.into_iter().any(|route| {
        route.net.prefix_len() == 0 && route.link == Some(inside.index) && route.gateway == Some(gateway)
    });
    let knows = neighbours(netlink, inside.index)?.contains(&gateway);
    Ok(inside.up && loopback && only && leads && knows && inside.hardware == subnet::hardware(lease))
}

/// A neighbour that is never asked for.
pub(super) fn neighbour(link: u32, address: Ipv4Addr) -> Request {
    let mut message = neighbour_of(link, address);
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(subnet::hardware(address).to_vec()));
    Request::replace(format!("neighbour {address}"), RouteNetlinkMessage::NewNeighbour(message))
}

/// Whether a link has that neighbour.
pub(super) fn knows_neighbour(netlink: &mut Netlink, link: u32, address: Ipv4Addr) -> io::Result<bool> {
    let mut message = neighbour_of(link, address);
    // The kernel takes the question without them only.
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

pub(super) fn forget_neighbour(link: u32, address: Ipv4Addr) -> Request {
    let message = neighbour_of(link, address);
    Request::delete(format!("neighbour {address}"), RouteNetlinkMessage::DelNeighbour(message))
}

/// Those neighbours of a link that are never asked for.
pub(super) fn neighbours(netlink: &mut Netlink, link: u32) -> io::Result<Vec<Ipv4Addr>> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    let messages = netlink.dump(&RouteNetlinkMessage::GetNeighbour(message))?;
    let permanent = messages.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewNeighbour(message)
            if message.header.ifindex == link && message.header.state == NeighbourState::Permanent =>
        {
            Some(message.attributes)
        }
        _ => None,
    });
    Ok(permanent
        .flatten()
        .filter_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(address),
            _ => None,
        })
        .collect())
}

pub(super) fn delete(name: &str) -> Request {
    Request::delete(format!("link {name}"), RouteNetlinkMessage::DelLink(named(name)))
}

/// An address of a link, IPv4 only.
pub(super) struct Address {
    pub(super) link: u32,
    pub(super) address: Ipv4Addr,
    pub(super) net: Ipv4Net,
}

pub(super) fn addresses(netlink: &mut Netlink) -> io::Result<Vec<Address>> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let messages = netlink.dump(&RouteNetlinkMessage::GetAddress(message))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| {
            let RouteNetlinkMessage::NewAddress(message) = message else {
                return None;
            };
            // `Local` is the link's own; on a link between two ends, `Address` is the other's.
            let find = |own: bool| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(IpAddr::V4(address)) if own => Some(*address),
                    AddressAttribute::Address(IpAddr::V4(address)) if !own => Some(*address),
                    _ => None,
                })
            };
            let address = find(true).or_else(|| find(false))?;
            let net = subnet::of(find(false).unwrap_or(address).into(), message.header.prefix_len)?;
            Some(Address { link: message.header.index, address, net })
        })
        .collect())
}

/// A route of any table, IPv4 only.
pub(super) struct Route {
    pub(super) net: Ipv4Net,
    pub(super) link: Option<u32>,
    pub(super) gateway: Option<Ipv4Addr>,
}

pub(super) fn routes(netlink: &mut Netlink) -> io::Result<Vec<Route>> {
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
            let net = subnet::of(destination.into(), message.header.destination_prefix_length)?;
            Some(Route { net, link, gateway })
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

/// A route to `net` over a link, in the main table.
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

/// The link that packets to `address` leave by, and the address that they are sent from.
pub(super) fn way_to(
    netlink: &mut Netlink,
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
