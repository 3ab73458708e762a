//! Layer indexes on disk. Each is built once, when a layer is first needed.
//!
//! ```text
//! <state>/context/layers/<DiffID>.<blob digest>.index
//! ```
//!
//! An index that is damaged, of another version or of another layer is rebuilt. When the indexes exceed their
//! quota, the least recently used ones are removed. Removing one that is in use is harmless, because its file
//! stays open.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use hearth_model::{Digest, LayerLimits};
use hearth_task as task;
use parking_lot::Mutex;

use super::access_points::BlobFormat;
use super::blob::{BlobFile, SharedBlob};
use super::index::{self, LayerIndex};
use super::pass::index_layer;
use super::reader::{DecodedCache, LayerReader};
use super::{ImageTree, LayerBlob, LayerError};

/// Prefix of the names of incomplete files, which are removed at start.
const UNFINISHED_PREFIX: &str = "unfinished-";
const INDEX_EXTENSION: &str = "index";
/// Extension of the decompressed layers that an earlier version stored.
const OBSOLETE_EXTENSION: &str = "tar";

/// Opens layers for reading, and stores their indexes on disk.
pub struct LayerCache {
    directory: PathBuf,
    limits: LayerLimits,
    /// One lock for each layer whose index is being built.
    index_locks: Mutex<HashMap<Digest, Arc<Mutex<()>>>>,
    decoded: Arc<DecodedCache>,
}

/// A layer that can be read at any position.
pub(super) struct IndexedLayer {
    pub entries: Vec<u8>,
    pub has_whiteouts: bool,
    pub reader: LayerReader,
}

