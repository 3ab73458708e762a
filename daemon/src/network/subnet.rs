//! Address plan of a room: subnets, instance addresses, and the hardware addresses that are derived from them.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;

/// Private address spaces, in the order in which they are tried.
const SPACES: [(Ipv4Addr, u8); 3] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
];
const PREFIX: u8 = 24;

/// Chooses a /24 that overlaps nothing in `taken`. The search starts at a position derived from `seed`, so that daemons
/// of one host, and rooms that are connected by a VPN, seldom choose the same one. `None` if everything is taken.
pub(super) fn choose(seed: u32, taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    choose_with_prefix(PREFIX, seed, taken)
}

/// Chooses a subnet with another prefix length, at least 16.
pub(super) fn choose_with_prefix(length: u8, seed: u32, taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    SPACES.into_iter().find_map(|(space, prefix)| {
        let count = 1u32 << (length - prefix);
        let nth = |step: u32| (seed % count + step) % count;
        (0..count)
            .map(nth)
            .filter_map(|n| Ipv4Net::new((u32::from(space) + (n << (32 - length))).into(), length).ok())
            .find(|subnet| !overlaps(*subnet, taken))
    })
}

pub(super) fn overlaps(subnet: Ipv4Net, taken: &[Ipv4Net]) -> bool {
    taken.iter().any(|other| other.contains(&subnet) || subnet.contains(other))
}

/// Returns the daemon's own address in the room's network: the first one.
pub(super) fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    (u32::from(subnet.network()) + 1).into()
}

/// Returns the number of instance addresses.
pub(super) fn instances(subnet: Ipv4Net) -> usize {
    let first = u32::from(gateway(subnet)) + 1;
    usize::try_from(u32::from(subnet.broadcast()).saturating_sub(first)).unwrap_or(usize::MAX)
}

/// Returns the next free address after `last`, wrapping around. An address is reused as late as possible, so that a
/// client with an outdated address does not reach another service there.
pub(super) fn next_free(
    subnet: Ipv4Net,
    last: Option<Ipv4Addr>,
    taken: impl Fn(Ipv4Addr) -> bool,
) -> Option<Ipv4Addr> {
    let first = u32::from(gateway(subnet)) + 1;
    let end = u32::from(subnet.broadcast());
    let begin = last.map_or(first, |last| u32::from(last) + 1).clamp(first, end);
    (begin..end).chain(first..begin).map(Ipv4Addr::from).find(|address| !taken(*address))
}

/// Derives the hardware address, which is always the same for an address, so that no neighbour cache can be wrong.
pub(super) fn hardware(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    // 0x02: locally administered, unicast.
    [0x02, 0x68, a, b, c, d]
}

/// Returns `address/prefix` as a network, if it is IPv4.
pub(super) fn ipv4_network(address: IpAddr, prefix: u8) -> Option<Ipv4Net> {
    match address {
        IpAddr::V4(address) => Ipv4Net::new(address, prefix).ok().map(|net| net.trunc()),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_that_overlaps_nothing_is_chosen() {
        assert_eq!(choose(5, &[]), Some(net("10.0.5.0/24")));
        assert_eq!(choose(5, &[net("10.0.5.128/25"), net("10.0.6.7/32")]), Some(net("10.0.7.0/24")));
        assert_eq!(choose(0xffff, &[net("10.255.255.0/24")]), Some(net("10.0.0.0/24")));
    }

    #[test]
    fn a_host_whose_vpn_has_all_of_10_gets_another_space() {
        assert_eq!(choose(1, &[net("10.0.0.0/8")]), Some(net("172.16.1.0/24")));
        assert_eq!(choose(1, &[net("8.0.0.0/6"), net("172.16.0.0/12")]), Some(net("192.168.1.0/24")));
        assert_eq!(choose(1, &[net("0.0.0.0/1"), net("128.0.0.0/1")]), None);
    }

    #[test]
    fn addresses_go_around_and_leave_out_network_gateway_and_broadcast() {
        let subnet = net("10.0.0.8/29");
        let mut given = Vec::new();
        let mut last = None;
        for _ in 0..5 {
            last = next_free(subnet, last, |address| given.contains(&address));
            given.push(last.unwrap());
        }
        let expected: Vec<Ipv4Addr> = (10..15).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect();
        assert_eq!(given, expected);
        assert_eq!(next_free(subnet, last, |address| given.contains(&address)), None);
        let freed = Ipv4Addr::new(10, 0, 0, 12);
        assert_eq!(next_free(subnet, last, |address| address != freed), Some(freed));
        assert_eq!(next_free(subnet, Some(Ipv4Addr::new(10, 0, 0, 10)), |_| false).unwrap().octets()[3], 11);
    }

    #[test]
    fn a_hardware_address_is_local_and_one_of_a_single_machine() {
        let mac = hardware(Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(mac[0] & 0b11, 0b10);
        assert_ne!(mac, hardware(Ipv4Addr::new(10, 1, 2, 4)));
    }
}
