//! Cache of scan results, keyed by everything that the scan read.
//!
//! ```text
//! ScanBaseline of an earlier scan --unchanged--> its snapshot ---.
//!          \--changed--> scan --> snapshot --> fingerprint ---+--> cached identity, or hashing and digest
//! ```
//!
//! Most builds find their files unchanged since the last build. When every entry has the same stat as then,
//! its content hash is the same, too, and so is everything derived from it: covered entries, digest, times.
//! Only scans that the hash cache answered completely are kept, so these results are as reliable as the hash
//! cache.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_pack::ignore::Patterns;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::memory::Memory;
use crate::context::ContextError;
use crate::context::port::FileTree as _;
use crate::context::tree::{Covered, Identified, Known, NamedEntry, Selection, Snapshot, Tree};
use crate::model::MountTarget;

/// Maximum number of cached scans, and of their entries in total, at about 35 bytes each.
const MOST: usize = 16;
const MOST_ENTRIES: usize = 300_000;
/// Maximum number of entries in baselines, at about 110 bytes each.
const MOST_KNOWN: usize = 100_000;
/// Age after which a scan consults the hash cache again, so that the cache does not drop files that are in
/// use.
const LASTS: Duration = Duration::from_secs(60);

/// The most recent scans.
#[derive(Default)]
pub(super) struct Recall {
    /// Cached scans, latest first.
    looks: Mutex<VecDeque<Look>>,
    #[cfg(test)]
    found: std::sync::atomic::AtomicUsize,
    #[cfg(test)]
    again: std::sync::atomic::AtomicUsize,
}

/// The inputs of a scan other than the files.
pub(super) struct Scope<'s> {
    pub selection: &'s Selection,
    /// The ignore file, as it was found or supplied.
    pub ignore: &'s NamedEntry,
    /// Parsed patterns of the ignore file; `None` when it cannot be parsed.
    pub patterns: Option<Patterns>,
}

impl Scope<'_> {
    /// Returns bytes that are equal for equal scopes only.
    fn name(&self) -> Vec<u8> {
        let (kind, text): (u8, &[u8]) = match self.ignore {
            NamedEntry::Absent => (0, &[]),
            NamedEntry::File(text) => (1, text),
            NamedEntry::Other => (2, &[]),
        };
        let selection = self.selection.name();
        let length = selection.len().to_le_bytes();
        [&length, &selection[..], &[kind, u8::from(self.patterns.is_some())], text].concat()
    }
}

/// The current state of the files.
pub(super) struct Looked {
    pub snapshot: Snapshot,
    /// See [`ScanScope::canonical_bytes`].
    scope: Vec<u8>,
    /// Fingerprint, if a revalidation proved that the files are unchanged.
    fingerprint: Option<[u8; 32]>,
}

struct Look {
    /// See [`ScanScope::canonical_bytes`].
    scope: Vec<u8>,
    /// Present while the files can be revalidated without a scan.
    known: Option<Known>,
    fingerprint: [u8; 32],
    since: Instant,
    covered: Covered,
    identified: Arc<Identified>,
    entries: usize,
}

impl Recall {
    /// Returns the result of the scan with this fingerprint. `known` supplies the baseline for the next
    /// lookup.
    fn get(
        &self,
        fingerprint: &[u8; 32],
        known: impl FnOnce() -> Option<Known>,
    ) -> Option<(Covered, Arc<Identified>)> {
        let mut looks = self.looks.lock();
        let is_young = |look: &Look| look.since.elapsed() < LASTS;
        looks.retain(|look| is_young(look) || look.known.is_some());
        let is_it = |look: &Look| look.fingerprint == *fingerprint && is_young(look);
        let place = looks.iter().position(is_it)?;
        let mut look = looks.remove(place)?;
        // Earlier, the directories may have been too young for a baseline.
        look.known = look.known.or_else(known);
        let found = (look.covered.clone(), Arc::clone(&look.identified));
        looks.push_front(look);
        spare(&mut looks);
        #[cfg(test)]
        self.found.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Some(found)
    }

