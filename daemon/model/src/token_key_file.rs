//! Configured public keys for participant tokens, and the claims that their issuers may make.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::access::NamePatterns;
use super::trust::TrustDomain;

/// Public key that verifies participant tokens, in a PEM file, and the one algorithm that it is used with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenKeyFile {
    pub algorithm: TokenAlgorithm,
    pub file: PathBuf,
    /// Patterns of the participant names that tokens may carry: exact names, or prefixes followed by `*`. Default: any
    /// name.
    #[serde(default = "NamePatterns::all")]
    pub names: NamePatterns,
    /// Patterns of the trust domains that tokens may claim: exact names, or prefixes followed by `*`. Default: none.
    #[serde(default)]
    pub domains: NamePatterns,
}

/// Claims that the holder of the private key may make about the bearers of its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerRights {
    pub names: NamePatterns,
    pub domains: NamePatterns,
}

impl TokenKeyFile {
    pub fn rights(&self) -> IssuerRights {
        IssuerRights { names: self.names.clone(), domains: self.domains.clone() }
    }
}

impl IssuerRights {
    /// Reports whether a token may claim the domain. A built-in domain (`local`, `caller:NAME`, `service:ID`) must be
    /// listed by its exact name; patterns do not match it.
    pub fn may_claim(&self, domain: &TrustDomain) -> bool {
        let exact = self.domains.0.iter().any(|listed| listed == domain.as_str());
        exact || (!domain.is_built_in() && self.domains.allows(domain.as_str()))
    }
}

/// Signature algorithm, named as in JWT headers (RFC 7518, RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenAlgorithm {
    #[serde(rename = "RS256")]
    Rs256,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl TokenAlgorithm {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::EdDsa => "EdDSA",
        }
    }
}

impl fmt::Display for TokenAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_claims_the_domains_that_are_listed_and_no_built_in_one_by_a_pattern() {
        let key = |text: &str| toml::from_str::<TokenKeyFile>(text).map(|key| key.rights());
        let plain = "algorithm = 'EdDSA'\nfile = '/k'\n";
        let claims = |rights: &IssuerRights, domain: &str| rights.may_claim(&domain.parse().unwrap());
        let rights = key(plain).unwrap();
        assert!(rights.names.allows("ann"));
        for domain in ["ci", "local", "caller:ann"] {
            assert!(!claims(&rights, domain), "{domain}");
        }
        let rights = key(&format!("{plain}domains = ['ci', 'team-*', '*', 'caller:bob']")).unwrap();
        for domain in ["ci", "team-7", "else", "caller:bob"] {
            assert!(claims(&rights, domain), "{domain}");
        }
        for domain in ["local", "caller:ann", "service:4f8e7k2m9x1c"] {
            assert!(!claims(&rights, domain), "{domain}");
        }
        assert!(key(&format!("{plain}domain = ['ci']")).is_err());
    }
}
