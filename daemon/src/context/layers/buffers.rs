//! Buffers that go round: a pass hands over thousands of pieces of about a megabyte, and pages that are
//! asked of the system anew for each cost as much as decompressing does.

use std::ops::Deref;
use std::sync::Arc;

use parking_lot::Mutex;

/// Buffers that wait; more than pieces can be under way at once.
const KEPT: usize = 64;

/// Cheap to clone; all clones share the buffers.
#[derive(Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// An empty one with room for so many bytes.
    pub(super) fn take(&self, capacity: usize) -> Vec<u8> {
        let used = self.0.lock().pop();
        let mut buffer = used.unwrap_or_default();
        buffer.reserve(capacity);
        buffer
    }

    /// A piece that gives its buffer back when the last who reads it is done.
    pub(super) fn share(&self, bytes: Vec<u8>) -> Arc<Piece> {
        Arc::new(Piece { bytes, home: self.clone() })
    }
}

pub(super) struct Piece {
    bytes: Vec<u8>,
    home: Buffers,
}

impl Deref for Piece {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut waiting = self.home.0.lock();
        if waiting.len() < KEPT {
            waiting.push(bytes);
        }
    }
}
