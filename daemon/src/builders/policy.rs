//! Policy of the managed builders: decides which trust domain gets a builder, when builders start and stop, and which
//! cache is removed first. A plain value: no locks, no I/O.
//!
//! ```text
//!            Start                      no builds for a while, or
//! Stopped -----------> Running -----------------------------------> Stopping --stopped--> Stopped
//!    |                  |  ^        another domain needs the slot
//!    |            Prune |  | measured
//!    |                  '--'
//!    '--Remove--> Removing --removed--> (no entry)
//! ```
//!
//! - Requests are granted in order of arrival. One overtakes another only where that delays nobody: its own builder
//!   runs, and every earlier request has a slot that is free or being freed.
//! - The builder that was used last is never stopped for being idle, and is started when none runs, so that the next
//!   build does not wait.
//! - When all caches together exceed their quota, the domain that was used least recently is pruned first, or removed
//!   if its builder is stopped. The domain that was used last comes last, and is never removed.
//! - The cache of a domain that was not used for a long time is removed; that of the domain that was used last is pruned.
//!   In a room without images the time is short.
//! - A buildkitd that is large when its builds have ended is restarted, at most once for each use: it does not give back
//!   the memory that it took.
//! - The services of a participant have domains of their own, which count for the participant together: the next
//!   running builder to stop, or cache to remove, comes from the owner that has most of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;

use crate::model::access::SERVICE_NAME;
use crate::model::share_owner::{ShareOwner, ShareOwnerResolver};
use crate::model::trust::TrustDomain;

/// Time without builds after which caches are removed in a room without images.
const KEEP_IN_EMPTY_ROOM: Duration = Duration::from_secs(600);
/// Time without builds after which a large builder is restarted: it is not while one build follows another.
const RESTART_DELAY: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuilderLimits {
    /// Maximum number of builders that run at the same time; at least one.
    pub running: usize,
    /// Maximum number of domains whose cache is kept.
    pub kept_caches: usize,
    /// Maximum size of all caches together, in bytes.
    pub cache_bytes: u64,
    /// Time without builds after which a builder is stopped.
    pub idle_timeout: Duration,
    /// Resident memory of an idle buildkitd in bytes above which it is restarted; 0 for no limit.
    pub idle_memory: u64,
    /// Time without builds after which the cache of a domain is removed.
    pub keep_unused: Duration,
}

/// Identifies a request for a builder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseTicket(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuilderPhase {
    Stopped,
    Running,
    Stopping,
    Removing,
}

/// State of one domain's builder, as the policy knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainBuilder {
    pub phase: BuilderPhase,
    /// Number of builds that use it.
    pub builds: usize,
    pub last_used: Timestamp,
    /// Size of its cache in bytes when it was last measured.
    pub disk: u64,
    pruning: PruneState,
    /// Set while it is being stopped in order to remove its cache.
    discarded: bool,
    /// Value of `last_used` when it was last restarted because of its memory.
    restarted: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PruneState {
    Idle,
    Running,
    /// Pruning left this many bytes, which are in use.
    Done(u64),
}

/// An action for the caller to execute. The caller reports the end of each one except `Grant`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuilderAction {
    Start(TrustDomain),
    /// The builder of the domain runs, and the request uses it until it is released.
    Grant(LeaseTicket, TrustDomain),
    Stop(TrustDomain),
    /// Prune the cache of a running builder to at most `keep` bytes.
    Prune {
        domain: TrustDomain,
        keep: u64,
    },
    /// Remove a stopped builder with its whole cache.
    Remove(TrustDomain),
}

#[derive(Debug)]
pub struct BuilderPolicy {
    limits: BuilderLimits,
    share_owners: ShareOwnerResolver,
    builders: BTreeMap<TrustDomain, DomainBuilder>,
    waiting: VecDeque<(LeaseTicket, TrustDomain)>,
    /// The room has no images.
    room_is_empty: bool,
    draining: bool,
}

impl BuilderPolicy {
    pub fn new(limits: BuilderLimits, owners: ShareOwnerResolver) -> Self {
        let running = limits.running.max(1);
        let limits = BuilderLimits { running, kept_caches: limits.kept_caches.max(running), ..limits };
        Self {
            limits,
            share_owners: owners,
            builders: BTreeMap::new(),
            waiting: VecDeque::new(),
            room_is_empty: false,
            draining: false,
        }
    }

