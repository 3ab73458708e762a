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

use super::{FILE_MODE, PackError, PackOptions, PackProgress};
use crate::archive::FileRange;
use crate::cache::{CachedLayer, LayerKey, PackCache, copy_layer};
use crate::file_kind::FileKind;
use crate::identity::{HashCache, HashedTree, cache_hashed_entry, file_clock_now, hash_tree};
use crate::layer::{self, LayerError, LayerProgress, LayerSource, PackedLayer};
use crate::new_file::{self, NewFile, TemporaryLink};
use crate::walk::WalkedTree;

/// Fraction (one in this number) of all bytes that may be in files without a cached hash for the tree to be hashed
/// first. Hashing these files is cheap compared to a pack, and avoids the pack if they turn out to be unchanged.
const UNKNOWN_FRACTION: u64 = 4;

/// Bytes before the layer, such as manifest, config and index, up to which an archive is cached for a layer of any
/// size.
const MAX_PREFIX: u64 = 1 << 20;

/// File with the bytes of a layer: a separate file or the future archive.
#[derive(Debug)]
pub(super) struct LayerSpool {
    place: SpoolPlace,
    /// Offset of the layer in the file.
    position: u64,
}

#[derive(Debug)]
enum SpoolPlace {
    /// The future archive at `path`.
    Archive {
        new: NewFile,
        path: PathBuf,
        taken: Mutex<bool>,
        /// Hard link to the archive in the cache.
        cache_link: Option<TemporaryLink>,
    },
    /// A new file in the cache's directory, which may become a cached layer.
    Cache(NewFile),
    Temporary(NewFile),
    /// A file with a cached layer of an earlier pack.
    CachedLayer {
        file: File,
        dir: PathBuf,
    },
}

impl LayerSpool {
    fn new(place: SpoolPlace) -> Self {
        Self { place, position: 0 }
    }

    /// Creates a hard link to an archive in the cache. Returns whether the cache has such a link afterwards. An archive
    /// that mostly consists of the layers of its base gets none, because each pack on that base would cache those layers
    /// again.
    fn link_in_cache(&mut self, cache: &PackCache, most_bytes: u64) -> bool {
        let SpoolPlace::Archive { new, cache_link: spare, .. } = &mut self.place else { return false };
        let before = self.position;
        if before <= most_bytes.max(MAX_PREFIX) {
            *spare = cache.link_archive(new, most_bytes.saturating_add(before));
        }
        spare.is_some()
    }

    fn file(&self) -> &File {
        match &self.place {
            SpoolPlace::Archive { new, .. } | SpoolPlace::Cache(new) | SpoolPlace::Temporary(new) => {
                new.file()
            }
            SpoolPlace::CachedLayer { file, .. } => file,
        }
    }

    /// Returns a reader for the bytes of a layer of `size` bytes.
    pub(super) fn range(&self, size: u64) -> FileRange<'_> {
        FileRange { file: self.file(), position: self.position, left: size }
    }

    /// Returns the future archive if it is for the `wanted` path and the layer is at the right offset. Works only
    /// once.
    pub(super) fn take_archive(&self, wanted: &Path, position: Option<u64>) -> Option<&NewFile> {
        let SpoolPlace::Archive { new, path, taken, .. } = &self.place else { return None };
        let fits = path == wanted && position == Some(self.position);
        (fits && !std::mem::replace(&mut *taken.lock(), true)).then_some(new)
    }

    fn out(&self) -> OffsetWriter<'_> {
        // Only an archive is synced at the end.
        let writeback_start = matches!(self.place, SpoolPlace::Archive { .. }).then_some(self.position);
        OffsetWriter { file: self.file(), position: self.position, writeback_offset: writeback_start }
    }

    fn failed(&self, source: io::Error) -> PackError {
        match &self.place {
            SpoolPlace::Archive { path, .. } => PackError::Write { path: path.clone(), source },
            SpoolPlace::Cache(new) | SpoolPlace::Temporary(new) => {
                PackError::Spool { dir: new.dir().to_owned(), source }
            }
            SpoolPlace::CachedLayer { dir, .. } => PackError::Spool { dir: dir.clone(), source },
        }
    }
}

/// Number of bytes after which writeback to disk is started, so that the final sync has little to wait for.
const WRITEBACK_CHUNK: u64 = 16 << 20;

