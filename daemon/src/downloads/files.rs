//! Downloaded files on disk: content by its sha256, and a record of the last fetch for each URL.
//!
//! ```text
//! <directory>/content/<sha256>      written as a draft, renamed when complete
//!            /urls/<sha256 of URL>  a record as JSON
//!            /drafts/               emptied at each start
//! ```

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::{DownloadError, blocking_io};
use crate::disk::FreeSpace;
use crate::model::Digest;

/// Result of the last fetch of a URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UrlRecord {
    pub(super) digest: Digest,
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
    pub(super) used: Timestamp,
}

/// Handle to the files on disk; cheap to clone.
#[derive(Clone)]
pub(super) struct DownloadFiles {
    directory: Arc<PathBuf>,
    max_bytes: u64,
    min_free: u64,
    url_locks: Arc<Mutex<HashMap<String, Arc<AsyncMutex<()>>>>>,
}

/// Lock on one URL while it is fetched; other requests for the same URL wait.
pub(super) struct UrlLock {
    files: DownloadFiles,
    url: String,
    held: Option<OwnedMutexGuard<()>>,
}

/// A file that is being written. Dropping it removes the file.
pub(super) struct DownloadDraft {
    files: DownloadFiles,
    file: tempfile::NamedTempFile,
    sum: Sha256,
}

fn hex(digest: &Digest) -> String {
    let text = digest.to_string();
    text.split_once(':').map_or_else(|| text.clone(), |(_, hex)| hex.to_owned())
}

impl DownloadFiles {
    pub(super) fn open(directory: PathBuf, max_bytes: u64, min_free: u64) -> io::Result<Self> {
        let drafts = directory.join("drafts");
        if drafts.exists() {
            fs::remove_dir_all(&drafts)?;
        }
        for part in ["content", "urls", "drafts"] {
            fs::create_dir_all(directory.join(part))?;
        }
        Ok(Self { directory: Arc::new(directory), max_bytes, min_free, url_locks: Arc::default() })
    }

    fn content(&self, digest: &Digest) -> PathBuf {
        self.directory.join("content").join(hex(digest))
    }

    fn record(&self, url: &str) -> PathBuf {
        let name = Digest::from_sha256(Sha256::digest(url.as_bytes()).into());
        self.directory.join("urls").join(hex(&name))
    }

    pub(super) async fn lock_url(&self, url: &str) -> UrlLock {
        let turn = {
            let mut turns = self.url_locks.lock();
            Arc::clone(turns.entry(url.to_owned()).or_default())
        };
        let held = turn.lock_owned().await;
        UrlLock { files: self.clone(), url: url.to_owned(), held: Some(held) }
    }

    /// Returns the record of a URL if its content still exists.
    pub(super) async fn find_record(&self, url: &str) -> Result<Option<UrlRecord>, DownloadError> {
        let (files, path) = (self.clone(), self.record(url));
        blocking_io(move || {
            let text = match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                text => text?,
            };
            // A record that cannot be read is treated as missing.
            let record = serde_json::from_slice::<UrlRecord>(&text).ok();
            Ok(record.filter(|record| files.content(&record.digest).exists()))
        })
        .await
    }

    /// Saves the record of a URL, and evicts content beyond the size limit.
    pub(super) async fn save_record(&self, url: &str, record: UrlRecord) -> Result<(), DownloadError> {
        let (files, path) = (self.clone(), self.record(url));
        blocking_io(move || {
            let record = UrlRecord { used: Timestamp::now(), ..record };
            let mut draft = tempfile::NamedTempFile::new_in(files.directory.join("drafts"))?;
            draft.write_all(&serde_json::to_vec(&record)?)?;
            draft.persist(path).map_err(|error| error.error)?;
            files.evict(&record.digest)
        })
        .await
    }

    /// Opens the file of this content and returns it with its size. The file stays readable after eviction.
    pub(super) async fn open_content(&self, digest: &Digest) -> Result<(File, u64), DownloadError> {
        let path = self.content(digest);
        blocking_io(move || {
            let file = File::open(path)?;
            let size = file.metadata()?.len();
            Ok((file, size))
        })
        .await
    }

    pub(super) fn draft(&self) -> Result<DownloadDraft, DownloadError> {
        let file = tempfile::NamedTempFile::new_in(self.directory.join("drafts"))?;
        Ok(DownloadDraft { files: self.clone(), file, sum: Sha256::new() })
    }

    /// Removes the least recently used content beyond the size limit, except for `newest`.
    fn evict(&self, newest: &Digest) -> io::Result<()> {
        let mut last_used: HashMap<String, Timestamp> = HashMap::new();
        let mut records = Vec::new();
        for entry in fs::read_dir(self.directory.join("urls"))? {
            let path = entry?.path();
            match serde_json::from_slice::<UrlRecord>(&fs::read(&path)?) {
                Ok(record) => {
                    let name = hex(&record.digest);
                    let used = last_used.entry(name.clone()).or_insert(record.used);
                    *used = (*used).max(record.used);
                    records.push((path, name));
                }
                Err(_) => fs::remove_file(path)?,
            }
        }
        let mut content = Vec::new();
        for entry in fs::read_dir(self.directory.join("content"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let used = last_used.get(&name).copied().unwrap_or(Timestamp::MIN);
            content.push((used, entry.metadata()?.len(), name, entry.path()));
        }
        content.sort();
        let mut left: u64 = content.iter().map(|(_, size, ..)| size).sum();
        for (_, size, name, path) in content {
            if left <= self.max_bytes {
                break;
            }
            if name == hex(newest) {
                continue;
            }
            fs::remove_file(path)?;
            for (record, _) in records.iter().filter(|(_, of)| *of == name) {
                fs::remove_file(record)?;
            }
            left = left.saturating_sub(size);
        }
        Ok(())
    }
}

impl Drop for UrlLock {
    fn drop(&mut self) {
        let mut turns = self.files.url_locks.lock();
        self.held.take();
        // Each waiting request holds a clone of its own.
        if turns.get(&self.url).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            turns.remove(&self.url);
        }
    }
}

impl DownloadDraft {
    /// Appends a chunk. Fails if less than the minimum free disk space would remain.
    pub(super) async fn write(mut self, chunk: Bytes) -> Result<Self, DownloadError> {
        blocking_io(move || {
            let space = FreeSpace::of(&self.files.directory, self.files.min_free)?;
            if space.free < space.floor.saturating_add(chunk.len() as u64) {
                return Ok(Err(DownloadError::NoSpace { free: space.free, floor: space.floor }));
            }
            self.sum.update(&chunk);
            self.file.write_all(&chunk)?;
            Ok(Ok(self))
        })
        .await?
    }

    /// Stores the written file under its sha256 and returns that.
    pub(super) async fn commit(self) -> Result<Digest, DownloadError> {
        blocking_io(move || {
            let digest = Digest::from_sha256(self.sum.finalize().into());
            self.file.as_file().sync_data()?;
            self.file.persist(self.files.content(&digest)).map_err(|error| error.error)?;
            Ok(digest)
        })
        .await
    }
}
