//! Cache of earlier packs' results, outside of the packed trees. The next pack of an unchanged tree then reads no
//! content and compresses nothing.
//!
//! ```text
//! hashes/DEVICE-INODE   content hashes of the files below one directory (`HashCache`)
//! layers/KEY            a finished layer followed by a footer that describes it; or the footer alone and
//! layers/KEY.archive    a hard link to the archive that contains the layer
//! ```
//!
//! A layer that was written into an archive is not written a second time if a hard link to the archive is possible.
//! The user may still remove or replace the archive. Writing into it only damages this cache entry, because every
//! layer is verified when it is used.
//!
//! A layer's key is a hash of its tree digest and of everything else that affects its bytes. Both kinds of files are
//! written atomically, so packs may run at the same time. A file that is damaged, foreign or of another version is
//! treated as missing and is made again. The size of both kinds is limited: the least recently used files are removed
//! first.

mod footer;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::SystemTime;

use sha2::Digest as _;

use crate::archive::FileRange;
use crate::identity::{HashCache, TreeDigest};
use crate::layer::{Compression, LayerOptions, PackedLayer};
use crate::new_file::{self, NewFile, TemporaryLink};
use crate::workers;

/// Maximum size of all cached layers, in bytes.
const LAYERS_LIMIT: u64 = 4 << 30;
/// Maximum size of all cached hashes, in bytes; each file takes 73 bytes.
const HASHES_LIMIT: u64 = 256 << 20;
/// Minimum free space on the file system, in bytes.
const MIN_FREE: u64 = 2 << 30;

/// File name extension of a hard link to an archive.
const ARCHIVE: &str = "archive";

/// Version of the layer format. It changes when the same tree gives other bytes than before.
const LAYER_FORMAT: u32 = 1;

/// A cached layer of an earlier pack.
pub(crate) struct CachedLayer {
    pub(crate) layer: PackedLayer,
    pub(crate) file: File,
    /// Offset of the layer in the file.
    pub(crate) position: u64,
}

/// Directory of earlier packs' results.
#[derive(Debug, Clone)]
pub struct PackCache {
    dir: PathBuf,
    layers_limit: u64,
}

/// Key of a cached layer: a hash of everything that determines its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerKey(String);

impl LayerKey {
    pub fn new(tree: &TreeDigest, options: &LayerOptions) -> Self {
        let text = format!(
            "layer {LAYER_FORMAT} {} zstd-{} {tree} {} {}",
            env!("CARGO_PKG_VERSION"),
            zstd::zstd_safe::version_number(),
            options.compression.name(),
            options.mtime,
        );
        Self(blake3::hash(text.as_bytes()).to_hex().to_string())
    }
}

impl PackCache {
    /// Returns `$XDG_CACHE_HOME/hearth`, else `~/.cache/hearth`, or `None` if neither variable is set.
    pub fn user_dir() -> Option<PathBuf> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(base.join("hearth"))
    }

    /// Opens the cache in `dir` and creates it if it is missing. Another user's directory is refused, because it
    /// could contain manipulated layers.
    pub fn open(dir: &Path) -> io::Result<Self> {
        for dir in [dir, &dir.join("hashes"), &dir.join("layers")] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            let metadata = fs::symlink_metadata(dir)?;
            if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
                let reason = format!("{} can be written by another user", dir.display());
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
            }
        }
        Ok(Self { dir: dir.to_owned(), layers_limit: LAYERS_LIMIT })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Loads the hashes of the files below the directory with this device and inode.
    pub fn hashes(&self, root: (u64, u64)) -> HashCache {
        // A cache that cannot be read for any reason is rebuilt.
        HashCache::load(&self.hashes_path(root)).unwrap_or_default()
    }

    /// Saves the hashes that were used or added since [`PackCache::hashes`].
    pub fn save_hashes(&self, root: (u64, u64), mut hashes: HashCache) -> io::Result<()> {
        hashes.next_round(1);
        if hashes.is_changed() {
            hashes.save(&self.hashes_path(root)).map_err(io::Error::other)?;
            evict(&self.dir.join("hashes"), HASHES_LIMIT)?;
        }
        Ok(())
    }

    fn hashes_path(&self, (device, inode): (u64, u64)) -> PathBuf {
        self.dir.join(format!("hashes/{device:x}-{inode:x}"))
    }

    /// Creates a file for a layer to be cached. Returns `None` if the layer could exceed the limits.
    pub(crate) fn new_layer(&self, most_bytes: u64) -> io::Result<Option<NewFile>> {
        let dir = self.dir.join("layers");
        let free = rustix::fs::statvfs(&dir).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))?;
        if most_bytes > self.layers_limit || most_bytes.saturating_add(MIN_FREE) > free {
            return Ok(None);
        }
        NewFile::create(&dir, 0o600).map(Some)
    }

    /// Creates a hard link in the cache to an archive that is being written. Returns `None` if that is not possible,
    /// for example on another file system, or if the archive could be too large.
    pub(crate) fn link_archive(&self, archive: &NewFile, most_bytes: u64) -> Option<TemporaryLink> {
        if most_bytes > self.layers_limit {
            return None;
        }
        archive.temporary_link(&self.dir.join("layers")).ok()
    }

    /// Stores a layer that was written to the start of `new`.
    pub(crate) fn store_layer(&self, key: &LayerKey, layer: &PackedLayer, new: &NewFile) -> io::Result<()> {
        self.put_footer(key, layer, None, new)
    }

    /// Stores a layer that was written at `position` of an archive that has a hard link in the cache.
    pub(crate) fn store_layer_in_archive(
        &self,
        key: &LayerKey,
        layer: &PackedLayer,
        (archive, position): (&NewFile, u64),
    ) -> io::Result<()> {
        archive.add_name(&archive_of(&self.layer_path(key)))?;
        let footer = NewFile::create(&self.dir.join("layers"), 0o600)?;
        self.put_footer(key, layer, Some(position), &footer)
    }

    fn put_footer(
        &self,
        key: &LayerKey,
        layer: &PackedLayer,
        in_archive: Option<u64>,
        new: &NewFile,
    ) -> io::Result<()> {
        let start = if in_archive.is_some() { 0 } else { layer.size };
        new.file().set_len(start)?;
        new.file().write_all_at(&footer::encode(&key.0, layer, in_archive), start)?;
        let path = self.layer_path(key);
        new.persist(&path)?;
        if in_archive.is_none() {
            // The archive of an earlier footer is not needed any more. If this fails, it is removed together with the
            // new footer.
            let _ = fs::remove_file(archive_of(&path));
        }
        evict(&self.dir.join("layers"), self.layers_limit)
    }

    /// Finds a cached layer by its key. Its bytes are not verified here: [`copy_layer`] or the reader does that.
    pub(crate) fn layer(&self, key: &LayerKey, compression: Compression) -> Option<CachedLayer> {
        let path = self.layer_path(key);
        let file = File::options().read(true).write(true).open(&path).ok()?;
        let (layer, in_archive) = footer::read(&file, &key.0, compression)?;
        // The time orders eviction. If it cannot be set, the layer is only removed earlier than necessary.
        let _ = file.set_modified(SystemTime::now());
        match in_archive {
            None => Some(CachedLayer { layer, file, position: 0 }),
            Some(position) => {
                Some(CachedLayer { layer, file: File::open(archive_of(&path)).ok()?, position })
            }
        }
    }

    pub(crate) fn remove_layer(&self, key: &LayerKey) {
        // A layer that cannot be removed is found damaged again next time.
        let path = self.layer_path(key);
        let _ = fs::remove_file(archive_of(&path));
        let _ = fs::remove_file(path);
    }

    fn layer_path(&self, key: &LayerKey) -> PathBuf {
        self.dir.join("layers").join(&key.0)
    }
}

