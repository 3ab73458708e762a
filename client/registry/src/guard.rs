//! Restriction of the addresses that a client may connect to: those of a registry, of its redirects and of its token
//! service.
//!
//! The user who names an image chooses the registry, and the registry answers with redirects and with the address of
//! its token service. A client without restrictions could be directed to services that only it can reach: services on
//! its own machine and network, or the metadata address of its cloud (server-side request forgery). Therefore a
//! client with [`AddressGuards`] connects only to addresses that these allow. Addresses are checked when the
//! connection is made, not when the name is parsed, so that a changed DNS record cannot bypass the check.
//!
//! | registry                                  | its own host | redirects, token service |
//! |-------------------------------------------|--------------|--------------------------|
//! | a mirror, or its own mirror               | `configured` | `configured`             |
//! | one that the operator has credentials for | `configured` | `unconfigured`           |
//! | any other                                 | `unconfigured` | `unconfigured`         |
//!
//! An address that is written literally in the configuration is always allowed.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host as UrlHost, Url};

use super::host::is_loopback;

/// Predicate for addresses that may be connected to. It is also a DNS resolver that filters its results.
#[derive(Clone)]
pub struct AddressGuard(Arc<dyn Fn(IpAddr) -> bool + Send + Sync>);

/// Guards of a client, for registries with and without configuration by the operator.
#[derive(Clone, Debug)]
pub struct AddressGuards {
    pub configured: AddressGuard,
    pub unconfigured: AddressGuard,
}

/// Error: every address of a host was refused.
#[derive(Debug, thiserror::Error)]
#[error("`{host}` is at {address}, an address that may not be connected to from here")]
pub struct AddressRefused {
    pub host: String,
    pub address: IpAddr,
}

impl AddressGuard {
    pub fn new(allows: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(allows))
    }

    pub fn allows(&self, address: IpAddr) -> bool {
        // The canonical form covers IPv4 addresses that are mapped into IPv6.
        (self.0)(address.to_canonical())
    }

    /// Checks a host that is an IP address or a loopback name. Any other name is checked when it is resolved.
    pub fn check(&self, url: &Url) -> Result<(), AddressRefused> {
        let address: IpAddr = match url.host() {
            Some(UrlHost::Ipv4(address)) => address.into(),
            Some(UrlHost::Ipv6(address)) => address.into(),
            Some(UrlHost::Domain(name)) if is_loopback(name) => Ipv4Addr::LOCALHOST.into(),
            _ => return Ok(()),
        };
        if self.allows(address) {
            return Ok(());
        }
        Err(AddressRefused { host: url.host_str().unwrap_or_default().to_owned(), address })
    }
}

impl fmt::Debug for AddressGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AddressGuard")
    }
}

/// Finds the [`AddressRefused`] that caused an error of an HTTP client.
pub fn refused_address<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e AddressRefused> {
    if let Some(refused) = error.downcast_ref::<AddressRefused>() {
        return Some(refused);
    }
    // `io::Error::source` does not return the wrapped error itself.
    if let Some(wrapped) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        return refused_address(wrapped);
    }
    error.source().and_then(refused_address)
}

impl Resolve for AddressGuard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            if is_proxy(&host) {
                return Ok(Box::new(found.into_iter()) as Addrs);
            }
            let allowed: Vec<SocketAddr> =
                found.iter().copied().filter(|address| guard.allows(address.ip())).collect();
            match (allowed.is_empty(), found.first()) {
                (true, Some(refused)) => Err(AddressRefused { host, address: refused.ip() }.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

/// Reports whether a name is that of a proxy configured for this process. The proxy itself decides which hosts may be
/// reached through it.
fn is_proxy(name: &str) -> bool {
    let variables = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    variables.iter().filter_map(|variable| std::env::var(variable).ok()).any(|proxy| {
        let url = if proxy.contains("://") { proxy } else { format!("http://{proxy}") };
        url.parse::<Url>().is_ok_and(|url| url.host_str() == Some(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_refused_in_every_spelling() {
        let guard = AddressGuard::new(|address| !address.is_loopback());
        let check = |url: &str| guard.check(&url.parse().unwrap()).is_ok();
        for url in [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "https://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://localhost:5000/",
        ] {
            assert!(!check(url), "{url}");
        }
        assert!(check("http://192.0.2.1/") && check("https://example.com/"));
    }

    #[tokio::test]
    async fn a_name_is_refused_by_what_it_resolves_to_and_the_cause_is_found() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let guard = AddressGuard::new(|address| !address.is_loopback());
        let client = reqwest::Client::builder().no_proxy().dns_resolver(guard).build().unwrap();
        let error = client.get("http://localhost:9/").send().await.unwrap_err();
        let refused = refused_address(&error).unwrap_or_else(|| panic!("{error:?}"));
        assert_eq!(refused.host, "localhost");
    }
}
