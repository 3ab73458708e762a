//! What earlier packs learned, kept outside the packed trees so that the next pack of an unchanged one
//! reads no content and compresses nothing.
//!
//! ```text
//! hashes/DEVICE-INODE   content hashes of the files below one directory (HashCache)
//! layers/KEY            a finished layer, and behind it a footer that says what it is; or the footer alone and
//! layers/KEY.archive    another name of the archive that has the layer in it
//! ```
//!
//! A layer that was written into an archive is not written once more where a second name does: the archive may be
//! removed or replaced all the same, and whoever writes into it spoils no more than this copy, for every layer is
//! verified when it is used.
//!
//! A layer's key is the digest of its tree with everything else that shows in its bytes. Both kinds appear
//! complete or not at all, so packs may run at the same time; what is damaged, foreign or of another version
//! counts as absent and is made again. Both are bounded: what was used least recently goes first.

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
use crate::layer::{Compression, Layer, LayerOptions};
use crate::new_file::{self, NewFile, SpareName};
use crate::workers;

/// All kept layers together.
const LAYERS_LIMIT: u64 = 4 << 30;
/// All kept hashes together, 72 bytes a file.
const HASHES_LIMIT: u64 = 256 << 20;
/// So much of the file system is left to others.
const LEAVE_FREE: u64 = 2 << 30;

/// Extension of what is another name of an archive.
const ARCHIVE: &str = "archive";

/// Changes when the same tree becomes other bytes than before.
const LAYER_FORMAT: u32 = 1;

/// A layer that an earlier pack has made.
pub(crate) struct Kept {
    pub(crate) layer: Layer,
    pub(crate) file: File,
    /// Where in the file it starts.
    pub(crate) position: u64,
}

/// A directory of earlier results.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
    layers_limit: u64,
}

/// Names a layer by what it is made of.
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

impl Cache {
    /// `$XDG_CACHE_HOME/hearth`, else `~/.cache/hearth`; none where neither is set.
    pub fn user_dir() -> Option<PathBuf> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(base.join("hearth"))
    }

    /// Opens the cache in `dir`, which is made where it is missing. Another user's directory is refused:
    /// it could hold layers of that user's making.
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

    /// What is known of the files below the directory with this device and inode.
    pub fn hashes(&self, root: (u64, u64)) -> HashCache {
        // It is rebuilt when it cannot be read, for whatever reason.
        HashCache::load(&self.hashes_path(root)).unwrap_or_default()
    }

    /// Keeps what was asked for or learned since [`Cache::hashes`].
    pub fn keep_hashes(&self, root: (u64, u64), mut hashes: HashCache) -> io::Result<()> {
        hashes.next_round(1);
        if hashes.is_changed() {
            hashes.save(&self.hashes_path(root)).map_err(io::Error::other)?;
            prune(&self.dir.join("hashes"), HASHES_LIMIT)?;
        }
        Ok(())
    }

    fn hashes_path(&self, (device, inode): (u64, u64)) -> PathBuf {
        self.dir.join(format!("hashes/{device:x}-{inode:x}"))
    }

    /// A new file that may become a kept layer; none if the layer would leave too little room.
    pub(crate) fn new_layer(&self, most_bytes: u64) -> io::Result<Option<NewFile>> {
        let dir = self.dir.join("layers");
        let free = rustix::fs::statvfs(&dir).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))?;
        if most_bytes > self.layers_limit || most_bytes.saturating_add(LEAVE_FREE) > free {
            return Ok(None);
        }
        NewFile::create(&dir, 0o600).map(Some)
    }

    /// A name here for an archive that is being written; none where it cannot have one, such as on another file system,
    /// or would be too large.
    pub(crate) fn name_archive(&self, archive: &NewFile, most_bytes: u64) -> Option<SpareName> {
        if most_bytes > self.layers_limit {
            return None;
        }
        archive.spare_name(&self.dir.join("layers")).ok()
    }

    /// Keeps a layer that was written to the start of `new`.
    pub(crate) fn keep_layer(&self, key: &LayerKey, layer: &Layer, new: &NewFile) -> io::Result<()> {
        self.put_footer(key, layer, None, new)
    }

    /// Keeps a layer that was written to `position` of an archive that has a name here.
    pub(crate) fn keep_archive(
        &self,
        key: &LayerKey,
        layer: &Layer,
        (archive, position): (&NewFile, u64),
    ) -> io::Result<()> {
        archive.also_put(&archive_of(&self.layer_path(key)))?;
        let footer = NewFile::create(&self.dir.join("layers"), 0o600)?;
        self.put_footer(key, layer, Some(position), &footer)
    }

    fn put_footer(
        &self,
        key: &LayerKey,
        layer: &Layer,
        in_archive: Option<u64>,
        new: &NewFile,
    ) -> io::Result<()> {
        let start = if in_archive.is_some() { 0 } else { layer.size };
        new.file().set_len(start)?;
        new.file().write_all_at(&footer::encode(&key.0, layer, in_archive), start)?;
        let path = self.layer_path(key);
        new.put(&path)?;
        if in_archive.is_none() {
            // What an earlier footer belonged to; one that stays is removed with this one.
            let _ = fs::remove_file(archive_of(&path));
        }
        prune(&self.dir.join("layers"), self.layers_limit)
    }

    /// The kept layer of that name, if there is one; its bytes are verified by [`copy_layer`] or by whoever reads
    /// them.
    pub(crate) fn layer(&self, key: &LayerKey, compression: Compression) -> Option<Kept> {
        let path = self.layer_path(key);
        let file = File::options().read(true).write(true).open(&path).ok()?;
        let (layer, in_archive) = footer::read(&file, &key.0, compression)?;
        // Used now; where the time cannot be set it goes earlier than it need.
        let _ = file.set_modified(SystemTime::now());
        match in_archive {
            None => Some(Kept { layer, file, position: 0 }),
            Some(position) => Some(Kept { layer, file: File::open(archive_of(&path)).ok()?, position }),
        }
    }

    pub(crate) fn forget_layer(&self, key: &LayerKey) {
        // One that cannot be removed is found damaged again next time.
        let path = self.layer_path(key);
        let _ = fs::remove_file(archive_of(&path));
        let _ = fs::remove_file(path);
    }

    fn layer_path(&self, key: &LayerKey) -> PathBuf {
        self.dir.join("layers").join(&key.0)
    }
}

