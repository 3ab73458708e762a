//! Record of refused connections of steps, so that a failed step can be explained by one.
//!
//! Names come from the resolver, addresses from the firewall's set; both are bounded and expire after ten minutes.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::dns_message::AddressRecord;
use super::rules::REFUSED_SECONDS;

/// Maximum number of refused names, and of names by resolved address; the oldest are removed first.
const MAX_NAMES: usize = 1024;
const MAX_RESOLVED: usize = 4096;
/// Resolution of the kernel's timers.
const PRECISION: Duration = Duration::from_millis(20);

/// Refused connection of a builder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedConnection {
    /// Container id of the step that tried to connect; `None` for the builder itself.
    pub container: Option<String>,
    /// Host name if known, otherwise the address.
    pub host: String,
    /// Destination address and port; `None` if the name was refused, so that there was no connection.
    pub to: Option<(Ipv4Addr, u16)>,
    pub at: Instant,
}

/// Refused connection by source address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SourceRefusal {
    pub(super) from: Ipv4Addr,
    pub(super) host: String,
    pub(super) to: Option<(Ipv4Addr, u16)>,
    pub(super) at: Instant,
}

#[derive(Default)]
pub(super) struct StepRefusals {
    state: Mutex<RefusalLog>,
}

#[derive(Default)]
struct RefusalLog {
    names: VecDeque<SourceRefusal>,
    resolved: HashMap<Ipv4Addr, String>,
    order: VecDeque<Ipv4Addr>,
}

impl StepRefusals {
    /// Records that the resolver refused a name.
    pub(super) fn record_name(&self, from: Ipv4Addr, name: &str) {
        let mut state = self.state.lock();
        // Programs repeat their queries.
        state.names.retain(|known| known.from != from || known.host != name);
        if state.names.len() == MAX_NAMES {
            state.names.pop_front();
        }
        state.names.push_back(SourceRefusal { from, host: name.to_owned(), to: None, at: Instant::now() });
        drop(state);
        tracing::info!(%from, domain = name, "refused a name to a build step");
    }

    /// Records the addresses with which the resolver answered.
    pub(super) fn record_addresses(&self, name: &str, records: &[AddressRecord]) {
        let mut state = self.state.lock();
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

    /// Returns the refusals since a moment, including those that the firewall has listed (`nft list set`), each once.
    pub(super) fn since(&self, moment: Instant, listed: &str) -> io::Result<Vec<SourceRefusal>> {
        let elements = parse_refused_set(listed)?;
        let state = self.state.lock();
        let mut found: Vec<_> = state.names.iter().filter(|refusal| refusal.at >= moment).cloned().collect();
        let within = moment.elapsed() + PRECISION;
        for element in elements.into_iter().filter(|element| element.age() <= within) {
            let name = state.resolved.get(&element.to).cloned();
            let host = name.unwrap_or_else(|| element.to.to_string());
            let at = Instant::now().checked_sub(element.age()).unwrap_or(moment);
            found.push(SourceRefusal { from: element.from, host, to: Some((element.to, element.port)), at });
        }
        Ok(found)
    }
}

struct RefusedElement {
    from: Ipv4Addr,
    to: Ipv4Addr,
    port: u16,
    left: Duration,
}

impl RefusedElement {
    fn age(&self) -> Duration {
        Duration::from_secs(REFUSED_SECONDS).saturating_sub(self.left)
    }

    /// Parses `10.1.0.3 . 10.9.9.9 . tcp . 443 expires 9m59s452ms`.
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let &[from, ".", to, ".", _, ".", port, ..] = words.as_slice() else { return None };
        let expires = words.iter().position(|word| *word == "expires")?;
        let left = duration(words.get(expires + 1)?)?;
        Some(Self { from: from.parse().ok()?, to: to.parse().ok()?, port: port.parse().ok()?, left })
    }
}

/// Parses `9m59s452ms`, as nft prints it. Its JSON output has whole seconds only, too coarse to distinguish successive
/// steps.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let milliseconds = match &rest[..unit] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total += Duration::from_millis(count.checked_mul(milliseconds)?);
        rest = &rest[unit..];
    }
    Some(total)
}

/// Parses the elements of a set, as nft prints it.
fn parse_refused_set(listing: &str) -> io::Result<Vec<RefusedElement>> {
    let Some((_, rest)) = listing.split_once("elements = {") else { return Ok(Vec::new()) };
    let elements = rest.split_once('}').map_or(rest, |(elements, _)| elements);
    let parsed = elements.split(',').map(|element| {
        let wrong =
            || io::Error::other(format!("nft printed an element in an unknown form: `{}`", element.trim()));
        RefusedElement::parse(element).ok_or_else(wrong)
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
    const EMPTY: &str = "table inet x {\n\tset refused {\n\t\tsize 4096\n\t}\n}\n";

    #[test]
    fn names_and_addresses_since_a_moment_are_told_with_the_names_that_led_there() {
        let refusals = StepRefusals::default();
        refusals.record_name(STEP, "old.example");
        let moment = Instant::now();
        refusals.record_name(STEP, "evil.example");
        refusals.record_name(STEP, "evil.example");
        let inner = Ipv4Addr::new(10, 9, 9, 9);
        refusals.record_addresses("internal.example", &[AddressRecord { address: inner, ttl: 1 }]);
        let listed = "table inet x {\n\tset refused {\n\t\ttimeout 10m\n\t\telements = { 10.1.0.3 . 10.9.9.9 . tcp . 443 \
                      expires 9m59s999ms,\n\t\t\t     10.1.0.3 . 10.9.9.8 . tcp . 80 expires 9m58s4ms }\n\t}\n}\n";
        let found = refusals.since(moment, listed).unwrap();
        let found: Vec<_> = found.iter().map(|one| (one.from, one.host.as_str(), one.to)).collect();
        assert_eq!(found, [(STEP, "evil.example", None), (STEP, "internal.example", Some((inner, 443)))]);
        assert!(refusals.since(Instant::now(), EMPTY).unwrap().is_empty());
    }

    #[test]
    fn durations_are_read_and_what_is_none_is_an_error() {
        for (text, expected) in [("9m59s452ms", 599_452), ("10m", 600_000), ("52ms", 52), ("1h1s", 3_601_000)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(expected)));
        }
        for text in ["5", "s", "5d", "1m-2s"] {
            assert_eq!(duration(text), None, "{text}");
        }
        assert!(parse_refused_set("elements = { 10.0.0.1 . x }").is_err());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let refusals = StepRefusals::default();
        let begin = Instant::now();
        for n in 0..MAX_NAMES + 10 {
            refusals.record_name(STEP, &n.to_string());
        }
        assert_eq!(refusals.since(begin, EMPTY).unwrap().len(), MAX_NAMES);
        for n in 0..MAX_RESOLVED as u32 + 10 {
            refusals.record_addresses("a", &[AddressRecord { address: n.into(), ttl: 1 }]);
        }
        assert_eq!(refusals.state.lock().resolved.len(), MAX_RESOLVED);
    }
}
