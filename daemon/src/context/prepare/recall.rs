//! What looks at trees came to, known again by all that they saw.
//!
//! ```text
//! Known of an earlier look --as it was--> its snapshot ---.
//!          \--not--> scan --> snapshot --> fingerprint --+--> what the look came to, or hashes and digest
//! ```
//!
//! Most builds find their files as the last one left them. When every entry has the stat that it had then, its content
//! hash is the remembered one, too, and so is all that follows from these: what is covered, digest, times. Only looks
//! that the cache of hashes answered whole are kept here: what holds for its answers holds for these.

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

/// Looks that are kept, and their entries in all: some 35 bytes each.
const MOST: usize = 16;
const MOST_ENTRIES: usize = 300_000;
/// Entries of those that are kept to be looked at without a scan: some 110 bytes each.
const MOST_KNOWN: usize = 100_000;
/// After that the cache of hashes is asked again, so that it does not forget files that are in use.
const LASTS: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Recall {
    /// The latest first.
    looks: Mutex<VecDeque<Look>>,
    #[cfg(test)]
    found: std::sync::atomic::AtomicUsize,
    #[cfg(test)]
    again: std::sync::atomic::AtomicUsize,
}

/// What a look depends on beside the files.
pub(super) struct Scope<'s> {
    pub selection: &'s Selection,
    /// The ignore file, as it was found or given.
    pub ignore: &'s NamedEntry,
    /// What it hides; none when it cannot be understood.
    pub patterns: Option<Patterns>,
}

impl Scope<'_> {
    /// Equal for equal ones only.
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

/// Files as they are now.
pub(super) struct Looked {
    pub snapshot: Snapshot,
    /// See [`Scope::name`].
    scope: Vec<u8>,
    /// Where they are known to be as they were.
    fingerprint: Option<[u8; 32]>,
}

struct Look {
    /// See [`Scope::name`].
    scope: Vec<u8>,
    /// While the files may be looked at without a scan.
    known: Option<Known>,
    fingerprint: [u8; 32],
    since: Instant,
    covered: Covered,
    identified: Arc<Identified>,
    entries: usize,
}

impl Recall {
    /// What a look with this fingerprint came to. `known` is for the next one.
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
        // There may have been none when the directories were as young as the look.
        look.known = look.known.or_else(known);
        let found = (look.covered.clone(), Arc::clone(&look.identified));
        looks.push_front(look);
        spare(&mut looks);
        #[cfg(test)]
        self.found.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Some(found)
    }

    /// How often a look was known again.
    #[cfg(test)]
    pub(super) fn found(&self) -> usize {
        self.found.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// What was known of looks with a scope, the latest first.
    fn known(&self, scope: &[u8]) -> Vec<(Known, [u8; 32])> {
        let looks = self.looks.lock();
        let of_scope = looks.iter().filter(|look| look.scope == scope);
        of_scope.filter_map(|look| Some((look.known.clone()?, look.fingerprint))).collect()
    }

    /// How often files were found as they were without a scan.
    #[cfg(test)]
    pub(super) fn again(&self) -> usize {
        self.again.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Of how many looks the files are known.
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

/// Forgets what was known of older looks: of one directory the latest is enough, and all have a bound.
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

/// Looks at the files with a scan, unless they are known to be as they were. Blocking.
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

/// What a build may read of a look comes to. Blocking.
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
