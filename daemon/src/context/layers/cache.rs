//! Indexes of layers on disk, each made once, when a layer is first needed.
//!
//! ```text
//! <state>/context/layers/<DiffID>.<blob digest>.index
//! ```
//!
//! One that is damaged, of another version or of another layer is made again. What was used longest ago
//! goes first when there are too many; removing one that is in use is harmless: it stays open.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use parking_lot::Mutex;

use super::access::Format;
use super::blob::{Blob, BlobFile};
use super::index::{self, LayerIndex};
use super::pass::pass;
use super::reader::{Decoded, LayerReader};
use super::{ImageTree, LayerBlob, LayerError};
use crate::model::{Digest, LayerLimits};
use crate::task;

/// Names of files that are not complete; removed at start.
const UNFINISHED: &str = "unfinished-";
const INDEX: &str = "index";
/// Of an earlier version, which kept decompressed layers.
const SPOOLED: &str = "tar";

/// Makes layers readable.
pub struct LayerCache {
    directory: PathBuf,
    limits: LayerLimits,
    /// One lock for each layer whose index is being made.
    busy: Mutex<HashMap<Digest, Arc<Mutex<()>>>>,
    decoded: Arc<Decoded>,
}

/// A layer that can be read anywhere.
pub(super) struct OpenLayer {
    pub entries: Vec<u8>,
    pub hides: bool,
    pub reader: LayerReader,
}

impl LayerCache {
    /// Opens the directory, makes it where it is missing, and clears away what a crash left.
    pub fn open(directory: &Path, limits: LayerLimits) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(UNFINISHED) || path.extension().is_some_and(|end| end == SPOOLED) {
                fs::remove_file(&path)?;
            }
        }
        Ok(Self { directory: directory.to_owned(), limits, busy: Mutex::default(), decoded: Arc::default() })
    }

    /// The merged tree of an image's layers, lowest first. An error names the layer.
    pub fn image(&self, layers: Vec<LayerBlob>) -> Result<ImageTree, (Digest, LayerError)> {
        let mut image = ImageTree::new(self.limits);
        for (digest, layer) in self.open_all(layers) {
            let added = layer.and_then(|layer| image.add_layer(layer));
            added.map_err(|error| (digest, error))?;
        }
        Ok(image)
    }

    /// Removes what is kept of a layer that nothing needs any more.
    pub fn forget(&self, diff_id: &Digest) {
        let prefix = format!("{}.", diff_id.hex());
        let removed = self.kept().and_then(|kept| {
            let of_layer = |path: &Path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
            };
            kept.iter().filter(|kept| of_layer(&kept.path)).try_for_each(|kept| remove(&kept.path))
        });
        if let Err(error) = removed {
            tracing::warn!(%error, %diff_id, "the index of a layer stays until the quota frees it");
        }
    }

    /// Opens layers, several at once where their indexes have to be made.
    fn open_all(&self, layers: Vec<LayerBlob>) -> Vec<(Digest, Result<OpenLayer, LayerError>)> {
        let (next, total) = (AtomicUsize::new(0), AtomicU64::new(0));
        let slot = |layer: LayerBlob| Slot { digest: layer.digest, layer: Some(layer), opened: None };
        let slots: Vec<Mutex<Slot>> = layers.into_iter().map(|layer| Mutex::new(slot(layer))).collect();
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
                    // The thread that is here does it all, if need be.
                    break;
                }
            }
            work();
        });
        let slots = slots.into_iter().map(|slot| slot.into_inner());
        slots.filter_map(|slot| Some((slot.digest, slot.opened?))).collect()
    }

    fn open_layer(&self, layer: LayerBlob) -> Result<OpenLayer, LayerError> {
        if !is_layer(&layer.media_type) {
            return Err(LayerError::MediaType(layer.media_type));
        }
        let LayerBlob { digest, diff_id, file, .. } = layer;
        let blob: Blob = Arc::new(BlobFile::new(file)?);
        let busy = Arc::clone(self.busy.lock().entry(diff_id).or_default());
        let result = {
            let _turn = busy.lock();
            match self.known(&diff_id, &digest, &blob)? {
                Some(known) => Ok(known),
                None => self.make(diff_id, digest, &blob),
            }
        };
        drop(busy);
        self.busy.lock().retain(|_, busy| Arc::strong_count(busy) > 1);
        let (index, file) = result?;
        let LayerIndex { format, points, length, entries, hides, .. } = index;
        let reader = LayerReader::new(blob, Some(file), (format, points, length), Arc::clone(&self.decoded));
        Ok(OpenLayer { entries, hides, reader })
    }

    fn path(&self, diff_id: &Digest, blob: &Digest) -> PathBuf {
        self.directory.join(format!("{}.{}.{INDEX}", diff_id.hex(), blob.hex()))
    }

    /// An index of an earlier time.
    fn known(
        &self,
        diff_id: &Digest,
        digest: &Digest,
        blob: &Blob,
    ) -> Result<Option<(LayerIndex, File)>, LayerError> {
        let path = self.path(diff_id, digest);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let index = match index::read(&file)? {
            Ok(index) => index,
            Err(damaged) => {
                tracing::warn!(%diff_id, error = %damaged, "it is made again");
                return Ok(None);
            }
        };
        let is_of_blob = (index.diff_id, index.blob, index.blob_length) == (*diff_id, *digest, blob.length());
        if !is_of_blob {
            tracing::warn!(%diff_id, "an index is that of another layer; it is made again");
            return Ok(None);
        }
        // Times of use; that they cannot be kept only makes the wrong index go first.
        if let Err(error) = file.set_modified(SystemTime::now()) {
            tracing::debug!(%error, "time of use of a layer was not kept");
        }
        Ok(Some((index, file)))
    }

    fn make(&self, diff_id: Digest, digest: Digest, blob: &Blob) -> Result<(LayerIndex, File), LayerError> {
        let format = Format::of_blob(&**blob)?;
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.directory)?;
        let passed = pass(blob, format, &self.limits, file.as_file_mut())?;
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
            hides: passed.hides,
        };
        file.as_file_mut().write_all(&index.encode())?;
        // Not synced: what a crash damages is found by its sum and made again.
        let path = self.path(&diff_id, &digest);
        let file = file.persist(&path).map_err(|error| error.error)?;
        self.make_room(&path)?;
        Ok((index, file))
    }

    fn kept(&self) -> io::Result<Vec<Kept>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let path = entry.path();
            if path.extension().is_none_or(|end| end != INDEX) {
                continue;
            }
            match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
                Ok(metadata) => {
                    kept.push(Kept { used: metadata.modified()?, bytes: metadata.len(), path });
                }
            }
        }
        Ok(kept)
    }

    /// Removes what was used longest ago until the rest fits, `newest` left out.
    fn make_room(&self, newest: &Path) -> io::Result<()> {
        let mut kept = self.kept()?;
        let mut bytes: u64 = kept.iter().map(|kept| kept.bytes).sum();
        kept.sort_by_key(|kept| kept.used);
        for Kept { bytes: size, path, .. } in kept {
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

/// A layer on its way to be opened.
struct Slot {
    digest: Digest,
    layer: Option<LayerBlob>,
    opened: Option<Result<OpenLayer, LayerError>>,
}

struct Kept {
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

/// Layer media types of OCI and Docker. Their suffix is not trusted: the content tells how it is compressed.
fn is_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.")
}
