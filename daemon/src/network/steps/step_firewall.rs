//! The steps' nft table in the kernel: written as a whole, checked periodically, and opened for the addresses of
//! allowed names.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::dns_message::AddressRecord;
use super::resolver::AddressGate;
use super::rules::{MAX_ALLOWED, REFUSED_SET, StepRules};
use crate::network::{NetworkError, firewall};

/// Minimum and maximum time that an address stays open, whatever the time to live of its record: programs cache names
/// for a while.
const MIN_OPEN_TIME: Duration = Duration::from_secs(300);
const MAX_OPEN_TIME: Duration = Duration::from_secs(3600);

pub(super) struct StepFirewall {
    nft: PathBuf,
    rules: StepRules,
    state: Mutex<StepFirewallState>,
}

#[derive(Default)]
struct StepFirewallState {
    /// Table as `nft` printed it after the last write, without the contents of its sets.
    applied: String,
    /// Allowed addresses, with the end of their permission.
    open: BTreeMap<Ipv4Addr, Instant>,
}

impl StepFirewall {
    pub(super) fn new(nft: PathBuf, rules: StepRules) -> Self {
        Self { nft, rules, state: Mutex::default() }
    }

    /// Replaces the table in one kernel transaction.
    pub(super) async fn write(&self) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        self.write_as(&mut state).await
    }

    async fn write_as(&self, state: &mut StepFirewallState) -> Result<(), NetworkError> {
        let now = Instant::now();
        state.open.retain(|_, until| *until > now);
        let left = |until: &Instant| until.duration_since(now).as_secs().max(1);
        let open: Vec<_> = state.open.iter().map(|(address, until)| (*address, left(until))).collect();
        let script = self.rules.script() + &self.rules.allow(&open);
        firewall::run(&self.nft, &["-f", "-"], &script).await?;
        state.applied = self.list().await?;
        Ok(())
    }

    /// Restores the table if it differs from what was written.
    pub(super) async fn restore_if_changed(&self) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        // A missing table is an error of `nft`.
        if self.list().await.is_ok_and(|now| now == state.applied) {
            return Ok(());
        }
        tracing::warn!(
            table = self.rules.name,
            "nft table of the step network was changed by another program; restoring it"
        );
        self.write_as(&mut state).await
    }

    pub(super) async fn remove(&self) -> Result<(), NetworkError> {
        firewall::run(&self.nft, &["-f", "-"], &self.rules.removal()).await.map(drop)
    }

    /// Returns the set of refused connections, as `nft` prints it.
    pub(super) async fn list_refused(&self) -> Result<String, NetworkError> {
        firewall::run(&self.nft, &["list", "set", "inet", &self.rules.name, REFUSED_SET], "").await
    }

    async fn list(&self) -> Result<String, NetworkError> {
        firewall::run(&self.nft, &["--terse", "list", "table", "inet", &self.rules.name], "").await
    }
}

#[async_trait]
impl AddressGate for StepFirewall {
    async fn allow(&self, records: Vec<AddressRecord>) -> io::Result<()> {
        let mut state = self.state.lock().await;
        let now = Instant::now();
        let mut new = Vec::new();
        for record in records {
            let lasts = Duration::from_secs(record.ttl.into()).clamp(MIN_OPEN_TIME, MAX_OPEN_TIME);
            // An address that stays open for most of that time needs no change.
            if state.open.get(&record.address).is_none_or(|until| *until < now + lasts / 2) {
                new.push((record.address, lasts));
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        state.open.retain(|_, until| *until > now);
        if state.open.len() + new.len() > MAX_ALLOWED {
            return Err(io::Error::other(format!("{MAX_ALLOWED} addresses are open already")));
        }
        let elements: Vec<_> = new.iter().map(|(address, lasts)| (*address, lasts.as_secs())).collect();
        firewall::run(&self.nft, &["-f", "-"], &self.rules.allow(&elements))
            .await
            .map_err(io::Error::other)?;
        state.open.extend(new.into_iter().map(|(address, lasts)| (address, now + lasts)));
        Ok(())
    }
}
