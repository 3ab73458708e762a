//! Open blob uploads.
//!
//! ```text
//! begin --> open --receive--> open --finish--> blob stored
//!             |  (any number of chunks, one at a time; a dropped connection leaves the upload open)
//!             '--> removed: cancelled, idle for too long, or its content could not be stored
//! ```
//!
//! Uploads are kept in memory: after a restart an upload is unknown, and its client starts again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::OwnedMutexGuard;

use super::blobs::BlobSpool;
use crate::model::Repository;

#[derive(Clone, Debug)]
pub struct UploadLimits {
    /// Maximum number of open uploads.
    pub total: usize,
    /// Maximum number of open uploads of one caller.
    pub per_caller: usize,
    /// Idle time after which an upload is dropped.
    pub idle_timeout: Duration,
    /// Time limit for waiting until the previous chunk of the same upload has ended.
    pub turn_timeout: Duration,
    /// Time limit for a stalled request body.
    pub stall_timeout: Duration,
    /// Maximum total size in bytes of the blobs of one manifest.
    pub max_image_bytes: u64,
}

impl Default for UploadLimits {
    fn default() -> Self {
        Self {
            total: 512,
            per_caller: 256,
            idle_timeout: Duration::from_secs(3600),
            turn_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(60),
            max_image_bytes: u64::MAX,
        }
    }
}

#[derive(Debug)]
pub(super) struct OpenUploads {
    pub(super) limits: UploadLimits,
    open: Mutex<HashMap<String, Arc<BlobUpload>>>,
}

/// A blob upload. Only its owner may continue it, and only in its repository.
#[derive(Debug)]
pub(super) struct BlobUpload {
    pub(super) id: String,
    repository: Repository,
    pub(super) owner: String,
    used_at: Mutex<Instant>,
    /// `None` once the upload has ended. Locked while a chunk is received.
    spool: Arc<tokio::sync::Mutex<Option<BlobSpool>>>,
}

/// Exclusive right to append to an upload.
pub(super) type BlobUploadGuard = OwnedMutexGuard<Option<BlobSpool>>;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooManyUploads;

impl OpenUploads {
    pub(super) fn new(limits: UploadLimits) -> Self {
        Self { limits, open: Mutex::new(HashMap::new()) }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, Arc<BlobUpload>>> {
        self.open.lock()
    }

    /// Checks that one more upload may begin. Called before its file is created; `begin` decides.
    pub(super) fn check(&self, owner: &str) -> Result<(), TooManyUploads> {
        self.check_among(&self.open(), owner)
    }

    fn check_among(
        &self,
        open: &HashMap<String, Arc<BlobUpload>>,
        owner: &str,
    ) -> Result<(), TooManyUploads> {
        let own = open.values().filter(|upload| upload.owner == owner).count();
        if open.len() < self.limits.total && own < self.limits.per_caller {
            Ok(())
        } else {
            Err(TooManyUploads)
        }
    }

    pub(super) fn begin(
        &self,
        repository: &Repository,
        owner: &str,
        spool: BlobSpool,
    ) -> Result<Arc<BlobUpload>, TooManyUploads> {
        let upload = Arc::new(BlobUpload {
            id: format!("{:032x}", rand::random::<u128>()),
            repository: repository.clone(),
            owner: owner.to_owned(),
            used_at: Mutex::new(Instant::now()),
            spool: Arc::new(tokio::sync::Mutex::new(Some(spool))),
        });
        // The check and the insertion share one lock, so that parallel calls cannot exceed a limit.
        let mut open = self.open();
        self.check_among(&open, owner)?;
        open.insert(upload.id.clone(), Arc::clone(&upload));
        Ok(upload)
    }

    /// Returns an open upload to a repository. The caller checks by the policy whether it may be continued.
    pub(super) fn find(&self, id: &str, repository: &Repository) -> Option<Arc<BlobUpload>> {
        self.open().get(id).filter(|upload| upload.repository == *repository).cloned()
    }

    /// Removes an upload. A chunk that is being received ends by itself.
    pub(super) fn end(&self, id: &str) {
        self.open().remove(id);
    }

    /// Removes and returns the uploads that have been idle for too long. Dropping them removes files: do that
    /// on a blocking thread.
    #[must_use = "dropping it removes files"]
    pub(super) fn expired(&self) -> Vec<Arc<BlobUpload>> {
        let mut open = self.open();
        let idle: Vec<String> = open
            .values()
            .filter(|upload| upload.idle() > self.limits.idle_timeout && upload.spool.try_lock().is_ok())
            .map(|upload| upload.id.clone())
            .collect();
        idle.iter().filter_map(|id| open.remove(id)).collect()
    }
}

impl BlobUpload {
    fn idle(&self) -> Duration {
        self.used_at.lock().elapsed()
    }

    pub(super) fn mark_used(&self) {
        *self.used_at.lock() = Instant::now();
    }

    /// Waits until no other chunk is being received. `None` if that takes longer than `limit`.
    pub(super) async fn lock(&self, limit: Duration) -> Option<BlobUploadGuard> {
        tokio::time::timeout(limit, Arc::clone(&self.spool).lock_owned()).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::super::blobs::BlobStore;
    use super::*;

    #[test]
    fn parallel_begins_do_not_exceed_the_limit_of_a_caller() {
        const CALLS: usize = 16;
        let root = tempfile::tempdir().unwrap();
        let store = BlobStore::open(root.path()).unwrap();
        let uploads = OpenUploads::new(UploadLimits { per_caller: 3, total: 8, ..UploadLimits::default() });
        let repository: Repository = "a/b".parse().unwrap();
        let barrier = Barrier::new(CALLS);
        let begin = |owner: &str| {
            let spool = store.spool().unwrap();
            barrier.wait();
            uploads.begin(&repository, owner, spool).is_ok()
        };
        for (owner, expected) in [("ann", 3), ("bob", 3), ("eve", 2)] {
            let begun = std::thread::scope(|scope| {
                let calls: Vec<_> = (0..CALLS).map(|_| scope.spawn(|| begin(owner))).collect();
                calls.into_iter().map(|call| call.join().unwrap()).filter(|&begun| begun).count()
            });
            assert_eq!(begun, expected, "{owner}");
        }
    }
}
