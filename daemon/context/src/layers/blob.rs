//! A registry blob that is read by position and shared by many readers.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

/// Size in bytes of the buffer in front of a decoder.
const BUFFER: usize = 64 << 10;

/// A byte source that is read by position.
pub(super) trait ByteSource: Send + Sync {
    fn length(&self) -> u64;
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;

    fn read_exact_at(&self, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    buffer = &mut buffer[count..];
                    at += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct BlobFile {
    file: File,
    length: u64,
}

impl BlobFile {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file, length })
    }
}

impl ByteSource for BlobFile {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(buffer, at)
    }
}

/// Used by the entry points that take bytes in memory.
impl ByteSource for Vec<u8> {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let rest = usize::try_from(at).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

/// A blob that several readers share.
pub(super) type SharedBlob = Arc<dyn ByteSource>;

/// Sequential reader of a range of a blob.
pub(super) struct BlobInput {
    blob: SharedBlob,
    /// Offset of the byte after the buffered ones.
    next: u64,
    end: u64,
    buffer: Box<[u8]>,
    used: usize,
    filled: usize,
}

impl BlobInput {
    pub(super) fn new(blob: SharedBlob, start: u64, end: u64) -> Self {
        let end = end.min(blob.length());
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self { blob, next: start, end, buffer, used: 0, filled: 0 }
    }

    /// Offset in the blob of the next byte.
    pub(super) const fn position(&self) -> u64 {
        self.next - (self.filled - self.used) as u64
    }

    /// Returns the buffered bytes, and reads more if there are none; empty only at the end.
    pub(super) fn bytes(&mut self) -> io::Result<&[u8]> {
        if self.used == self.filled && self.next < self.end {
            let most = usize::try_from(self.end - self.next).unwrap_or(usize::MAX).min(BUFFER);
            (self.used, self.filled) = (0, 0);
            let count = loop {
                match self.blob.read_at(&mut self.buffer[..most], self.next) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => break other?,
                }
            };
            if count == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the blob was cut short"));
            }
            self.filled = count;
            self.next += count as u64;
        }
        Ok(&self.buffer[self.used..self.filled])
    }

    pub(super) const fn consume(&mut self, count: usize) {
        self.used += count;
    }

    pub(super) fn byte(&mut self) -> io::Result<u8> {
        let byte = *self.bytes()?.first().ok_or(io::ErrorKind::UnexpectedEof)?;
        self.consume(1);
        Ok(byte)
    }

    pub(super) fn skip(&mut self, count: usize) -> io::Result<()> {
        (0..count).try_for_each(|_| self.byte().map(drop))
    }
}
