//! Reads content and attributes of listed files. A file that is no longer the listed one or that changes during the
//! read is an error; a mix of two states is never returned.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;

use super::xattr::{self, EntryXattrs};
use super::{TreeOpener, WalkEntry, display_path};
use crate::file_kind::FileKind;
use crate::identity::FileStamp;

/// Error of reading a listed entry.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error("{path}: cannot read: {source}")]
    Read { path: String, source: io::Error },
    #[error("{path}: changed while it was packed ({change})")]
    Changed { path: String, change: &'static str },
}

impl ContentError {
    pub fn read(entry: &WalkEntry, source: io::Error) -> Self {
        Self::Read { path: display_path(&entry.path), source }
    }

    pub fn changed(entry: &WalkEntry, change: &'static str) -> Self {
        Self::Changed { path: display_path(&entry.path), change }
    }
}

/// Reader for entries of a walked tree. It is fastest in the order of the list.
#[derive(Debug)]
pub struct DiskReader<'a> {
    opener: TreeOpener<'a>,
    file: Option<(File, &'a WalkEntry)>,
    /// Start and end offset of a known hole in the open file.
    hole: (u64, u64),
}

impl<'a> DiskReader<'a> {
    pub fn new(opener: TreeOpener<'a>) -> Self {
        Self { opener, file: None, hole: (0, 0) }
    }

    /// Opens a file or directory and returns its attributes.
    pub fn open(&mut self, entry: &'a WalkEntry) -> Result<EntryXattrs, ContentError> {
        let unreadable = |source| ContentError::read(entry, source);
        self.file = None;
        self.hole = (0, 0);
        if entry.kind != FileKind::File(()) {
            let dir = self.opener.dir(&entry.path).map_err(unreadable)?;
            return xattr::of(dir).map_err(|errno| ContentError::read(entry, errno.into()));
        }
        let file = self.opener.file(&entry.path).map_err(unreadable)?;
        let xattrs = xattr::of(&file).map_err(|errno| ContentError::read(entry, errno.into()))?;
        self.file = Some((file, entry));
        Ok(xattrs)
    }

    /// Returns the attributes of an entry whose content is not read.
    pub fn xattrs(&mut self, entry: &'a WalkEntry) -> Result<EntryXattrs, ContentError> {
        match self.opener.xattrs(&entry.path) {
            Some(found) => found.map_err(|errno| ContentError::read(entry, errno.into())),
            None => self.open(entry),
        }
    }

    /// Fills `buffer` from `offset` on. The file must be open and long enough.
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

    /// Verifies that the open file is the listed file in its listed state.
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
            return Err(ContentError::changed(entry, "its size changed"));
        }
        if now != was {
            return Err(ContentError::changed(entry, "it was written to, or its attributes changed"));
        }
        Ok(())
    }
}

/// Minimum size of files, in bytes, for which holes are looked up: that costs a system call for each piece of data.
const SPARSE_FROM: u64 = 1 << 20;

/// Returns the length of the hole at offset `at`, or `None` if there is data.
fn hole(file: &File, entry: &WalkEntry, known: &mut (u64, u64), at: u64) -> Option<u64> {
    if entry.size < SPARSE_FROM || !entry.sparse {
        return None;
    }
    if (known.0..known.1).contains(&at) {
        return Some(known.1 - at);
    }
    let end = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data,
        // There is no data up to the end. A file that became shorter is detected by `verify`.
        Err(Errno::NXIO) => entry.size,
        Err(_) => return None,
    };
    *known = (at, end);
    (end > at).then(|| end - at)
}
