use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use super::{ImageTree, LayerBlob, LayerError};
use crate::model::Digest;

/// Names of spool files that are not complete; removed at start.
const UNFINISHED: &str = "unfinished-";

#[derive(Clone, Copy, Debug)]
pub struct LayerLimits {
    /// Of one decompressed layer, and of the files of one image together as their headers say.
    pub layer_bytes: u64,
    /// Decompressed over compressed bytes, beyond the first GiB: gzip cannot do over about 1000 and
    /// what real layers do is far below this.
    pub ratio: u64,
    /// Of one image, directories that no entry names included.
    pub entries: usize,
    /// Of all decompressed layers kept; those used longest ago go first.
    pub kept_bytes: u64,
}

impl Default for LayerLimits {
    fn default() -> Self {
        Self { layer_bytes: 32 << 30, ratio: 200, entries: 1_000_000, kept_bytes: 10 << 30 }
    }
}

const RATIO_FLOOR: u64 = 1 << 30;

/// Decompressed layers on disk, by DiffID. Removing one that is in use is harmless: it stays open.
pub struct LayerCache {
    directory: PathBuf,
    limits: LayerLimits,
    /// One lock for each layer that is being decompressed.
    busy: Mutex<HashMap<Digest, Arc<Mutex<()>>>>,
}

/// A layer that can be read anywhere.
pub(super) struct Spooled {
    pub diff_id: Digest,
    pub file: Arc<File>,
    pub bytes: u64,
}

impl LayerCache {
    /// Opens the directory, makes it where it is missing, and clears away what a crash left.
    pub fn open(directory: &Path, limits: LayerLimits) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { directory: directory.to_owned(), limits, busy: Mutex::default() })
    }

    /// The merged tree of an image's layers, lowest first. An error names the layer.
    pub fn image(&self, layers: Vec<LayerBlob>) -> Result<ImageTree, (Digest, LayerError)> {
        let mut image = ImageTree::new(self.limits);
        for blob in layers {
            let digest = blob.digest;
            let spooled = self.spool(blob).map_err(|error| (digest, error))?;
            image.add_layer(&spooled).map_err(|error| (digest, error))?;
        }
        Ok(image)
    }

    /// Removes what is kept of a layer that nothing needs any more.
    pub fn forget(&self, diff_id: &Digest) {
        match fs::remove_file(self.path(diff_id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, %diff_id, "a decompressed layer stays until the quota frees it");
            }
            _ => {}
        }
    }

    fn spool(&self, blob: LayerBlob) -> Result<Spooled, LayerError> {
        if !is_layer(&blob.media_type) {
            return Err(LayerError::MediaType(blob.media_type));
        }
        // A plain tar is readable where it lies; the registry has verified its digest.
        if blob.digest == blob.diff_id {
            let bytes = blob.file.metadata()?.len();
            return Ok(Spooled { diff_id: blob.diff_id, file: Arc::new(blob.file), bytes });
        }
        let busy = Arc::clone(self.lock_busy().entry(blob.diff_id).or_default());
        let result = {
            let _turn = busy.lock().unwrap_or_else(PoisonError::into_inner);
            match self.kept(&blob.diff_id)? {
                Some(file) => Ok(file),
                None => self.decompress(&blob),
            }
        };
        self.lock_busy().retain(|_, busy| Arc::strong_count(busy) > 1);
        let file = result?;
        let bytes = file.metadata()?.len();
        Ok(Spooled { diff_id: blob.diff_id, file: Arc::new(file), bytes })
    }

    fn lock_busy(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Arc<Mutex<()>>>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, diff_id: &Digest) -> PathBuf {
        self.directory.join(format!("{}.tar", diff_id.hex()))
    }

    /// A layer of an earlier time. It was verified and synced before it got its name.
    fn kept(&self, diff_id: &Digest) -> io::Result<Option<File>> {
        match File::open(self.path(diff_id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(file) => {
                // Times of use; that they cannot be kept only makes the wrong layer go first.
                if let Err(error) = file.set_modified(SystemTime::now()) {
                    tracing::debug!(%error, "time of use of a layer was not kept");
                }
                Ok(Some(file))
            }
        }
    }

    fn decompress(&self, blob: &LayerBlob) -> Result<File, LayerError> {
        let compressed = blob.file.metadata()?.len();
        let mut spool = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.directory)?;
        let mut reader = reader(&blob.file)?;
        let mut hash = Sha256::new();
        let mut total: u64 = 0;
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(LayerError::Decompress(error)),
            };
            total += count as u64;
            if total > self.limits.layer_bytes {
                return Err(LayerError::TooLarge { limit: self.limits.layer_bytes });
            }
            if total > RATIO_FLOOR && total / self.limits.ratio > compressed {
                return Err(LayerError::Bomb { ratio: self.limits.ratio });
            }
            hash.update(&buffer[..count]);
            spool.write_all(&buffer[..count])?;
        }
        let actual = Digest::from_sha256(hash.finalize().into());
        if actual != blob.diff_id {
            return Err(LayerError::DiffId { expected: blob.diff_id, actual });
        }
        spool.as_file().sync_all()?;
        let file = spool.persist(self.path(&blob.diff_id)).map_err(|error| error.error)?;
        self.make_room(&blob.diff_id)?;
        Ok(file)
    }

    /// Removes what was used longest ago until the rest fits, `newest` left out.
    fn make_room(&self, newest: &Digest) -> io::Result<()> {
        let newest = self.path(newest);
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            kept.push((metadata.modified()?, metadata.len(), entry.path()));
        }
        let mut bytes: u64 = kept.iter().map(|(_, size, _)| size).sum();
        kept.sort();
        for (_, size, path) in kept {
            let unfinished = path.extension().is_none();
            if bytes <= self.limits.kept_bytes {
                break;
            }
            if path != newest && !unfinished {
                fs::remove_file(&path)?;
                bytes -= size;
            }
        }
        Ok(())
    }
}

/// Layer media types of OCI and Docker. Their suffix is not trusted: the content tells how it is compressed.
fn is_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.")
}

fn reader(file: &File) -> Result<Box<dyn Read + '_>, LayerError> {
    let mut magic = [0; 4];
    let mut known = 0;
    while known < magic.len() {
        match file.read_at(&mut magic[known..], known as u64)? {
            0 => break,
            count => known += count,
        }
    }
    let mut file = file;
    file.rewind()?;
    let buffered = BufReader::with_capacity(128 * 1024, file);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(buffered).map_err(LayerError::Decompress)?)
        }
        _ => Box::new(buffered),
    })
}
