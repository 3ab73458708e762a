//! File attributes as `stat` reports them, and the identity of a file on a file system.

#[cfg(feature = "test-hooks")]
pub mod coarse_clock;

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, StatxFlags};
use rustix::io::Errno;

/// Time stamp of a file: seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileTime {
    pub seconds: i64,
    pub nanos: u32,
}

/// Attributes of a file, whatever kind of layer it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileAttributes {
    pub kind: FileType,
    /// Permission, setuid, setgid and sticky bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Number of hard links. Always 1 for a directory: counting the subdirectories of a merged directory is
    /// expensive.
    pub links: u32,
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    pub accessed: FileTime,
    pub modified: FileTime,
    pub changed: FileTime,
    /// Major and minor number of the device that a device node stands for.
    pub device: (u32, u32),
}

/// A file on disk: its attributes and its identity.
#[derive(Clone, Copy, Debug)]
pub struct InodeStat {
    pub attr: FileAttributes,
    pub file_system: u64,
    pub inode: u64,
    /// Creation time, which distinguishes the file from an earlier one with the same inode number. Zero where
    /// the file system does not record it.
    pub birth: FileTime,
}

impl FileTime {
    pub const fn from_nanos(nanos: i64) -> Self {
        Self { seconds: nanos.div_euclid(NANOS), nanos: nanos.rem_euclid(NANOS) as u32 }
    }

    /// Returns the nanoseconds since 1970, or the nearest number that fits.
    pub const fn as_nanos(self) -> i64 {
        self.seconds.saturating_mul(NANOS).saturating_add(self.nanos as i64)
    }
}

const NANOS: i64 = 1_000_000_000;

impl FileAttributes {
    /// Attributes of a directory that no layer contains, such as the parent of a mount target.
    pub const SYNTHETIC_DIRECTORY: Self = {
        let time = FileTime { seconds: 0, nanos: 0 };
        Self {
            kind: FileType::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            links: 1,
            size: 0,
            blocks: 0,
            accessed: time,
            modified: time,
            changed: time,
            device: (0, 0),
        }
    };
}

/// Name and value of an extended attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// Returns the stat of the file behind a descriptor.
pub fn stat(fd: impl AsFd) -> Result<InodeStat, Errno> {
    stat_at(fd, c"")
}

/// Returns the stat of `name` in a directory, or of the descriptor itself when the name is empty. A symbolic
/// link is not followed.
pub fn stat_at(directory: impl AsFd, name: &CStr) -> Result<InodeStat, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let found = rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
    let time = |at: rustix::fs::StatxTimestamp| FileTime { seconds: at.tv_sec, nanos: at.tv_nsec };
    let mode = u32::from(found.stx_mode);
    let kind = FileType::from_raw_mode(mode);
    let stat = InodeStat {
        attr: FileAttributes {
            kind,
            mode: mode & 0o7777,
            uid: found.stx_uid,
            gid: found.stx_gid,
            links: if kind == FileType::Directory { 1 } else { found.stx_nlink },
            size: found.stx_size,
            blocks: found.stx_blocks,
            accessed: time(found.stx_atime),
            modified: time(found.stx_mtime),
            changed: time(found.stx_ctime),
            device: (found.stx_rdev_major, found.stx_rdev_minor),
        },
        file_system: u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor),
        inode: found.stx_ino,
        birth: time(found.stx_btime),
    };
    #[cfg(feature = "test-hooks")]
    let stat = coarse_clock::with_frozen_time(stat);
    Ok(stat)
}

/// Maximum size in bytes of a value and of a list of names in the kernel.
pub(crate) const MAX_XATTR: usize = 64 * 1024;

/// Reads a complete attribute value or list of names, even if it grows meanwhile.
pub fn read_xattr(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 1024];
    loop {
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < MAX_XATTR => buffer = vec![0; MAX_XATTR],
            Err(errno) => return Err(errno),
        }
    }
}
