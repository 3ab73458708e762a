use std::fs::File;
use std::io::{self, Read};

use hearth_pack::identity::ContentHash;

use crate::context::ContextError;
use crate::context::beneath::{self, Stat};

/// A file that must stay what its stat says until its last byte was read.
pub(super) struct Verified {
    file: File,
    stat: Stat,
    left: u64,
    path: String,
    /// What the content must hash to, and the sum so far.
    content: Option<Box<(ContentHash, blake3::Hasher)>>,
}

impl Verified {
    pub(super) const fn new(file: File, stat: Stat, path: String) -> Self {
        Self { file, left: stat.size, stat, path, content: None }
    }

    /// Also compares the content itself with its hash.
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

    fn is_what_it_was(&self) -> io::Result<bool> {
        let content = self.content.as_ref().is_none_or(|content| {
            let (hash, sum) = &**content;
            sum.finalize().as_bytes() == hash.as_bytes()
        });
        Ok(content && beneath::stat(&self.file)?.same_content(&self.stat))
    }
}

impl Read for Verified {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.file.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(self.changed());
        }
        self.left -= count as u64;
        if let Some(content) = &mut self.content {
            content.1.update(&buffer[..count]);
        }
        // Checked before the last bytes are handed out: who has them all has them as they were.
        if self.left == 0 && !self.is_what_it_was()? {
            self.left = self.stat.size;
            return Err(self.changed());
        }
        Ok(count)
    }
}
