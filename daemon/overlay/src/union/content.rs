//! Open files.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, FileType, OFlags};
use rustix::io::Errno;

use super::copy_up::errno;
use super::nodes::{NodeKey, NodeLocation};
use super::{OverlayFs, Result, upper};
use crate::attr;
use crate::lower::{FileIdentity, LowerFile, ReadAt};

pub(super) struct OpenHandle {
    inode: u64,
    source: Mutex<ContentSource>,
}

#[derive(Clone)]
enum ContentSource {
    Lower(Arc<File>),
    Archived(Arc<dyn ReadAt>),
    Upper(Arc<File>),
}

/// A file that was opened.
pub struct OpenedFile {
    pub handle: u64,
    /// The backing file, if one has the complete content as long as the handle is open.
    pub file: Option<Arc<File>>,
}

impl OverlayFs {
    /// Opens a regular file. Opening it for writing copies it up.
    pub fn open(&self, inode: u64, write: bool) -> Result<OpenedFile> {
        let kind = self.nodes().get(inode)?.kind;
        match kind {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::NXIO),
        }
        if write {
            self.copy_up(inode, None)?;
        }
        let source = {
            let _reading = self.reading_names();
            self.open_source(inode, write)?
        };
        let file = match &source {
            ContentSource::Upper(file) => Some(Arc::clone(file)),
            // A file of the lower tree may be copied up later.
            ContentSource::Lower(file) if self.is_read_only() => Some(Arc::clone(file)),
            ContentSource::Lower(_) | ContentSource::Archived(_) => None,
        };
        self.nodes().count_open(inode)?;
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.open_files().insert(handle, Arc::new(OpenHandle { inode, source: Mutex::new(source) }));
        Ok(OpenedFile { handle, file })
    }

    fn open_source(&self, inode: u64, write: bool) -> Result<ContentSource> {
        let node = self.nodes().get(inode)?.clone();
        if node.location != NodeLocation::Lower {
            let (directory, name) = self.locate(inode, &node)?;
            let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
            let file = upper::open_at(directory, &name, flags | OFlags::NONBLOCK)?;
            return Ok(ContentSource::Upper(Arc::new(file.into())));
        }
        if write {
            return Err(Errno::STALE);
        }
        match self.lower.open_content(node.lower.as_deref().ok_or(Errno::NOENT)?)? {
            LowerFile::Archived(file) => Ok(ContentSource::Archived(file.into())),
            LowerFile::Disk(file) => {
                let stat = attr::stat(&file)?;
                match node.key {
                    NodeKey::Lower(FileIdentity::Disk { file_system, inode, .. })
                        if (file_system, inode) == (stat.file_system, stat.inode) =>
                    {
                        Ok(ContentSource::Lower(Arc::new(file)))
                    }
                    // The file was replaced since the lookup.
                    _ => Err(Errno::STALE),
                }
            }
        }
    }

    fn handle(&self, handle: u64) -> Result<Arc<OpenHandle>> {
        self.open_files().get(&handle).cloned().ok_or(Errno::BADF)
    }

    /// Returns the current content source of a handle; after a copy-up, that is the copy.
    fn source(&self, handle: &OpenHandle) -> Result<ContentSource> {
        let mut source = handle.source.lock();
        if !matches!(*source, ContentSource::Upper(_)) && !self.is_read_only() {
            let _reading = self.reading_names();
            if self.nodes().get(handle.inode)?.location != NodeLocation::Lower {
                *source = self.open_source(handle.inode, false)?;
            }
        }
        Ok(source.clone())
    }

    /// Fills the buffer from `offset` on, as far as the file reaches. Returns the number of bytes.
    pub fn read(&self, handle: u64, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let handle = self.handle(handle)?;
        let file = match self.source(&handle)? {
            ContentSource::Lower(file) | ContentSource::Upper(file) => file,
            ContentSource::Archived(file) => {
                return file.read_at(buffer, offset).map_err(|error| errno(&error));
            }
        };
        let mut done = 0;
        while done < buffer.len() {
            match file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(errno(&error)),
            }
        }
        Ok(done)
    }

    /// Writes all of `data`, or fails.
    pub fn write(&self, handle: u64, data: &[u8], offset: u64) -> Result<()> {
        let file = self.writable(handle)?;
        let written = file.write_all_at(data, offset).map_err(|error| errno(&error));
        self.version.fetch_add(1, Ordering::Release);
        written
    }

    pub fn allocate(&self, handle: u64, offset: u64, length: u64, mode: FallocateFlags) -> Result<()> {
        let file = self.writable(handle)?;
        self.version.fetch_add(1, Ordering::Release);
        rustix::fs::fallocate(&*file, mode, offset, length)
    }

    fn writable(&self, handle: u64) -> Result<Arc<File>> {
        match self.source(&*self.handle(handle)?)? {
            ContentSource::Upper(file) => Ok(file),
            ContentSource::Lower(_) | ContentSource::Archived(_) => Err(Errno::BADF),
        }
    }

    pub fn release(&self, handle: u64) {
        let Some(handle) = self.open_files().remove(&handle) else { return };
        let mut orphans = Vec::new();
        self.nodes().count_close(handle.inode, &mut orphans);
        self.remove_orphans(&orphans);
    }
}
