//! Content on its way in.

use std::fs::{self, File, FileTimes};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use super::{BlobStore, new_file, sync_directory};
use crate::disk::{DiskClaim, KeptContent};
use crate::image::port::{BlobError, Blobs as _, IncomingBlob, Stored};
use crate::model::Digest;

/// Receives content in order, with a running sum. Blocking. Dropped before [`finish`](Self::finish),
/// it leaves nothing.
#[derive(Debug)]
pub struct Spool {
    store: BlobStore,
    file: Option<(File, PathBuf)>,
    sum: Sha256,
    size: u64,
    claim: Option<DiskClaim>,
}

impl Spool {
    pub(super) fn new(store: BlobStore, claim: Option<DiskClaim>) -> io::Result<Self> {
        let path = store.inner.uploads.join(format!("{:032x}", rand::random::<u128>()));
        let file = new_file(&path)?;
        let mut spool = Self::nowhere(store);
        spool.file = Some((file, path));
        spool.claim = claim;
        Ok(spool)
    }

    /// Sums up content that the store has.
    pub(super) fn nowhere(store: BlobStore) -> Self {
        Self { store, file: None, sum: Sha256::new(), size: 0, claim: None }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends. After an error the spool is of no further use: drop it.
    pub fn write(&mut self, content: &[u8]) -> Result<(), BlobError> {
        if let Some((file, _)) = &mut self.file {
            let more = content.len() as u64;
            match &self.claim {
                Some(claim) => claim.grow(more)?,
                None => self.store.check_free(more)?,
            }
            file.write_all(content)?;
        }
        self.sum.update(content);
        self.size += content.len() as u64;
        Ok(())
    }

    /// Makes the content a blob, durable when this returns, if it has this digest.
    pub fn finish(self, expected: &Digest) -> Result<Stored, BlobError> {
        let placed = self.place(expected)?;
        placed.settle()?;
        Ok(placed.stored)
    }

    /// Makes the content a blob, if it has this digest. Its bytes are durable when this returns, its name is when
    /// [`Placed::settle`] does.
    pub fn place(mut self, expected: &Digest) -> Result<Placed, BlobError> {
        let actual = Digest::from_sha256(self.sum.finalize_reset().into());
        if actual != *expected {
            return Err(BlobError::Mismatch { expected: *expected, actual });
        }
        let known = Stored { digest: actual, size: self.size, fresh: None };
        if self.store.touch(&actual)?.is_some() {
            return Ok(Placed { stored: known, directory: None });
        }
        let Some((file, path)) = &self.file else {
            // It was there when this began, and has been removed since.
            let reason = format!("blob {actual} was removed while it was received");
            return Err(BlobError::Io(io::Error::other(reason)));
        };
        let now = SystemTime::now();
        file.set_times(FileTimes::new().set_modified(now))?;
        file.sync_data()?;
        let target = self.store.path(&actual);
        {
            let _held = self.store.no_removal();
            fs::rename(path, &target)?;
        }
        self.file = None;
        if let Some(claim) = self.claim.take() {
            claim.keep(vec![(KeptContent::Blob(actual), self.size)]);
        }
        let directory = target.parent().map(Path::to_owned);
        Ok(Placed { stored: Stored { fresh: Some(now), ..known }, directory })
    }
}

impl IncomingBlob for Spool {
    fn write(&mut self, content: &[u8]) -> Result<(), BlobError> {
        Self::write(self, content)
    }

    fn finish(self: Box<Self>, expected: &Digest) -> Result<Stored, BlobError> {
        Self::finish(*self, expected)
    }
}

/// A blob that is there, and may not outlive a power cut yet.
#[must_use = "what is acknowledged must be durable"]
#[derive(Debug)]
pub struct Placed {
    stored: Stored,
    /// That it has a new name in; none for a blob that was there.
    directory: Option<PathBuf>,
}

impl Placed {
    /// Durable when this returns. Blocking.
    pub fn settle(&self) -> io::Result<()> {
        self.directory.as_deref().map_or(Ok(()), sync_directory)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Some((_, path)) = self.file.take()
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "an abandoned upload was not removed; the next start will");
        }
    }
}
