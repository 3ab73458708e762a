//! Limits the denials and failures that are written: the first few of each caller or address in a minute. The
//! others are only counted, so that nobody fills the trail by being denied or by failing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use jiff::Timestamp;

use super::{AuditOutcome, AuditRecord};

const WINDOW_SECONDS: i64 = 60;
/// Maximum number of records of one caller or address in a window.
const MAX_PER_CALLER: u64 = 10;
/// Maximum number of records of all callers together in a window.
const MAX_TOTAL: u64 = 300;
/// Maximum number of summary records of counted calls for a window.
const MAX_SUMMARIES: usize = 40;
/// Maximum number of callers and addresses that are counted separately in a window.
const MAX_CALLERS: usize = 1024;
/// Key of all callers and addresses beyond [`MAX_CALLERS`].
const OVERFLOW_KEY: &str = "others";

#[derive(Default)]
pub(super) struct FloodLimit {
    /// Second at which the window began, since 1970.
    began: i64,
    written: u64,
    seen: HashMap<String, FloodCounter>,
}

struct FloodCounter {
    written: u64,
    counted: u64,
    last: AuditRecord,
}

impl FloodLimit {
    /// Reports whether a denial or failure is written; if not, it is counted.
    pub(super) fn admits(&mut self, record: &AuditRecord) -> bool {
        let mut key = key(record);
        if !self.seen.contains_key(&key) && self.seen.len() >= MAX_CALLERS {
            OVERFLOW_KEY.clone_into(&mut key);
        }
        let full = self.written >= MAX_TOTAL;
        let seen = self.seen.entry(key).or_insert_with(|| FloodCounter {
            written: 0,
            counted: 0,
            last: record.clone(),
        });
        if full || seen.written >= MAX_PER_CALLER {
            seen.counted += 1;
            seen.last = record.clone();
            return false;
        }
        seen.written += 1;
        self.written += 1;
        true
    }

    /// Returns one record for each key that was only counted, at the end of a window or, with `ended`, of the trail.
    pub(super) fn summaries(&mut self, now: Timestamp, ended: bool) -> Vec<AuditRecord> {
        let now = now.as_second();
        if self.began == 0 {
            self.began = now;
        }
        if !ended && now - self.began < WINDOW_SECONDS {
            return Vec::new();
        }
        self.began = now;
        self.written = 0;
        let seen = self.seen.drain().map(|(_, seen)| seen).filter(|seen| seen.counted > 0);
        let mut records: Vec<_> =
            seen.map(|seen| AuditRecord { more: seen.counted - 1, ..seen.last }).collect();
        // The largest counts are kept even if somebody sends from very many addresses.
        records.sort_by_key(|record| std::cmp::Reverse(record.more));
        if records.len() > MAX_SUMMARIES {
            let rest = records.split_off(MAX_SUMMARIES);
            let outcome = rest.first().map_or(AuditOutcome::Denied, |record| record.outcome);
            let more: u64 = rest.iter().map(|record| record.more + 1).sum();
            records.push(AuditRecord {
                caller: String::new(),
                action: "several".to_owned(),
                object: String::new(),
                detail: "calls of many callers and addresses".to_owned(),
                source: String::new(),
                outcome,
                more: more.saturating_sub(1),
                at: Timestamp::now(),
            });
        }
        records
    }
}

/// Key of a record: the caller's name, or without a token its address; for IPv6, the /64 network of one customer.
fn key(record: &AuditRecord) -> String {
    if !record.caller.is_empty() {
        return format!("caller {}", record.caller);
    }
    match record.source.parse() {
        Ok(IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).to_string()
        }
        _ => record.source.clone(),
    }
}