/// Writer at an offset in a file. The layer is written in large pieces, so no buffer is needed.
struct OffsetWriter<'a> {
    file: &'a File,
    position: u64,
    /// Offset up to which writeback was started; `None` if early writeback is not needed.
    writeback_offset: Option<u64>,
}

impl OffsetWriter<'_> {
    fn write_behind(&mut self) {
        let Some(writeback_start) = &mut self.writeback_offset else { return };
        let length = NonZeroU64::new(self.position - *writeback_start);
        if let Some(length) = length.filter(|length| length.get() >= WRITEBACK_CHUNK) {
            // This advice starts writeback without waiting for it; unwritten pages stay in memory. If the advice is
            // refused, the final sync writes everything.
            let _ = rustix::fs::fadvise(self.file, *writeback_start, Some(length), Advice::DontNeed);
            *writeback_start = self.position;
        }
    }
}

impl Write for OffsetWriter<'_> {
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
struct TeeWriter<'a> {
    out: OffsetWriter<'a>,
    copy: Option<OffsetWriter<'a>>,
    trouble: Option<io::Error>,
}

impl Write for TeeWriter<'_> {
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
pub(super) struct SpooledLayer {
    pub(super) layer: PackedLayer,
    pub(super) spool: LayerSpool,
    /// True if the layer comes from an earlier pack.
    pub(super) reused: bool,
    /// Reason why the layer is not cached for the next pack.
    pub(super) cache_trouble: Option<String>,
}

/// Makes the layer of `source`. `tree` is the same source if it is a walked directory; only a walked directory uses
/// the cache. `position` is the predicted offset of the layer in the archive.
pub(super) fn spool_layer(
    source: &dyn LayerSource,
    tree: Option<&WalkedTree>,
    options: &PackOptions,
    position: Option<u64>,
    progress: &mut dyn FnMut(PackProgress),
) -> Result<SpooledLayer, PackError> {
    let mut maker =
        LayerSpooler { source, options, position, hashes: HashCache::default(), trouble: None, progress };
    let cache = options.cache.as_deref().filter(|_| tree.is_some()).map(PackCache::open);
    let (layer, spool, reused) = match (tree, cache.transpose()) {
        (Some(tree), Ok(Some(cache))) => {
            maker.hashes = cache.hashes(tree.id());
            let made = maker.with_cache(&cache, tree)?;
            let hashes = std::mem::take(&mut maker.hashes);
            maker.record_trouble(cache.save_hashes(tree.id(), hashes));
            made
        }
        (_, opened) => {
            maker.record_trouble(opened.map(drop));
            let spool = maker.spool()?;
            let (layer, _) = maker.write(&spool, None, false)?;
            (layer, spool, false)
        }
    };
    Ok(SpooledLayer { layer, spool, reused, cache_trouble: maker.trouble })
}

struct LayerSpooler<'a> {
    source: &'a dyn LayerSource,
    options: &'a PackOptions,
    position: Option<u64>,
    hashes: HashCache,
    trouble: Option<String>,
    progress: &'a mut dyn FnMut(PackProgress),
}

