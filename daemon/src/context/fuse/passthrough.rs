//! Files that the kernel reads by itself, once it was told which file has the content.
//!
//! The kernel wants one backing file for all opens of an inode, for as long as one of them lasts, and no
//! open without it beside them. So only files whose content never moves are passed through: those of a
//! union without an upper.

use std::collections::HashMap;
use std::fs::File;

use fuser::{BackingId, FileHandle, FopenFlags, ReplyOpen};
use parking_lot::{Mutex, MutexGuard};

#[derive(Default)]
pub(super) struct Passthrough(Mutex<HashMap<u64, Backing>>);

struct Backing {
    id: BackingId,
    opens: u32,
}

impl Passthrough {
    fn backings(&self) -> MutexGuard<'_, HashMap<u64, Backing>> {
        self.0.lock()
    }

    /// Answers an open: passed through when the kernel takes the file, else read through us.
    pub fn open(&self, inode: u64, handle: u64, file: &File, cached: FopenFlags, reply: ReplyOpen) {
        let mut backings = self.backings();
        if let Some(backing) = backings.get_mut(&inode) {
            backing.opens += 1;
            return reply.opened_passthrough(FileHandle(handle), FopenFlags::empty(), &backing.id);
        }
        match reply.open_backing(file) {
            Ok(id) => {
                let backing = backings.entry(inode).or_insert(Backing { id, opens: 1 });
                reply.opened_passthrough(FileHandle(handle), FopenFlags::empty(), &backing.id);
            }
            Err(error) => {
                tracing::debug!(%error, "not passed through");
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
