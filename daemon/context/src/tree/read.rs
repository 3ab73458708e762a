use std::fs::File;
use std::io::{self, Read};

use hearth_overlay::beneath::{self, DiskStat};
use hearth_pack::identity::ContentHash;

use crate::ContextError;

/// Reader of a file that must match its stat until its last byte is read.
pub(super) struct VerifiedFile {
    file: File,
    stat: DiskStat,
    remaining: u64,
    path: String,
    /// Expected content hash, and the hash of the bytes read so far.
    content: Option<Box<(ContentHash, blake3::Hasher)>>,
}

impl VerifiedFile {
    pub(super) const fn new(file: File, stat: DiskStat, path: String) -> Self {
        Self { file, remaining: stat.size, stat, path, content: None }
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
        Ok(content && beneath::stat(&self.file)?.same_content(&self.stat))
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
            self.remaining = self.stat.size;
            return Err(self.changed());
        }
        Ok(count)
    }
}
