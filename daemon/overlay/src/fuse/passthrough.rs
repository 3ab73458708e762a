//! Passthrough: the kernel reads a file by itself, once it knows the backing file.
//!
//! The kernel requires one backing file for all opens of an inode, as long as one of them lasts, and no open
//! without it at the same time. Therefore only files whose content never moves are passed through: those of
//! an overlay without an upper directory.

use std::collections::HashMap;
use std::fs::File;

use fuser::{BackingId, FileHandle, FopenFlags, ReplyOpen};
use parking_lot::{Mutex, MutexGuard};

/// Backing files of the inodes that are open with passthrough.
#[derive(Default)]
pub(super) struct PassthroughFiles(Mutex<HashMap<u64, BackingFile>>);

struct BackingFile {
    id: BackingId,
    opens: u32,
}

impl PassthroughFiles {
    fn backings(&self) -> MutexGuard<'_, HashMap<u64, BackingFile>> {
        self.0.lock()
    }

    /// Answers an open request: with passthrough if the kernel accepts the file, otherwise with reads through
    /// this process.
    pub fn open(&self, inode: u64, handle: u64, file: &File, cached: FopenFlags, reply: ReplyOpen) {
        let mut backings = self.backings();
        if let Some(backing) = backings.get_mut(&inode) {
            backing.opens += 1;
            return reply.opened_passthrough(FileHandle(handle), FopenFlags::empty(), &backing.id);
        }
        match reply.open_backing(file) {
            Ok(id) => {
                let backing = backings.entry(inode).or_insert(BackingFile { id, opens: 1 });
                reply.opened_passthrough(FileHandle(handle), FopenFlags::empty(), &backing.id);
            }
            Err(error) => {
                tracing::debug!(%error, "kernel refused a file for passthrough");
                reply.opened(FileHandle(handle), cached);
            }
        }
    }

    pub fn release(&self, inode: u64) {
        let mut backings = self.backings();
        if let Some(backing) = backings.get_mut(&inode) {
            backing.opens -= 1;
            if backing.opens == 0 {
                backings.remove(&inode);
            }
        }
    }
}
