//! Builds an image from a directory: walk, layer, config, archive.
//!
//! The layer is spooled to an unnamed file, because an archive needs its length first; an interrupted pack leaves
//! nothing behind. An archive that is sent and one that is written to a file have the same layout, and so the same
//! bytes.

mod assemble;
mod spool;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use hearth_oci::{DeclaredPlatform, Descriptor, ImageConfig, Manifest};
use hearth_value::{Digest, Reference};

use crate::archive::OpenBlob;
use crate::base::BaseImage;
use crate::image::{ConfigError, ConfigFlags};
use crate::layer::{LayerError, LayerOptions, LayerSource, PackedLayer};
use crate::new_file::{self, NewFile};
use crate::summary::PackSummary;
use crate::walk::{WalkError, WalkOptions, WalkedTree, WrittenPath, walk};
use assemble::{AssembledImage, ImageAssembly};
use spool::{LayerSpool, SpooledLayer};

/// Mode of a user's file before the umask is applied.
const FILE_MODE: u32 = 0o666;

/// Options for packing a directory.
#[derive(Debug, Clone, Default)]
pub struct PackOptions {
    pub walk: WalkOptions,
    /// Options of the layer. `mtime` is also the image's creation time.
    pub layer: LayerOptions,
    pub config: ConfigFlags,
    /// Platform that the image declares. With a base, the base's platform is used instead.
    pub platform: DeclaredPlatform,
    pub base: Option<BaseImage>,
    /// Tag that is written into the archive's index.
    pub tag: Option<Reference>,
    /// Adds the `manifest.json` that `docker load` needs.
    pub docker: bool,
    /// File that will be passed to [`PackedImage::write_to_file`]. The layer is written directly to its offset in
    /// this file, which gets its name only then.
    pub output: Option<PathBuf>,
    /// Directory of the [`PackCache`]. Without it, every pack reads and compresses everything.
    pub cache: Option<PathBuf>,
    /// Directory in which the layer is spooled if it is neither in `output` nor in `cache`. Default: the system's
    /// directory for temporary files.
    pub spool_dir: Option<PathBuf>,
}

impl PackOptions {
    /// Returns the options of the walk without the files that the pack itself writes.
    pub fn walk_options(&self) -> WalkOptions {
        let mut walk = self.walk.clone();
        walk.written.extend(
            [&self.output, &self.cache].into_iter().flatten().filter_map(|path| WrittenPath::at(path)),
        );
        walk
    }
}

/// Progress of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackProgress {
    /// The tree is listed; these are the totals to be read.
    Listed { entries: u64, bytes: u64 },
    /// Number of entries and bytes that have been read.
    Read { entries: u64, bytes: u64 },
    /// The layer is complete; `bytes` is its compressed size.
    Compressed { bytes: u64 },
}

