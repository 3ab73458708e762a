//! Blob store: content by digest, one file for each blob.
//!
//! ```text
//! <root>/blobs/sha256/<first two digits>/<64 digits>    complete, verified, never written again
//! <root>/uploads/<random>                               a spool: a blob that is being received
//! <root>/quarantine/<64 digits>                         content that no longer has its digest (module `integrity`)
//!
//! spool --write*--> spool --finish--> digest differs:    the spool is removed
//!                                     blob exists:       the spool is removed, the blob is touched
//!                                     otherwise:         fsync, rename, fsync of the directory
//! ```
//!
//! Dropping a spool removes its file; the spools of a daemon that was killed are removed at the next start.

mod integrity;
mod spool;
mod sweep;

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::{Mutex, MutexGuard};

pub use integrity::{BlobCheck, BlobState, OpenedBlob, scrub_loop};
pub use spool::{BlobSpool, PlacedBlob};

use integrity::{FileStamp, VerifiedBlobs};

use crate::disk::{DiskError, DiskLedger, KeptContent, UploadKind};
use crate::image::port::{BlobError, BlobStorage, IncomingBlob, StoredBlob, SweptBlobs};
use crate::model::Digest;

/// Number of bytes that are read at a time when content is stored from a reader.
const READ_CHUNK_BYTES: usize = 256 * 1024;

/// A handle on the content store; cheap to clone.
#[derive(Clone, Debug)]
pub struct BlobStore {
    directories: Arc<BlobDirectories>,
    /// Accounts the content that callers store, and enforces the free space on the disk.
    disk: Option<DiskLedger>,
}

#[derive(Debug)]
struct BlobDirectories {
    blobs: PathBuf,
    uploads: PathBuf,
    quarantine: PathBuf,
    verified: VerifiedBlobs,
    /// Held while a blob is touched or added, and while the sweep examines and removes one.
    removal: Mutex<()>,
}

impl BlobStore {
    /// Opens the store below `root`, creates it if needed, and removes the uploads that a killed daemon left
    /// behind. Blocking.
    pub fn open(root: &Path) -> io::Result<Self> {
        let blobs = root.join("blobs").join("sha256");
        let (uploads, quarantine) = (root.join("uploads"), root.join("quarantine"));
        let mut directories = fs::DirBuilder::new();
        directories.recursive(true).mode(0o700);
        directories.create(&uploads)?;
        directories.create(&quarantine)?;
        // All are created now: a directory into which a blob is renamed must itself be durable.
        for first in 0..=255u8 {
            directories.create(blobs.join(format!("{first:02x}")))?;
        }
        for directory in [&blobs, &root.join("blobs"), root] {
            sync_directory(directory)?;
        }
        for stale in fs::read_dir(&uploads)? {
            fs::remove_file(stale?.path())?;
        }
        let inner = BlobDirectories {
            blobs,
            uploads,
            quarantine,
            verified: VerifiedBlobs::default(),
            removal: Mutex::new(()),
        };
        Ok(Self { directories: Arc::new(inner), disk: None })
    }

    /// Accounts the content that is stored from now on.
    #[must_use]
    pub fn with_disk_shares(self, disk: DiskLedger) -> Self {
        Self { disk: Some(disk), ..self }
    }

    /// Creates a spool for content whose digest is checked when all of it has been received.
    pub fn spool(&self) -> io::Result<BlobSpool> {
        BlobSpool::new(self.clone(), None)
    }

    /// Like [`spool`](Self::spool), for content that counts towards the share of `owner`. `name` describes it.
    pub fn spool_for_owner(&self, owner: &str, name: &str) -> Result<BlobSpool, BlobError> {
        let claim = match &self.disk {
            Some(disk) => Some(disk.begin(owner, UploadKind::Blob, name, &self.directories.uploads)?),
            None => None,
        };
        Ok(BlobSpool::new(self.clone(), claim)?)
    }

    fn check_free(&self, more: u64) -> Result<(), BlobError> {
        match &self.disk {
            Some(disk) => Ok(disk.check_free(&self.directories.uploads, more)?),
            None => Ok(()),
        }
    }

