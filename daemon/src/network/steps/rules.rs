//! The steps' nft table: what steps may reach, decided on the host end of each pair.
//!
//! Every packet from a step passes the chain `check` first: it must be IPv4, and its source must be the address of the
//! pair on which it arrived (the route back leads over the same link). A step reaches the resolver in the builders'
//! namespace and the public addresses that the policy allows; only replies reach a step. The machine itself answers
//! nothing. A refused connection is rejected at once and kept in the set `refused` for a while, so that a build can
//! explain why its step failed.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::model::egress::{EgressPolicy, NON_PUBLIC_BLOCKS};
use crate::network::LINK_PREFIX as SERVICE_PREFIX;

/// Name prefix of the step links of all daemons.
pub(in crate::network) const STEP_PREFIX: &str = "hst";
pub(super) const REFUSED_SET: &str = "refused";
pub(super) const ALLOWED_SET: &str = "allowed";
/// Time in seconds that a refused connection is kept.
pub(super) const REFUSED_SECONDS: u64 = 600;
/// Capacity of each set; a full set accepts no new entries.
pub(super) const MAX_REFUSED: usize = 4096;
pub(super) const MAX_ALLOWED: usize = 16384;
/// Maximum number of connections of one step in the machine's connection tracking table, which all programs share.
const MAX_STEP_CONNECTIONS: usize = 8192;
const MAX_SOURCES: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StepRules {
    /// Name of the table; the names of all links of this daemon's steps begin with it.
    pub(super) name: String,
    pub(super) subnet: Ipv4Net,
    /// Address of the resolver, which is the one of the builders' namespace.
    pub(super) resolver: Ipv4Addr,
    pub(super) policy: EgressPolicy,
}

impl StepRules {
    /// Returns the commands that delete the table; `add` before `delete` makes them work without a table too.
    pub(super) fn removal(&self) -> String {
        format!("add table inet {name}\ndelete table inet {name}\n", name = self.name)
    }

    pub(super) fn script(&self) -> String {
        let Self { name, subnet, resolver, policy } = self;
        let closed = list(&NON_PUBLIC_BLOCKS);
        let private = accept(&policy.private_blocks());
        let world = if policy.is_open() {
            "accept".to_owned()
        } else {
            format!("{}    ip daddr @{ALLOWED_SET} accept\n    jump refuse", accept(&policy.public_blocks()))
        };
        format!(
            "{removal}table inet {name} {{
  set {ALLOWED_SET} {{
    type ipv4_addr
    flags timeout
    size {MAX_ALLOWED}
  }}
  set {REFUSED_SET} {{
    type ipv4_addr . ipv4_addr . inet_proto . inet_service
    flags dynamic,timeout
    timeout {REFUSED_SECONDS}s
    size {MAX_REFUSED}
  }}
  set connections {{
    type ipv4_addr
    flags dynamic
    size {MAX_SOURCES}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {subnet} oifname != \"{name}*\" masquerade
  }}
  chain check {{
    meta nfproto ipv6 drop
    ip saddr != {subnet} drop
    fib saddr . iif oif missing drop
  }}
  chain refuse {{
    meta l4proto {{ tcp, udp }} update @{REFUSED_SET} {{ ip saddr . ip daddr . meta l4proto . th dport }}
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname != \"{name}*\" oifname != \"{name}*\" accept
    iifname \"{name}*\" jump check
    ct state established,related accept
    iifname \"{name}*\" ip daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept
    oifname \"{STEP_PREFIX}*\" jump refuse
    oifname \"{SERVICE_PREFIX}*\" jump refuse
    ct state new add @connections {{ ip saddr ct count over {MAX_STEP_CONNECTIONS} }} jump refuse
{private}    ip daddr {closed} jump refuse
    {world}
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname != \"{name}*\" accept
    jump check
    ct state established,related accept
    jump refuse
  }}
}}
",
            removal = self.removal()
        )
    }

    /// Returns the commands that put addresses into the set of allowed ones, each for a number of seconds; the time of
    /// existing ones restarts.
    pub(super) fn allow(&self, addresses: &[(Ipv4Addr, u64)]) -> String {
        let Self { name, .. } = self;
        let mut script = String::new();
        for (address, seconds) in addresses {
            let element = format!("element inet {name} {ALLOWED_SET}");
            // Writing to a string cannot fail. An existing element keeps its expiry unless it is deleted first.
            let _ = writeln!(script, "add {element} {{ {address} }}");
            let _ = writeln!(script, "delete {element} {{ {address} }}");
            let _ = writeln!(script, "add {element} {{ {address} timeout {seconds}s }}");
        }
        script
    }
}

fn list(blocks: &[Ipv4Net]) -> String {
    let blocks: Vec<String> = blocks.iter().map(ToString::to_string).collect();
    format!("{{ {} }}", blocks.join(", "))
}

/// Returns one line for each block, because blocks of one set may not overlap.
fn accept(blocks: &[Ipv4Net]) -> String {
    blocks.iter().map(|block| format!("    ip daddr {block} accept\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allow: &[&str]) -> StepRules {
        StepRules {
            name: "hstabcdef".to_owned(),
            subnet: "10.1.0.0/20".parse().unwrap(),
            resolver: "10.1.0.2".parse().unwrap(),
            policy: EgressPolicy::new(allow.iter().map(|rule| rule.parse().unwrap()).collect()),
        }
    }

    fn forward(rules: &StepRules) -> Vec<String> {
        let script = rules.script();
        let lines = script.lines().map(str::trim).skip_while(|line| *line != "chain forward {").skip(2);
        lines.take_while(|line| *line != "}").map(str::to_owned).collect()
    }

    #[test]
    fn private_networks_are_refused_before_the_world_is_accepted() {
        let open = forward(&rules(&[]));
        assert_eq!(open.last().unwrap(), "accept");
        assert!(open[open.len() - 2].starts_with("ip daddr { 0.0.0.0/8, 10.0.0.0/8"), "{open:?}");
        let lines = forward(&rules(&["0.0.0.0/0", "10.9.0.0/16"]));
        let opened = lines.iter().position(|line| line == "ip daddr 10.9.0.0/16 accept").unwrap();
        let services = lines.iter().position(|line| line.contains("\"hth*\"")).unwrap();
        assert!(services < opened && opened < lines.len() - 2, "{lines:?}");
    }

    #[test]
    fn a_list_ends_with_a_refusal() {
        let lines = forward(&rules(&["pypi.org", "44.1.2.0/24"]));
        let end: Vec<_> = lines.iter().skip(lines.len() - 3).collect();
        assert_eq!(end, ["ip daddr 44.1.2.0/24 accept", "ip daddr @allowed accept", "jump refuse"]);
    }
}
