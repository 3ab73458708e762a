//! Memory budget for the file lists of all uploads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::PackError;

/// The budget; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    taken: Arc<AtomicUsize>,
    limit: usize,
}

/// Reserved part of the budget, released on drop.
#[derive(Debug)]
pub(super) struct Share {
    memory: Memory,
    bytes: usize,
}

impl Memory {
    pub(super) fn new(limit: usize) -> Self {
        Self { taken: Arc::default(), limit }
    }

    pub(super) fn share(&self) -> Share {
        Share { memory: self.clone(), bytes: 0 }
    }
}

impl Share {
    /// Grows this reservation to `bytes`; a smaller number has no effect.
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), PackError> {
        let more = bytes.saturating_sub(self.bytes);
        let taken = self.memory.taken.fetch_add(more, Ordering::Relaxed);
        self.bytes += more;
        if taken + more > self.memory.limit { Err(PackError::Busy) } else { Ok(()) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_and_never_more_than_there_is() {
        let memory = Memory::new(100);
        let (mut one, mut two) = (memory.share(), memory.share());
        one.grow_to(60).unwrap();
        one.grow_to(50).unwrap();
        assert!(matches!(two.grow_to(41), Err(PackError::Busy)));
        drop(two);
        let mut three = memory.share();
        three.grow_to(40).unwrap();
        drop((one, three));
        memory.share().grow_to(100).unwrap();
    }
}