    /// Ends the accounting of a blob that was removed.
    fn forget_share(&self, digest: &Digest) {
        if let Some(disk) = &self.disk {
            disk.forget(&KeptContent::Blob(*digest));
        }
    }

    /// Creates a spool that only verifies the digest if the blob exists, which proves that the caller has the content.
    fn spool_unless_stored(&self, digest: &Digest) -> io::Result<BlobSpool> {
        match self.touch_with_time(digest)? {
            Some(_) => Ok(BlobSpool::digest_only(self.clone())),
            None => self.spool(),
        }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.directories.blobs.join(&hex[..2]).join(hex)
    }

    fn lock_removal(&self) -> MutexGuard<'_, ()> {
        self.directories.removal.lock()
    }

    /// Sets the blob's modification time to now; returns that time and the size. `None` if the blob does not exist.
    fn touch_with_time(&self, digest: &Digest) -> io::Result<Option<(SystemTime, u64)>> {
        let _held = self.lock_removal();
        let Some(file) = none_if_missing(OpenOptions::new().read(true).open(self.path(digest)))? else {
            return Ok(None);
        };
        let verified = &self.directories.verified;
        let is_verified = verified.contains(digest, FileStamp::of(&file.metadata()?));
        let now = SystemTime::now();
        file.set_times(FileTimes::new().set_modified(now))?;
        let touched = file.metadata()?;
        if is_verified {
            verified.insert(*digest, FileStamp::of(&touched));
        }
        Ok(Some((now, touched.len())))
    }
}

impl BlobStorage for BlobStore {
    fn open(&self, digest: &Digest) -> io::Result<Option<File>> {
        none_if_missing(File::open(self.path(digest)))
    }

    fn open_verified(&self, digest: &Digest) -> io::Result<Option<File>> {
        Ok(self.open_checked(digest, false)?.map(|opened| opened.file))
    }

    fn size(&self, digest: &Digest) -> io::Result<Option<u64>> {
        Ok(none_if_missing(fs::metadata(self.path(digest)))?.map(|metadata| metadata.len()))
    }

    fn touch(&self, digest: &Digest) -> io::Result<Option<u64>> {
        Ok(self.touch_with_time(digest)?.map(|(_, size)| size))
    }

    fn put(&self, digest: &Digest, content: &mut dyn io::Read) -> Result<StoredBlob, BlobError> {
        let mut spool = self.spool_unless_stored(digest)?;
        let mut buffer = vec![0; READ_CHUNK_BYTES];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => spool.write(&buffer[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(BlobError::Io(error)),
            }
        }
        spool.finish(digest)
    }

    fn receive(&self, digest: &Digest, owner: &str, name: &str) -> Result<Box<dyn IncomingBlob>, BlobError> {
        Ok(Box::new(match self.touch_with_time(digest)? {
            Some(_) => BlobSpool::digest_only(self.clone()),
            None => self.spool_for_owner(owner, name)?,
        }))
    }

    fn scratch_file(&self) -> io::Result<(File, PathBuf)> {
        let path = self.directories.uploads.join(format!("{:032x}", rand::random::<u128>()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        fs::remove_file(&path)?;
        Ok((file, self.directories.uploads.clone()))
    }

    fn undo_put(&self, stored: &StoredBlob) -> io::Result<()> {
        let Some(fresh) = stored.fresh else { return Ok(()) };
        let path = self.path(&stored.digest);
        let _held = self.lock_removal();
        match none_if_missing(fs::metadata(&path))? {
            Some(metadata) if metadata.modified()? == fresh => {
                fs::remove_file(&path)?;
                self.forget_share(&stored.digest);
            }
            _ => {}
        }
        Ok(())
    }

    fn sweep(&self, live: &std::collections::HashSet<Digest>, before: SystemTime) -> io::Result<SweptBlobs> {
        sweep::sweep(self, live, before)
    }
}

impl From<DiskError> for BlobError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Quota { .. } | DiskError::ImageTooLarge { .. } => Self::Quota(error.to_string()),
            DiskError::NoSpace { .. } => Self::DiskFull,
            DiskError::Io(error) => error.into(),
        }
    }
}

/// Turns the error "not found" into `None`.
fn none_if_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests;
