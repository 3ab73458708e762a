//! Trust domains: callers of one domain share a builder and its cache. No build data crosses from one domain to
//! another.
//!
//! | callers | domain |
//! |---|---|
//! | root on the unix socket | `local` |
//! | a participant | `caller:NAME` |
//! | a service | `service:ID` |
//! | a caller that the operator's `[trust]` table or its token assigns to a domain | the name given there |
//!
//! A request never names a domain: the domain is part of the caller's identity. A token signed with the room's own
//! secret may claim any domain; one signed with a configured key may claim the domains that its configuration lists.

use std::collections::BTreeMap;
use std::fmt;

use hearth_value::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::access::NamePatterns;

const MOST_BYTES: usize = 200;
const LOCAL: &str = "local";
const CALLER: &str = "caller";
const SERVICE: &str = "service";
/// Prefix of the text of a digest.
const HASHED: &str = "sha256:";

/// Name of a trust domain: at most 200 bytes, without white space and control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a trust domain has 1 to {MOST_BYTES} bytes, and no white space or control characters")]
pub struct TrustDomainError;

impl TrustDomain {
    /// Returns the domain of root on the unix socket, and of the whole room if the operator set `single`.
    pub fn local() -> Self {
        Self(LOCAL.to_owned())
    }

    pub fn of_caller(name: &str) -> Self {
        Self::of(CALLER, name)
    }

    pub fn of_service(id: &str) -> Self {
        Self::of(SERVICE, id)
    }

    /// Derives a domain name. A name that is not valid in a domain is replaced by its hash, so that every caller has a
    /// domain. A name that looks like a hash is replaced too, because it could be that of another caller.
    fn of(kind: &str, name: &str) -> Self {
        let plain = format!("{kind}:{name}").parse();
        let hash = || Digest::from_sha256(Sha256::digest(name).into());
        match plain {
            Ok(plain) if !name.starts_with(HASHED) => plain,
            _ => Self(format!("{kind}:{}", hash())),
        }
    }

    /// Reports whether the domain follows from the kind of caller, as opposed to a name that somebody chose.
    pub fn is_built_in(&self) -> bool {
        let kind = self.0.split_once(':').map_or(self.0.as_str(), |(kind, _)| kind);
        [LOCAL, CALLER, SERVICE].contains(&kind)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for TrustDomain {
    type Err = TrustDomainError;

    fn from_str(text: &str) -> Result<Self, TrustDomainError> {
        let printable = |c: char| !c.is_control() && !c.is_whitespace();
        let valid = !text.is_empty() && text.len() <= MOST_BYTES && text.chars().all(printable);
        if valid { Ok(Self(text.to_owned())) } else { Err(TrustDomainError) }
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = TrustDomainError;

    fn try_from(text: String) -> Result<Self, TrustDomainError> {
        text.parse()
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Operator's configuration of which callers trust one another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustPolicy {
    /// True if all callers of the room are in one domain, `local`.
    pub single: bool,
    /// Names of callers by domain, each exact or with a trailing `*`.
    pub domains: BTreeMap<TrustDomain, NamePatterns>,
}

impl TrustPolicy {
    /// Returns the domain of a caller: the one that its token claims, else the one of the operator's table, else the
    /// caller's own.
    pub fn domain_of(&self, name: &str, own: TrustDomain, claimed: Option<TrustDomain>) -> TrustDomain {
        if self.single {
            return TrustDomain::local();
        }
        let named =
            || self.domains.iter().find(|(_, names)| names.allows(name)).map(|(domain, _)| domain.clone());
        claimed.or_else(named).unwrap_or(own)
    }

    /// Returns two domains that match the same caller, whose domain would then depend on their order.
    pub fn overlapping_domains(&self) -> Option<(&TrustDomain, &TrustDomain)> {
        let covers = |left: &NamePatterns, right: &NamePatterns| {
            right.0.iter().any(|one| left.covers(&NamePatterns(vec![one.clone()])))
        };
        self.domains.iter().enumerate().find_map(|(place, (first, names))| {
            let mut later = self.domains.iter().skip(place + 1);
            let other = later.find(|(_, others)| covers(names, others) || covers(others, names));
            other.map(|(second, _)| (first, second))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust(text: &str) -> TrustPolicy {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_caller_is_its_own_domain_unless_its_token_or_the_operator_says_otherwise() {
        let trust = trust("domains = { ci = ['ci-*', 'bot'] }");
        let of = |name: &str, claimed: Option<&str>| {
            let claimed = claimed.map(|claimed| claimed.parse().unwrap());
            trust.domain_of(name, TrustDomain::of_caller(name), claimed).to_string()
        };
        assert_eq!(of("ann", None), "caller:ann");
        assert_eq!(of("ci-7", None), "ci");
        assert_eq!(of("bot", None), "ci");
        assert_eq!(of("ci-7", Some("release")), "release");
        // A caller named like a domain is not a member of it.
        assert_eq!(of("ci", None), "caller:ci");
        assert_eq!(of("local", None), "caller:local");
    }

    #[test]
    fn one_domain_for_the_room_is_the_one_of_root() {
        let trust = trust("single = true\ndomains = { ci = ['*'] }");
        let claimed = Some("mine".parse().unwrap());
        assert_eq!(trust.domain_of("ann", TrustDomain::of_caller("ann"), claimed), TrustDomain::local());
    }

    #[test]
    fn domains_that_share_a_caller_are_found() {
        for (text, overlap) in [
            ("domains = { a = ['x*'], b = ['xy'] }", true),
            ("domains = { a = ['xy'], b = ['x*'] }", true),
            ("domains = { a = ['xy*'], b = ['x*'] }", true),
            ("domains = { a = ['x'], b = ['x'] }", true),
            ("domains = { a = ['x*'], b = ['y*', 'z'] }", false),
        ] {
            assert_eq!(trust(text).overlapping_domains().is_some(), overlap, "{text}");
        }
    }

    #[test]
    fn every_name_of_a_caller_makes_a_domain_of_its_own() {
        let hash_of_another = Digest::from_sha256(Sha256::digest("a b").into()).to_string();
        let names = ["a", "a b", "a\nb", "", &"x".repeat(300), &"x".repeat(301), &hash_of_another];
        let domains: std::collections::BTreeSet<_> =
            names.iter().map(|name| TrustDomain::of_caller(name)).collect();
        assert_eq!(domains.len(), names.len());
        assert!("".parse::<TrustDomain>().is_err() && "a b".parse::<TrustDomain>().is_err());
        assert!(toml::from_str::<TrustPolicy>("domains = { 'a b' = [] }").is_err());
    }
}
