//! A directory as an image: walk, layer, config, archive.
//!
//! The layer is spooled to an unnamed file, since an archive needs its length first; whatever
//! becomes of the pack, nothing is left behind. What is sent and what is written to a file is the
//! same layout, and so the same bytes.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use hearth_proto::value::{Digest, Reference};

use crate::archive::{Layout, sha256};
use crate::base::Base;
use crate::image::{self, ConfigError, ConfigFlags, Descriptor, ImageConfig, Manifest, Platform};
use crate::layer::{self, Layer, LayerError, LayerOptions, Source};
use crate::summary::Summary;
use crate::walk::{WalkError, WalkOptions, walk};

const CREATED_BY: &str = "hearth pack";

/// What to make of a directory.
#[derive(Debug, Clone, Default)]
pub struct PackOptions {
    pub walk: WalkOptions,
    /// `mtime` is also the image's time of creation.
    pub layer: LayerOptions,
    pub config: ConfigFlags,
    /// What the image declares; with a base, the base's own platform counts.
    pub platform: Platform,
    pub base: Option<Base>,
    /// Written into the archive's index.
    pub tag: Option<Reference>,
    /// Adds what `docker load` looks for.
    pub docker: bool,
    /// Where the layer is spooled; none: the system's directory for temporary files.
    pub spool_dir: Option<PathBuf>,
}

/// How far a pack is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The tree is listed: this much is to be read.
    Listed { entries: u64, bytes: u64 },
    /// So much has been read.
    Read { entries: u64, bytes: u64 },
    /// The layer is complete and has this many compressed bytes.
    Compressed { bytes: u64 },
}

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

/// An image that is ready to be written.
#[derive(Debug)]
pub struct Packed {
    pub summary: Summary,
    pub layer: Layer,
    pub config: ImageConfig,
    pub config_digest: Digest,
    layout: Layout,
    manifest: Vec<u8>,
    config_bytes: Vec<u8>,
    parsed: Manifest,
    spool: File,
    base: Option<Base>,
}

/// Packs the directory `path`.
pub fn pack(
    path: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Packed, PackError> {
    // Flags are checked before anything is read.
    options.config.apply(&mut start(options).0.config)?;
    rfc3339(options.layer.mtime).ok_or(PackError::Time { seconds: options.layer.mtime })?;
    let tree = walk(path, &options.walk)?;
    let summary = Summary::of(&tree);
    pack_source(&tree, summary, options, progress)
}

/// Packs entries from anywhere: the same entries give the same bytes. The options of the walk play no part.
pub fn pack_source(
    source: &dyn Source,
    summary: Summary,
    options: &PackOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Packed, PackError> {
    let (mut config, mut layers) = start(options);
    options.config.apply(&mut config.config)?;
    let created = rfc3339(options.layer.mtime).ok_or(PackError::Time { seconds: options.layer.mtime })?;
    progress(Progress::Listed { entries: source.entries().len() as u64, bytes: summary.bytes });

    let (layer, spool) = spool_layer(source, options, progress)?;
    progress(Progress::Compressed { bytes: layer.size });

    config.add_layer(layer.diff_id, &created, CREATED_BY);
    let config_bytes = serde_json::to_vec(&config)?;
    let config_digest = sha256(&config_bytes);
    layers.push(Descriptor::new(layer.compression.media_type(), layer.digest, layer.size));
    let config_descriptor = Descriptor::new(image::CONFIG, config_digest, config_bytes.len() as u64);
    let parsed = Manifest::new(config_descriptor, layers);
    let manifest = serde_json::to_vec(&parsed)?;
    let tag = options.tag.as_ref().map(Reference::to_string);
    let layout =
        Layout::new(&config_bytes, &manifest, &parsed, &config.platform, tag.as_deref(), options.docker)?;
    let base = options.base.clone();
    Ok(Packed { summary, layer, config, config_digest, layout, manifest, config_bytes, parsed, spool, base })
}

/// The config and the layers that the packed one is put on.
fn start(options: &PackOptions) -> (ImageConfig, Vec<Descriptor>) {
    match &options.base {
        Some(base) => (base.config.clone(), base.layers.clone()),
        None => (ImageConfig::new(options.platform.clone()), Vec::new()),
    }
}

fn spool_layer(
    source: &dyn Source,
    options: &PackOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Layer, File), PackError> {
    let dir = options.spool_dir.clone().unwrap_or_else(std::env::temp_dir);
    let spool = tempfile::tempfile_in(&dir).map_err(|source| PackError::Spool { dir, source })?;
    let mut out = BufWriter::with_capacity(256 * 1024, &spool);
    let layer = layer::write(source, &options.layer, &mut out, &mut |at| {
        progress(Progress::Read { entries: at.entries, bytes: at.bytes });
    })?;
    drop(out);
    Ok((layer, spool))
}

impl Packed {
    /// Digest of the image.
    pub fn digest(&self) -> Digest {
        self.layout.manifest().digest
    }

    /// The image's descriptor as it stands in the index.
    pub fn descriptor(&self) -> &Descriptor {
        self.layout.manifest()
    }

    pub fn manifest(&self) -> &Manifest {
        &self.parsed
    }

    /// All blobs of the image, base layers first, config and manifest last: the order in which a
    /// registry takes them.
    pub fn blobs(&self) -> Vec<Descriptor> {
        let mut blobs = self.parsed.layers.clone();
        blobs.push(self.parsed.config.clone());
        blobs.push(self.layout.manifest().clone());
        blobs
    }

    /// Opens the content of one of [`Packed::blobs`].
    pub fn open_blob(&self, digest: &Digest) -> io::Result<Box<dyn io::Read + '_>> {
        if *digest == self.layer.digest {
            return Ok(Box::new(crate::archive::FileRange {
                file: &self.spool,
                position: 0,
                left: self.layer.size,
            }));
        }
        if *digest == self.config_digest {
            return Ok(Box::new(self.config_bytes.as_slice()));
        }
        if *digest == self.digest() {
            return Ok(Box::new(self.manifest.as_slice()));
        }
        match &self.base {
            Some(base) => base.blobs.open(digest),
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("no blob {digest} in this pack"))),
        }
    }

    /// Length of the archive in bytes.
    pub fn archive_size(&self) -> u64 {
        self.layout.size()
    }

    /// Writes the archive, [`Packed::archive_size`] bytes, the same each time.
    pub fn write_archive(&self, out: &mut dyn Write) -> io::Result<()> {
        self.layout.write(out, &|digest| self.open_blob(digest))
    }

    /// Writes the archive to a file, which appears complete or not at all.
    pub fn write_to_file(&self, path: &Path) -> Result<(), PackError> {
        let failed = |source| PackError::Write { path: path.to_owned(), source };
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        let mut temporary = tempfile::Builder::new()
            .prefix(".hearth-pack-")
            // The umask takes its part, as for any file a person makes.
            .permissions(mode)
            .tempfile_in(dir)
            .map_err(failed)?;
        let mut out = BufWriter::with_capacity(256 * 1024, temporary.as_file_mut());
        self.write_archive(&mut out).map_err(failed)?;
        out.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
        temporary.persist(path).map_err(|error| failed(error.error))?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
    }
}

fn rfc3339(seconds: u64) -> Option<String> {
    let time = jiff::Timestamp::from_second(i64::try_from(seconds).ok()?).ok()?;
    Some(time.to_string())
}

#[cfg(test)]
mod tests;
