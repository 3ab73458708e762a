//! Open files.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, FileType, OFlags};
use rustix::io::Errno;

use super::copy_up::errno;
use super::nodes::{Key, Place};
use super::{Result, Union, upper};
use crate::context::attr::stat_at;
use crate::context::tree::{Content, LayerFile, Source};

pub(super) struct Handle {
    inode: u64,
    source: Mutex<From>,
}

#[derive(Clone)]
enum From {
    Lower(Arc<File>),
    Image(Arc<LayerFile>),
    Upper(Arc<File>),
}

/// A file that was opened.
pub struct Opened {
    pub handle: u64,
    /// The backing file, if one has the complete content as long as the handle is open.
    pub file: Option<Arc<File>>,
}

impl Union {
    /// Opens a regular file. Opening it for writing copies it up.
    pub fn open(&self, inode: u64, write: bool) -> Result<Opened> {
        let kind = self.nodes().get(inode)?.kind;
        match kind {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::NXIO),
        }
        if write {
            self.lift(inode, None)?;
        }
        let source = {
            let _reading = self.reading_names();
            self.open_source(inode, write)?
        };
        let file = match &source {
            From::Upper(file) => Some(Arc::clone(file)),
            // A file of the lower tree may be copied up later.
            From::Lower(file) if self.is_read_only() => Some(Arc::clone(file)),
            From::Lower(_) | From::Image(_) => None,
        };
        self.nodes().opened(inode)?;
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.open_files().insert(handle, Arc::new(Handle { inode, source: Mutex::new(source) }));
        Ok(Opened { handle, file })
    }

    fn open_source(&self, inode: u64, write: bool) -> Result<From> {
        let node = self.nodes().get(inode)?.clone();
        if node.place != Place::Lower {
            let (directory, name) = self.locate(inode, &node)?;
            let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
            let file = upper::open_at(directory, &name, flags | OFlags::NONBLOCK)?;
            return Ok(From::Upper(Arc::new(file.into())));
        }
        if write {
            return Err(Errno::STALE);
        }
        match self.lower.content(node.lower.as_deref().ok_or(Errno::NOENT)?)? {
            Content::Layer(file) => Ok(From::Image(Arc::new(file))),
            Content::File(file) => {
                let stat = stat_at(&file, c"")?;
                match node.key {
                    Key::Lower(Source::Disk { file_system, inode, .. })
                        if (file_system, inode) == (stat.file_system, stat.inode) =>
                    {
                        Ok(From::Lower(Arc::new(file)))
                    }
                    // The file was replaced since the lookup.
                    _ => Err(Errno::STALE),
                }
            }
        }
    }

    fn handle(&self, handle: u64) -> Result<Arc<Handle>> {
        self.open_files().get(&handle).cloned().ok_or(Errno::BADF)
    }

    /// Returns the current content source of a handle; after a copy-up, that is the copy.
    fn source(&self, handle: &Handle) -> Result<From> {
        let mut source = handle.source.lock();
        if !matches!(*source, From::Upper(_)) && !self.is_read_only() {
            let _reading = self.reading_names();
            if self.nodes().get(handle.inode)?.place != Place::Lower {
                *source = self.open_source(handle.inode, false)?;
            }
        }
        Ok(source.clone())
    }

    /// Fills the buffer from `offset` on, as far as the file reaches. Returns the number of bytes.
    pub fn read(&self, handle: u64, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let handle = self.handle(handle)?;
        let file = match self.source(&handle)? {
            From::Lower(file) | From::Upper(file) => file,
            From::Image(file) => return file.read_at(buffer, offset).map_err(|error| errno(&error)),
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
            From::Upper(file) => Ok(file),
            From::Lower(_) | From::Image(_) => Err(Errno::BADF),
        }
    }

    pub fn release(&self, handle: u64) {
        let Some(handle) = self.open_files().remove(&handle) else { return };
        let mut orphans = Vec::new();
        self.nodes().closed(handle.inode, &mut orphans);
        self.drop_orphans(&orphans);
    }
}