/// Error of packing a directory.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error(transparent)]
    Walk(#[from] WalkError),
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the image's JSON cannot be written: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{}: cannot spool the layer: {source}", .dir.display())]
    Spool { dir: PathBuf, source: io::Error },
    #[error("time {seconds} (SOURCE_DATE_EPOCH) is out of range")]
    Time { seconds: u64 },
    #[error("{}: cannot write the archive: {source}", .path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// A packed image, ready to be written.
#[derive(Debug)]
pub struct PackedImage {
    pub summary: PackSummary,
    pub layer: PackedLayer,
    /// Error of the cache, if there was one: the next pack of this tree will not be faster.
    pub cache_trouble: Option<String>,
    image: AssembledImage,
    spool: LayerSpool,
    base: Option<BaseImage>,
}

/// Packs the directory `path`.
pub fn pack(
    path: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(PackProgress),
) -> Result<PackedImage, PackError> {
    // Flags are checked before anything is read.
    let assembly = ImageAssembly::new(options)?;
    let tree = walk(path, &options.walk_options())?;
    let summary = PackSummary::of(&tree);
    complete(&assembly, &tree, Some(&tree), summary, options, progress)
}

/// Packs entries from any source: the same entries give the same bytes. The options of the walk and the cache are
/// ignored.
pub fn pack_source(
    source: &dyn LayerSource,
    summary: PackSummary,
    options: &PackOptions,
    progress: &mut dyn FnMut(PackProgress),
) -> Result<PackedImage, PackError> {
    complete(&ImageAssembly::new(options)?, source, None, summary, options, progress)
}

fn complete(
    assembly: &ImageAssembly<'_>,
    source: &dyn LayerSource,
    tree: Option<&WalkedTree>,
    mut summary: PackSummary,
    options: &PackOptions,
    progress: &mut dyn FnMut(PackProgress),
) -> Result<PackedImage, PackError> {
    progress(PackProgress::Listed { entries: source.entries().len() as u64, bytes: summary.bytes });
    let position = assembly.layer_position(summary.bytes)?;
    let SpooledLayer { layer, spool, reused, cache_trouble } =
        spool::spool_layer(source, tree, options, position, progress)?;
    summary.reused_bytes = if reused { summary.bytes } else { 0 };
    progress(PackProgress::Compressed { bytes: layer.size });
    let image = assembly.assemble(&layer)?;
    Ok(PackedImage { summary, layer, cache_trouble, image, spool, base: options.base.clone() })
}

impl PackedImage {
    /// Returns the digest of the image's manifest.
    pub fn digest(&self) -> Digest {
        self.image.layout.manifest().digest
    }

    /// Returns the image's descriptor as written in the index.
    pub fn descriptor(&self) -> &Descriptor {
        self.image.layout.manifest()
    }

    pub fn config(&self) -> &ImageConfig {
        &self.image.config
    }

    pub fn config_digest(&self) -> Digest {
        self.image.config_digest
    }

    pub fn manifest(&self) -> &Manifest {
        &self.image.parsed
    }

    /// Returns all blobs of the image, base layers first, config and manifest last: the order in which a registry
    /// accepts them.
    pub fn blobs(&self) -> Vec<Descriptor> {
        let mut blobs = self.image.parsed.layers.clone();
        blobs.push(self.image.parsed.config.clone());
        blobs.push(self.image.layout.manifest().clone());
        blobs
    }

    /// Opens the content of one of [`PackedImage::blobs`].
    pub fn open_blob(&self, digest: &Digest) -> io::Result<Box<dyn io::Read + '_>> {
        if *digest == self.layer.digest {
            return Ok(Box::new(self.spool.range(self.layer.size)));
        }
        if *digest == self.image.config_digest {
            return Ok(Box::new(self.image.config_bytes.as_slice()));
        }
        if *digest == self.digest() {
            return Ok(Box::new(self.image.manifest.as_slice()));
        }
        match &self.base {
            Some(base) => base.blobs.open(digest),
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("no blob {digest} in this pack"))),
        }
    }

    /// Returns the length of the archive in bytes.
    pub fn archive_size(&self) -> u64 {
        self.image.layout.size()
    }

    /// Writes the archive: [`PackedImage::archive_size`] bytes, the same each time.
    pub fn write_archive(&self, out: &mut dyn Write) -> io::Result<()> {
        self.image.layout.write(out, &|digest| self.open_blob(digest))
    }

    /// Writes the archive to a file, which appears complete or not at all. This is fastest for
    /// [`PackOptions::output`], which already has the layer at its offset.
    pub fn write_to_file(&self, path: &Path) -> Result<(), PackError> {
        let failed = |source| PackError::Write { path: path.to_owned(), source };
        let open: &OpenBlob<'_> = &|digest| self.open_blob(digest);
        let position = self.image.layout.blob_position(&self.layer.digest);
        if let Some(new) = self.spool.take_archive(path, position) {
            self.image.layout.write_around(new.file(), &self.layer.digest, open).map_err(failed)?;
            return finish(new, path).map_err(failed);
        }
        let new = NewFile::create(new_file::parent(path), FILE_MODE).map_err(failed)?;
        let mut out = BufWriter::with_capacity(256 * 1024, new.file());
        self.image.layout.write(&mut out, open).map_err(failed)?;
        out.flush().map_err(failed)?;
        drop(out);
        finish(&new, path).map_err(failed)
    }
}

/// Gives a complete file its name, durably even after a power failure.
fn finish(new: &NewFile, path: &Path) -> io::Result<()> {
    new.file().sync_data()?;
    new.persist(path)?;
    File::open(new.dir())?.sync_all()
}

#[cfg(test)]
mod tests;
