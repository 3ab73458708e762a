//! The request handlers of the FUSE file system.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    FileHandle, Filesystem, FopenFlags, INodeNo, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{FallocateFlags, FileType, XattrFlags};
use rustix::io::Errno;
use tracing::span::EnteredSpan;

use super::convert::{self, GENERATION};
use super::invalidation::InvalidationQueue;
use super::listing_cache::ListingCache;
use super::negotiation;
use super::passthrough::PassthroughFiles;
use crate::union::{CreateAttr, InodeEntry, MAX_NAME, OverlayFs, RenameMode, SetAttr};

/// Cache timeout of the kernel for entries that change only through it.
const IMMUTABLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Cache timeout of the kernel when files of the room are in the lower tree: they change outside of the
/// mount.
pub(super) const MUTABLE_TIMEOUT: Duration = Duration::from_millis(100);

/// Implements fuser's file system trait for an [`OverlayFs`].
pub(super) struct FuseFileSystem {
    union: Arc<OverlayFs>,
    /// Time for which the kernel may cache names and attributes.
    cache_timeout: Duration,
    listings: ListingCache,
    passthrough: Option<PassthroughFiles>,
}

thread_local! {
    /// Buffer for the data of read replies.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl FuseFileSystem {
    pub fn new(union: Arc<OverlayFs>, invalidations: InvalidationQueue) -> Self {
        let cache_timeout = if union.is_sole_writer() { IMMUTABLE_TIMEOUT } else { MUTABLE_TIMEOUT };
        let changes = !union.is_sole_writer() || !union.is_read_only();
        let invalidations = changes.then_some(invalidations);
        let listings = ListingCache::new(Arc::clone(&union), cache_timeout, invalidations);
        Self { union, cache_timeout, listings, passthrough: None }
    }

    fn reply_entry(&self, found: Result<InodeEntry, Errno>, reply: ReplyEntry) {
        match found {
            Ok(found) => reply.entry(&self.cache_timeout, &convert::attr(&found), GENERATION),
            Err(errno) => reply.error(convert::errno(errno)),
        }
    }

    fn reply_attr(&self, found: InodeEntry, reply: ReplyAttr) {
        reply.attr(&self.cache_timeout, &convert::attr(&found));
    }

    /// Returns the open flags of a file without passthrough, which say whether the kernel's cached content is
    /// still valid.
    fn open_flags(&self) -> FopenFlags {
        if self.union.is_sole_writer() { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() }
    }
}

/// Enters the span of a request of the kernel: `inode` is the file, or the directory of the entry `name`. The check of
/// the level is all that it costs while spans of level trace are disabled.
fn enter_span(operation: &'static str, inode: INodeNo, name: Option<&OsStr>) -> EnteredSpan {
    let inode = inode.0;
    let span =
        tracing::trace_span!("fuse", operation, inode, entry = name.map(tracing::field::debug)).entered();
    tracing::trace!("received a request of the kernel");
    span
}

fn reply_empty(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(convert::errno(errno)),
    }
}

fn create_attr(request: &Request, mode: u32) -> CreateAttr {
    CreateAttr { uid: request.uid(), gid: request.gid(), mode: mode & 0o7777 }
}

const fn opens_for_writing(flags: OpenFlags) -> bool {
    // `O_ACCMODE` of all Linux platforms.
    flags.0 & 3 != 0
}