/// Pieces of a kept layer that are copied and hashed at the same time, of this size.
const PIECES: usize = 4;
const PIECE: usize = 1 << 20;

/// Copies a kept layer to `out`; whether it was what its digest says. The very bytes that are written are
/// hashed, by another thread.
pub(crate) fn copy_layer(kept: &Kept, out: &mut dyn Write) -> io::Result<bool> {
    let Kept { layer, file, position } = kept;
    let (hash, written) = mpsc::sync_channel::<(Vec<u8>, usize)>(PIECES);
    let (give_back, free) = mpsc::sync_channel(PIECES);
    let mut unused = PIECES;
    std::thread::scope(|scope| {
        let hasher = workers::start(scope, "layer-hash", move || {
            let mut sum = sha2::Sha256::new();
            for (piece, used) in written {
                sum.update(&piece[..used]);
                // Nobody takes it back at the end.
                let _ = give_back.send(piece);
            }
            hearth_proto::value::Digest::from_sha256(sum.finalize().into())
        })?;
        let mut from = FileRange { file, position: *position, left: layer.size };
        loop {
            let mut piece = match unused.checked_sub(1) {
                Some(left) => {
                    unused = left;
                    vec![0; PIECE]
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
                // Not readable is not usable: it is made again.
                Err(_) => return Ok(false),
            }
        }
        drop(hash);
        let digest = hasher.join().map_err(|_| io::Error::other("the thread that hashes panicked"))?;
        Ok(digest == layer.digest)
    })
}

/// The archive that a footer at this path belongs to.
fn archive_of(footer: &Path) -> PathBuf {
    footer.with_extension(ARCHIVE)
}

/// Removes the files that were used least recently until the rest has at most `limit` bytes. An archive goes with its
/// footer.
fn prune(dir: &Path, limit: u64) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let archive = archive_of(&path);
        let is_extra = path == archive && path.with_extension("").exists();
        if is_extra || new_file::is_hidden(&path) {
            continue;
        }
        // Removed by another pack meanwhile: gone is gone.
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
