//! Disk quotas: a limit for each caller, and space that stays free. One ledger covers all uploads: blobs of the
//! registry, files of storage, archives.
//!
//! ```text
//! begin --> unfinished --grow*--> keep: its bytes are content, charged to the caller as long as it exists
//!                         '-----> dropped: nothing is charged
//! ```
//!
//! A blob is charged to the caller who uploaded it first, a file to the caller who wrote it last. The ledger is a
//! journal beside the content; a lost line charges too little, never too much. [`DiskLedger::compare`] detects content
//! that was removed without an update of the ledger.

mod full_retry;
mod journal;
mod space;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use crate::model::Digest;
pub use full_retry::{is_caused_by_full_disk, is_disk_full, write_with_retry};
use journal::LedgerJournal;
pub use space::{FreeSpace, SpaceLevel, SpaceWatch};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLimits {
    /// Maximum number of bytes that one caller may hold.
    pub per_caller: u64,
    /// Maximum size of one blob or archive of an image in bytes.
    pub per_image: u64,
    /// Bytes that stay free on a file system.
    pub min_free: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(
        "one caller may hold {limit} bytes of images and files in this room, and `{caller}` would hold more"
    )]
    Quota { caller: String, limit: u64 },
    #[error("one image may have {limit} bytes in this room, and this has more")]
    ImageTooLarge { limit: u64 },
    #[error("no space is left for uploads: {free} bytes of the disk are free, and {floor} must stay so")]
    NoSpace { free: u64, floor: u64 },
    #[error("free space: {0}")]
    Io(#[from] io::Error),
}

/// Kind of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadKind {
    Blob,
    File,
    Archive,
}

/// Content that is charged to a caller.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeptContent {
    Blob(Digest),
    /// Path in room or project storage.
    RoomFile(PathBuf),
    ProjectFile(PathBuf),
}

/// Upload that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfinishedUpload {
    pub caller: String,
    pub kind: UploadKind,
    /// Repository or path.
    pub name: String,
    pub bytes: u64,
    pub age: Duration,
}

/// Bytes of a caller's completed uploads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptBytes {
    pub images: u64,
    pub files: u64,
}

/// Handle to the ledger; cheap to clone.
#[derive(Clone, Debug)]
pub struct DiskLedger(Arc<DiskLedgerShared>);

#[derive(Debug)]
struct DiskLedgerShared {
    limits: DiskLimits,
    ledger: Mutex<LedgerState>,
}

#[derive(Debug)]
struct LedgerState {
    unfinished: BTreeMap<u64, OpenUpload>,
    kept: HashMap<KeptContent, KeptEntry>,
    /// Bytes of both, by caller.
    held: HashMap<String, u64>,
    next: u64,
    journal: LedgerJournal,
}

#[derive(Debug)]
struct OpenUpload {
    caller: String,
    kind: UploadKind,
    name: String,
    bytes: u64,
    started_at: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeptEntry {
    caller: String,
    bytes: u64,
}

/// Claim for the bytes of an upload. Dropping it releases them.
#[derive(Debug)]
pub struct DiskClaim {
    shares: DiskLedger,
    number: u64,
    caller: String,
    /// Directory on the file system that is written to.
    directory: PathBuf,
}

impl DiskLedger {
    /// Reads the ledger at `path`, or creates one. Blocking, like all methods.
    pub fn open(path: &Path, limits: DiskLimits) -> io::Result<Self> {
        let (journal, kept) = LedgerJournal::open(path)?;
        let mut held = HashMap::new();
        for KeptEntry { caller, bytes } in kept.values() {
            *held.entry(caller.clone()).or_default() += bytes;
        }
        let ledger = LedgerState { unfinished: BTreeMap::new(), kept, held, next: 0, journal };
        Ok(Self(Arc::new(DiskLedgerShared { limits, ledger: Mutex::new(ledger) })))
    }

    /// Starts an upload of `caller`, which is written somewhere below `directory`.
    pub fn begin(
        &self,
        caller: &str,
        kind: UploadKind,
        name: &str,
        directory: &Path,
    ) -> Result<DiskClaim, DiskError> {
        self.check_free(directory, 0)?;
        let mut ledger = self.ledger();
        if ledger.bytes_of(caller) >= self.0.limits.per_caller {
            return Err(self.over_quota(caller));
        }
        ledger.next += 1;
        let number = ledger.next;
        let open = OpenUpload {
            caller: caller.to_owned(),
            kind,
            name: name.to_owned(),
            bytes: 0,
            started_at: Instant::now(),
        };
        ledger.unfinished.insert(number, open);
        drop(ledger);
        let (caller, directory) = (caller.to_owned(), directory.to_owned());
        Ok(DiskClaim { shares: self.clone(), number, caller, directory })
    }

    /// Fails if writing `more` bytes would leave less free space than the minimum.
    pub fn check_free(&self, directory: &Path, more: u64) -> Result<(), DiskError> {
        let disk = rustix::fs::statvfs(directory).map_err(io::Error::from)?;
        let (free, floor) = (disk.f_bavail.saturating_mul(disk.f_frsize), self.0.limits.min_free);
        if free < floor.saturating_add(more) { Err(DiskError::NoSpace { free, floor }) } else { Ok(()) }
    }

    /// Stops charging content that was removed.
    pub fn forget(&self, content: &KeptContent) {
        self.ledger().set(content, None);
    }

