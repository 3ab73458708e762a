//! Conversions between fuser's types and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, Generation, INodeNo};
use rustix::fs::FileType;

use crate::attr::{FileAttributes, FileTime};
use crate::union::{InodeEntry, SetTime};

pub(super) const GENERATION: Generation = Generation(0);

pub(super) fn errno(errno: rustix::io::Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

pub(super) fn attr(found: &InodeEntry) -> FileAttr {
    let InodeEntry { inode, attr } = found;
    FileAttr {
        ino: INodeNo(*inode),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.accessed),
        mtime: system_time(attr.modified),
        ctime: system_time(attr.changed),
        crtime: UNIX_EPOCH,
        kind: kind(attr.kind),
        perm: u16::try_from(attr.mode & 0o7777).unwrap_or_default(),
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device(attr),
        blksize: 4096,
        flags: 0,
    }
}

/// Returns the kernel's 32-bit encoding of a device number.
const fn device(attr: &FileAttributes) -> u32 {
    let (major, minor) = attr.device;
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

pub(super) const fn kind(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
        FileType::CharacterDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
        FileType::RegularFile | FileType::Unknown => fuser::FileType::RegularFile,
    }
}

fn system_time(time: FileTime) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole =
        if time.seconds < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(UNIX_EPOCH)
}

pub(super) fn new_time(time: fuser::TimeOrNow) -> SetTime {
    match time {
        fuser::TimeOrNow::Now => SetTime::Now,
        fuser::TimeOrNow::SpecificTime(time) => SetTime::At(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => FileTime {
                seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                nanos: after.subsec_nanos(),
            },
            Err(before) => {
                let nanos = i64::try_from(before.duration().as_nanos()).unwrap_or(i64::MAX);
                FileTime::from_nanos(-nanos)
            }
        }),
    }
}
