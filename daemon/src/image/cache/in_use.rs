//! Cached images that are in use by builds, and locks that serialize fetches of the same image.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::super::port::cached::CachedKey;
use super::Images;
use crate::model::{Digest, Repository};

/// Usage counts and fetch locks, shared by all handles to the room's images.
#[derive(Clone, Debug, Default)]
pub struct UsedImages(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// Number of builds that use an image.
    counts: HashMap<(Repository, Digest), usize>,
    turns: HashMap<CachedKey, Arc<AsyncMutex<()>>>,
}

/// Guard that keeps a cached image from being removed.
#[derive(Debug)]
pub struct InUse {
    used: UsedImages,
    image: (Repository, Digest),
}

/// Lock that lets one caller at a time look up and fetch an image.
pub struct Turn {
    used: UsedImages,
    key: CachedKey,
    held: Option<OwnedMutexGuard<()>>,
}

impl UsedImages {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code leaves the state inconsistent while it holds this lock.
        self.0.lock()
    }

    pub fn holds(&self, repository: &Repository, digest: &Digest) -> bool {
        self.lock().counts.contains_key(&(repository.clone(), *digest))
    }

    pub async fn turn(&self, key: &CachedKey) -> Turn {
        let turn = Arc::clone(self.lock().turns.entry(key.clone()).or_default());
        let held = turn.lock_owned().await;
        Turn { used: self.clone(), key: key.clone(), held: Some(held) }
    }
}

impl Images {
    pub(super) fn in_use(&self, repository: &Repository, digest: Digest) -> InUse {
        let image = (repository.clone(), digest);
        *self.shared.used.lock().counts.entry(image.clone()).or_default() += 1;
        InUse { used: self.shared.used.clone(), image }
    }
}

impl Drop for InUse {
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

impl Drop for Turn {
    fn drop(&mut self) {
        let mut inner = self.used.lock();
        self.held.take();
        // Only the table holds the lock, so nobody waits for it; a waiter would have a clone.
        if inner.turns.get(&self.key).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            inner.turns.remove(&self.key);
        }
    }
}
