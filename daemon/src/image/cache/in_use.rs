//! Which cached images builds use now, and whose turn it is to fetch one.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::super::port::cached::CachedKey;
use super::Images;
use crate::model::{Digest, Repository};

/// Shared by all handles on the room's images.
#[derive(Clone, Debug, Default)]
pub struct UsedImages(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// How many builds use an image.
    counts: HashMap<(Repository, Digest), usize>,
    turns: HashMap<CachedKey, Arc<AsyncMutex<()>>>,
}

/// Keeps a cached image from being freed until it is dropped.
#[derive(Debug)]
pub struct InUse {
    used: UsedImages,
    image: (Repository, Digest),
}

/// One caller at a time looks for an image and fetches it.
pub struct Turn {
    used: UsedImages,
    key: CachedKey,
    held: Option<OwnedMutexGuard<()>>,
}

impl UsedImages {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under this lock leaves it half changed.
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
        // One in the table and none elsewhere: nobody waits. A waiter has a clone of its own.
        if inner.turns.get(&self.key).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            inner.turns.remove(&self.key);
        }
    }
}
