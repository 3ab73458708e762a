//! Cache of base image blobs between runs: `<dir>/sha256/<digits>`, and beside it `<digits>.diff`, the DiffID of a
//! layer that was once decompressed.
//!
//! Cached blobs are not trusted: the digest of a blob is computed again each time it is used. The cached DiffID is
//! trusted, because it follows from the digest, and both files belong to the user.

use std::fs::{self, File, FileTimes};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hearth_oci::Descriptor;
use hearth_value::Digest;
use sha2::{Digest as _, Sha256};

const CHUNK: usize = 256 * 1024;
/// Age after which an unfinished download is considered abandoned.
const STALE_DOWNLOAD_AGE: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
const INCOMING: &str = ".incoming-";

/// Directory of cached blobs. It belongs to the user and can be deleted at any time.
#[derive(Clone, Debug)]
pub struct BlobCache {
    dir: PathBuf,
}

impl BlobCache {
    /// Opens the cache and creates its directory if it is missing.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let dir = dir.join("sha256");
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(&dir)?;
        Ok(Self { dir })
    }

    /// Returns a cached blob after verifying it. A damaged blob is removed.
    pub fn get(&self, blob: &Descriptor) -> io::Result<Option<File>> {
        let path = self.dir.join(blob.digest.hex());
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut sum = Sha256::new();
        let size = copy(&mut file, &mut |bytes| {
            sum.update(bytes);
            Ok(())
        })?;
        if size != blob.size || Digest::from_sha256(sum.finalize().into()) != blob.digest {
            fs::remove_file(&path)?;
            return Ok(None);
        }
        // The time orders eviction. A read-only cache works, too, so an error is ignored.
        let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
        Ok(Some(file))
    }

    /// Stores a blob atomically, after verifying it.
    pub fn put(&self, blob: &Descriptor, content: &mut dyn Read) -> io::Result<File> {
        let mut incoming = tempfile::Builder::new().prefix(INCOMING).tempfile_in(&self.dir)?;
        let mut sum = Sha256::new();
        let size = copy(content, &mut |bytes| {
            sum.update(bytes);
            incoming.write_all(bytes)
        })?;
        if size != blob.size || Digest::from_sha256(sum.finalize().into()) != blob.digest {
            let reason = format!(
                "content of {} does not have this digest ({size} of {} bytes)",
                blob.digest, blob.size
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        incoming.persist(self.dir.join(blob.digest.hex())).map_err(|error| error.error)?;
        // The file is opened again so that the caller gets a read-only handle.
        File::open(self.dir.join(blob.digest.hex()))
    }

    /// Returns the cached DiffID of a layer.
    pub fn diff_id(&self, layer: &Digest) -> Option<Digest> {
        fs::read_to_string(self.diff_path(layer)).ok()?.trim().parse().ok()
    }

    /// Caches the DiffID of a layer. A failure only costs time later.
    pub fn set_diff_id(&self, layer: &Digest, diff_id: &Digest) {
        let write = || -> io::Result<()> {
            let mut file = tempfile::Builder::new().prefix(INCOMING).tempfile_in(&self.dir)?;
            file.write_all(diff_id.to_string().as_bytes())?;
            file.persist(self.diff_path(layer)).map(drop).map_err(|error| error.error)
        };
        if let Err(error) = write() {
            tracing::debug!(%error, blob.digest = %layer, "failed to cache a DiffID");
        }
    }

    fn diff_path(&self, layer: &Digest) -> PathBuf {
        self.dir.join(format!("{}.diff", layer.hex()))
    }

    /// Removes the least recently used blobs until at most `keep` bytes are left, and the abandoned downloads of
    /// interrupted runs. Open files stay readable.
    pub fn evict(&self, keep: u64) -> io::Result<()> {
        let mut blobs = Vec::new();
        let mut total = 0;
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let Ok(metadata) = entry.metadata() else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let incoming = entry.file_name().to_string_lossy().starts_with(INCOMING);
            if incoming {
                if used.elapsed().is_ok_and(|age| age > STALE_DOWNLOAD_AGE) {
                    remove(&entry.path())?;
                }
                continue;
            }
            total += metadata.len();
            blobs.push((used, metadata.len(), entry.path()));
        }
        blobs.sort();
        for (_, size, path) in blobs {
            if total <= keep {
                break;
            }
            remove(&path)?;
            total -= size;
        }
        Ok(())
    }
}

/// Removes a file, which another run may have removed already.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn copy(from: &mut dyn Read, to: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut size = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(size),
            Ok(count) => {
                to(&buffer[..count])?;
                size += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
