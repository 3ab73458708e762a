//! Tar layer of a tree: the same bytes on any machine, at any time, as any user.
//!
//! Headers are POSIX ustar, with PAX records for names, links and sizes that do not fit and for xattrs
//! (`SCHILY.xattr.*`), in the same form as Go's tar writer. The owner is 0/0 without names, and all times are the
//! given one. Holes of sparse files are written as zeros.
//!
//! The list of entries is split into frames (module `plan`). Several threads each read, hash and compress one frame
//! at a time. The calling thread takes the frames in order, hashes the tar and the compressed bytes, and writes them.
//! Memory use is bounded by the number of threads, independent of the size of the tree or of a file.

mod compress;
mod frame;
pub(crate) mod header;
mod plan;
mod source;

use std::io::Write;

use hearth_value::Digest;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::identity::{ContentHash, HashedEntry, HashedTree};
use crate::walk::{ContentError, display_path};
use crate::workers;
pub use compress::Compression;
use compress::LayerEnvelope;
use frame::{FrameBuilder, LayerFrame};
use plan::{FrameRange, FrameRanges};
pub(crate) use source::has_xattrs;
pub use source::{ContentReader, LayerSource};

/// Options for writing a layer.
#[derive(Debug, Clone)]
pub struct LayerOptions {
    pub compression: Compression,
    /// Modification time of every entry, in seconds since 1970: 0, or `SOURCE_DATE_EPOCH`.
    pub mtime: u64,
    /// Number of threads that compress, by default one for each core. The output does not depend on it.
    pub workers: Option<u32>,
}

impl Default for LayerOptions {
    fn default() -> Self {
        Self { compression: Compression::Zstd, mtime: 0, workers: None }
    }
}

/// Digests and sizes of a written layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedLayer {
    /// Digest of the compressed bytes.
    pub digest: Digest,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Compressed size in bytes.
    pub size: u64,
    /// Size of the uncompressed tar in bytes.
    pub uncompressed_size: u64,
    pub compression: Compression,
}

/// Error of writing a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error(
        "{path}: a name that starts with `.wh.` would delete a file of the image instead of adding one; exclude or rename it"
    )]
    Whiteout { path: String },
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error("cannot write the layer: {source}")]
    Write { source: std::io::Error },
}

/// Progress of a layer: number of entries and of content bytes that have been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerProgress {
    pub entries: u64,
    pub bytes: u64,
}

/// Writes the entries of `source` as a layer to `out`.
pub fn write(
    source: &dyn LayerSource,
    options: &LayerOptions,
    out: &mut dyn Write,
    progress: &mut dyn FnMut(LayerProgress),
) -> Result<PackedLayer, LayerError> {
    LayerWriter::new(source, options, out, None).run(progress)
}

/// Writes the layer like [`write()`], and computes the identity of its content in the same pass.
pub fn write_hashed(
    source: &dyn LayerSource,
    options: &LayerOptions,
    out: &mut dyn Write,
    progress: &mut dyn FnMut(LayerProgress),
) -> Result<(PackedLayer, HashedTree), LayerError> {
    let mut hashed = vec![HashedEntry::default(); source.entries().len()];
    let layer = LayerWriter::new(source, options, out, Some(&mut hashed)).run(progress)?;
    Ok((layer, HashedTree::new(source.entries(), hashed)))
}

/// Writer that joins the frames to a layer.
struct LayerWriter<'a> {
    source: &'a dyn LayerSource,
    options: &'a LayerOptions,
    out: HashingWriter<'a>,
    tar: Sha256,
    written: u64,
    envelope: LayerEnvelope,
    hashed: Option<&'a mut Vec<HashedEntry>>,
    /// Hash of the file that spans several frames.
    split_file_hash: blake3::Hasher,
}

struct HashingWriter<'a> {
    inner: &'a mut dyn Write,
    sum: Sha256,
    written: u64,
}

impl<'a> LayerWriter<'a> {
    fn new(
        source: &'a dyn LayerSource,
        options: &'a LayerOptions,
        out: &'a mut dyn Write,
        hashed: Option<&'a mut Vec<HashedEntry>>,
    ) -> Self {
        Self {
            source,
            options,
            out: HashingWriter { inner: out, sum: Sha256::new(), written: 0 },
            tar: Sha256::new(),
            written: 0,
            envelope: LayerEnvelope::new(options.compression),
            hashed,
            split_file_hash: blake3::Hasher::new(),
        }
    }

    fn run(mut self, progress: &mut dyn FnMut(LayerProgress)) -> Result<PackedLayer, LayerError> {
        let (source, options, hash) = (self.source, self.options, self.hashed.is_some());
        if let Some(entry) = source.entries().iter().find(|entry| entry.name().starts_with(b".wh.")) {
            return Err(LayerError::Whiteout { path: display_path(&entry.path) });
        }
        let unwritable = |source| LayerError::Write { source };
        self.out.write(self.envelope.start()).map_err(unwritable)?;
        let mut at = LayerProgress::default();
        let spare = Mutex::new(Vec::new());
        let worker = || {
            let mut filler = FrameBuilder::new(source, options, hash);
            let spare = &spare;
            move |cut: FrameRange| match &mut filler {
                Ok(filler) => filler.fill(&cut, spare),
                Err(error) => Err(LayerError::Write { source: std::io::Error::other(error.to_string()) }),
            }
        };
        let threads = workers::worker_count(options.workers);
        workers::run_ordered(threads, FrameRanges::of(source.entries()), worker, |frame| {
            let mut frame: LayerFrame = frame?;
            self.write_frame(&mut frame).map_err(unwritable)?;
            at.entries += frame.entries;
            at.bytes += frame.bytes;
            progress(at);
            spare.lock().push(frame);
            Ok::<_, LayerError>(())
        })?;
        let end = self.envelope.end(self.written).map_err(unwritable)?;
        self.out.write(&end).and_then(|()| self.out.inner.flush()).map_err(unwritable)?;
        Ok(PackedLayer {
            digest: Digest::from_sha256(self.out.sum.finalize().into()),
            diff_id: Digest::from_sha256(self.tar.finalize().into()),
            size: self.out.written,
            uncompressed_size: self.written,
            compression: options.compression,
        })
    }

    fn write_frame(&mut self, frame: &mut LayerFrame) -> std::io::Result<()> {
        let listed = std::mem::take(&mut frame.hashed);
        let tar = frame.tar();
        self.tar.update(tar);
        self.written += tar.len() as u64;
        let compressed = match self.options.compression {
            Compression::None => tar,
            Compression::Zstd | Compression::Gzip => &frame.compressed,
        };
        self.envelope.add_frame(compressed.len(), tar.len(), &frame.crc)?;
        self.out.write(compressed)?;
        let Some(hashed) = &mut self.hashed else { return Ok(()) };
        for (index, entry) in listed {
            hashed[index] = entry;
        }
        for piece in &frame.pieces {
            self.split_file_hash.update(&tar[piece.range.clone()]);
            if piece.last {
                hashed[piece.index].content =
                    Some(ContentHash::from_bytes(self.split_file_hash.finalize().into()));
                self.split_file_hash.reset();
            }
        }
        Ok(())
    }
}

impl HashingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.inner.write_all(bytes)?;
        self.sum.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
