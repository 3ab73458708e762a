use std::fs::File;
use std::io::{self, Read};

use hearth_overlay::attr::{self, InodeStat};
use hearth_pack::identity::{ContentHash, FileStamp};

use crate::ContextError;

/// Returns what identifies the file and its content: every write updates the change time.
pub(super) const fn file_stamp(stat: &InodeStat) -> FileStamp {
    FileStamp {
        device: stat.file_system,
        inode: stat.inode,
        size: stat.attr.size,
        modified: stat.attr.modified.as_nanos(),
        changed: stat.attr.changed.as_nanos(),
    }
}

/// Reader of a file that must match its stamp until its last byte is read.
pub(super) struct VerifiedFile {
    file: File,
    stamp: FileStamp,
    remaining: u64,
    path: String,
    /// Expected content hash, and the hash of the bytes read so far.
    content: Option<Box<(ContentHash, blake3::Hasher)>>,
}

impl VerifiedFile {
    pub(super) const fn new(file: File, stamp: FileStamp, path: String) -> Self {
        Self { file, remaining: stamp.size, stamp, path, content: None }
    }

    /// Additionally compares the content with a hash.
    pub(super) fn with_content(mut self, hash: ContentHash) -> Self {
        self.content = Some(Box::new((hash, blake3::Hasher::new())));
        self
    }

    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    fn changed(&self) -> io::Error {
        io::Error::other(ContextError::Changed { path: self.path.clone() })
    }

    fn is_unchanged(&self) -> io::Result<bool> {
        let content = self.content.as_ref().is_none_or(|content| {
            let (hash, sum) = &**content;
            sum.finalize().as_bytes() == hash.as_bytes()
        });
        Ok(content && file_stamp(&attr::stat(&self.file)?) == self.stamp)
    }
}

impl Read for VerifiedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.file.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(self.changed());
        }
        self.remaining -= count as u64;
        if let Some(content) = &mut self.content {
            content.1.update(&buffer[..count]);
        }
        // Checked before the last bytes are returned: a caller that has all bytes has a consistent file.
        if self.remaining == 0 && !self.is_unchanged()? {
            self.remaining = self.stamp.size;
            return Err(self.changed());
        }
        Ok(count)
    }
}
