//! What looks at trees came to, known again by all that they saw.
//!
//! Most builds find their files as the last one left them. When every entry has the stat that it had then, its content
//! hash is the remembered one, too, and so is all that follows from these: what is covered, digest, times. Only looks
//! that the cache of hashes answered whole are kept here: what holds for its answers holds for these.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hearth_pack::ignore::Patterns;

use super::memory::Memory;
use crate::context::ContextError;
use crate::context::port::FileTree as _;
use crate::context::tree::{Covered, Identified, Selection, Snapshot};

/// Looks that are kept, and their entries in all: some 35 bytes each.
const MOST: usize = 16;
const MOST_ENTRIES: usize = 300_000;
/// After that the cache of hashes is asked again, so that it does not forget files that are in use.
const LASTS: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(super) struct Recall {
    /// The latest first.
    looks: Mutex<VecDeque<Look>>,
    #[cfg(test)]
    found: std::sync::atomic::AtomicUsize,
}

struct Look {
    fingerprint: [u8; 32],
    since: Instant,
    covered: Covered,
    identified: Arc<Identified>,
    entries: usize,
}

impl Recall {
    fn get(&self, fingerprint: &[u8; 32]) -> Option<(Covered, Arc<Identified>)> {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.retain(|look| look.since.elapsed() < LASTS);
        let place = looks.iter().position(|look| look.fingerprint == *fingerprint)?;
        let look = looks.remove(place)?;
        let found = (look.covered.clone(), Arc::clone(&look.identified));
        looks.push_front(look);
        #[cfg(test)]
        self.found.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Some(found)
    }

    /// How often a look was known again.
    #[cfg(test)]
    pub(super) fn found(&self) -> usize {
        self.found.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn put(&self, look: Look) {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.retain(|known| known.fingerprint != look.fingerprint);
        looks.push_front(look);
        while looks.len() > MOST || looks.iter().map(|look| look.entries).sum::<usize>() > MOST_ENTRIES {
            looks.pop_back();
        }
    }
}

/// What a build may read of a scan comes to. `ignore` is the text of `patterns`. Blocking.
pub(super) fn identify(
    snapshot: &mut Snapshot,
    selection: &Selection,
    ignore: Option<&[u8]>,
    patterns: Option<Patterns>,
    memory: &Memory,
) -> Result<Arc<Identified>, ContextError> {
    let hides = [u8::from(patterns.is_some())];
    let fingerprint = snapshot.fingerprint(&[&selection.name(), &hides, ignore.unwrap_or_default()]);
    if let Some(fingerprint) = &fingerprint
        && let Some((covered, identified)) = memory.recall().get(fingerprint)
    {
        snapshot.set_covered(covered);
        return Ok(identified);
    }
    let covered = snapshot.covered(selection, patterns);
    let identified = Arc::new(snapshot.identify(covered.clone(), memory.hashes())?);
    if let Some(fingerprint) = fingerprint
        && identified.from_cache
    {
        let (since, entries) = (Instant::now(), snapshot.len());
        let identified = Arc::clone(&identified);
        memory.recall().put(Look { fingerprint, since, covered, identified, entries });
    }
    Ok(identified)
}