/// Number of buffers that circulate between copying and hashing a cached layer.
const COPY_BUFFERS: usize = 4;
/// Size of one of these buffers, in bytes.
const COPY_BUFFER_SIZE: usize = 1 << 20;

/// Copies a cached layer to `out`. Returns whether the bytes have the layer's digest. A second thread hashes exactly
/// the bytes that are written.
pub(crate) fn copy_layer(kept: &CachedLayer, out: &mut dyn Write) -> io::Result<bool> {
    let CachedLayer { layer, file, position } = kept;
    let (hash, written) = mpsc::sync_channel::<(Vec<u8>, usize)>(COPY_BUFFERS);
    let (give_back, free) = mpsc::sync_channel(COPY_BUFFERS);
    let mut unused = COPY_BUFFERS;
    std::thread::scope(|scope| {
        let hasher = workers::start(scope, "layer-hash", move || {
            let mut sum = sha2::Sha256::new();
            for (piece, used) in written {
                sum.update(&piece[..used]);
                // At the end nobody receives the buffer any more.
                let _ = give_back.send(piece);
            }
            hearth_value::Digest::from_sha256(sum.finalize().into())
        })?;
        let mut from = FileRange { file, position: *position, left: layer.size };
        loop {
            let mut piece = match unused.checked_sub(1) {
                Some(left) => {
                    unused = left;
                    vec![0; COPY_BUFFER_SIZE]
                }
                None => free.recv().map_err(io::Error::other)?,
            };
            match from.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => {
                    out.write_all(&piece[..count])?;
                    hash.send((piece, count)).map_err(io::Error::other)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => unused += 1,
                // A layer that cannot be read is made again.
                Err(_) => return Ok(false),
            }
        }
        drop(hash);
        let digest = hasher.join().map_err(|_| io::Error::other("the hashing thread panicked"))?;
        Ok(digest == layer.digest)
    })
}

/// Returns the path of the archive that a footer at this path belongs to.
fn archive_of(footer: &Path) -> PathBuf {
    footer.with_extension(ARCHIVE)
}

/// Removes the least recently used files until the rest has at most `limit` bytes. An archive is removed together
/// with its footer.
fn evict(dir: &Path, limit: u64) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let archive = archive_of(&path);
        let is_extra = path == archive && path.with_extension("").exists();
        if is_extra || new_file::is_hidden(entry.file_name().as_encoded_bytes()) {
            continue;
        }
        // Another pack may have removed the file meanwhile.
        if let Ok(metadata) = entry.metadata() {
            let beside = fs::metadata(&archive).ok().filter(|_| path != archive);
            let size = metadata.len().saturating_add(beside.map_or(0, |beside| beside.len()));
            files.push((metadata.modified()?, size, path));
        }
    }
    files.sort_unstable_by_key(|&(used, ..)| std::cmp::Reverse(used));
    let mut total = 0u64;
    for (_, size, path) in files {
        total = total.saturating_add(size);
        if total > limit {
            for path in [archive_of(&path), path] {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
