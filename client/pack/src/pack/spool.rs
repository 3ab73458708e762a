//! Storage of a layer before its digest is known, or the cached layer of an earlier pack.
//!
//! ```text
//!                    with an output file         without an output file
//! layer cached       copied into the archive     read from the cache
//! layer not cached   written into the archive,   written to the cache, or to a temporary file
//!                    which gets a hard link in
//!                    the cache; or to both
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::Advice;

use super::{FILE_MODE, PackError, PackOptions, Progress};
use crate::archive::FileRange;
use crate::cache::{Cache, Kept, LayerKey, copy_layer};
use crate::identity::{HashCache, HashedTree, hash_tree, now, remember};
use crate::layer::{self, Layer, LayerError, LayerProgress, Source};
use crate::new_file::{self, NewFile, SpareName};
use crate::walk::{EntryKind, Tree};

/// Fraction (one in this number) of all bytes that may be in files without a cached hash for the tree to be hashed
/// first. Hashing those is cheap compared to a pack, and saves one if they turn out to be unchanged.
const WORTH_HASHING: u64 = 4;

/// Bytes before the layer, such as manifest, config and index, up to which an archive is cached for a layer of any
/// size.
const SMALL_BEFORE: u64 = 1 << 20;

/// File with the bytes of a layer: a file of its own or the future archive.
#[derive(Debug)]
pub(super) struct Spool {
    place: Place,
    /// Offset of the layer in the file.
    position: u64,
}

#[derive(Debug)]
enum Place {
    /// The future archive at `path`.
    Archive {
        new: NewFile,
        path: PathBuf,
        taken: Mutex<bool>,
        /// Hard link to the archive in the cache.
        spare: Option<SpareName>,
    },
    /// A new file in the cache's directory, which may become a cached layer.
    Cache(NewFile),
    Temporary(NewFile),
    /// A file with a cached layer of an earlier pack.
    Kept {
        file: File,
        dir: PathBuf,
    },
}

impl Spool {
    fn new(place: Place) -> Self {
        Self { place, position: 0 }
    }

    /// Creates a hard link to an archive in the cache. Returns whether it has one then. An archive that mostly
    /// consists of the layers of its base gets none, because those would be cached again with each pack on that base.
    fn name_in(&mut self, cache: &Cache, most_bytes: u64) -> bool {
        let Place::Archive { new, spare, .. } = &mut self.place else { return false };
        let before = self.position;
        if before <= most_bytes.max(SMALL_BEFORE) {
            *spare = cache.name_archive(new, most_bytes.saturating_add(before));
        }
        spare.is_some()
    }

    fn file(&self) -> &File {
        match &self.place {
            Place::Archive { new, .. } | Place::Cache(new) | Place::Temporary(new) => new.file(),
            Place::Kept { file, .. } => file,
        }
    }

    /// Returns a reader for the bytes of a layer of `size` bytes.
    pub(super) fn range(&self, size: u64) -> FileRange<'_> {
        FileRange { file: self.file(), position: self.position, left: size }
    }

    /// Returns the future archive if it is for the `wanted` path and the layer is at the right offset. Works only
    /// once.
    pub(super) fn take_archive(&self, wanted: &Path, position: Option<u64>) -> Option<&NewFile> {
        let Place::Archive { new, path, taken, .. } = &self.place else { return None };
        let fits = path == wanted && position == Some(self.position);
        (fits && !std::mem::replace(&mut *taken.lock(), true)).then_some(new)
    }

    fn out(&self) -> At<'_> {
        // Only an archive is synced at the end.
        let begun = matches!(self.place, Place::Archive { .. }).then_some(self.position);
        At { file: self.file(), position: self.position, begun }
    }

    fn failed(&self, source: io::Error) -> PackError {
        match &self.place {
            Place::Archive { path, .. } => PackError::Write { path: path.clone(), source },
            Place::Cache(new) | Place::Temporary(new) => {
                PackError::Spool { dir: new.dir().to_owned(), source }
            }
            Place::Kept { dir, .. } => PackError::Spool { dir: dir.clone(), source },
        }
    }
}

/// Number of bytes after which writeback to disk is started, so that the final sync has little to wait for.
const BEHIND: u64 = 16 << 20;

/// Writer at an offset in a file. The layer is written in large pieces, so no buffer is needed.
struct At<'a> {
    file: &'a File,
    position: u64,
    /// Offset up to which writeback was started; `None` if early writeback is not needed.
    begun: Option<u64>,
}

