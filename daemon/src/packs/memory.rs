//! Memory budget for the file lists of all uploads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::PackError;

/// The budget; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct ListingMemory {
    used: Arc<AtomicUsize>,
    limit: usize,
}

/// Reserved part of the budget, released on drop.
#[derive(Debug)]
pub(super) struct MemoryReservation {
    memory: ListingMemory,
    bytes: usize,
}

impl ListingMemory {
    pub(super) fn new(limit: usize) -> Self {
        Self { used: Arc::default(), limit }
    }

    pub(super) fn reserve(&self) -> MemoryReservation {
        MemoryReservation { memory: self.clone(), bytes: 0 }
    }
}

impl MemoryReservation {
    /// Grows this reservation to `bytes`; a smaller number has no effect.
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), PackError> {
        let more = bytes.saturating_sub(self.bytes);
        let used = self.memory.used.fetch_add(more, Ordering::Relaxed);
        self.bytes += more;
        if used + more > self.memory.limit { Err(PackError::Busy) } else { Ok(()) }
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_and_never_more_than_there_is() {
        let memory = ListingMemory::new(100);
        let (mut one, mut two) = (memory.reserve(), memory.reserve());
        one.grow_to(60).unwrap();
        one.grow_to(50).unwrap();
        assert!(matches!(two.grow_to(41), Err(PackError::Busy)));
        drop(two);
        let mut three = memory.reserve();
        three.grow_to(40).unwrap();
        drop((one, three));
        memory.reserve().grow_to(100).unwrap();
    }
}