impl LayerCache {
    /// Opens the directory, creates it if it is missing, and removes what a crash left behind.
    pub fn open(directory: &Path, limits: LayerLimits) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(UNFINISHED_PREFIX)
                || path.extension().is_some_and(|end| end == OBSOLETE_EXTENSION)
            {
                fs::remove_file(&path)?;
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            limits,
            index_locks: Mutex::default(),
            decoded: Arc::default(),
        })
    }

    /// Returns the merged tree of an image's layers, lowest first. An error names the layer.
    pub fn image_tree(&self, layers: Vec<LayerBlob>) -> Result<ImageTree, (Digest, LayerError)> {
        let mut image = ImageTree::new(self.limits);
        for (digest, layer) in self.open_all(layers) {
            let added = layer.and_then(|layer| image.add_layer(layer));
            added.map_err(|error| (digest, error))?;
        }
        Ok(image)
    }

    /// Removes the indexes of a layer that is not needed any more.
    pub(crate) fn remove_indexes(&self, diff_id: &Digest) {
        let prefix = format!("{}.", diff_id.hex());
        let removed = self.index_files().and_then(|kept| {
            let of_layer = |path: &Path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
            };
            kept.iter().filter(|kept| of_layer(&kept.path)).try_for_each(|kept| remove(&kept.path))
        });
        if let Err(error) = removed {
            tracing::warn!(
                %error,
                %diff_id,
                "failed to remove a layer index; it remains until the quota evicts it",
            );
        }
    }

    /// Opens layers, several in parallel if their indexes have to be built.
    fn open_all(&self, layers: Vec<LayerBlob>) -> Vec<(Digest, Result<IndexedLayer, LayerError>)> {
        let (next, total) = (AtomicUsize::new(0), AtomicU64::new(0));
        let slot = |layer: LayerBlob| LayerSlot { digest: layer.digest, layer: Some(layer), opened: None };
        let slots: Vec<Mutex<LayerSlot>> = layers.into_iter().map(|layer| Mutex::new(slot(layer))).collect();
        let work = || {
            while let Some(slot) = slots.get(next.fetch_add(1, Ordering::Relaxed)) {
                let Some(layer) = slot.lock().layer.take() else { continue };
                let mut opened = self.open_layer(layer);
                if let Ok(layer) = &opened {
                    let size = layer.entries.len() as u64;
                    if total.fetch_add(size, Ordering::Relaxed) + size > self.limits.index_bytes {
                        opened = Err(LayerError::TooManyNames { limit: self.limits.index_bytes });
                    }
                }
                slot.lock().opened = Some(opened);
            }
        };
        let helpers = thread::available_parallelism().map_or(1, usize::from).min(slots.len());
        thread::scope(|scope| {
            for _ in 1..helpers {
                if task::scoped(scope, "layer-open", work).is_err() {
                    // The calling thread opens all layers if no thread can be started.
                    break;
                }
            }
            work();
        });
        let slots = slots.into_iter().map(|slot| slot.into_inner());
        slots.filter_map(|slot| Some((slot.digest, slot.opened?))).collect()
    }

    fn open_layer(&self, layer: LayerBlob) -> Result<IndexedLayer, LayerError> {
        if !is_layer(&layer.media_type) {
            return Err(LayerError::MediaType(layer.media_type));
        }
        let LayerBlob { digest, diff_id, file, .. } = layer;
        let blob: SharedBlob = Arc::new(BlobFile::new(file)?);
        let busy = Arc::clone(self.index_locks.lock().entry(diff_id).or_default());
        let result = {
            let _turn = busy.lock();
            match self.load_index(&diff_id, &digest, &blob)? {
                Some(known) => Ok(known),
                None => self.build_index(diff_id, digest, &blob),
            }
        };
        drop(busy);
        self.index_locks.lock().retain(|_, busy| Arc::strong_count(busy) > 1);
        let (index, file) = result?;
        let LayerIndex { format, points, length, entries, has_whiteouts: hides, .. } = index;
        let reader = LayerReader::new(blob, Some(file), (format, points, length), Arc::clone(&self.decoded));
        Ok(IndexedLayer { entries, has_whiteouts: hides, reader })
    }

    fn path(&self, diff_id: &Digest, blob: &Digest) -> PathBuf {
        self.directory.join(format!("{}.{}.{INDEX_EXTENSION}", diff_id.hex(), blob.hex()))
    }

    /// Loads an existing index. `None` if there is none, or if it must be rebuilt.
    fn load_index(
        &self,
        diff_id: &Digest,
        digest: &Digest,
        blob: &SharedBlob,
    ) -> Result<Option<(LayerIndex, File)>, LayerError> {
        let path = self.path(diff_id, digest);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let index = match index::read(&file)? {
            Ok(index) => index,
            Err(damaged) => {
                tracing::warn!(%diff_id, error = %damaged, "failed to read a layer index; rebuilding it");
                return Ok(None);
            }
        };
        let is_of_blob = (index.diff_id, index.blob, index.blob_length) == (*diff_id, *digest, blob.length());
        if !is_of_blob {
            tracing::warn!(%diff_id, "found the layer index of another layer; rebuilding it");
            return Ok(None);
        }
        // The modification time records the last use; without it, a wrong index may be evicted first.
        if let Err(error) = file.set_modified(SystemTime::now()) {
            tracing::debug!(%error, "failed to record the time of use of a layer index");
        }
        Ok(Some((index, file)))
    }

    fn build_index(
        &self,
        diff_id: Digest,
        digest: Digest,
        blob: &SharedBlob,
    ) -> Result<(LayerIndex, File), LayerError> {
        let format = BlobFormat::of_blob(&**blob)?;
        let mut file = tempfile::Builder::new().prefix(UNFINISHED_PREFIX).tempfile_in(&self.directory)?;
        let passed = index_layer(blob, format, &self.limits, file.as_file_mut())?;
        if passed.diff_id != diff_id {
            return Err(LayerError::DiffId { expected: diff_id, actual: passed.diff_id });
        }
        let index = LayerIndex {
            diff_id,
            blob: digest,
            blob_length: blob.length(),
            length: passed.length,
            format,
            points: passed.points,
            entries: passed.entries,
            has_whiteouts: passed.has_whiteouts,
        };
        file.as_file_mut().write_all(&index.encode())?;
        // Not synced: a crash damages the file in a way that its checksum reveals, and it is rebuilt.
        let path = self.path(&diff_id, &digest);
        let file = file.persist(&path).map_err(|error| error.error)?;
        self.evict(&path)?;
        Ok((index, file))
    }

    fn index_files(&self) -> io::Result<Vec<IndexFile>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let path = entry.path();
            if path.extension().is_none_or(|end| end != INDEX_EXTENSION) {
                continue;
            }
            match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(metadata) => {
                    kept.push(IndexFile { used: metadata.modified()?, bytes: metadata.len(), path });
                }
            }
        }
        Ok(kept)
    }

    /// Removes the least recently used indexes except `newest` until the rest fits the quota.
    fn evict(&self, newest: &Path) -> io::Result<()> {
        let mut kept = self.index_files()?;
        let mut bytes: u64 = kept.iter().map(|kept| kept.bytes).sum();
        kept.sort_by_key(|kept| kept.used);
        for IndexFile { bytes: size, path, .. } in kept {
            if bytes <= self.limits.kept_bytes {
                break;
            }
            if path != newest {
                remove(&path)?;
                bytes -= size;
            }
        }
        Ok(())
    }
}

/// A layer of an image while it is opened.
struct LayerSlot {
    digest: Digest,
    layer: Option<LayerBlob>,
    opened: Option<Result<IndexedLayer, LayerError>>,
}

struct IndexFile {
    used: SystemTime,
    bytes: u64,
    path: PathBuf,
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reports whether a media type is that of an OCI or Docker layer. Its suffix is not trusted: the content
/// determines the compression.
fn is_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.")
}
