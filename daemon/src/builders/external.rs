//! External builders, which are not run by this daemon, by address.
//!
//! Each domain uses one address as long as the addresses stay the same, and most domains keep theirs when an address
//! is added or removed (rendezvous hashing: the highest hash of domain and address wins). Domains with the same
//! address share its cache, except for cache mounts: an operator who needs isolation configures an address for each
//! domain, or lets the daemon run the builders.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::buildkit::{BuildKitAddress, BuildKitClient, Options, ReadinessStatus};
use crate::model::builder::{BuilderState, BuilderStatus};
use crate::model::trust::TrustDomain;
use crate::task;

#[derive(Clone)]
pub(super) struct ExternalBuilders {
    builders: Arc<Vec<(String, BuildKitClient)>>,
    status: watch::Receiver<ReadinessStatus>,
}

impl ExternalBuilders {
    pub(super) fn connect(addresses: Vec<BuildKitAddress>, allow_host_network: bool) -> Self {
        let connect = |address: BuildKitAddress| {
            let options = Options {
                address,
                child: None,
                bundles_dir: None,
                network: None,
                git: None,
                allow_host_network,
                groups: None,
                shared: true,
            };
            (options.address.to_string(), BuildKitClient::connect(options))
        };
        let builders: Arc<Vec<_>> = Arc::new(addresses.into_iter().map(connect).collect());
        let (sender, status) = watch::channel(combined_status(&builders));
        let statuses: Vec<_> = builders.iter().map(|(_, kit)| kit.status()).collect();
        let all = Arc::downgrade(&builders);
        drop(task::spawn("external builders", async move {
            let mut statuses = statuses;
            while !statuses.is_empty() {
                let changes = statuses.iter_mut().map(|status| Box::pin(status.changed()));
                let (changed, place, _) = futures::future::select_all(changes).await;
                if changed.is_err() {
                    // The watch of a status ends when its last user is gone.
                    drop(statuses.swap_remove(place));
                }
                let Some(builders) = all.upgrade() else { return };
                sender.send_replace(combined_status(&builders));
            }
        }));
        Self { builders, status }
    }

    pub(super) fn status(&self) -> watch::Receiver<ReadinessStatus> {
        self.status.clone()
    }

    /// Returns the builder of a domain.
    pub(super) fn builder_of(&self, domain: &TrustDomain) -> BuildKitClient {
        let index = address_index(domain, self.builders.iter().map(|(address, _)| address.as_str()));
        self.builders[index].1.clone()
    }

    pub(super) fn list(&self) -> Vec<BuilderStatus> {
        let one = |(address, kit): &(String, BuildKitClient)| {
            let status = kit.status().borrow().clone();
            let detail = if status.ready { status.version } else { status.detail };
            BuilderStatus {
                domain: None,
                address: Some(address.clone()),
                state: if status.ready { BuilderState::Ready } else { BuilderState::NotReady },
                detail: detail.unwrap_or_default(),
                disk: 0,
                last_used: None,
                builds: 0,
            }
        };
        self.builders.iter().map(one).collect()
    }

    pub(super) fn close_sessions(&self) {
        self.builders.iter().for_each(|(_, kit)| kit.close_sessions());
    }
}

/// Returns the index of the address that has the highest hash together with the domain.
fn address_index<'a>(domain: &TrustDomain, addresses: impl Iterator<Item = &'a str>) -> usize {
    let weight = |address: &str| Sha256::digest(format!("{domain}\n{address}"));
    let best = addresses.enumerate().max_by_key(|(_, address)| weight(address));
    best.map_or(0, |(place, _)| place)
}

/// Combined status: ready when one builder is ready. Builds of domains whose builder is unavailable wait for it, the
/// others do not.
fn combined_status(builders: &[(String, BuildKitClient)]) -> ReadinessStatus {
    let all: Vec<(&String, ReadinessStatus)> =
        builders.iter().map(|(address, kit)| (address, kit.status().borrow().clone())).collect();
    let down = |(address, status): &(&String, ReadinessStatus)| {
        (!status.ready).then(|| format!("{address}: {}", status.detail.as_deref().unwrap_or("no answer")))
    };
    let down: Vec<String> = all.iter().filter_map(down).collect();
    let ready = all.iter().find(|(_, status)| status.ready).and_then(|(_, status)| status.version.clone());
    match (ready, all.as_slice()) {
        (_, [(_, only)]) => only.clone(),
        (Some(version), _) if down.is_empty() => {
            ReadinessStatus { ready: true, version: Some(version), detail: None }
        }
        (Some(version), _) => ReadinessStatus {
            ready: true,
            version: Some(format!("{version}; not ready: {}", down.join("; "))),
            detail: None,
        },
        (None, _) => ReadinessStatus { ready: false, version: None, detail: Some(down.join("; ")) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_keeps_its_address_when_another_one_goes() {
        let addresses = ["tcp://a:1", "tcp://b:1", "tcp://c:1"];
        let mut used = std::collections::BTreeMap::new();
        for number in 0..300 {
            let domain = TrustDomain::of_caller(&format!("c{number}"));
            let address = addresses[address_index(&domain, addresses.into_iter())];
            *used.entry(address).or_insert(0) += 1;
            let without =
                |gone: &str| addresses.into_iter().filter(|address| *address != gone).collect::<Vec<_>>();
            for gone in addresses.into_iter().filter(|gone| *gone != address) {
                let left = without(gone);
                assert_eq!(left[address_index(&domain, left.iter().copied())], address);
            }
        }
        assert!(used.len() == 3 && used.values().all(|count| *count > 50), "{used:?}");
    }
}
