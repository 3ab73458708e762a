//! One nft table per daemon, which decides what instances reach. It is always replaced as a whole, in one kernel
//! transaction.
//!
//! The table is written by the `nft` program, not over netlink: the crates for that need C libraries or are immature,
//! and the table is only written when the daemon starts, when its port becomes known, and when somebody has changed the
//! table (`nft flush ruleset`), never for an instance.
//!
//! Packets of a daemon's instances are recognized by the group of the link on which they arrive, so that instances need
//! no rules of their own. A packet's source must be the address that the host routes to that very link (`fib saddr .
//! iif`): each link has one address, so no instance can spoof another.
//!
//! A verdict of one table does not override that of another. If another one drops forwarded packets (Docker sets this
//! policy for iptables' FORWARD chain), instances reach neither each other nor other networks until that table accepts
//! their links. Such chains are detected and reported, and left to the owner of the table. Rules of legacy iptables are
//! not detected.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::LINK_PREFIX;
use super::group::LinkGroups;
use super::steps::STEP_PREFIX;
use crate::deploy::port::NetworkError;

/// Time limit of one `nft` run: it takes some milliseconds, longer while another program changes rules.
const LIMIT: Duration = Duration::from_secs(20);

pub(super) struct RoomFirewall {
    program: PathBuf,
    /// Rules from which the table is generated.
    rules: FirewallRules,
    /// Table as `nft` printed it after the last write.
    applied: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FirewallRules {
    /// Name of the gateway link and of the table.
    pub(super) name: String,
    pub(super) group: LinkGroups,
    pub(super) subnet: Ipv4Net,
    pub(super) gateway: Ipv4Addr,
    /// The one port of the gateway that instances reach.
    pub(super) port: Option<u16>,
    /// Addresses of the host on which a resolver listens.
    pub(super) resolvers: BTreeSet<Ipv4Addr>,
    /// Link-local resolvers of the host's network, as some clouds have them.
    pub(super) link_local_resolvers: BTreeSet<Ipv4Addr>,
}

impl FirewallRules {
    /// Returns the commands that delete the table; `add` before `delete` makes them work without a table too.
    fn removal(&self) -> String {
        format!("add table inet {name}\ndelete table inet {name}\n", name = self.name)
    }

    fn script(&self) -> String {
        let Self { name, subnet, gateway, .. } = self;
        let (open, isolated) = (self.group.open(), self.group.isolated());
        let own = format!("{{ {open}, {isolated} }}");
        let port =
            self.port.map(|port| format!("ip daddr {gateway} tcp dport {port} accept")).unwrap_or_default();
        format!(
            "{removal}table inet {name} {{
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifgroup != {own} accept
    meta nfproto != ipv4 drop
    fib saddr . iif oif missing drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {subnet} oifgroup != {own} masquerade
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifgroup != {own} oifgroup != {own} accept
    ct state established,related accept
    iifgroup {open} oifgroup {open} accept
    oifname \"{LINK_PREFIX}*\" reject with icmpx admin-prohibited
    oifname \"{STEP_PREFIX}*\" reject with icmpx admin-prohibited
    {link_local_resolvers}
    ip daddr 169.254.0.0/16 reject with icmpx admin-prohibited
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifgroup != {own} accept
    ct state established,related accept
    {port}
    {resolvers}
    reject
  }}
}}
",
            removal = self.removal(),
            resolvers = accept_queries(&self.resolvers),
            link_local_resolvers = accept_queries(&self.link_local_resolvers),
        )
    }
}

/// Returns rules that accept DNS queries to the servers.
fn accept_queries(servers: &BTreeSet<Ipv4Addr>) -> String {
    let rules = servers.iter().flat_map(|server| {
        ["udp", "tcp"].map(|protocol| format!("ip daddr {server} {protocol} dport 53 accept"))
    });
    rules.collect::<Vec<_>>().join("\n    ")
}

impl RoomFirewall {
    pub(super) fn new(program: PathBuf, rules: FirewallRules) -> Self {
        Self { program, rules, applied: String::new() }
    }

    pub(super) fn rules(&self) -> &FirewallRules {
        &self.rules
    }

    pub(super) async fn set(&mut self, rules: FirewallRules) -> Result<(), NetworkError> {
        self.rules = rules;
        self.run(&["-f", "-"], &self.rules.script()).await?;
        self.applied = self.list().await?;
        Ok(())
    }

