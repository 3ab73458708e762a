//! Content and attributes of listed files, read with care: a file that is no longer the listed one, or
//! that changes meanwhile, is an error and never half of one state and half of another.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;

use super::xattr::{self, Xattrs};
use super::{Entry, EntryKind, Opener, shown};
use crate::identity::FileStamp;

/// Why an entry that was listed cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error("{path}: cannot read: {source}")]
    Read { path: String, source: io::Error },
    #[error("{path}: changed while it was packed ({change})")]
    Changed { path: String, change: &'static str },
}

impl ContentError {
    pub fn read(entry: &Entry, source: io::Error) -> Self {
        Self::Read { path: shown(&entry.path), source }
    }

    pub fn changed(entry: &Entry, change: &'static str) -> Self {
        Self::Changed { path: shown(&entry.path), change }
    }
}

/// Reads entries of a walked tree; quick when asked in the order of the list.
#[derive(Debug)]
pub struct DiskReader<'a> {
    opener: Opener<'a>,
    file: Option<(File, &'a Entry)>,
    /// From where on the open file is known to be a hole, and up to where.
    hole: (u64, u64),
}

impl<'a> DiskReader<'a> {
    pub fn new(opener: Opener<'a>) -> Self {
        Self { opener, file: None, hole: (0, 0) }
    }

    /// Goes to a file or directory.
    pub fn open(&mut self, entry: &'a Entry) -> Result<Xattrs, ContentError> {
        let unreadable = |source| ContentError::read(entry, source);
        self.file = None;
        self.hole = (0, 0);
        if entry.kind != EntryKind::File {
            let dir = self.opener.dir(&entry.path).map_err(unreadable)?;
            return xattr::of(dir).map_err(|errno| ContentError::read(entry, errno.into()));
        }
        let file = self.opener.file(&entry.path).map_err(unreadable)?;
        let xattrs = xattr::of(&file).map_err(|errno| ContentError::read(entry, errno.into()))?;
        self.file = Some((file, entry));
        Ok(xattrs)
    }

    /// Attributes of an entry that need not be read otherwise.
    pub fn xattrs(&mut self, entry: &'a Entry) -> Result<Xattrs, ContentError> {
        match self.opener.xattrs(&entry.path) {
            Some(found) => found.map_err(|errno| ContentError::read(entry, errno.into())),
            None => self.open(entry),
        }
    }

    /// Fills `buffer` from `offset` on; the file was opened and is that long.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ContentError> {
        let Some((file, entry)) = &self.file else { return Ok(()) };
        let mut filled = 0;
        while filled < buffer.len() {
            let at = offset + filled as u64;
            let rest = &mut buffer[filled..];
            if let Some(zeros) = hole(file, entry, &mut self.hole, at) {
                let count = usize::try_from(zeros).unwrap_or(usize::MAX).min(rest.len());
                rest[..count].fill(0);
                filled += count;
                continue;
            }
            match file.read_at(rest, at) {
                Ok(0) => return Err(ContentError::changed(entry, "it became shorter")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ContentError::read(entry, error)),
            }
        }
        Ok(())
    }

    /// Whether what was read is the listed file in its listed state.
    pub fn verify(&mut self) -> Result<(), ContentError> {
        let Some((file, entry)) = &self.file else { return Ok(()) };
        let stat = rustix::fs::fstat(file).map_err(|errno| ContentError::read(entry, errno.into()))?;
        let now = FileStamp::of(&stat);
        let was = entry.stamp;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
            || (now.device, now.inode) != (was.device, was.inode)
        {
            return Err(ContentError::changed(entry, "another file took its place"));
        }
        if now.size != was.size {
            return Err(ContentError::changed(entry, "its size is another"));
        }
        if now != was {
            return Err(ContentError::changed(entry, "it was written to, or its attributes changed"));
        }
        Ok(())
    }
}

/// Files with fewer blocks than bytes have holes; asking where costs a call for each piece of data.
const SPARSE_FROM: u64 = 1 << 20;

/// How many zeros come at `at` without any data of the file behind them.
fn hole(file: &File, entry: &Entry, known: &mut (u64, u64), at: u64) -> Option<u64> {
    if entry.size < SPARSE_FROM || !entry.sparse {
        return None;
    }
    if (known.0..known.1).contains(&at) {
        return Some(known.1 - at);
    }
    let end = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data,
        // No data up to the end; a file that became shorter is found by `verify`.
        Err(Errno::NXIO) => entry.size,
        Err(_) => return None,
    };
    *known = (at, end);
    (end > at).then(|| end - at)
}
