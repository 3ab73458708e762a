//! Connections of steps that were refused, so that a step that failed by one can say so.
//!
//! Names come from the resolver, addresses from the firewall's set; both are few and forgotten after ten minutes.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::dns_message::Record;
use super::rules::REFUSED_SECONDS;

/// Names that were refused, and names by the addresses that they stand for: the oldest go first.
const MAX_NAMES: usize = 1024;
const MAX_RESOLVED: usize = 4096;
/// The firewall counts in seconds.
const PRECISION: Duration = Duration::from_secs(1);

/// A connection that a step tried and was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RefusedConnection {
    /// The step's, or the builders' own.
    pub(super) from: Ipv4Addr,
    /// A name, where one is known.
    pub host: String,
    /// None where the name was refused, so that there was no connection yet.
    pub to: Option<(Ipv4Addr, u16)>,
}

#[derive(Default)]
pub(super) struct Refusals {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    names: VecDeque<(Instant, RefusedConnection)>,
    resolved: HashMap<Ipv4Addr, String>,
    order: VecDeque<Ipv4Addr>,
}

impl Refusals {
    /// The resolver refused a name.
    pub(super) fn name(&self, from: Ipv4Addr, name: &str) {
        let mut state = self.lock();
        let refused = RefusedConnection { from, host: name.to_owned(), to: None };
        // Programs ask several times.
        state.names.retain(|(_, known)| *known != refused);
        if state.names.len() == MAX_NAMES {
            state.names.pop_front();
        }
        state.names.push_back((Instant::now(), refused));
        drop(state);
        tracing::info!(%from, name, "a name was refused to a step of a build");
    }

    /// The resolver answered with these addresses.
    pub(super) fn resolved(&self, name: &str, records: &[Record]) {
        let mut state = self.lock();
        for record in records {
            if state.resolved.insert(record.address, name.to_owned()).is_none() {
                state.order.push_back(record.address);
            }
            if state.order.len() > MAX_RESOLVED
                && let Some(oldest) = state.order.pop_front()
            {
                state.resolved.remove(&oldest);
            }
        }
    }

    /// What was refused since a moment, with what the firewall has listed (`nft -j list set`), each once.
    pub(super) fn since(
        &self,
        moment: Instant,
        listed: &str,
    ) -> Result<Vec<RefusedConnection>, serde_json::Error> {
        let elements = in_listing(listed)?;
        let state = self.lock();
        let names = state.names.iter().filter(|(at, _)| *at >= moment);
        let mut found: Vec<_> = names.map(|(_, refused)| refused.clone()).collect();
        let within = moment.elapsed() + PRECISION;
        for element in elements.into_iter().filter(|element| element.age() <= within) {
            let name = state.resolved.get(&element.to).cloned();
            let host = name.unwrap_or_else(|| element.to.to_string());
            found.push(RefusedConnection { from: element.from, host, to: Some((element.to, element.port)) });
        }
        Ok(found)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Element {
    from: Ipv4Addr,
    to: Ipv4Addr,
    port: u16,
    left: u64,
}

impl Element {
    fn age(&self) -> Duration {
        Duration::from_secs(REFUSED_SECONDS.saturating_sub(self.left))
    }
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    set: Option<Set>,
}

#[derive(Deserialize)]
struct Set {
    #[serde(default)]
    elem: Vec<Elem>,
}

#[derive(Deserialize)]
struct Elem {
    elem: Val,
}

#[derive(Deserialize)]
struct Val {
    val: Concat,
    #[serde(default)]
    expires: u64,
}

#[derive(Deserialize)]
struct Concat {
    concat: (Ipv4Addr, Ipv4Addr, serde_json::Value, Port),
}

/// `nft` prints a port as a number.
#[derive(Deserialize)]
#[serde(transparent)]
struct Port(u16);

fn in_listing(listing: &str) -> Result<Vec<Element>, serde_json::Error> {
    let listing: Listing = serde_json::from_str(listing)?;
    let elements = listing.nftables.into_iter().filter_map(|entry| entry.set).flat_map(|set| set.elem);
    Ok(elements
        .map(|Elem { elem }| {
            let (from, to, _, Port(port)) = elem.val.concat;
            Element { from, to, port, left: elem.expires }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
    const EMPTY: &str = r#"{"nftables": [{"metainfo": {}}, {"set": {"name": "refused"}}]}"#;

    #[test]
    fn names_and_addresses_since_a_moment_are_told_with_the_names_that_led_there() {
        let refusals = Refusals::default();
        refusals.name(STEP, "old.example");
        let moment = Instant::now();
        refusals.name(STEP, "evil.example");
        refusals.name(STEP, "evil.example");
        let inner = Ipv4Addr::new(10, 9, 9, 9);
        refusals.resolved("internal.example", &[Record { address: inner, ttl: 1 }]);
        let listed = r#"{"nftables": [{"metainfo": {}}, {"set": {"name": "refused", "elem": [
            {"elem": {"val": {"concat": ["10.1.0.3", "10.9.9.9", "tcp", 443]}, "timeout": 600, "expires": 600}},
            {"elem": {"val": {"concat": ["10.1.0.3", "10.9.9.8", "tcp", 80]}, "timeout": 600, "expires": 12}}]}}]}"#;
        let found = refusals.since(moment, listed).unwrap();
        let name = RefusedConnection { from: STEP, host: "evil.example".to_owned(), to: None };
        let address =
            RefusedConnection { from: STEP, host: "internal.example".to_owned(), to: Some((inner, 443)) };
        assert_eq!(found, [name, address]);
        assert!(refusals.since(Instant::now(), EMPTY).unwrap().is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let refusals = Refusals::default();
        let begin = Instant::now();
        for n in 0..MAX_NAMES + 10 {
            refusals.name(STEP, &n.to_string());
        }
        assert_eq!(refusals.since(begin, EMPTY).unwrap().len(), MAX_NAMES);
        for n in 0..MAX_RESOLVED as u32 + 10 {
            refusals.resolved("a", &[Record { address: n.into(), ttl: 1 }]);
        }
        assert_eq!(refusals.lock().resolved.len(), MAX_RESOLVED);
    }
}