    /// Number of lookups that found a cached scan.
    #[cfg(test)]
    pub(super) fn found(&self) -> usize {
        self.found.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Returns the baselines of the scans with a scope, latest first.
    fn known(&self, scope: &[u8]) -> Vec<(Known, [u8; 32])> {
        let looks = self.looks.lock();
        let of_scope = looks.iter().filter(|look| look.scope == scope);
        of_scope.filter_map(|look| Some((look.known.clone()?, look.fingerprint))).collect()
    }

    /// Number of scans that a revalidation replaced.
    #[cfg(test)]
    pub(super) fn again(&self) -> usize {
        self.again.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Number of cached scans with a baseline.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        let looks = self.looks.lock();
        looks.iter().filter(|look| look.known.is_some()).count()
    }

    fn put(&self, look: Look) {
        let mut looks = self.looks.lock();
        looks.retain(|known| known.fingerprint != look.fingerprint);
        looks.push_front(look);
        spare(&mut looks);
        while looks.len() > MOST || looks.iter().map(|look| look.entries).sum::<usize>() > MOST_ENTRIES {
            looks.pop_back();
        }
    }
}

/// Drops older baselines: one per directory is enough, and their total size is limited.
fn spare(looks: &mut VecDeque<Look>) {
    let mut room = MOST_KNOWN;
    for index in 0..looks.len() {
        let Look { scope, known: Some(known), .. } = &looks[index] else { continue };
        let mut newer = looks.iter().take(index).filter(|newer| newer.scope == *scope);
        let is_older = newer.any(|newer| newer.known.as_ref().is_some_and(|newer| newer.is_beside(known)));
        match room.checked_sub(known.entries()) {
            Some(rest) if !is_older => room = rest,
            _ => looks[index].known = None,
        }
    }
}

/// Revalidates a cached scan of the files, or scans them. Blocking.
pub(super) fn look(
    tree: &Tree,
    context_path: &MountTarget,
    scope: &Scope<'_>,
    memory: &Memory,
    scan: impl FnOnce() -> Result<Snapshot, ContextError>,
) -> Result<Looked, ContextError> {
    let again = |(known, fingerprint)| Some((tree.again(context_path, &known)?, fingerprint));
    let scope = scope.name();
    let known = memory.recall().known(&scope).into_iter().find_map(again);
    if let Some((snapshot, fingerprint)) = known {
        #[cfg(test)]
        memory.recall().again.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        return Ok(Looked { snapshot, scope, fingerprint: Some(fingerprint) });
    }
    Ok(Looked { snapshot: scan()?, scope, fingerprint: None })
}

/// Returns the identity of what a build may read of the scanned files. Blocking.
pub(super) fn identify(
    looked: Looked,
    scope: Scope<'_>,
    memory: &Memory,
    stop: &CancellationToken,
) -> Result<(Snapshot, Arc<Identified>), ContextError> {
    let Looked { mut snapshot, scope: name, fingerprint } = looked;
    let fingerprint = fingerprint.or_else(|| snapshot.fingerprint(&[&name]));
    if let Some(fingerprint) = &fingerprint
        && let Some((covered, identified)) = memory.recall().get(fingerprint, || snapshot.as_known())
    {
        snapshot.set_covered(covered);
        return Ok((snapshot, identified));
    }
    let covered = snapshot.covered(scope.selection, scope.patterns);
    let identified = Arc::new(snapshot.identify(covered.clone(), memory.hashes(), stop)?);
    if let Some(fingerprint) = fingerprint
        && identified.from_cache
    {
        let (since, entries) = (Instant::now(), snapshot.len());
        let known = snapshot.as_known();
        let (scope, identified) = (name, Arc::clone(&identified));
        memory.recall().put(Look { scope, known, fingerprint, since, covered, identified, entries });
    }
    Ok((snapshot, identified))
}