    /// Restores the table if it differs from what was written.
    pub(super) async fn restore_if_changed(&mut self) -> Result<(), NetworkError> {
        // A missing table is an error of `nft`.
        if self.list().await.is_ok_and(|now| now == self.applied) {
            return Ok(());
        }
        tracing::warn!(table = self.rules.name, "nft table was changed by another program; restoring it");
        self.set(self.rules.clone()).await
    }

    pub(super) async fn remove(&self) -> Result<(), NetworkError> {
        self.run(&["-f", "-"], &self.rules.removal()).await.map(drop)
    }

    async fn list(&self) -> Result<String, NetworkError> {
        self.run(&["list", "table", "inet", &self.rules.name], "").await
    }

    async fn run(&self, args: &[&str], input: &str) -> Result<String, NetworkError> {
        run(&self.program, args, input).await
    }
}

/// Returns the chains of all tables that drop forwarded packets by default.
pub(super) async fn forward_dropping_chains(program: &Path) -> Result<Vec<NftChain>, NetworkError> {
    let listing = run(program, &["-j", "list", "chains"], "").await?;
    parse_dropping_chains(&listing)
        .map_err(|error| NetworkError::Other(format!("{} -j list chains: {error}", program.display())))
}

pub(super) async fn run(program: &Path, args: &[&str], input: &str) -> Result<String, NetworkError> {
    let failed =
        |reason: String| NetworkError::Other(format!("{} {}: {reason}", program.display(), args.join(" ")));
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                failed("no such program; install nftables (Debian's package `nftables`)".to_owned())
            }
            _ => failed(error.to_string()),
        })?;
    let work = async {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(LIMIT, work)
        .await
        .map_err(|_| failed(format!("did not finish within {} s", LIMIT.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let reason: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(1000).collect();
    Err(failed(format!("{}: {reason}", output.status)))
}

#[derive(Deserialize)]
struct NftListing {
    nftables: Vec<NftEntry>,
}

#[derive(Deserialize)]
struct NftEntry {
    chain: Option<NftChain>,
}

#[derive(Deserialize)]
pub(super) struct NftChain {
    family: String,
    pub(super) table: String,
    name: String,
    hook: Option<String>,
    policy: Option<String>,
}

impl fmt::Display for NftChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.name)
    }
}

fn parse_dropping_chains(listing: &str) -> Result<Vec<NftChain>, serde_json::Error> {
    let listing: NftListing = serde_json::from_str(listing)?;
    let drops = |chain: &NftChain| {
        chain.hook.as_deref() == Some("forward")
            && chain.policy.as_deref() == Some("drop")
            && matches!(chain.family.as_str(), "ip" | "inet")
    };
    Ok(listing.nftables.into_iter().filter_map(|entry| entry.chain).filter(drops).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_chains_that_drop_forwarded_traffic_are_named() {
        let listing = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1, "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "handle": 1, "hook": "input", "policy": "drop"}},
            {"chain": {"family": "ip6", "table": "filter", "name": "FORWARD", "handle": 1, "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "x", "name": "forward", "handle": 1, "hook": "forward", "policy": "accept"}},
            {"chain": {"family": "inet", "table": "x", "name": "plain", "handle": 1}}]}"#;
        let found: Vec<String> =
            parse_dropping_chains(listing).unwrap().iter().map(NftChain::to_string).collect();
        assert_eq!(found, ["ip filter FORWARD"]);
        assert!(parse_dropping_chains(r#"{"nftables": []}"#).unwrap().is_empty());
        assert!(parse_dropping_chains("nonsense").is_err());
    }

    #[test]
    fn a_table_without_port_and_resolvers_lets_nobody_in() {
        let mut rules = FirewallRules {
            name: "hth-1".to_owned(),
            group: LinkGroups::of(8),
            subnet: "10.1.2.0/24".parse().unwrap(),
            gateway: "10.1.2.1".parse().unwrap(),
            port: None,
            resolvers: BTreeSet::new(),
            link_local_resolvers: BTreeSet::new(),
        };
        let accepts = |rules: &FirewallRules| {
            let script = rules.script();
            let lines = script.lines().filter(|line| line.trim_start().starts_with("ip daddr"));
            lines.filter(|line| line.ends_with("accept")).count()
        };
        assert_eq!(accepts(&rules), 0);
        rules.port = Some(80);
        rules.resolvers.insert("192.0.2.1".parse().unwrap());
        assert_eq!(accepts(&rules), 3);
        rules.link_local_resolvers.insert("169.254.169.253".parse().unwrap());
        assert_eq!(accepts(&rules), 5);
        assert!(rules.script().contains("ip daddr 10.1.2.1 tcp dport 80 accept"));
    }
}
