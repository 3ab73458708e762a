//! Verification of stored content: a blob is hashed before or while it leaves for the first time after a start of the
//! daemon, and in the background.
//!
//! ```text
//! received or verified by this run, and the file not changed since --> sent as it is
//! otherwise:  small, or a part is wanted                           --> hashed first, then sent
//!             large, and all of it is wanted                       --> hashed while it is sent; the last bytes wait
//! another digest --> <root>/quarantine/<64 digits>: the blob no longer exists, and may be sent again
//! ```

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::sweep::digest_of_file;
use super::{BlobStore, none_if_missing};
use crate::image::port::BlobStorage as _;
use crate::model::Digest;
use crate::task;

/// Size up to which a blob is hashed before it is sent.
const HASHED_FIRST_BYTES: u64 = 1 << 20;
/// Bytes that are hashed at a time.
const CHUNK_BYTES: u64 = 4 << 20;
/// Number of blobs in each of the two generations of remembered blobs.
const GENERATION: usize = 32 * 1024;
/// Maximum number of quarantined blobs that are named.
const MAX_NAMED: usize = 100;
/// Time from the start of the daemon to the first pass of the scrub, and from one pass to the next.
const FIRST_PASS_AFTER: Duration = Duration::from_secs(600);
const PASS_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// State of a file. A file that is written to has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileStamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl FileStamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Self { inode: metadata.ino(), size: metadata.len(), changed }
    }
}

/// Blobs that this run has verified, with the state of their files. When a generation is full, the one before it is
/// forgotten.
#[derive(Debug, Default)]
pub(super) struct VerifiedBlobs(Mutex<[HashMap<Digest, FileStamp>; 2]>);

impl VerifiedBlobs {
    pub(super) fn insert(&self, digest: Digest, stamp: FileStamp) {
        let mut generations = self.0.lock();
        if generations[0].len() >= GENERATION {
            generations.swap(0, 1);
            generations[0].clear();
        }
        generations[0].insert(digest, stamp);
    }

    pub(super) fn contains(&self, digest: &Digest, stamp: FileStamp) -> bool {
        let generations = self.0.lock();
        generations.iter().find_map(|known| known.get(digest)) == Some(&stamp)
    }
}

/// A blob that is to be sent.
pub struct OpenedBlob {
    pub file: File,
    pub size: u64,
    /// Check that the sender completes before the last bytes; `None` if the content is verified.
    pub check: Option<BlobCheck>,
}

/// Check of a blob whose content passes by in order.
pub struct BlobCheck {
    store: BlobStore,
    digest: Digest,
    stamp: FileStamp,
    hasher: Sha256,
}

impl BlobCheck {
    pub fn update(&mut self, content: &[u8]) {
        self.hasher.update(content);
    }

    /// Reports whether the content was that of the blob. Content that was not is quarantined. Blocking.
    pub fn finish(self) -> io::Result<bool> {
        let Self { store, digest, stamp, hasher } = self;
        let actual = Digest::from_sha256(hasher.finalize().into());
        if actual == digest {
            store.directories.verified.insert(digest, stamp);
            return Ok(true);
        }
        let _held = store.lock_removal();
        let path = store.path(&digest);
        // Another file may have taken its place meanwhile.
        let current = none_if_missing(fs::metadata(&path))?;
        if current.is_some_and(|current| current.ino() == stamp.inode) {
            fs::rename(&path, store.directories.quarantine.join(digest.hex()))?;
            metrics::counter!("hearth_registry_damaged_blobs_total").increment(1);
            tracing::error!(blob.digest = %digest, bytes = stamp.size, %actual, "blob is damaged on the disk; quarantined it");
        }
        Ok(false)
    }
}

/// Result of the verification of one blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobState {
    Missing,
    Intact {
        bytes: u64,
    },
    /// It was quarantined.
    Damaged {
        bytes: u64,
    },
}

