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

use hearth_model::MountTarget;
use hearth_pack::ignore::IgnorePatterns;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::records::ContextRecords;
use crate::ContextError;
use crate::port::FileTree as _;
use crate::tree::{
    ContextTree, CopySelection, CoveredEntries, IdentifiedTree, NamedEntry, ScanBaseline, TreeSnapshot,
};

/// Maximum number of cached scans, and of their entries in total, at about 35 bytes each.
const MAX_SCANS: usize = 16;
const MAX_ENTRIES: usize = 300_000;
/// Maximum number of entries in baselines, at about 110 bytes each.
const MAX_BASELINE_ENTRIES: usize = 100_000;
/// Age after which a scan consults the hash cache again, so that the cache does not drop files that are in
/// use.
const MAX_AGE: Duration = Duration::from_secs(60);

/// The most recent scans.
#[derive(Default)]
pub(super) struct ScanCache {
    /// Cached scans, latest first.
    scans: Mutex<VecDeque<CachedScan>>,
    #[cfg(test)]
    found: std::sync::atomic::AtomicUsize,
    #[cfg(test)]
    revalidated: std::sync::atomic::AtomicUsize,
}

/// The inputs of a scan other than the files.
pub(super) struct ScanScope<'s> {
    pub selection: &'s CopySelection,
    /// The ignore file, as it was found or supplied.
    pub ignore: &'s NamedEntry,
    /// Parsed patterns of the ignore file; `None` when it cannot be parsed.
    pub patterns: Option<IgnorePatterns>,
}

impl ScanScope<'_> {
    /// Returns bytes that are equal for equal scopes only.
    fn canonical_bytes(&self) -> Vec<u8> {
        let (kind, text): (u8, &[u8]) = match self.ignore {
            NamedEntry::Absent => (0, &[]),
            NamedEntry::File(text) => (1, text),
            NamedEntry::Other => (2, &[]),
        };
        let selection = self.selection.canonical_bytes();
        let length = selection.len().to_le_bytes();
        [&length, &selection[..], &[kind, u8::from(self.patterns.is_some())], text].concat()
    }
}

/// The current state of the files.
pub(super) struct CurrentScan {
    pub snapshot: TreeSnapshot,
    /// See [`ScanScope::canonical_bytes`].
    scope: Vec<u8>,
    /// Fingerprint, if a revalidation proved that the files are unchanged.
    fingerprint: Option<[u8; 32]>,
}

struct CachedScan {
    /// See [`ScanScope::canonical_bytes`].
    scope: Vec<u8>,
    /// Present while the files can be revalidated without a scan.
    baseline: Option<ScanBaseline>,
    fingerprint: [u8; 32],
    since: Instant,
    covered: CoveredEntries,
    identified: Arc<IdentifiedTree>,
    entries: usize,
}

impl ScanCache {
    /// Returns the result of the scan with this fingerprint. `known` supplies the baseline for the next
    /// lookup.
    fn get(
        &self,
        fingerprint: &[u8; 32],
        known: impl FnOnce() -> Option<ScanBaseline>,
    ) -> Option<(CoveredEntries, Arc<IdentifiedTree>)> {
        let mut scans = self.scans.lock();
        let is_young = |scan: &CachedScan| scan.since.elapsed() < MAX_AGE;
        scans.retain(|scan| is_young(scan) || scan.baseline.is_some());
        let is_it = |scan: &CachedScan| scan.fingerprint == *fingerprint && is_young(scan);
        let position = scans.iter().position(is_it)?;
        let mut scan = scans.remove(position)?;
        // Earlier, the directories may have been too young for a baseline.
        scan.baseline = scan.baseline.or_else(known);
        let found = (scan.covered.clone(), Arc::clone(&scan.identified));
        scans.push_front(scan);
        trim_baselines(&mut scans);
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
    fn baselines(&self, scope: &[u8]) -> Vec<(ScanBaseline, [u8; 32])> {
        let scans = self.scans.lock();
        let of_scope = scans.iter().filter(|scan| scan.scope == scope);
        of_scope.filter_map(|scan| Some((scan.baseline.clone()?, scan.fingerprint))).collect()
    }

    /// Number of scans that a revalidation replaced.
    #[cfg(test)]
    pub(super) fn revalidated(&self) -> usize {
        self.revalidated.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Number of cached scans with a baseline.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        let scans = self.scans.lock();
        scans.iter().filter(|scan| scan.baseline.is_some()).count()
    }

    fn put(&self, scan: CachedScan) {
        let mut scans = self.scans.lock();
        scans.retain(|known| known.fingerprint != scan.fingerprint);
        scans.push_front(scan);
        trim_baselines(&mut scans);
        while scans.len() > MAX_SCANS || scans.iter().map(|scan| scan.entries).sum::<usize>() > MAX_ENTRIES {
            scans.pop_back();
        }
    }
}

/// Drops older baselines: one per directory is enough, and their total size is limited.
fn trim_baselines(scans: &mut VecDeque<CachedScan>) {
    let mut room = MAX_BASELINE_ENTRIES;
    for index in 0..scans.len() {
        let CachedScan { scope, baseline: Some(known), .. } = &scans[index] else { continue };
        let mut newer = scans.iter().take(index).filter(|newer| newer.scope == *scope);
        let is_older =
            newer.any(|newer| newer.baseline.as_ref().is_some_and(|newer| newer.is_same_directory(known)));
        match room.checked_sub(known.entry_count()) {
            Some(rest) if !is_older => room = rest,
            _ => scans[index].baseline = None,
        }
    }
}

/// Revalidates a cached scan of the files, or scans them. Blocking.
pub(super) fn scan_or_revalidate(
    tree: &ContextTree,
    context_path: &MountTarget,
    scope: &ScanScope<'_>,
    memory: &ContextRecords,
    scan: impl FnOnce() -> Result<TreeSnapshot, ContextError>,
) -> Result<CurrentScan, ContextError> {
    let again = |(known, fingerprint)| Some((tree.revalidate(context_path, &known)?, fingerprint));
    let scope = scope.canonical_bytes();
    let known = memory.scan_cache().baselines(&scope).into_iter().find_map(again);
    if let Some((snapshot, fingerprint)) = known {
        #[cfg(test)]
        memory.scan_cache().revalidated.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        return Ok(CurrentScan { snapshot, scope, fingerprint: Some(fingerprint) });
    }
    Ok(CurrentScan { snapshot: scan()?, scope, fingerprint: None })
}

/// Returns the identity of what a build may read of the scanned files. Blocking.
pub(super) fn identify(
    looked: CurrentScan,
    scope: ScanScope<'_>,
    memory: &ContextRecords,
    stop: &CancellationToken,
) -> Result<(TreeSnapshot, Arc<IdentifiedTree>), ContextError> {
    let CurrentScan { mut snapshot, scope: name, fingerprint } = looked;
    let fingerprint = fingerprint.or_else(|| snapshot.fingerprint(&[&name]));
    if let Some(fingerprint) = &fingerprint
        && let Some((covered, identified)) = memory.scan_cache().get(fingerprint, || snapshot.baseline())
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
        let known = snapshot.baseline();
        let (scope, identified) = (name, Arc::clone(&identified));
        memory.scan_cache().put(CachedScan {
            scope,
            baseline: known,
            fingerprint,
            since,
            covered,
            identified,
            entries,
        });
    }
    Ok((snapshot, identified))
}
