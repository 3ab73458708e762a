//! Content and attributes of the entries, read through the tree's opener.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::{BUFFER, LayerError, Stream};
use crate::walk::{Entry, Opener, shown};

/// Names and values, sorted by name.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// A file that is still the one that was listed.
pub(super) struct Content<'a> {
    entry: &'a Entry,
    file: File,
    pub(super) xattrs: Xattrs,
}

pub(super) fn open<'a>(opener: &mut Opener<'_>, entry: &'a Entry) -> Result<Content<'a>, LayerError> {
    let file = opener.file(&entry.path).map_err(unreadable(entry))?;
    let stat = rustix::fs::fstat(&file).map_err(|errno| unreadable(entry)(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
        || (stat.st_dev, stat.st_ino) != entry.id
    {
        return Err(changed(entry, "another file took its place"));
    }
    if u64::try_from(stat.st_size) != Ok(entry.size) {
        return Err(changed(entry, "its size is another"));
    }
    let xattrs = xattrs(&file).map_err(|errno| unreadable(entry)(errno.into()))?;
    Ok(Content { entry, file, xattrs })
}

pub(super) fn dir_xattrs(opener: &mut Opener<'_>, entry: &Entry) -> Result<Xattrs, LayerError> {
    let dir = opener.dir(&entry.path).map_err(unreadable(entry))?;
    xattrs(dir).map_err(|errno| unreadable(entry)(errno.into()))
}

impl Content<'_> {
    /// Copies exactly the listed size into the stream; any other length is an error, for the
    /// header with the size is already written.
    pub(super) fn copy(
        &mut self,
        stream: &mut Stream<'_>,
        read: &mut dyn FnMut(u64),
    ) -> Result<(), LayerError> {
        let mut left = self.entry.size;
        while left > 0 {
            if stream.buffer.len() >= BUFFER {
                stream.flush()?;
            }
            // Read straight behind the header of a small file; a large one fills whole buffers.
            let start = stream.buffer.len();
            let room = (BUFFER - start).min(usize::try_from(left).unwrap_or(usize::MAX));
            stream.buffer.resize(start + room, 0);
            let count = self.file.read(&mut stream.buffer[start..]);
            let count = match count {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
                Ok(0) => return Err(changed(self.entry, "it became shorter")),
                other => other.map_err(unreadable(self.entry))?,
            };
            stream.buffer.truncate(start + count);
            left -= count as u64;
            read(count as u64);
        }
        let stat = rustix::fs::fstat(&self.file).map_err(|errno| unreadable(self.entry)(errno.into()))?;
        if u64::try_from(stat.st_size) != Ok(self.entry.size) {
            return Err(changed(self.entry, "its size is another"));
        }
        Ok(())
    }
}

/// The attributes an image keeps: file capabilities and what users set. Others (ACLs, labels)
/// belong to the machine.
fn xattrs(fd: impl AsFd) -> rustix::io::Result<Xattrs> {
    let fd = fd.as_fd();
    let names = match grown(|buffer| rustix::fs::flistxattr(fd, buffer)) {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut kept = Vec::new();
    for name in names.split(|&byte| byte == 0) {
        if name == b"security.capability" || name.starts_with(b"user.") {
            match grown(|buffer| rustix::fs::fgetxattr(fd, name, buffer)) {
                Err(Errno::NODATA) => {}
                value => kept.push((name.to_owned(), value?)),
            }
        }
    }
    kept.sort_unstable();
    Ok(kept)
}

/// Repeats `call` with room as large as it says.
fn grown(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut small = [0u8; 256];
    match call(&mut small) {
        Ok(size) => return Ok(small[..size].to_vec()),
        Err(Errno::RANGE) => {}
        Err(errno) => return Err(errno),
    }
    // The system's limit for a list and for a value is 64 KiB.
    let mut large = vec![0u8; 64 * 1024];
    let size = call(&mut large)?;
    large.truncate(size);
    Ok(large)
}

fn unreadable(entry: &Entry) -> impl FnOnce(std::io::Error) -> LayerError {
    let path = shown(&entry.path);
    move |source| LayerError::Read { path, source }
}

fn changed(entry: &Entry, change: &'static str) -> LayerError {
    LayerError::Changed { path: shown(&entry.path), change }
}
