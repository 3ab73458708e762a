//! Prefetch of directory listings: predicts the next directory of a tree walk, and lists it in advance.
//!
//! ```text
//! read d, which contains a and c; a contains b:   expected  c a     (the next one is last)
//! read a:                                         expected  c b
//! ```
//!
//! A walk descends into a directory before it continues with the next one. Nothing is prefetched for other
//! access patterns, or while several readers are active.

use parking_lot::{Mutex, MutexGuard};

/// Number of correct predictions in a row before a directory is prefetched.
const MIN_HITS: u32 = 3;
/// Maximum number of expected directories that a walk may skip.
const MAX_SKIPPED: usize = 64;
/// Maximum number of expected directories; beyond it the most distant ones are dropped.
pub(super) const MAX_EXPECTED: usize = 16_384;

/// Predicts the next directory of a walk and holds its listing of type `L`.
pub(super) struct ListingPrefetch<L>(Mutex<PrefetchState<L>>);

struct PrefetchState<L> {
    expected: Vec<u64>,
    /// Number of correct predictions in a row.
    hits: u32,
    /// True while a thread lists the next directory.
    in_progress: bool,
    listed: Option<(u64, L)>,
}

impl<L> ListingPrefetch<L> {
    pub fn new() -> Self {
        Self(Mutex::new(PrefetchState { expected: Vec::new(), hits: 0, in_progress: false, listed: None }))
    }

    fn state(&self) -> MutexGuard<'_, PrefetchState<L>> {
        self.0.lock()
    }

    /// Records that a directory is read from its start, and returns its prefetched listing.
    pub fn visit(&self, directory: u64) -> Option<L> {
        let mut state = self.state();
        let first = state.expected.len().saturating_sub(MAX_SKIPPED);
        match state.expected[first..].iter().rposition(|&expected| expected == directory) {
            Some(place) => {
                state.expected.truncate(first + place);
                state.hits = state.hits.saturating_add(1);
            }
            None => {
                state.expected.clear();
                state.hits = 0;
            }
        }
        let (listed, listing) = state.listed.take()?;
        (listed == directory).then_some(listing)
    }

    /// Adds the subdirectories of the visited directory, in the order in which they are read. Returns the
    /// directory to prefetch now; the caller must then call [`store`](Self::store).
    pub fn next_to_list(&self, below: &[u64]) -> Option<u64> {
        let mut state = self.state();
        state.expected.extend(below.iter().rev());
        let over = state.expected.len().saturating_sub(MAX_EXPECTED);
        state.expected.drain(..over);
        if state.hits < MIN_HITS || state.in_progress {
            return None;
        }
        let next = state.expected.last().copied()?;
        state.in_progress = true;
        Some(next)
    }

    /// Stores a prefetched listing; `None` when listing failed.
    pub fn store(&self, directory: u64, listing: Option<L>) {
        let mut state = self.state();
        state.in_progress = false;
        state.listed = listing.map(|listing| (directory, listing));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Visits a directory with subdirectories and prefetches the next one. Returns whether it was prefetched
    /// itself, and the next one.
    fn step(ahead: &ListingPrefetch<u64>, directory: u64, below: &[u64]) -> (bool, Option<u64>) {
        let listed = ahead.visit(directory);
        assert!(listed.is_none_or(|listed| listed == directory));
        let next = ahead.next_to_list(below);
        if let Some(next) = next {
            ahead.store(next, Some(next));
        }
        (listed.is_some(), next)
    }

    #[test]
    fn a_walk_finds_its_directories_listed_once_it_is_known_for_one() {
        let ahead = ListingPrefetch::new();
        assert_eq!(step(&ahead, 1, &[2, 5, 8]), (false, None));
        assert_eq!(step(&ahead, 2, &[3, 4]), (false, None));
        assert_eq!(step(&ahead, 3, &[]), (false, None));
        assert_eq!(step(&ahead, 4, &[]), (false, Some(5)));
        assert_eq!(step(&ahead, 5, &[6, 7]), (true, Some(6)));
        // One directory is skipped.
        assert_eq!(step(&ahead, 7, &[]), (false, Some(8)));
        assert_eq!(step(&ahead, 8, &[]), (true, None));
    }

    #[test]
    fn a_reader_that_jumps_starts_a_new_prefetch() {
        let ahead = ListingPrefetch::new();
        for (directory, below) in [(1, &[2, 9][..]), (2, &[3]), (3, &[4])] {
            step(&ahead, directory, below);
        }
        assert_eq!(step(&ahead, 4, &[5]), (false, Some(5)));
        assert_eq!(step(&ahead, 77, &[78]), (false, None));
        assert_eq!(step(&ahead, 5, &[]), (false, None));
        assert_eq!(step(&ahead, 9, &[]), (false, None));
    }

    #[test]
    fn one_is_listed_at_a_time_and_a_failure_is_forgotten() {
        let ahead = ListingPrefetch::<u64>::new();
        for (directory, below) in [(1, &[2][..]), (2, &[3]), (3, &[4])] {
            step(&ahead, directory, below);
        }
        assert_eq!(ahead.visit(4), None);
        assert_eq!(ahead.next_to_list(&[5, 6]), Some(5));
        assert_eq!(ahead.visit(5), None);
        assert_eq!(ahead.next_to_list(&[]), None, "the other listing is not finished");
        ahead.store(5, None);
        assert_eq!(ahead.visit(6), None);
    }

    #[test]
    fn no_more_is_kept_than_the_bound() {
        let ahead = ListingPrefetch::<u64>::new();
        ahead.next_to_list(&(0..MAX_EXPECTED as u64 + 5).collect::<Vec<_>>());
        let state = ahead.state();
        assert_eq!((state.expected.len(), state.expected.last()), (MAX_EXPECTED, Some(&0)));
    }
}