impl BlobStore {
    /// Opens a blob and keeps it from the sweep. Without `whole`, the content is verified when this returns. `None` if
    /// there is no such blob, or it was found damaged and quarantined. Blocking.
    pub fn open_checked(&self, digest: &Digest, whole: bool) -> io::Result<Option<OpenedBlob>> {
        let Some(size) = self.touch(digest)? else { return Ok(None) };
        let Some((mut file, mut check)) = self.begin_check(digest)? else { return Ok(None) };
        if self.directories.verified.contains(digest, check.stamp) {
            return Ok(Some(OpenedBlob { file, size, check: None }));
        }
        if whole && size > HASHED_FIRST_BYTES {
            return Ok(Some(OpenedBlob { file, size, check: Some(check) }));
        }
        let mut chunk = vec![0; usize::try_from(CHUNK_BYTES.min(size)).unwrap_or(0).max(1)];
        loop {
            match file.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => check.update(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        file.rewind()?;
        Ok(check.finish()?.then_some(OpenedBlob { file, size, check: None }))
    }

    fn begin_check(&self, digest: &Digest) -> io::Result<Option<(File, BlobCheck)>> {
        let Some(file) = self.open(digest)? else { return Ok(None) };
        let stamp = FileStamp::of(&file.metadata()?);
        let check = BlobCheck { store: self.clone(), digest: *digest, stamp, hasher: Sha256::new() };
        Ok(Some((file, check)))
    }

    /// Verifies a blob, whatever is known of it, with at most this rate; 0 is as fast as possible.
    pub async fn verify(&self, digest: Digest, bytes_per_second: u64) -> io::Result<BlobState> {
        let store = self.clone();
        let opened = task::blocking("verify blob", move || store.begin_check(&digest)).await;
        let Some((mut file, mut check)) = opened.map_err(io::Error::other)?? else {
            return Ok(BlobState::Missing);
        };
        let bytes = check.stamp.size;
        loop {
            let read = task::blocking("verify blob", move || {
                let mut chunk = Vec::new();
                (&file).take(CHUNK_BYTES).read_to_end(&mut chunk)?;
                check.update(&chunk);
                Ok::<_, io::Error>((file, check, chunk.len()))
            });
            let count;
            (file, check, count) = read.await.map_err(io::Error::other)??;
            if count == 0 {
                break;
            }
            if let Some(millis) = (count as u64 * 1000).checked_div(bytes_per_second) {
                tokio::time::sleep(Duration::from_millis(millis)).await;
            }
        }
        let finished = task::blocking("verify blob", move || check.finish()).await;
        Ok(match finished.map_err(io::Error::other)?? {
            true => BlobState::Intact { bytes },
            false => BlobState::Damaged { bytes },
        })
    }

    /// Returns the digests of all blobs. Blocking.
    pub fn digests(&self) -> io::Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for directory in fs::read_dir(&self.directories.blobs)? {
            for entry in fs::read_dir(directory?.path())? {
                digests.extend(digest_of_file(&entry?.file_name()));
            }
        }
        Ok(digests)
    }

    /// Returns the first quarantined blobs that were not sent again. Blocking.
    pub fn quarantined(&self) -> io::Result<Vec<Digest>> {
        let mut digests = Vec::new();
        for entry in fs::read_dir(&self.directories.quarantine)? {
            digests.extend(digest_of_file(&entry?.file_name()));
        }
        digests.sort_unstable();
        digests.truncate(MAX_NAMED);
        Ok(digests)
    }

    /// Removes the damaged content of a blob that was sent again, or that nothing needs.
    pub(super) fn discard_quarantined(&self, digest: &Digest) {
        if let Err(error) = none_if_missing(fs::remove_file(self.directories.quarantine.join(digest.hex()))) {
            tracing::warn!(%error, blob.digest = %digest, "failed to remove a quarantined blob; the next sweep retries");
        }
    }
}

/// Verifies all blobs once a day, with at most this rate. Does nothing if the rate is 0.
pub async fn scrub_loop(store: BlobStore, bytes_per_second: u64) {
    if bytes_per_second == 0 {
        return;
    }
    tokio::time::sleep(FIRST_PASS_AFTER).await;
    loop {
        if let Err(error) = scrub_once(&store, bytes_per_second).await {
            tracing::warn!(%error, "failed to verify the stored blobs; the next pass retries");
        }
        tokio::time::sleep(PASS_INTERVAL).await;
    }
}

async fn scrub_once(store: &BlobStore, bytes_per_second: u64) -> io::Result<()> {
    let listed = store.clone();
    let digests =
        task::blocking("list blobs", move || listed.digests()).await.map_err(io::Error::other)??;
    let (mut blobs, mut damaged) = (0u64, 0u64);
    for digest in digests {
        match store.verify(digest, bytes_per_second).await {
            Ok(BlobState::Missing) => {}
            Ok(BlobState::Intact { .. }) => blobs += 1,
            Ok(BlobState::Damaged { .. }) => damaged += 1,
            Err(error) => tracing::error!(%error, blob.digest = %digest, "failed to read a blob"),
        }
    }
    tracing::info!(blobs, damaged, "stored blobs were verified");
    Ok(())
}

#[cfg(test)]
mod tests;
