//! Buffer pool: a pass transfers thousands of chunks of up to 2 MiB between threads, and allocating fresh
//! pages for each of them costs as much as decompression.

use std::ops::Deref;
use std::sync::Arc;

use parking_lot::Mutex;

/// Maximum number of idle buffers; more than the number of chunks in use at once.
const MAX_IDLE_BUFFERS: usize = 64;

/// Pool of byte buffers. Cheap to clone; all clones share the buffers.
#[derive(Clone, Default)]
pub(super) struct BufferPool(Arc<Mutex<Vec<Vec<u8>>>>);

impl BufferPool {
    /// Returns an empty buffer with at least the given capacity.
    pub(super) fn take(&self, capacity: usize) -> Vec<u8> {
        let used = self.0.lock().pop();
        let mut buffer = used.unwrap_or_default();
        buffer.reserve(capacity);
        buffer
    }

    /// Wraps bytes in a shared chunk that returns its buffer to the pool when the last reader drops it.
    pub(super) fn share(&self, bytes: Vec<u8>) -> Arc<PooledBuffer> {
        Arc::new(PooledBuffer { bytes, pool: self.clone() })
    }
}

pub(super) struct PooledBuffer {
    bytes: Vec<u8>,
    pool: BufferPool,
}

impl Deref for PooledBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut waiting = self.pool.0.lock();
        if waiting.len() < MAX_IDLE_BUFFERS {
            waiting.push(bytes);
        }
    }
}