    /// Stops charging a file, or a directory with everything below it.
    pub fn forget_below(&self, content: &KeptContent) {
        let mut ledger = self.ledger();
        let gone: Vec<_> = ledger.kept.keys().filter(|kept| kept.is_below(content)).cloned().collect();
        gone.iter().for_each(|gone| ledger.set(gone, None));
    }

    /// Compares the ledger with the stored content: `size` returns the bytes of content, or `None` if it was removed.
    pub fn compare(&self, size: impl Fn(&KeptContent) -> io::Result<Option<u64>>) -> io::Result<()> {
        let known: Vec<_> =
            self.ledger().kept.iter().map(|(name, kept)| (name.clone(), kept.clone())).collect();
        for (name, kept) in known {
            let found = size(&name)?;
            if found == Some(kept.bytes) {
                continue;
            }
            let mut ledger = self.ledger();
            // A concurrent write has updated the entry.
            if ledger.kept.get(&name) == Some(&kept) {
                ledger.set(&name, found.map(|bytes| KeptEntry { bytes, ..kept }).as_ref());
            }
        }
        let LedgerState { journal, kept, .. } = &mut *self.ledger();
        journal.rewrite(kept)
    }

    pub fn unfinished(&self) -> Vec<UnfinishedUpload> {
        let unfinished_upload = |open: &OpenUpload| UnfinishedUpload {
            caller: open.caller.clone(),
            kind: open.kind,
            name: open.name.clone(),
            bytes: open.bytes,
            age: open.started_at.elapsed(),
        };
        self.ledger().unfinished.values().map(unfinished_upload).collect()
    }

    pub fn kept(&self) -> BTreeMap<String, KeptBytes> {
        let mut all: BTreeMap<String, KeptBytes> = BTreeMap::new();
        for (name, kept) in &self.ledger().kept {
            let of_caller = all.entry(kept.caller.clone()).or_default();
            match name {
                KeptContent::Blob(_) => of_caller.images += kept.bytes,
                KeptContent::RoomFile(_) | KeptContent::ProjectFile(_) => of_caller.files += kept.bytes,
            }
        }
        all
    }

    pub fn limits(&self) -> DiskLimits {
        self.0.limits
    }

    fn over_quota(&self, caller: &str) -> DiskError {
        DiskError::Quota { caller: caller.to_owned(), limit: self.0.limits.per_caller }
    }

    fn ledger(&self) -> MutexGuard<'_, LedgerState> {
        // A panic between two sums leaves them wrong by one upload until the next start.
        self.0.ledger.lock()
    }
}

impl KeptContent {
    fn is_below(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::RoomFile(path), Self::RoomFile(top))
            | (Self::ProjectFile(path), Self::ProjectFile(top)) => path.starts_with(top),
            _ => self == other,
        }
    }
}

impl LedgerState {
    fn bytes_of(&self, caller: &str) -> u64 {
        self.held.get(caller).copied().unwrap_or_default()
    }

    fn add(&mut self, caller: &str, bytes: u64) {
        *self.held.entry(caller.to_owned()).or_default() += bytes;
    }

    fn take(&mut self, caller: &str, bytes: u64) {
        if let Some(held) = self.held.get_mut(caller) {
            *held = held.saturating_sub(bytes);
            if *held == 0 {
                self.held.remove(caller);
            }
        }
    }

    fn set(&mut self, content: &KeptContent, kept: Option<&KeptEntry>) {
        let before = match kept {
            Some(kept) => {
                self.add(&kept.caller, kept.bytes);
                self.kept.insert(content.clone(), kept.clone())
            }
            None => self.kept.remove(content),
        };
        if let Some(KeptEntry { caller, bytes }) = before {
            self.take(&caller, bytes);
        } else if kept.is_none() {
            return;
        }
        if let Err(error) = self.journal.note(content, kept) {
            tracing::warn!(%error, "failed to write the disk ledger; the next comparison repairs it");
        }
    }
}

impl DiskClaim {
    /// Claims more bytes, which are about to be written.
    pub fn grow(&self, more: u64) -> Result<(), DiskError> {
        self.shares.check_free(&self.directory, more)?;
        let mut ledger = self.shares.ledger();
        let DiskLimits { per_image, .. } = self.shares.0.limits;
        if ledger
            .unfinished
            .get(&self.number)
            .is_some_and(|open| open.kind != UploadKind::File && open.bytes.saturating_add(more) > per_image)
        {
            return Err(DiskError::ImageTooLarge { limit: per_image });
        }
        if ledger.bytes_of(&self.caller).saturating_add(more) > self.shares.0.limits.per_caller {
            return Err(self.shares.over_quota(&self.caller));
        }
        ledger.add(&self.caller, more);
        if let Some(open) = ledger.unfinished.get_mut(&self.number) {
            open.bytes += more;
        }
        Ok(())
    }

    /// Charges this content to the caller in place of the upload. Content that existed before stays charged to the
    /// caller who uploaded it.
    pub fn keep(self, content: Vec<(KeptContent, u64)>) {
        let mut ledger = self.shares.ledger();
        for (name, bytes) in content {
            ledger.set(&name, Some(&KeptEntry { caller: self.caller.clone(), bytes }));
        }
    }
}

impl Drop for DiskClaim {
    fn drop(&mut self) {
        let mut ledger = self.shares.ledger();
        if let Some(open) = ledger.unfinished.remove(&self.number) {
            ledger.take(&open.caller, open.bytes);
        }
    }
}

#[cfg(test)]
mod tests;