impl At<'_> {
    fn write_behind(&mut self) {
        let Some(begun) = &mut self.begun else { return };
        let length = NonZeroU64::new(self.position - *begun);
        if let Some(length) = length.filter(|length| length.get() >= BEHIND) {
            // This advice starts writeback without waiting for it; unwritten pages stay in memory. If the advice is
            // refused, the final sync writes everything.
            let _ = rustix::fs::fadvise(self.file, *begun, Some(length), Advice::DontNeed);
            *begun = self.position;
        }
    }
}

impl Write for At<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write_at(bytes, self.position)?;
        self.position += count as u64;
        self.write_behind();
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writer of the layer and of a second copy for the cache. An error of the copy is only recorded.
struct Both<'a> {
    out: At<'a>,
    copy: Option<At<'a>>,
    trouble: Option<io::Error>,
}

impl Write for Both<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        if let Some(copy) = &mut self.copy
            && let Err(error) = copy.write_all(&bytes[..count])
        {
            (self.copy, self.trouble) = (None, Some(error));
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A layer, its storage, and whether it came from the cache.
pub(super) struct Made {
    pub(super) layer: Layer,
    pub(super) spool: Spool,
    /// True if the layer comes from an earlier pack.
    pub(super) reused: bool,
    /// Reason why the layer is not cached for the next pack.
    pub(super) cache_trouble: Option<String>,
}

/// Makes the layer of `source`. `tree` is the same source if it is a walked directory; only a walked directory uses
/// the cache. `position` is the predicted offset of the layer in the archive.
pub(super) fn make(
    source: &dyn Source,
    tree: Option<&Tree>,
    options: &PackOptions,
    position: Option<u64>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Made, PackError> {
    let mut maker =
        Maker { source, options, position, hashes: HashCache::default(), trouble: None, progress };
    let cache = options.cache.as_deref().filter(|_| tree.is_some()).map(Cache::open);
    let (layer, spool, reused) = match (tree, cache.transpose()) {
        (Some(tree), Ok(Some(cache))) => {
            maker.hashes = cache.hashes(tree.id());
            let made = maker.with_cache(&cache, tree)?;
            let hashes = std::mem::take(&mut maker.hashes);
            maker.note(cache.keep_hashes(tree.id(), hashes));
            made
        }
        (_, opened) => {
            maker.note(opened.map(drop));
            let spool = maker.spool()?;
            let (layer, _) = maker.write(&spool, None, false)?;
            (layer, spool, false)
        }
    };
    Ok(Made { layer, spool, reused, cache_trouble: maker.trouble })
}

struct Maker<'a> {
    source: &'a dyn Source,
    options: &'a PackOptions,
    position: Option<u64>,
    hashes: HashCache,
    trouble: Option<String>,
    progress: &'a mut dyn FnMut(Progress),
}

impl Maker<'_> {
    /// Records an error of the cache. It only makes the next pack slower, so this pack continues.
    fn note(&mut self, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            self.trouble.get_or_insert_with(|| error.to_string());
        }
    }

    fn with_cache(&mut self, cache: &Cache, tree: &Tree) -> Result<(Layer, Spool, bool), PackError> {
        let options = &self.options.layer;
        if self.mostly_known(tree) {
            let hashed = hash_tree(tree, &mut self.hashes, options.workers, &|_| {});
            let found = LayerKey::new(&hashed.map_err(LayerError::from)?.digest, options);
            if let Some((layer, spool)) = self.kept(cache, &found)? {
                return Ok((layer, spool, true));
            }
        }
        let (spool, copy) = self.spool_and_copy(cache, tree.content_bytes())?;
        // The content is hashed again while it is read for the layer, so that the key fits the bytes in the layer
        // even if a file has changed since it was hashed above.
        let (layer, hashed) = self.write(&spool, copy.as_ref(), true)?;
        let key = hashed.map(|hashed| LayerKey::new(&hashed.digest, options));
        if let (Some(key), None) = (&key, &self.trouble) {
            let kept = match (&spool.place, &copy) {
                (Place::Archive { new, spare: Some(_), .. }, _) => {
                    cache.keep_archive(key, &layer, (new, spool.position))
                }
                (Place::Cache(new), _) | (_, Some(new)) => cache.keep_layer(key, &layer, new),
                _ => Ok(()),
            };
            self.note(kept);
        }
        Ok((layer, spool, false))
    }

    /// Returns the spool for a layer of a tree with `bytes` bytes, and an additional file for the cache if the spool
    /// does not serve as the cache entry.
    fn spool_and_copy(&mut self, cache: &Cache, bytes: u64) -> Result<(Spool, Option<NewFile>), PackError> {
        let mut archive = self.archive()?;
        if let Some(spool) = archive.take_if(|spool| spool.name_in(cache, bytes)) {
            return Ok((spool, None));
        }
        let copy = match cache.new_layer(bytes) {
            Ok(Some(copy)) => Some(copy),
            Ok(None) => {
                self.note(Err(io::Error::other("there is too little space to cache the layer")));
                None
            }
            Err(error) => {
                self.note(Err(error));
                None
            }
        };
        match archive {
            Some(spool) => Ok((spool, copy)),
            None => self.without_archive(copy).map(|spool| (spool, None)),
        }
    }

    fn mostly_known(&mut self, tree: &Tree) -> bool {
        let mut unknown = 0;
        for entry in tree.entries.iter().filter(|entry| entry.kind == EntryKind::File) {
            if self.hashes.get(&entry.stamp).is_none() {
                unknown += entry.size;
            }
        }
        !self.hashes.is_empty() && unknown <= tree.content_bytes() / WORTH_HASHING
    }

    /// Finds and verifies a cached layer of an earlier pack.
    fn kept(&mut self, cache: &Cache, key: &LayerKey) -> Result<Option<(Layer, Spool)>, PackError> {
        let Some(kept) = cache.layer(key, self.options.layer.compression) else { return Ok(None) };
        let (whole, layer, spool) = if self.options.output.is_some() {
            let spool = self.spool()?;
            (copy_layer(&kept, &mut spool.out()), kept.layer, spool)
        } else {
            let whole = copy_layer(&kept, &mut io::sink());
            let Kept { layer, file, position } = kept;
            (whole, layer, Spool { place: Place::Kept { file, dir: cache.dir().to_owned() }, position })
        };
        if whole.map_err(|source| spool.failed(source))? {
            return Ok(Some((layer, spool)));
        }
        cache.forget_layer(key);
        Ok(None)
    }

    /// Returns the spool for a layer that is not cached.
    fn spool(&self) -> Result<Spool, PackError> {
        match self.archive()? {
            Some(archive) => Ok(archive),
            None => self.without_archive(None),
        }
    }

    /// Creates the future archive if an output file is wanted.
    fn archive(&self) -> Result<Option<Spool>, PackError> {
        let (Some(path), Some(position)) = (&self.options.output, self.position) else { return Ok(None) };
        let new = NewFile::create(new_file::parent(path), FILE_MODE)
            .map_err(|source| PackError::Write { path: path.clone(), source })?;
        let place = Place::Archive { new, path: path.clone(), taken: Mutex::new(false), spare: None };
        Ok(Some(Spool { place, position }))
    }

    /// Returns a spool in `cached`, a file of the cache, or else in a temporary file.
    fn without_archive(&self, cached: Option<NewFile>) -> Result<Spool, PackError> {
        if let Some(cached) = cached {
            return Ok(Spool::new(Place::Cache(cached)));
        }
        let dir = self.options.spool_dir.clone().unwrap_or_else(std::env::temp_dir);
        let new = NewFile::create(&dir, 0o600).map_err(|source| PackError::Spool { dir, source })?;
        Ok(Spool::new(Place::Temporary(new)))
    }

    /// Writes the layer. Returns the tree's hashes, too, if `hash` is set.
    fn write(
        &mut self,
        spool: &Spool,
        copy: Option<&NewFile>,
        hash: bool,
    ) -> Result<(Layer, Option<HashedTree>), PackError> {
        let copy = copy.map(|new| At { file: new.file(), position: 0, begun: None });
        let mut out = Both { out: spool.out(), copy, trouble: None };
        let mut progress = |at: LayerProgress| {
            (self.progress)(Progress::Read { entries: at.entries, bytes: at.bytes });
        };
        let options = &self.options.layer;
        let read_at = now();
        let written = if hash {
            layer::write_hashed(self.source, options, &mut out, &mut progress)
                .map(|(layer, hashed)| (layer, Some(hashed)))
        } else {
            layer::write(self.source, options, &mut out, &mut progress).map(|layer| (layer, None))
        };
        let (layer, hashed) = written.map_err(|error| match error {
            LayerError::Write { source } => spool.failed(source),
            error => error.into(),
        })?;
        let trouble = out.trouble;
        self.note(trouble.map_or(Ok(()), Err));
        for (entry, hashed) in self.source.entries().iter().zip(hashed.iter().flat_map(|tree| &tree.entries))
        {
            remember(&mut self.hashes, entry, read_at, hashed);
        }
        Ok((layer, hashed))
    }
}
