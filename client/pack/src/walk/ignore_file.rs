//! Finds the Dockerfile and the ignore file of a tree, and reads the latter. Both are untrusted content like the rest
//! of the tree.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{WalkError, display_path, failed};
use crate::ignore::IgnorePatterns;

/// Names of a Dockerfile that is not named by its path, in the order in which they are looked for.
pub const DOCKERFILE_NAMES: [&str; 2] = ["Containerfile", "Dockerfile"];

const SIZE_LIMIT: u64 = 4 * 1024 * 1024;

/// Maximum number of symbolic links from the name of a Dockerfile or ignore file to its content.
const MAX_LINKS: usize = 16;

/// The Dockerfile and the ignore file that apply to a tree.
pub(super) struct AppliedFiles {
    dockerfile: Option<Vec<u8>>,
    /// Name and rules of the first ignore file that exists.
    pub(super) ignore_file: Option<(Vec<u8>, IgnorePatterns)>,
}

pub(super) fn find(root: &OwnedFd, dockerfile: Option<&[u8]>) -> Result<AppliedFiles, WalkError> {
    let exists = |name: &[u8]| rustix::fs::statat(root, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok();
    let dockerfile = match dockerfile {
        Some(name) => Some(name),
        None => DOCKERFILE_NAMES.into_iter().map(str::as_bytes).find(|name| exists(name)),
    };
    let names = dockerfile
        .map(|name| [name, b".dockerignore"].concat())
        .into_iter()
        .chain([b".dockerignore".to_vec()]);
    let mut ignore_file = None;
    for name in names {
        // An empty file counts, so that an empty `Dockerfile.dockerignore` disables `.dockerignore`.
        if let Some(text) = read(root, &name)? {
            let patterns = IgnorePatterns::parse_file(&text)
                .map_err(|source| WalkError::Ignore { file: display_path(&name), source })?;
            ignore_file = Some((name, patterns));
            break;
        }
    }
    Ok(AppliedFiles { dockerfile: dockerfile.map(<[u8]>::to_vec), ignore_file })
}

impl AppliedFiles {
    /// Returns the paths of both files, and of what they link to in the tree: no pattern excludes them.
    pub(super) fn paths(&self, root: &OwnedFd) -> Vec<Vec<u8>> {
        let names = self.dockerfile.iter().chain(self.ignore_file.iter().map(|(name, _)| name));
        names.flat_map(|name| with_targets(root, name)).collect()
    }
}

/// Returns a path, and those to which it leads as a symbolic link.
fn with_targets(root: &OwnedFd, name: &[u8]) -> Vec<Vec<u8>> {
    let mut paths = vec![name.to_vec()];
    while let (Some(last), true) = (paths.last(), paths.len() < MAX_LINKS) {
        let Ok(target) = rustix::fs::readlinkat(root, last.as_slice(), Vec::new()) else { break };
        let directory = last.iter().rposition(|&byte| byte == b'/').map_or(&b""[..], |slash| &last[..slash]);
        match inside(directory, target.as_bytes()) {
            Some(path) if !paths.contains(&path) => paths.push(path),
            _ => break,
        }
    }
    paths
}

/// Resolves the target of a link in `directory`. Returns `None` for one that leads out of the tree.
fn inside(directory: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    if target.starts_with(b"/") {
        return None;
    }
    let mut parts = Vec::new();
    for part in directory.split(|&byte| byte == b'/').chain(target.split(|&byte| byte == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
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
