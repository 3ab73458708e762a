//! Opening what lies below a directory, and nothing else: the kernel refuses every path that would
//! leave it, so no check here can be raced.

use std::ffi::CStr;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use super::port::Xattr;

/// Longest path that system calls take, its NUL left out.
pub(super) const MAX_PATH: usize = 4095;

/// Most bytes of a list of attribute names, and of a value, that Linux gives.
const MOST_XATTR: usize = 64 << 10;

/// The kernel answers EAGAIN when a rename elsewhere keeps it from proving that `..` stayed inside.
const ATTEMPTS: usize = 100;

/// Links are followed as long as they stay below the directory.
pub(super) const LINKS_INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
/// A link anywhere but at the end is ELOOP.
pub(super) const NO_LINKS: ResolveFlags = LINKS_INSIDE.union(ResolveFlags::NO_SYMLINKS);

/// Opens `path`, relative to `directory`; empty is the directory itself.
pub(super) fn open(
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

/// A place in the file system that is held, but neither read nor followed; a link at the end is held itself.
pub(super) fn hold(directory: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    open(directory, path, flags, Mode::empty(), NO_LINKS)
}

/// A directory that is held, but neither read nor reached by a link.
pub(super) fn hold_directory(root: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    open(root, path, flags, Mode::empty(), NO_LINKS)
}

pub(super) fn directory(root: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    open(root, path, flags, Mode::empty(), NO_LINKS)
}

/// Opens for reading what is held. Its kind is known by then, so no fifo or device is ever opened.
pub(super) fn reopen(held: &OwnedFd) -> Result<File, Errno> {
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

/// What `statx` says, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub kind: FileType,
    /// Permission, setuid, setgid and sticky bits.
    pub mode: u32,
    pub links: u32,
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    /// Nanoseconds since 1970.
    pub modified: i64,
    pub changed: i64,
    /// Major and minor number of a device.
    pub node: (u32, u32),
}

impl Stat {
    /// Whether `other` is the same file with the same content: every write moves the change time.
    pub fn same_content(&self, other: &Self) -> bool {
        (self.kind, self.device, self.inode, self.size, self.modified, self.changed)
            == (other.kind, other.device, other.inode, other.size, other.modified, other.changed)
    }
}

/// Of a name in a directory; a link there is not followed.
pub(super) fn stat_at(directory: impl AsFd, name: &CStr) -> Result<Stat, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let statx = rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS)?;
    let time = |at: rustix::fs::StatxTimestamp| {
        at.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(at.tv_nsec))
    };
    let stat = Stat {
        kind: FileType::from_raw_mode(u32::from(statx.stx_mode)),
        mode: u32::from(statx.stx_mode) & 0o7777,
        links: statx.stx_nlink,
        device: u64::from(statx.stx_dev_major) << 32 | u64::from(statx.stx_dev_minor),
        inode: statx.stx_ino,
        size: statx.stx_size,
        modified: time(statx.stx_mtime),
        changed: time(statx.stx_ctime),
        node: (statx.stx_rdev_major, statx.stx_rdev_minor),
    };
    #[cfg(test)]
    let stat = coarse_clock::seen(stat);
    Ok(stat)
}

#[cfg(test)]
pub(super) mod coarse_clock;

pub(super) fn stat(fd: impl AsFd) -> Result<Stat, Errno> {
    stat_at(fd, c"")
}

/// Target of the link `name`; with an empty name, of the link that is held.
pub(super) fn link_target(directory: impl AsFd, name: &CStr) -> Result<Box<[u8]>, Errno> {
    let target = rustix::fs::readlinkat(directory, name, Vec::with_capacity(128))?;
    Ok(target.into_bytes().into_boxed_slice())
}

/// Whether an extended attribute travels with a file: those of the system and of the machine do not.
fn is_kept(name: &[u8]) -> bool {
    name == b"security.capability" || name.starts_with(b"user.")
}

/// The extended attributes that are kept, sorted by name. None where the file system has none.
pub(super) fn xattrs(fd: impl AsFd) -> Result<Vec<Xattr>, Errno> {
    // Nearly all files have none, and are done with one call.
    let mut names = [0; 512];
    let mut large = Vec::new();
    let names: &[u8] = match rustix::fs::flistxattr(&fd, &mut names[..]) {
        Ok(length) => &names[..length],
        Err(Errno::NOTSUP | Errno::NOSYS) => &[],
        Err(Errno::RANGE) => {
            large.resize(MOST_XATTR, 0);
            let length = rustix::fs::flistxattr(&fd, &mut large[..])?;
            &large[..length]
        }
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| is_kept(name)) {
        let mut value = vec![0; MOST_XATTR];
        match rustix::fs::fgetxattr(&fd, name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                value.shrink_to_fit();
                found.push((name.to_vec(), value));
            }
            // Gone since the names were read.
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    found.sort();
    Ok(found)
}

/// Calls `each` with the names in a directory, as they come, until it says false.
pub(super) fn for_each_name(directory: impl AsFd, mut each: impl FnMut(&CStr) -> bool) -> Result<(), Errno> {
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
