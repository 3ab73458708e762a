//! One tar layer of a tree: the same bytes on any machine, at any time, as any user.
//!
//! Headers are POSIX (ustar with PAX records where a name, a link or a size does not fit, and
//! for xattrs as `SCHILY.xattr.*`), as Go's own writer makes them. Owner is 0/0 without names,
//! every time is the one given. Holes of sparse files are written as zeros.
//!
//! Content is streamed: read and hashed here, compressed by zstd's own threads, hashed again.

mod compress;
pub(crate) mod header;
mod source;

use std::io::Write;

use hearth_proto::value::Digest;
use sha2::{Digest as _, Sha256};

use crate::walk::{ContentError, Entry, EntryKind, shown};
pub use compress::Compression;
use compress::Compressor;
use header::Record;
use source::has_xattrs;
pub use source::{ContentReader, Source};

/// How the layer is written.
#[derive(Debug, Clone)]
pub struct LayerOptions {
    pub compression: Compression,
    /// Time of every entry, in seconds since 1970: 0, or `SOURCE_DATE_EPOCH`.
    pub mtime: u64,
    /// Threads that compress; the output does not depend on it. None: one for each core.
    pub workers: Option<u32>,
}

impl Default for LayerOptions {
    fn default() -> Self {
        Self { compression: Compression::Zstd, mtime: 0, workers: None }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the compressed bytes.
    pub digest: Digest,
    /// Digest of the tar.
    pub diff_id: Digest,
    /// Compressed bytes.
    pub size: u64,
    /// Bytes of the tar.
    pub uncompressed_size: u64,
    pub compression: Compression,
}

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

/// How far a layer is: entries and bytes of content that have been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerProgress {
    pub entries: u64,
    pub bytes: u64,
}

/// Writes the entries of `source` as a layer to `out`.
pub fn write(
    source: &dyn Source,
    options: &LayerOptions,
    out: &mut dyn Write,
    progress: &mut dyn FnMut(LayerProgress),
) -> Result<Layer, LayerError> {
    if let Some(entry) = source.entries().iter().find(|entry| entry.name().starts_with(b".wh.")) {
        return Err(LayerError::Whiteout { path: shown(&entry.path) });
    }
    let mut stream = Stream::new(options, out).map_err(|source| LayerError::Write { source })?;
    let mut reader = source.reader();
    let mut at = LayerProgress::default();
    for (index, entry) in source.entries().iter().enumerate() {
        let xattrs = if has_xattrs(entry) { reader.open(index)? } else { Vec::new() };
        stream.entry(entry, &xattrs, options.mtime)?;
        if entry.kind == EntryKind::File {
            stream.content(entry, reader.as_mut(), &mut |bytes| {
                at.bytes += bytes;
                progress(at);
            })?;
            reader.verify()?;
            stream.pad(entry.size)?;
        }
        at.entries += 1;
    }
    progress(at);
    stream.finish(options.compression)
}

/// Content goes through a buffer, so that small files cost no small writes.
const BUFFER: usize = 256 * 1024;

/// The tar on its way: hashed, compressed, hashed.
struct Stream<'a> {
    buffer: Vec<u8>,
    tar: Sha256,
    written: u64,
    out: Compressor<Hashing<'a>>,
}

struct Hashing<'a> {
    inner: &'a mut dyn Write,
    sum: Sha256,
    written: u64,
}

impl<'a> Stream<'a> {
    fn new(options: &LayerOptions, out: &'a mut dyn Write) -> std::io::Result<Self> {
        let out = Hashing { inner: out, sum: Sha256::new(), written: 0 };
        Ok(Self {
            buffer: Vec::with_capacity(BUFFER),
            tar: Sha256::new(),
            written: 0,
            out: Compressor::new(options.compression, options.workers, out)?,
        })
    }

    fn entry(&mut self, entry: &Entry, xattrs: &[(Vec<u8>, Vec<u8>)], mtime: u64) -> Result<(), LayerError> {
        let header = header::encode(&Record::of(entry, mtime), xattrs);
        self.bytes(&header)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn content(
        &mut self,
        entry: &Entry,
        reader: &mut dyn ContentReader,
        read: &mut dyn FnMut(u64),
    ) -> Result<(), LayerError> {
        let mut offset = 0;
        while offset < entry.size {
            if self.buffer.len() >= BUFFER {
                self.flush()?;
            }
            // Read straight behind the header of a small file; a large one fills whole buffers.
            let start = self.buffer.len();
            let room = (BUFFER - start).min(usize::try_from(entry.size - offset).unwrap_or(usize::MAX));
            self.buffer.resize(start + room, 0);
            reader.read(offset, &mut self.buffer[start..])?;
            offset += room as u64;
            read(room as u64);
        }
        Ok(())
    }

    /// Zeros up to the next block after content of `size` bytes.
    fn pad(&mut self, size: u64) -> Result<(), LayerError> {
        self.bytes(&[0; header::BLOCK][..header::padding(size)])
    }

    fn flush(&mut self) -> Result<(), LayerError> {
        self.tar.update(&self.buffer);
        self.written += self.buffer.len() as u64;
        self.out.write_all(&self.buffer).map_err(|source| LayerError::Write { source })?;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self, compression: Compression) -> Result<Layer, LayerError> {
        self.bytes(&header::END)?;
        self.flush()?;
        let out = self.out.finish().map_err(|source| LayerError::Write { source })?;
        Ok(Layer {
            digest: Digest::from_sha256(out.sum.finalize().into()),
            diff_id: Digest::from_sha256(self.tar.finalize().into()),
            size: out.written,
            uncompressed_size: self.written,
            compression,
        })
    }
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.sum.update(&bytes[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests;
