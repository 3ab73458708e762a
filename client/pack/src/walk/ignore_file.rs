//! Finds and reads the ignore file of a tree. It is untrusted content like the rest of the tree.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{WalkError, display_path, failed};
use crate::ignore::IgnorePatterns;

const SIZE_LIMIT: u64 = 4 * 1024 * 1024;

/// Returns the name and the rules of the first ignore file that exists.
pub(super) fn find(
    root: &OwnedFd,
    dockerfile: Option<&[u8]>,
) -> Result<Option<(Vec<u8>, IgnorePatterns)>, WalkError> {
    let beside: Vec<Vec<u8>> = match dockerfile {
        Some(name) => vec![name.to_owned()],
        None => [b"Containerfile".as_slice(), b"Dockerfile"]
            .into_iter()
            .filter(|name| rustix::fs::statat(root, *name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok())
            .take(1)
            .map(<[u8]>::to_vec)
            .collect(),
    };
    let names = beside
        .into_iter()
        .map(|name| [name.as_slice(), b".dockerignore"].concat())
        .chain([b".dockerignore".to_vec()]);
    for name in names {
        // An empty file counts, so that an empty `Dockerfile.dockerignore` disables `.dockerignore`.
        if let Some(text) = read(root, &name)? {
            let patterns = IgnorePatterns::parse_file(&text)
                .map_err(|source| WalkError::Ignore { file: display_path(&name), source })?;
            return Ok(Some((name, patterns)));
        }
    }
    Ok(None)
}

/// Reads a file of the tree. Returns `None` if it does not exist or is a directory. A link is followed as long as it
/// stays inside the tree.
fn read(root: &OwnedFd, name: &[u8]) -> Result<Option<Vec<u8>>, WalkError> {
    // NONBLOCK: opening a fifo must not block before the file type is known.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let opened = match rustix::fs::openat2(root, name, flags, Mode::empty(), resolve) {
        Err(Errno::NOSYS | Errno::PERM) => {
            rustix::fs::openat(root, name, flags | OFlags::NOFOLLOW, Mode::empty())
        }
        other => other,
    };
    let kind_error = |kind| WalkError::IgnoreFileKind { file: display_path(name), kind };
    let fd = match opened {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(Errno::XDEV) => return Err(kind_error("link that leads out of the directory")),
        Err(Errno::LOOP) => return Err(kind_error("link that cannot be followed")),
        Err(Errno::NXIO) => return Err(kind_error("socket or device")),
        Err(errno) => return Err(failed("cannot open", name)(errno)),
    };
    let stat = rustix::fs::fstat(&fd).map_err(failed("cannot read its metadata", name))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Ok(None),
        FileType::Fifo => return Err(kind_error("fifo")),
        _ => return Err(kind_error("socket or device")),
    }
    let mut text = Vec::new();
    File::from(fd).take(SIZE_LIMIT + 1).read_to_end(&mut text).map_err(|source| WalkError::Read {
        path: display_path(name),
        action: "cannot read",
        source,
    })?;
    if text.len() as u64 > SIZE_LIMIT {
        return Err(WalkError::IgnoreFileTooLarge { file: display_path(name), limit: SIZE_LIMIT });
    }
    Ok(Some(text))
}
