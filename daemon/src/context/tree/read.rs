use std::fs::File;
use std::io::{self, Read};

use crate::context::ContextError;
use crate::context::beneath::{self, Stat};

/// A file that must stay what its stat says until its last byte was read.
pub(super) struct Verified {
    file: File,
    stat: Stat,
    left: u64,
    path: String,
}

impl Verified {
    pub(super) const fn new(file: File, stat: Stat, path: String) -> Self {
        Self { file, left: stat.size, stat, path }
    }

    fn changed(&self) -> io::Error {
        io::Error::other(ContextError::Changed { path: self.path.clone() })
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
        // Checked before the last bytes are handed out: who has them all has them as they were.
        if self.left == 0 && !beneath::stat(&self.file)?.same_content(&self.stat) {
            self.left = self.stat.size;
            return Err(self.changed());
        }
        Ok(count)
    }
}
