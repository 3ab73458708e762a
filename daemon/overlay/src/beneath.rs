//! Opens files below a directory. The kernel refuses every path that would leave the directory, so there are
//! no checks here that could be raced.

use std::ffi::CStr;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

use crate::attr::{MAX_XATTR, Xattr};

/// Maximum length in bytes of a path in a system call, without the NUL.
pub const MAX_PATH: usize = 4095;

/// Maximum number of openat2 calls: the kernel returns EAGAIN when a concurrent rename keeps it from proving
/// that `..` stayed inside.
const ATTEMPTS: usize = 100;

/// Symbolic links are followed as long as they stay below the directory.
pub const LINKS_INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
/// A symbolic link anywhere but at the end fails with ELOOP.
pub const NO_LINKS: ResolveFlags = LINKS_INSIDE.union(ResolveFlags::NO_SYMLINKS);

/// Opens `path` relative to `directory`; an empty path is the directory itself.
pub fn open(
    directory: impl AsFd,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = flags | OFlags::CLOEXEC;
    let mut attempt = 1;
    loop {
        match rustix::fs::openat2(directory.as_fd(), path, flags, mode, resolve) {
            Err(Errno::AGAIN) if attempt < ATTEMPTS => attempt += 1,
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Opens a handle (`O_PATH`) to a path without opening the file. A symbolic link at the end is not followed.
pub fn open_path(directory: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    open(directory, path, flags, Mode::empty(), NO_LINKS)
}

/// Opens a handle (`O_PATH`) to a directory. Symbolic links are not followed.
pub fn open_directory_path(root: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    open(root, path, flags, Mode::empty(), NO_LINKS)
}

/// Opens a directory for reading. Symbolic links are not followed.
pub fn open_directory(root: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    open(root, path, flags, Mode::empty(), NO_LINKS)
}

/// Opens the file behind a handle for reading. The caller has checked its kind, so no FIFO or device is ever
/// opened.
pub fn reopen(handle: &OwnedFd) -> Result<File, Errno> {
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

/// Returns the target of the symbolic link `name`; with an empty name, of the link behind the handle.
pub fn link_target(directory: impl AsFd, name: &CStr) -> Result<Box<[u8]>, Errno> {
    let target = rustix::fs::readlinkat(directory, name, Vec::with_capacity(128))?;
    Ok(target.into_bytes().into_boxed_slice())
}

/// Reports whether an extended attribute is transferred with a file; attributes of the system and of the
/// machine are not.
fn is_transferred(name: &[u8]) -> bool {
    name == b"security.capability" || name.starts_with(b"user.")
}

/// Returns the transferred extended attributes, sorted by name; empty if the file system does not support
/// any.
pub fn xattrs(fd: impl AsFd) -> Result<Vec<Xattr>, Errno> {
    // Nearly all files have no attributes, for which one call is enough.
    let mut names = [0; 512];
    let mut large = Vec::new();
    let names: &[u8] = match rustix::fs::flistxattr(&fd, &mut names[..]) {
        Ok(length) => &names[..length],
        Err(Errno::NOTSUP | Errno::NOSYS) => &[],
        Err(Errno::RANGE) => {
            large.resize(MAX_XATTR, 0);
            let length = rustix::fs::flistxattr(&fd, &mut large[..])?;
            &large[..length]
        }
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| is_transferred(name)) {
        let mut value = vec![0; MAX_XATTR];
        match rustix::fs::fgetxattr(&fd, name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                value.shrink_to_fit();
                found.push((name.to_vec(), value));
            }
            // The attribute was removed after the names were read.
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    found.sort();
    Ok(found)
}

/// Calls `each` with the names in a directory, in the order of the kernel, until it returns false.
pub fn for_each_name(directory: impl AsFd, mut each: impl FnMut(&CStr) -> bool) -> Result<(), Errno> {
    let mut buffer = Box::new_uninit_slice(32 * 1024);
    let buffer: &mut [MaybeUninit<u8>] = &mut buffer;
    let mut entries = RawDir::new(directory.as_fd(), buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") && !each(name) {
            break;
        }
    }
    Ok(())
}
