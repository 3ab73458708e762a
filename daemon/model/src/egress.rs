//! Egress rules of build steps: `[builds.egress]` of the configuration.
//!
//! An empty list allows all public addresses. These never include this machine, link-local addresses and private
//! networks ([`NON_PUBLIC_BLOCKS`]); an operator opens a private network by listing a block that lies within it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

const fn net(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

/// Blocks that are not public: private, shared (RFC 6598), "this network", multicast, reserved, and the other blocks
/// that the IANA registry of special-purpose IPv4 addresses marks as not globally reachable.
pub const NON_PUBLIC_BLOCKS: [Ipv4Net; 15] = [
    net(0, 0, 0, 0, 8),
    net(10, 0, 0, 0, 8),
    net(100, 64, 0, 0, 10),
    net(127, 0, 0, 0, 8),
    net(169, 254, 0, 0, 16),
    net(172, 16, 0, 0, 12),
    // Protocol assignments.
    net(192, 0, 0, 0, 24),
    // Documentation, with 198.51.100.0/24 and 203.0.113.0/24.
    net(192, 0, 2, 0, 24),
    // 6to4 relays, which are deprecated.
    net(192, 88, 99, 0, 24),
    net(192, 168, 0, 0, 16),
    // Network benchmarks (RFC 2544).
    net(198, 18, 0, 0, 15),
    net(198, 51, 100, 0, 24),
    net(203, 0, 113, 0, 24),
    net(224, 0, 0, 0, 4),
    net(240, 0, 0, 0, 4),
];

/// Blocks that no rule can open.
const NEVER_OPEN_BLOCKS: [Ipv4Net; 5] = [
    net(0, 0, 0, 0, 8),
    net(127, 0, 0, 0, 8),
    net(169, 254, 0, 0, 16),
    net(224, 0, 0, 0, 4),
    net(240, 0, 0, 0, 4),
];

/// Maximum length of a host name in DNS.
const MAX_NAME: usize = 253;

/// Entry of an egress list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EgressRule {
    /// `pypi.org`
    Host(String),
    /// `*.pythonhosted.org`: every name below it, but not the name itself.
    Suffix(String),
    /// `203.0.113.0/24`, or a single address.
    Block(Ipv4Net),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EgressRuleError {
    #[error(
        "`{0}`: expected a host (`pypi.org`), a suffix (`*.pythonhosted.org`) or a block of addresses (`203.0.113.0/24`)"
    )]
    Malformed(String),
    #[error("`{0}`: steps have no IPv6; give a block of IPv4 addresses")]
    Ipv6(String),
    #[error("`{0}`: loopback, link-local, multicast and reserved addresses are never open to steps")]
    NeverOpen(String),
}

impl FromStr for EgressRule {
    type Err = EgressRuleError;

    fn from_str(text: &str) -> Result<Self, EgressRuleError> {
        let excerpt = || text.chars().take(100).collect::<String>();
        let trimmed = text.trim();
        if let Some(block) = block(trimmed).transpose().map_err(|()| EgressRuleError::Malformed(excerpt()))? {
            return match block {
                Some(block) if NEVER_OPEN_BLOCKS.iter().any(|never| never.contains(&block)) => {
                    Err(EgressRuleError::NeverOpen(excerpt()))
                }
                Some(block) => Ok(Self::Block(block)),
                None => Err(EgressRuleError::Ipv6(excerpt())),
            };
        }
        let (name, suffix) = match trimmed.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (trimmed, false),
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if !is_host_name(&name) {
            return Err(EgressRuleError::Malformed(excerpt()));
        }
        Ok(if suffix { Self::Suffix(name) } else { Self::Host(name) })
    }
}

/// Parses an address or a block. The outer `None` means neither; the inner `None` means an IPv6 one.
fn block(text: &str) -> Option<Result<Option<Ipv4Net>, ()>> {
    let address = text.split('/').next().unwrap_or(text);
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) => Some(Ok(None)),
        Ok(IpAddr::V4(address)) if !text.contains('/') => Some(Ok(Some(address.into()))),
        Ok(IpAddr::V4(_)) => Some(text.parse::<Ipv4Net>().map(|net| Some(net.trunc())).map_err(|_| ())),
        Err(_) => None,
    }
}

fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // A last label of digits means a malformed address.
    let top = name.rsplit('.').next().unwrap_or(name);
    name.len() <= MAX_NAME && name.split('.').all(label) && !top.bytes().all(|b| b.is_ascii_digit())
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => write!(f, "{name}"),
            Self::Suffix(name) => write!(f, "*.{name}"),
            Self::Block(block) if block.prefix_len() == 32 => write!(f, "{}", block.addr()),
            Self::Block(block) => write!(f, "{block}"),
        }
    }
}

impl TryFrom<String> for EgressRule {
    type Error = EgressRuleError;

    fn try_from(text: String) -> Result<Self, EgressRuleError> {
        text.parse()
    }
}

impl From<EgressRule> for String {
    fn from(rule: EgressRule) -> Self {
        rule.to_string()
    }
}

/// Complete egress list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressPolicy {
    rules: Vec<EgressRule>,
}

impl EgressPolicy {
    pub fn new(rules: Vec<EgressRule>) -> Self {
        Self { rules }
    }

