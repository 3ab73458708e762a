//! Egress policy for connections that the daemon itself opens for builds; excludes this machine.
//!
//! Steps of builds are kept from this machine by their network. Fetches of the daemon for a build (files, images, git
//! repositories, and their redirect targets) start on this machine, so its own addresses must be excluded, the public
//! ones too: services that listen there are not meant for builds. The kernel is asked for them at each connection,
//! because addresses change.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use url::Host;

use crate::model::egress::EgressPolicy;
use crate::model::{embedded_ipv4, is_public};
use crate::netlink::NetlinkSocket;

#[derive(Clone, Debug)]
pub struct FetchPolicy(EgressPolicy);

impl FetchPolicy {
    pub fn new(policy: EgressPolicy) -> Self {
        Self(policy)
    }

    /// Reports whether a host may be connected to, judged by its name or literal address. The addresses that a name
    /// resolves to are checked by [`allows_resolved`](Self::allows_resolved).
    pub fn allows_host<S: AsRef<str>>(&self, host: &Host<S>) -> bool {
        let address: IpAddr = match host {
            Host::Domain(name) => return self.0.allows_name(name.as_ref()),
            Host::Ipv4(address) => (*address).into(),
            Host::Ipv6(address) => (*address).into(),
        };
        let address = address.to_canonical();
        let allowed = match address {
            IpAddr::V4(address) => self.0.allows_address_directly(address),
            IpAddr::V6(_) => self.0.is_open() && is_public(address),
        };
        allowed && self.is_remote_or_listed(address)
    }

    /// Reports whether an allowed name may resolve to this address: a public one, or one of a listed private network.
    pub fn allows_resolved(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let listed = match address {
            IpAddr::V4(address) => self.0.private_blocks().iter().any(|block| block.contains(&address)),
            IpAddr::V6(_) => false,
        };
        (listed || is_public(address)) && self.is_remote_or_listed(address)
    }

    /// Reports whether the address belongs to another machine, or is listed individually. A listed block around an
    /// address of this machine does not allow it.
    fn is_remote_or_listed(&self, address: IpAddr) -> bool {
        let listed = matches!(address, IpAddr::V4(address) if self.0.lists_address(address));
        listed || !is_local_address(address)
    }
}

/// Reports whether the kernel delivers packets for the address to this machine. An address whose route cannot be
/// looked up counts as local.
fn is_local_address(address: IpAddr) -> bool {
    let embedded = match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => embedded_ipv4(address).map(IpAddr::V4),
    };
    [Some(address), embedded].into_iter().flatten().any(|address| {
        is_routed_here(address).unwrap_or_else(|error| {
            tracing::warn!(%address, %error, "failed to look up the route to an address; treating it as local");
            true
        })
    })
}

fn is_routed_here(address: IpAddr) -> io::Result<bool> {
    let mut message = RouteMessage::default();
    let (family, length, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, 32, RouteAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(address)),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = length;
    message.attributes.push(RouteAttribute::Destination(destination));
    match NetlinkSocket::open()?.get(RouteNetlinkMessage::GetRoute(message)) {
        Ok(Some(RouteNetlinkMessage::NewRoute(found))) => {
            Ok(matches!(found.header.kind, RouteType::Local | RouteType::Anycast | RouteType::Broadcast))
        }
        Ok(Some(_)) => Err(io::Error::other("the kernel answers something else than a route")),
        // There is no route.
        Ok(None) => Ok(false),
        // The kernel does not support this address family.
        Err(error)
            if [Errno::OPNOTSUPP, Errno::AFNOSUPPORT]
                .iter()
                .any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rules: &[&str]) -> FetchPolicy {
        FetchPolicy::new(EgressPolicy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect()))
    }

    #[test]
    fn what_the_kernel_keeps_is_own_and_what_it_sends_away_or_nowhere_is_not() {
        for own in ["127.0.0.1", "127.9.9.9", "::1"] {
            assert!(is_routed_here(own.parse().unwrap()).unwrap(), "{own}");
        }
        for other in ["1.1.1.1", "44.44.1.1", "2606:4700::1111"] {
            assert!(!is_routed_here(other.parse().unwrap()).unwrap(), "{other}");
        }
        assert!(is_local_address("64:ff9b::7f00:1".parse().unwrap()), "NAT64 leads back");
    }

    #[test]
    fn a_resolved_address_is_of_the_world_or_of_a_listed_network() {
        let some = policy(&["git.example", "10.1.0.0/16"]);
        for allowed in ["1.1.1.1", "10.1.9.9", "2606:4700::1111"] {
            assert!(some.allows_resolved(allowed.parse().unwrap()), "{allowed}");
        }
        for refused in ["10.2.0.1", "127.0.0.1", "198.18.0.1", "::1"] {
            assert!(!some.allows_resolved(refused.parse().unwrap()), "{refused}");
        }
        let host = |text: &str| some.allows_host(&Host::parse(text).unwrap());
        assert!(host("git.example") && host("10.1.9.9"));
        assert!(!host("1.1.1.1") && !host("198.18.0.1") && !host("[2606:4700::1111]"));
    }
}
