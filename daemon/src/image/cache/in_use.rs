//! Cached images that are in use by builds, and locks that serialize fetches of the same image.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::super::port::cached::CachedImageKey;
use super::ImageStore;
use crate::model::{Digest, Repository};

/// Usage counts and fetch locks, shared by all handles to the room's images.
#[derive(Clone, Debug, Default)]
pub struct CachedImagesInUse(Arc<Mutex<InUseState>>);

#[derive(Debug, Default)]
struct InUseState {
    /// Number of builds that use an image.
    counts: HashMap<(Repository, Digest), usize>,
    fetch_locks: HashMap<CachedImageKey, Arc<AsyncMutex<()>>>,
}

/// Guard that keeps a cached image from being removed.
#[derive(Debug)]
pub struct CachedImageGuard {
    used: CachedImagesInUse,
    image: (Repository, Digest),
}

/// Lock that lets one caller at a time look up and fetch an image.
pub struct FetchLock {
    used: CachedImagesInUse,
    key: CachedImageKey,
    held: Option<OwnedMutexGuard<()>>,
}

impl CachedImagesInUse {
    fn lock(&self) -> MutexGuard<'_, InUseState> {
        // No code leaves the state inconsistent while it holds this lock.
        self.0.lock()
    }

    pub fn holds(&self, repository: &Repository, digest: &Digest) -> bool {
        self.lock().counts.contains_key(&(repository.clone(), *digest))
    }

    pub async fn lock_fetch(&self, key: &CachedImageKey) -> FetchLock {
        let turn = Arc::clone(self.lock().fetch_locks.entry(key.clone()).or_default());
        let held = turn.lock_owned().await;
        FetchLock { used: self.clone(), key: key.clone(), held: Some(held) }
    }
}

impl ImageStore {
    pub(in super::super) fn in_use(&self, repository: &Repository, digest: Digest) -> CachedImageGuard {
        let image = (repository.clone(), digest);
        *self.shared.cached_in_use.lock().counts.entry(image.clone()).or_default() += 1;
        CachedImageGuard { used: self.shared.cached_in_use.clone(), image }
    }
}

impl Drop for CachedImageGuard {
    fn drop(&mut self) {
        let mut inner = self.used.lock();
        if let Some(count) = inner.counts.get_mut(&self.image) {
            *count -= 1;
            if *count == 0 {
                inner.counts.remove(&self.image);
            }
        }
    }
}

impl Drop for FetchLock {
    fn drop(&mut self) {
        let mut inner = self.used.lock();
        self.held.take();
        // Only the table holds the lock, so nobody waits for it; a waiter would have a clone.
        if inner.fetch_locks.get(&self.key).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            inner.fetch_locks.remove(&self.key);
        }
    }
}
