//! Blobs that are being received.

use std::fs::{self, File, FileTimes};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use super::integrity::FileStamp;
use super::{BlobStore, new_file, sync_directory};
use crate::disk::{DiskClaim, KeptContent};
use crate::image::port::{BlobError, BlobStorage as _, IncomingBlob, StoredBlob};
use crate::model::Digest;

/// Receives the content of a blob in order, and computes its digest. Blocking. Dropping it before
/// [`finish`](Self::finish) removes the content.
#[derive(Debug)]
pub struct BlobSpool {
    store: BlobStore,
    file: Option<(File, PathBuf)>,
    hasher: Sha256,
    size: u64,
    claim: Option<DiskClaim>,
}

impl BlobSpool {
    pub(super) fn new(store: BlobStore, claim: Option<DiskClaim>) -> io::Result<Self> {
        let path = store.directories.uploads.join(format!("{:032x}", rand::random::<u128>()));
        let file = new_file(&path)?;
        let mut spool = Self::digest_only(store);
        spool.file = Some((file, path));
        spool.claim = claim;
        Ok(spool)
    }

    /// Creates a spool that computes the digest and stores nothing, for content that the store has.
    pub(super) fn digest_only(store: BlobStore) -> Self {
        Self { store, file: None, hasher: Sha256::new(), size: 0, claim: None }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends content. After an error the spool can no longer be used and should be dropped.
    pub fn write(&mut self, content: &[u8]) -> Result<(), BlobError> {
        if let Some((file, _)) = &mut self.file {
            let more = content.len() as u64;
            match &self.claim {
                Some(claim) => claim.grow(more)?,
                None => self.store.check_free(more)?,
            }
            file.write_all(content)?;
        }
        self.hasher.update(content);
        self.size += content.len() as u64;
        Ok(())
    }

    /// Stores the content as a blob if it has this digest; it is durable when this returns.
    pub fn finish(self, expected: &Digest) -> Result<StoredBlob, BlobError> {
        let placed = self.place(expected)?;
        placed.make_durable()?;
        Ok(placed.stored)
    }

    /// Stores the content as a blob if it has this digest. Its bytes are durable when this returns; its name is
    /// durable when [`PlacedBlob::make_durable`] returns.
    pub fn place(mut self, expected: &Digest) -> Result<PlacedBlob, BlobError> {
        let actual = Digest::from_sha256(self.hasher.finalize_reset().into());
        if actual != *expected {
            return Err(BlobError::Mismatch { expected: *expected, actual });
        }
        let known = StoredBlob { digest: actual, size: self.size, fresh: None };
        if self.store.touch(&actual)?.is_some() {
            return Ok(PlacedBlob { stored: known, directory: None });
        }
        let Some((file, path)) = &self.file else {
            // The blob existed when the upload began and has been removed since.
            let reason = format!("blob {actual} was removed while it was received");
            return Err(BlobError::Io(io::Error::other(reason)));
        };
        let now = SystemTime::now();
        file.set_times(FileTimes::new().set_modified(now))?;
        file.sync_data()?;
        let target = self.store.path(&actual);
        {
            let _held = self.store.lock_removal();
            fs::rename(path, &target)?;
            self.store.directories.verified.insert(actual, FileStamp::of(&file.metadata()?));
            self.store.discard_quarantined(&actual);
        }
        self.file = None;
        if let Some(claim) = self.claim.take() {
            claim.keep(vec![(KeptContent::Blob(actual), self.size)]);
        }
        let directory = target.parent().map(Path::to_owned);
        Ok(PlacedBlob { stored: StoredBlob { fresh: Some(now), ..known }, directory })
    }
}

impl IncomingBlob for BlobSpool {
    fn write(&mut self, content: &[u8]) -> Result<(), BlobError> {
        Self::write(self, content)
    }

    fn finish(self: Box<Self>, expected: &Digest) -> Result<StoredBlob, BlobError> {
        Self::finish(*self, expected)
    }
}

/// A stored blob whose directory entry may not survive a power failure yet.
#[must_use = "what is acknowledged must be durable"]
#[derive(Debug)]
pub struct PlacedBlob {
    stored: StoredBlob,
    /// Directory that has a new entry; `None` if the blob already existed.
    directory: Option<PathBuf>,
}

impl PlacedBlob {
    /// Makes the directory entry durable. Blocking.
    pub fn make_durable(&self) -> io::Result<()> {
        self.directory.as_deref().map_or(Ok(()), sync_directory)
    }
}

impl Drop for BlobSpool {
    fn drop(&mut self) {
        if let Some((_, path)) = self.file.take()
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(
                path = %path.display(), %error,
                "failed to remove an abandoned upload; the next start removes it"
            );
        }
    }
}
