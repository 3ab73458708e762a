//! Uploads in progress.
//!
//! ```text
//! begin --> open --receive--> open --finish--> a blob
//!             |  (any number of pieces, one at a time; a dropped connection leaves it open)
//!             '--> gone: cancelled, idle too long, or its content could not be kept
//! ```
//!
//! They live in memory: after a restart an upload is unknown, and its client begins again.

use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedMutexGuard;

use super::blobs::Spool;
use crate::model::Repository;

#[derive(Clone, Debug)]
pub struct UploadLimits {
    /// Uploads open at a time.
    pub total: usize,
    /// Of these, by one caller.
    pub per_caller: usize,
    /// An upload that received nothing for so long is dropped.
    pub idle: Duration,
    /// How long the next piece waits for the last one to end.
    pub turn: Duration,
    /// How long a body may stall.
    pub stall: Duration,
    /// Bytes that the blobs of one manifest may have.
    pub image_bytes: u64,
}

impl Default for UploadLimits {
    fn default() -> Self {
        Self {
            total: 512,
            per_caller: 256,
            idle: Duration::from_secs(3600),
            turn: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            image_bytes: u64::MAX,
        }
    }
}

#[derive(Debug)]
pub(super) struct Uploads {
    pub(super) limits: UploadLimits,
    open: Mutex<HashMap<String, Arc<Upload>>>,
}

/// One upload; only its owner may go on with it, in its repository.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) id: String,
    repository: Repository,
    pub(super) owner: String,
    used_at: Mutex<Instant>,
    /// `None` once it has ended. Locked while a piece is received.
    spool: Arc<tokio::sync::Mutex<Option<Spool>>>,
}

/// The right to add to an upload.
pub(super) type Turn = OwnedMutexGuard<Option<Spool>>;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl Uploads {
    pub(super) fn new(limits: UploadLimits) -> Self {
        Self { limits, open: Mutex::new(HashMap::new()) }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, Arc<Upload>>> {
        self.open.lock()
    }

    /// Whether one more may begin. Asked before its file is made; `begin` decides.
    pub(super) fn check(&self, owner: &str) -> Result<(), TooMany> {
        let open = self.open();
        let own = open.values().filter(|upload| upload.owner == owner).count();
        if open.len() < self.limits.total && own < self.limits.per_caller { Ok(()) } else { Err(TooMany) }
    }

    pub(super) fn begin(
        &self,
        repository: &Repository,
        owner: &str,
        spool: Spool,
    ) -> Result<Arc<Upload>, TooMany> {
        self.check(owner)?;
        let upload = Arc::new(Upload {
            id: format!("{:032x}", rand::random::<u128>()),
            repository: repository.clone(),
            owner: owner.to_owned(),
            used_at: Mutex::new(Instant::now()),
            spool: Arc::new(tokio::sync::Mutex::new(Some(spool))),
        });
        let mut open = self.open();
        if open.len() >= self.limits.total {
            return Err(TooMany);
        }
        open.insert(upload.id.clone(), Arc::clone(&upload));
        Ok(upload)
    }

    /// An open upload to a repository. Whether the caller may go on with it, the policy says.
    pub(super) fn find(&self, id: &str, repository: &Repository) -> Option<Arc<Upload>> {
        self.open().get(id).filter(|upload| upload.repository == *repository).cloned()
    }

    /// Ends an upload. A piece that is being received ends by itself.
    pub(super) fn end(&self, id: &str) {
        self.open().remove(id);
    }

    /// Drops what has been idle too long. What it gives back removes files when dropped: do that on a
    /// blocking thread.
    #[must_use = "dropping it removes files"]
    pub(super) fn expired(&self) -> Vec<Arc<Upload>> {
        let mut open = self.open();
        let idle: Vec<String> = open
            .values()
            .filter(|upload| upload.idle() > self.limits.idle && upload.spool.try_lock().is_ok())
            .map(|upload| upload.id.clone())
            .collect();
        idle.iter().filter_map(|id| open.remove(id)).collect()
    }
}

impl Upload {
    fn idle(&self) -> Duration {
        self.used_at.lock().elapsed()
    }

    pub(super) fn used(&self) {
        *self.used_at.lock() = Instant::now();
    }

    /// Waits until no other piece is being received. `None` when it takes too long.
    pub(super) async fn turn(&self, limit: Duration) -> Option<Turn> {
        tokio::time::timeout(limit, Arc::clone(&self.spool).lock_owned()).await.ok()
    }
}