impl Filesystem for FuseFileSystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if negotiation::negotiate(&self.union, config) {
            self.passthrough = Some(PassthroughFiles::default());
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _span = enter_span("lookup", parent, Some(name));
        self.reply_entry(self.union.lookup(parent.0, name.as_bytes()), reply);
    }

    fn forget(&self, _: &Request, inode: INodeNo, count: u64) {
        let _span = enter_span("forget", inode, None);
        self.union.forget(inode.0, count);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let _span = enter_span("getattr", inode, None);
        match self.union.attr(inode.0) {
            Ok(attr) => self.reply_attr(InodeEntry { inode: inode.0, attr }, reply),
            Err(errno) => reply.error(convert::errno(errno)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _span = enter_span("setattr", inode, None);
        let accessed = accessed.map(convert::new_time);
        let modified = modified.map(convert::new_time);
        let change = SetAttr { mode, uid, gid, size, accessed, modified };
        match self.union.set_attr(inode.0, &change) {
            Ok(attr) => self.reply_attr(InodeEntry { inode: inode.0, attr }, reply),
            Err(errno) => reply.error(convert::errno(errno)),
        }
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        let _span = enter_span("readlink", inode, None);
        match self.union.read_link(inode.0) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(convert::errno(errno)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _device: u32,
        reply: ReplyEntry,
    ) {
        let _span = enter_span("mknod", parent, Some(name));
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Unknown => FileType::RegularFile,
            kind => kind,
        };
        self.reply_entry(
            self.union.make_node(parent.0, name.as_bytes(), kind, &create_attr(request, mode)),
            reply,
        );
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let _span = enter_span("mkdir", parent, Some(name));
        self.reply_entry(
            self.union.make_directory(parent.0, name.as_bytes(), &create_attr(request, mode)),
            reply,
        );
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _span = enter_span("unlink", parent, Some(name));
        reply_empty(self.union.unlink(parent.0, name.as_bytes()), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _span = enter_span("rmdir", parent, Some(name));
        reply_empty(self.union.remove_directory(parent.0, name.as_bytes()), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _span = enter_span("symlink", parent, Some(name));
        let target = target.as_os_str().as_bytes();
        self.reply_entry(
            self.union.make_symlink(parent.0, name.as_bytes(), target, &create_attr(request, 0o777)),
            reply,
        );
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _span = enter_span("rename", parent, Some(name));
        let mode = match flags {
            flags if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        reply_empty(
            self.union.rename(parent.0, name.as_bytes(), new_parent.0, new_name.as_bytes(), mode),
            reply,
        );
    }

    fn link(&self, _: &Request, inode: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _span = enter_span("link", parent, Some(name));
        self.reply_entry(self.union.make_hard_link(inode.0, parent.0, name.as_bytes()), reply);
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _span = enter_span("open", inode, None);
        match self.union.open(inode.0, opens_for_writing(flags)) {
            Ok(opened) => match (&self.passthrough, opened.file) {
                (Some(passthrough), Some(file)) => {
                    passthrough.open(inode.0, opened.handle, &file, self.open_flags(), reply);
                }
                _ => reply.opened(FileHandle(opened.handle), self.open_flags()),
            },
            Err(errno) => reply.error(convert::errno(errno)),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _span = enter_span("create", parent, Some(name));
        let name = name.as_bytes();
        let made = self.union.make_node(parent.0, name, FileType::RegularFile, &create_attr(request, mode));
        let found = match made {
            // Another caller created the file first, which is an error only if it had to be new.
            Err(Errno::EXIST) if !is_exclusive_create(flags) => self.union.lookup(parent.0, name),
            made => made,
        };
        let opened = found.and_then(|found| match self.union.open(found.inode, true) {
            Ok(opened) => Ok((found, opened)),
            Err(errno) => {
                self.union.forget(found.inode, 1);
                Err(errno)
            }
        });
        match opened {
            Ok((found, opened)) => reply.created(
                &self.cache_timeout,
                &convert::attr(&found),
                GENERATION,
                FileHandle(opened.handle),
                FopenFlags::empty(),
            ),
            Err(errno) => reply.error(convert::errno(errno)),
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _span = enter_span("read", inode, None);
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.union.read(handle.0, &mut buffer[..size], offset) {
                Ok(count) => reply.data(&buffer[..count]),
                Err(errno) => reply.error(convert::errno(errno)),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _span = enter_span("write", inode, None);
        match (self.union.write(handle.0, data, offset), u32::try_from(data.len())) {
            (Ok(()), Ok(count)) => reply.written(count),
            (Err(errno), _) => reply.error(convert::errno(errno)),
            (Ok(()), Err(_)) => reply.error(fuser::Errno::EIO),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // No data is buffered here; after this error the kernel sends no more flush requests.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let _span = enter_span("release", inode, None);
        if let Some(passthrough) = &self.passthrough {
            passthrough.release(inode.0);
        }
        self.union.release(handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let _span = enter_span("fsync", inode, None);
        reply_empty(self.union.sync(inode.0, data_only), reply);
    }

    fn fsyncdir(&self, _: &Request, inode: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let _span = enter_span("fsyncdir", inode, None);
        reply_empty(self.union.sync(inode.0, data_only), reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _span = enter_span("fallocate", inode, None);
        let mode = FallocateFlags::from_bits(mode.cast_unsigned()).ok_or(Errno::OPNOTSUPP);
        reply_empty(mode.and_then(|mode| self.union.allocate(handle.0, offset, length, mode)), reply);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // The kernel then reads directories without opening them, and sends no more opendir requests. Every
        // kernel with openat2 supports this.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn readdirplus(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let _span = enter_span("readdirplus", inode, None);
        self.listings.read(inode.0, offset, reply);
    }

    fn statfs(&self, _: &Request, inode: INodeNo, reply: ReplyStatfs) {
        let _span = enter_span("statfs", inode, None);
        match self.union.stat_fs() {
            Ok(Some(stat)) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                u32::try_from(stat.f_bsize).unwrap_or(4096),
                u32::try_from(stat.f_namemax).unwrap_or(MAX_NAME as u32),
                u32::try_from(stat.f_frsize).unwrap_or(4096),
            ),
            Ok(None) => reply.statfs(0, 0, 0, 0, 0, 4096, MAX_NAME as u32, 4096),
            Err(errno) => reply.error(convert::errno(errno)),
        }
    }

    fn setxattr(
        &self,
        _: &Request,
        inode: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _span = enter_span("setxattr", inode, None);
        let flags = XattrFlags::from_bits(flags.cast_unsigned()).ok_or(Errno::INVAL);
        reply_empty(
            flags.and_then(|flags| self.union.set_xattr(inode.0, name.as_bytes(), value, flags)),
            reply,
        );
    }

    fn getxattr(&self, _: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _span = enter_span("getxattr", inode, None);
        reply_xattr(self.union.xattr(inode.0, name.as_bytes()), size, reply);
    }

    fn listxattr(&self, _: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let _span = enter_span("listxattr", inode, None);
        reply_xattr(self.union.xattr_names(inode.0), size, reply);
    }

    fn removexattr(&self, _: &Request, inode: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _span = enter_span("removexattr", inode, None);
        reply_empty(self.union.remove_xattr(inode.0, name.as_bytes()), reply);
    }
}

fn is_exclusive_create(flags: i32) -> bool {
    flags.cast_unsigned() & rustix::fs::OFlags::EXCL.bits() != 0
}

/// Answers an xattr request; the kernel first asks for the length, with a size of 0.
fn reply_xattr(value: Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if size == 0 => match u32::try_from(value.len()) {
            Ok(length) => reply.size(length),
            Err(_) => reply.error(fuser::Errno::E2BIG),
        },
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(convert::errno(errno)),
    }
}
