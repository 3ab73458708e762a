//! Progress of a transfer between the room and another registry, readable while it runs.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub struct TransferProgress {
    blobs: AtomicU64,
    total_blobs: AtomicU64,
    bytes: AtomicU64,
    total_bytes: AtomicU64,
}

/// Snapshot of a [`TransferProgress`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransferSnapshot {
    pub blobs: u64,
    pub total_blobs: u64,
    pub bytes: u64,
    pub total_bytes: u64,
}

impl TransferProgress {
    pub(super) fn begin(&self, sizes: impl Iterator<Item = u64>) {
        for size in sizes {
            self.total_blobs.fetch_add(1, Ordering::Relaxed);
            self.total_bytes.fetch_add(size, Ordering::Relaxed);
        }
    }

    pub(super) fn done(&self, size: u64) {
        self.blobs.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(size, Ordering::Relaxed);
    }

    pub fn snapshot(&self) -> TransferSnapshot {
        TransferSnapshot {
            blobs: self.blobs.load(Ordering::Relaxed),
            total_blobs: self.total_blobs.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
        }
    }
}