    /// Adds a cache that an earlier run of the daemon left.
    pub fn restore(&mut self, domain: TrustDomain, last_used: Timestamp, disk: u64) {
        self.builders.insert(domain, DomainBuilder { last_used, disk, ..DomainBuilder::new(last_used) });
    }

    pub fn request(&mut self, ticket: LeaseTicket, domain: TrustDomain) {
        self.waiting.push_back((ticket, domain));
    }

    /// Removes a request from the queue. Returns false when it does not wait.
    pub fn withdraw(&mut self, ticket: LeaseTicket) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|(waiting, _)| *waiting != ticket);
        self.waiting.len() != before
    }

    /// Removes all requests for a domain whose builder cannot be started.
    pub fn withdraw_all(&mut self, domain: &TrustDomain) -> Vec<LeaseTicket> {
        let (gone, rest) = std::mem::take(&mut self.waiting).into_iter().partition(|(_, of)| of == domain);
        self.waiting = rest;
        let gone: VecDeque<_> = gone;
        gone.into_iter().map(|(ticket, _)| ticket).collect()
    }

    /// Called when a build that used the builder has ended.
    pub fn release(&mut self, domain: &TrustDomain, now: Timestamp) {
        if let Some(standing) = self.builders.get_mut(domain) {
            standing.builds = standing.builds.saturating_sub(1);
            standing.last_used = standing.last_used.max(now);
            standing.pruning = match standing.pruning {
                PruneState::Done(_) => PruneState::Idle,
                other => other,
            };
        }
    }

    /// Called when the cache of a running builder was measured, after pruning if `pruned` is set.
    pub fn record_measurement(&mut self, domain: &TrustDomain, disk: u64, pruned: bool) {
        if let Some(standing) = self.builders.get_mut(domain) {
            standing.disk = disk;
            if pruned {
                standing.pruning = PruneState::Done(disk);
            }
        }
    }

    pub fn mark_stopped(&mut self, domain: &TrustDomain) {
        if let Some(standing) = self.builders.get_mut(domain) {
            *standing = DomainBuilder {
                phase: BuilderPhase::Stopped,
                builds: 0,
                pruning: PruneState::Idle,
                ..*standing
            };
        }
    }

    /// Marks a running builder to be stopped now, even if builds use it, and its cache to be removed. Returns false
    /// when it does not run.
    pub fn discard(&mut self, domain: &TrustDomain) -> bool {
        let running =
            self.builders.get_mut(domain).filter(|standing| standing.phase == BuilderPhase::Running);
        running.is_some_and(|standing| {
            (standing.phase, standing.discarded) = (BuilderPhase::Stopping, true);
            true
        })
    }

    pub fn mark_removed(&mut self, domain: &TrustDomain) {
        match self.builders.get_mut(domain) {
            // Its domain is in use, so the entry stays with an empty cache.
            Some(standing) if standing.discarded => *standing = DomainBuilder::new(standing.last_used),
            _ => drop(self.builders.remove(domain)),
        }
    }

    pub fn set_room_empty(&mut self, empty: bool) {
        self.room_is_empty = empty;
    }

    /// Stops all starts, grants and removals.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Returns the next action to execute now. Must be called again until it returns `None`.
    pub fn next_action(&mut self, now: Timestamp) -> Option<BuilderAction> {
        if self.draining {
            return None;
        }
        self.remove_discarded()
            .or_else(|| self.grant_or_start(now))
            .or_else(|| self.keep_one_running())
            .or_else(|| self.enforce_cache_count())
            .or_else(|| self.enforce_disk_limit())
            .or_else(|| self.expire_unused(now))
            .or_else(|| self.stop_idle(now))
    }

    pub fn domain_builders(&self) -> impl Iterator<Item = (&TrustDomain, &DomainBuilder)> {
        self.builders.iter()
    }

    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    #[cfg(test)]
    fn limits(&self) -> &BuilderLimits {
        &self.limits
    }

    /// Returns the running builder that was used last.
    pub fn newest_running(&self) -> Option<&TrustDomain> {
        self.newest(BuilderPhase::Running)
    }

    fn newest(&self, phase: BuilderPhase) -> Option<&TrustDomain> {
        let those = self.builders.iter().filter(|(_, standing)| standing.phase == phase);
        those.max_by_key(|(_, standing)| standing.rank()).map(|(domain, _)| domain)
    }

    fn in_phase(&self, phase: BuilderPhase) -> usize {
        self.builders.values().filter(|standing| standing.phase == phase).count()
    }

    /// Removes the cache of a builder that was stopped by [`discard`](Self::discard).
    fn remove_discarded(&mut self) -> Option<BuilderAction> {
        let is = |standing: &DomainBuilder| standing.phase == BuilderPhase::Stopped && standing.discarded;
        let (domain, standing) = self.builders.iter_mut().find(|(_, standing)| is(standing))?;
        standing.phase = BuilderPhase::Removing;
        Some(BuilderAction::Remove(domain.clone()))
    }

    fn grant_or_start(&mut self, now: Timestamp) -> Option<BuilderAction> {
        let (running, stopping) =
            (self.in_phase(BuilderPhase::Running), self.in_phase(BuilderPhase::Stopping));
        // Domains of earlier requests that have no builder yet.
        let mut promised: BTreeSet<&TrustDomain> = BTreeSet::new();
        let mut found = None;
        for (place, (ticket, domain)) in self.waiting.iter().enumerate() {
            match self.builders.get(domain).map(|standing| standing.phase) {
                Some(BuilderPhase::Running) => {
                    found = Some((Some(place), BuilderAction::Grant(*ticket, domain.clone())));
                    break;
                }
                Some(BuilderPhase::Stopped) | None if running + stopping < self.limits.running => {
                    found = Some((None, BuilderAction::Start(domain.clone())));
                    break;
                }
                _ => {}
            }
            promised.insert(domain);
            if promised.len() > self.limits.running - running {
                // Not enough slots are free or being freed, so no later request may overtake this one.
                found = self
                    .first_victim(DomainBuilder::runs, |standing| standing.runs() && standing.builds == 0)
                    .map(|victim| (None, BuilderAction::Stop(victim)));
                break;
            }
        }
        let (place, action) = found?;
        if let Some(place) = place {
            self.waiting.remove(place);
        }
        match &action {
            BuilderAction::Start(domain) => {
                let standing = self.builders.entry(domain.clone()).or_insert_with(|| DomainBuilder::new(now));
                standing.phase = BuilderPhase::Running;
            }
            BuilderAction::Grant(_, domain) => {
                if let Some(standing) = self.builders.get_mut(domain) {
                    standing.builds += 1;
                    standing.last_used = standing.last_used.max(now);
                }
            }
            BuilderAction::Stop(domain) => self.set(domain, BuilderPhase::Stopping),
            BuilderAction::Prune { .. } | BuilderAction::Remove(_) => {}
        }
        Some(action)
    }

    /// Starts the builder that was used last when none runs.
    fn keep_one_running(&mut self) -> Option<BuilderAction> {
        if self.in_phase(BuilderPhase::Running) + self.in_phase(BuilderPhase::Stopping) > 0 {
            return None;
        }
        let newest = self.newest(BuilderPhase::Stopped)?.clone();
        self.set(&newest, BuilderPhase::Running);
        Some(BuilderAction::Start(newest))
    }

    /// Keeps the number of caches within its limit.
    fn enforce_cache_count(&mut self) -> Option<BuilderAction> {
        if self.builders.len() - self.in_phase(BuilderPhase::Removing) <= self.limits.kept_caches {
            return None;
        }
        let newest = self.newest_running().cloned();
        let idle = |standing: &DomainBuilder| {
            standing.runs() && standing.builds == 0 && standing.pruning != PruneState::Running
        };
        let can_go = |standing: &DomainBuilder| standing.phase == BuilderPhase::Stopped || idle(standing);
        let victim = self.first_victim_except(newest.as_ref(), DomainBuilder::is_kept, can_go)?;
        if self.is_wanted(&victim) {
            return None;
        }
        // A running builder is stopped before its cache is removed.
        let stopped =
            self.builders.get(&victim).is_some_and(|standing| standing.phase == BuilderPhase::Stopped);
        self.set(&victim, if stopped { BuilderPhase::Removing } else { BuilderPhase::Stopping });
        Some(if stopped { BuilderAction::Remove(victim) } else { BuilderAction::Stop(victim) })
    }

    /// Keeps the total size of all caches within its limit.
    fn enforce_disk_limit(&mut self) -> Option<BuilderAction> {
        let kept = self.builders.values().filter(|standing| standing.is_kept());
        let total = kept.map(|standing| standing.disk).fold(0, u64::saturating_add);
        let excess = total.checked_sub(self.limits.cache_bytes).filter(|excess| *excess > 0)?;
        // One domain at a time: the freed space is measured before another one is pruned.
        let frees = |standing: &DomainBuilder| {
            standing.phase == BuilderPhase::Removing || standing.pruning == PruneState::Running
        };
        if self.builders.values().any(frees) {
            return None;
        }
        let newest = self.builders.iter().max_by_key(|(_, standing)| standing.rank()).map(|(d, _)| d.clone());
        let mut by_use: Vec<(TrustDomain, DomainBuilder)> =
            self.builders.iter().map(|(domain, standing)| (domain.clone(), *standing)).collect();
        let of_owner = self.owner_counts(DomainBuilder::is_kept);
        by_use.sort_by_key(|(domain, standing)| {
            (Some(domain) == newest.as_ref(), Reverse(of_owner.get(domain).copied()), standing.rank())
        });
        for (domain, standing) in by_use {
            match standing.phase {
                BuilderPhase::Stopped if Some(&domain) != newest.as_ref() && !self.is_wanted(&domain) => {
                    self.set(&domain, BuilderPhase::Removing);
                    return Some(BuilderAction::Remove(domain));
                }
                BuilderPhase::Running if standing.can_free() => {
                    if let Some(standing) = self.builders.get_mut(&domain) {
                        standing.pruning = PruneState::Running;
                    }
                    return Some(BuilderAction::Prune { domain, keep: standing.disk.saturating_sub(excess) });
                }
                _ => {}
            }
        }
        None
    }

    /// Removes the caches that were not used for a long time.
    fn expire_unused(&mut self, now: Timestamp) -> Option<BuilderAction> {
        let newest = self.builders.iter().max_by_key(|(_, standing)| standing.rank()).map(|(d, _)| d.clone());
        let short = self.room_is_empty.then_some(KEEP_IN_EMPTY_ROOM);
        let keep = short.map_or(self.limits.keep_unused, |short| short.min(self.limits.keep_unused));
        let (domain, standing) = self.builders.iter_mut().find(|(domain, standing)| {
            let can_go = match standing.phase {
                BuilderPhase::Stopped => Some(*domain) != newest.as_ref(),
                BuilderPhase::Running => standing.builds == 0 && standing.can_free(),
                BuilderPhase::Stopping | BuilderPhase::Removing => false,
            };
            let waits = self.waiting.iter().any(|(_, waiting)| waiting == *domain);
            can_go && !waits && standing.is_unused_for(keep, now)
        })?;
        if standing.runs() {
            standing.pruning = PruneState::Running;
            return Some(BuilderAction::Prune { domain: domain.clone(), keep: 0 });
        }
        standing.phase = BuilderPhase::Removing;
        Some(BuilderAction::Remove(domain.clone()))
    }

    /// Decides whether a running builder is restarted because its process has this many bytes of resident memory.
    pub fn takes_restart(&mut self, domain: &TrustDomain, memory: u64, now: Timestamp) -> bool {
        let limit = self.limits.idle_memory;
        if limit == 0 || memory <= limit || self.draining || self.is_wanted(domain) {
            return false;
        }
        self.builders.get_mut(domain).is_some_and(|standing| {
            let idle = standing.runs() && standing.builds == 0 && standing.pruning != PruneState::Running;
            let restarts = idle
                && standing.is_unused_for(RESTART_DELAY, now)
                && standing.restarted != Some(standing.last_used);
            if restarts {
                standing.restarted = Some(standing.last_used);
            }
            restarts
        })
    }

    fn stop_idle(&mut self, now: Timestamp) -> Option<BuilderAction> {
        let newest = self.newest_running()?.clone();
        let idle = self.limits.idle_timeout;
        let victim = self.builders.iter().find(|(domain, standing)| {
            **domain != newest
                && standing.phase == BuilderPhase::Running
                && standing.builds == 0
                && standing.pruning != PruneState::Running
                && standing.is_unused_for(idle, now)
        });
        let victim = victim.map(|(domain, _)| domain.clone())?;
        self.set(&victim, BuilderPhase::Stopping);
        Some(BuilderAction::Stop(victim))
    }

    fn is_wanted(&self, domain: &TrustDomain) -> bool {
        self.waiting.iter().any(|(_, waiting)| waiting == domain)
    }

    /// Returns, of the domains that match `can_go`, the least recently used one of the owner with most domains that
    /// match `count`. A domain that a waiting request needs comes last.
    fn first_victim(
        &self,
        count: impl Fn(&DomainBuilder) -> bool,
        can_go: impl Fn(&DomainBuilder) -> bool,
    ) -> Option<TrustDomain> {
        self.first_victim_except(None, count, can_go)
    }

    /// Like [`first_victim`](Self::first_victim), but at equal counts a stopped builder comes before a running one,
    /// and `spared` is not chosen while it runs.
    fn first_victim_except(
        &self,
        spared: Option<&TrustDomain>,
        count: impl Fn(&DomainBuilder) -> bool,
        can_go: impl Fn(&DomainBuilder) -> bool,
    ) -> Option<TrustDomain> {
        let of_owner = self.owner_counts(count);
        let candidates = self
            .builders
            .iter()
            .filter(|(domain, standing)| can_go(standing) && !(standing.runs() && Some(*domain) == spared));
        let first = candidates.min_by_key(|(domain, standing)| {
            let most = Reverse(of_owner.get(*domain).copied());
            (self.is_wanted(domain), most, standing.runs(), standing.rank())
        });
        first.map(|(domain, _)| domain.clone())
    }

    /// Returns, for each domain, how many domains that match `count` its owner has.
    fn owner_counts(&self, count: impl Fn(&DomainBuilder) -> bool) -> BTreeMap<TrustDomain, usize> {
        let owners: Vec<(&TrustDomain, String)> =
            self.builders.keys().map(|domain| (domain, self.share_owner_of(domain))).collect();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (domain, owner) in &owners {
            let counted = self.builders.get(*domain).is_some_and(&count);
            *counts.entry(owner).or_default() += usize::from(counted);
        }
        let of = |owner: &String| counts.get(owner.as_str()).copied().unwrap_or(0);
        owners.iter().map(|(domain, owner)| ((*domain).clone(), of(owner))).collect()
    }

    /// Returns the owner of a domain. All domains of removed services, which are never used again, share one owner.
    fn share_owner_of(&self, domain: &TrustDomain) -> String {
        if !domain.as_str().starts_with(SERVICE_NAME) {
            return domain.to_string();
        }
        let ShareOwner(owner) = self.share_owners.owner_of(domain.as_str());
        let gone = owner.starts_with(SERVICE_NAME);
        if gone { SERVICE_NAME.to_owned() } else { TrustDomain::of_caller(&owner).to_string() }
    }

    fn set(&mut self, domain: &TrustDomain, phase: BuilderPhase) {
        if let Some(standing) = self.builders.get_mut(domain) {
            standing.phase = phase;
        }
    }
}

impl DomainBuilder {
    const fn new(last_used: Timestamp) -> Self {
        Self {
            phase: BuilderPhase::Stopped,
            builds: 0,
            last_used,
            disk: 0,
            pruning: PruneState::Idle,
            discarded: false,
            restarted: None,
        }
    }

    /// Sort key by recency of use; builders with builds count as used now.
    const fn rank(&self) -> (bool, Timestamp) {
        (self.builds > 0, self.last_used)
    }

    fn runs(&self) -> bool {
        self.phase == BuilderPhase::Running
    }

    fn is_unused_for(&self, time: Duration, now: Timestamp) -> bool {
        now.duration_since(self.last_used).unsigned_abs() >= time && now >= self.last_used
    }

    fn is_kept(&self) -> bool {
        self.phase != BuilderPhase::Removing
    }

    const fn can_free(&self) -> bool {
        match self.pruning {
            PruneState::Idle => self.disk > 0,
            PruneState::Running => false,
            PruneState::Done(left) => self.disk > left,
        }
    }
}

#[cfg(test)]
mod tests;