    /// Reports whether all public addresses are open: the list is empty or contains `0.0.0.0/0`.
    pub fn is_open(&self) -> bool {
        let all = |rule: &EgressRule| matches!(rule, EgressRule::Block(block) if block.prefix_len() == 0);
        self.rules.is_empty() || self.rules.iter().any(all)
    }

    /// Reports whether the name may be resolved, and its public addresses connected to.
    pub fn allows_name(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        self.is_open()
            || self.rules.iter().any(|rule| match rule {
                EgressRule::Host(host) => *host == name,
                EgressRule::Suffix(suffix) => name
                    .strip_suffix(suffix.as_str())
                    .is_some_and(|start| start.len() > 1 && start.ends_with('.')),
                EgressRule::Block(_) => false,
            })
    }

    /// Reports whether the address may be connected to directly, without a prior resolution of a name.
    pub fn allows_address_directly(&self, address: Ipv4Addr) -> bool {
        if NON_PUBLIC_BLOCKS.iter().any(|closed| closed.contains(&address)) {
            return self.private_blocks().iter().any(|block| block.contains(&address));
        }
        self.is_open() || self.public_blocks().iter().any(|block| block.contains(&address))
    }

    /// Reports whether this address is an entry of its own, not only part of a listed block.
    pub fn lists_address(&self, address: Ipv4Addr) -> bool {
        self.blocks().any(|block| block == Ipv4Net::from(address))
    }

    /// Returns the listed blocks that lie within a private network, and open it.
    pub fn private_blocks(&self) -> Vec<Ipv4Net> {
        self.blocks().filter(|block| NON_PUBLIC_BLOCKS.iter().any(|closed| closed.contains(block))).collect()
    }

    /// Returns the other listed blocks: they open the public addresses that they contain.
    pub fn public_blocks(&self) -> Vec<Ipv4Net> {
        self.blocks().filter(|block| !NON_PUBLIC_BLOCKS.iter().any(|closed| closed.contains(block))).collect()
    }

    fn blocks(&self) -> impl Iterator<Item = Ipv4Net> {
        self.rules.iter().filter_map(|rule| match rule {
            EgressRule::Block(block) => Some(*block),
            EgressRule::Host(_) | EgressRule::Suffix(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rules: &[&str]) -> EgressPolicy {
        EgressPolicy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect())
    }

    fn address(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn an_empty_list_is_the_world_without_private_networks() {
        let open = policy(&[]);
        assert!(open.is_open() && open.allows_name("anything.example"));
        assert!(open.allows_address_directly(address("44.1.2.9")));
        for closed in [
            "10.0.0.1",
            "172.20.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
            "127.0.0.1",
            "192.0.0.8",
            "198.19.255.255",
            "203.0.113.9",
        ] {
            assert!(!open.allows_address_directly(address(closed)), "{closed}");
        }
    }

    #[test]
    fn a_host_is_itself_and_a_suffix_what_lies_below_it() {
        let narrow = policy(&["PyPI.org.", "*.pythonhosted.org"]);
        assert!(!narrow.is_open());
        for allowed in ["pypi.org", "PYPI.ORG", "pypi.org.", "files.pythonhosted.org", "a.b.pythonhosted.org"]
        {
            assert!(narrow.allows_name(allowed), "{allowed}");
        }
        for refused in [
            "www.pypi.org",
            "evilpypi.org",
            "pythonhosted.org",
            "evilpythonhosted.org",
            ".pythonhosted.org",
            "",
        ] {
            assert!(!narrow.allows_name(refused), "{refused}");
        }
        assert!(!narrow.allows_address_directly(address("44.1.2.9")));
    }

    #[test]
    fn a_block_opens_a_private_network_only_when_it_lies_within_it() {
        let all = policy(&["0.0.0.0/0"]);
        assert!(all.is_open() && !all.allows_address_directly(address("10.1.2.3")));
        let some = policy(&["0.0.0.0/0", "10.1.0.0/16"]);
        assert!(
            some.allows_address_directly(address("10.1.2.3"))
                && !some.allows_address_directly(address("10.2.2.3"))
        );
        let wide = policy(&["8.0.0.0/5"]);
        assert!(
            wide.allows_address_directly(address("9.9.9.9"))
                && !wide.allows_address_directly(address("10.1.2.3"))
        );
        assert!(!wide.allows_name("a.example"), "a block alone resolves no name");
    }

    #[test]
    fn what_is_no_entry_is_refused_and_what_is_one_is_shown_as_written() {
        for text in ["pypi.org", "*.pythonhosted.org", "203.0.113.0/24", "203.0.113.7", "10.0.0.0/8"] {
            assert_eq!(text.parse::<EgressRule>().unwrap().to_string(), text);
        }
        for text in
            ["", "*", "*.", "a..b", "https://pypi.org", "pypi.org:443", "a b", "*.*.x", "1.2.3", "1.2.3.4/33"]
        {
            assert!(matches!(text.parse::<EgressRule>(), Err(EgressRuleError::Malformed(_))), "{text}");
        }
        assert!(matches!("::/0".parse::<EgressRule>(), Err(EgressRuleError::Ipv6(_))));
        for text in ["127.0.0.1", "169.254.169.254/32", "224.0.0.1"] {
            assert!(matches!(text.parse::<EgressRule>(), Err(EgressRuleError::NeverOpen(_))), "{text}");
        }
    }
}