impl LayerSpooler<'_> {
    /// Records an error of the cache. It only makes the next pack slower, so this pack continues.
    fn record_trouble(&mut self, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            self.trouble.get_or_insert_with(|| error.to_string());
        }
    }

    fn with_cache(
        &mut self,
        cache: &PackCache,
        tree: &WalkedTree,
    ) -> Result<(PackedLayer, LayerSpool, bool), PackError> {
        let options = &self.options.layer;
        if self.has_most_hashes(tree) {
            let hashed = hash_tree(tree, &mut self.hashes, options.workers, &|_| {});
            let found = LayerKey::new(&hashed.map_err(LayerError::from)?.digest, options);
            if let Some((layer, spool)) = self.find_cached(cache, &found)? {
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
                (SpoolPlace::Archive { new, cache_link: Some(_), .. }, _) => {
                    cache.store_layer_in_archive(key, &layer, (new, spool.position))
                }
                (SpoolPlace::Cache(new), _) | (_, Some(new)) => cache.store_layer(key, &layer, new),
                _ => Ok(()),
            };
            self.record_trouble(kept);
        }
        Ok((layer, spool, false))
    }

    /// Returns the spool for a layer of a tree with `bytes` bytes, and an additional file for the cache if the spool
    /// does not serve as the cache entry.
    fn spool_and_copy(
        &mut self,
        cache: &PackCache,
        bytes: u64,
    ) -> Result<(LayerSpool, Option<NewFile>), PackError> {
        let mut archive = self.archive()?;
        if let Some(spool) = archive.take_if(|spool| spool.link_in_cache(cache, bytes)) {
            return Ok((spool, None));
        }
        let copy = match cache.new_layer(bytes) {
            Ok(Some(copy)) => Some(copy),
            Ok(None) => {
                self.record_trouble(Err(io::Error::other("there is too little space to cache the layer")));
                None
            }
            Err(error) => {
                self.record_trouble(Err(error));
                None
            }
        };
        match archive {
            Some(spool) => Ok((spool, copy)),
            None => self.without_archive(copy).map(|spool| (spool, None)),
        }
    }

    fn has_most_hashes(&mut self, tree: &WalkedTree) -> bool {
        let mut unknown = 0;
        for entry in tree.entries.iter().filter(|entry| entry.kind == FileKind::File(())) {
            if self.hashes.get(&entry.stamp).is_none() {
                unknown += entry.size;
            }
        }
        !self.hashes.is_empty() && unknown <= tree.content_bytes() / UNKNOWN_FRACTION
    }

    /// Finds and verifies a cached layer of an earlier pack.
    fn find_cached(
        &mut self,
        cache: &PackCache,
        key: &LayerKey,
    ) -> Result<Option<(PackedLayer, LayerSpool)>, PackError> {
        let Some(kept) = cache.layer(key, self.options.layer.compression) else { return Ok(None) };
        let (whole, layer, spool) = if self.options.output.is_some() {
            let spool = self.spool()?;
            (copy_layer(&kept, &mut spool.out()), kept.layer, spool)
        } else {
            let whole = copy_layer(&kept, &mut io::sink());
            let CachedLayer { layer, file, position } = kept;
            (
                whole,
                layer,
                LayerSpool { place: SpoolPlace::CachedLayer { file, dir: cache.dir().to_owned() }, position },
            )
        };
        if whole.map_err(|source| spool.failed(source))? {
            return Ok(Some((layer, spool)));
        }
        cache.remove_layer(key);
        Ok(None)
    }

    /// Returns the spool for a layer that is not cached.
    fn spool(&self) -> Result<LayerSpool, PackError> {
        match self.archive()? {
            Some(archive) => Ok(archive),
            None => self.without_archive(None),
        }
    }

    /// Creates the future archive if an output file is wanted.
    fn archive(&self) -> Result<Option<LayerSpool>, PackError> {
        let (Some(path), Some(position)) = (&self.options.output, self.position) else { return Ok(None) };
        let new = NewFile::create(new_file::parent(path), FILE_MODE)
            .map_err(|source| PackError::Write { path: path.clone(), source })?;
        let place =
            SpoolPlace::Archive { new, path: path.clone(), taken: Mutex::new(false), cache_link: None };
        Ok(Some(LayerSpool { place, position }))
    }

    /// Returns a spool in `cached`, a file of the cache, or else in a temporary file.
    fn without_archive(&self, cached: Option<NewFile>) -> Result<LayerSpool, PackError> {
        if let Some(cached) = cached {
            return Ok(LayerSpool::new(SpoolPlace::Cache(cached)));
        }
        let dir = self.options.spool_dir.clone().unwrap_or_else(std::env::temp_dir);
        let new = NewFile::create(&dir, 0o600).map_err(|source| PackError::Spool { dir, source })?;
        Ok(LayerSpool::new(SpoolPlace::Temporary(new)))
    }

    /// Writes the layer. If `hash` is set, also returns the hashes of the tree.
    fn write(
        &mut self,
        spool: &LayerSpool,
        copy: Option<&NewFile>,
        hash: bool,
    ) -> Result<(PackedLayer, Option<HashedTree>), PackError> {
        let copy = copy.map(|new| OffsetWriter { file: new.file(), position: 0, writeback_offset: None });
        let mut out = TeeWriter { out: spool.out(), copy, trouble: None };
        let mut progress = |at: LayerProgress| {
            (self.progress)(PackProgress::Read { entries: at.entries, bytes: at.bytes });
        };
        let options = &self.options.layer;
        let read_at = file_clock_now();
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
        self.record_trouble(trouble.map_or(Ok(()), Err));
        for (entry, hashed) in self.source.entries().iter().zip(hashed.iter().flat_map(|tree| &tree.entries))
        {
            cache_hashed_entry(&mut self.hashes, entry, read_at, hashed);
        }
        Ok((layer, hashed))
    }
}
