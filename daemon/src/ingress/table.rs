//! Routes by host: first an exact name, then `*.suffix`, where `*` is one label.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;

use super::backend::Backend;
use crate::model::service::{ServiceDomain, ServiceName};

/// Snapshot of all routes: replaced as a whole, never modified.
#[derive(Default)]
pub(super) struct IngressRouteTable {
    exact: HashMap<Box<str>, Arc<RouteEntry>>,
    suffixes: HashMap<Box<str>, Arc<RouteEntry>>,
}

pub(super) struct RouteEntry {
    pub(super) domain: ServiceDomain,
    pub(super) service: ServiceName,
    pub(super) revision: u32,
    pub(super) private: bool,
    pub(super) http2: bool,
    pub(super) backend: Option<Arc<Backend>>,
}

impl IngressRouteTable {
    pub(super) fn new(entries: impl IntoIterator<Item = RouteEntry>) -> Self {
        let mut table = Self::default();
        for entry in entries {
            let (map, name) = match entry.domain.suffix() {
                Some(suffix) => (&mut table.suffixes, suffix),
                None => (&mut table.exact, entry.domain.as_str()),
            };
            match map.entry(name.into()) {
                Slot::Vacant(slot) => {
                    slot.insert(Arc::new(entry));
                }
                // The store makes domains exclusive, so this must be an error elsewhere.
                Slot::Occupied(first) => tracing::error!(
                    domain = %entry.domain, service.name = %entry.service, holder = %first.get().service,
                    "ignored a second route for a domain"
                ),
            }
        }
        table
    }

    /// Finds the route of a host, given in lower case and without a port.
    pub(super) fn find(&self, host: &str) -> Option<&Arc<RouteEntry>> {
        if let Some(entry) = self.exact.get(host) {
            return Some(entry);
        }
        if self.suffixes.is_empty() {
            return None;
        }
        let (label, suffix) = host.split_once('.')?;
        self.suffixes.get(suffix).filter(|_| !label.is_empty())
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Arc<RouteEntry>> {
        self.exact.values().chain(self.suffixes.values())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(domains: &[&str]) -> IngressRouteTable {
        IngressRouteTable::new(domains.iter().enumerate().map(|(number, domain)| RouteEntry {
            domain: domain.parse().unwrap(),
            service: format!("s{number}").parse().unwrap(),
            revision: 1,
            private: false,
            http2: false,
            backend: None,
        }))
    }

    #[test]
    fn an_exact_name_comes_first_and_a_star_is_one_label() {
        let table = table(&["a.example.com", "*.example.com", "*.b.example.com", "*.com"]);
        let service = |host: &str| table.find(host).map(|entry| entry.service.as_str());
        assert_eq!(service("a.example.com"), Some("s0"));
        assert_eq!(service("x.example.com"), Some("s1"));
        assert_eq!(service("x.y.example.com"), None);
        assert_eq!(service("x.b.example.com"), Some("s2"));
        assert_eq!(service("b.example.com"), Some("s1"));
        assert_eq!(service("x.y.b.example.com"), None);
        assert_eq!(service("example.com"), Some("s3"), "a suffix does not stand for itself");
        for unknown in ["com", "", ".", "org", "xexample.org", ".example.com", "..com"] {
            assert_eq!(service(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn the_first_of_two_routes_for_a_domain_stays() {
        let table = table(&["a.example", "a.example"]);
        assert_eq!(table.find("a.example").unwrap().service.as_str(), "s0");
        assert_eq!(table.entries().count(), 1);
    }
}
