//! The directory of a mount: checked while it is open as a handle, so that it cannot be replaced.

use std::ffi::OsString;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use hearth_overlay::beneath;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::MountError;

/// Opens a handle to the directory, and returns it with its canonical path.
pub(super) fn open_mount_point(path: &Path, reserved: &[PathBuf]) -> Result<(OwnedFd, PathBuf), MountError> {
    let directory = path.to_owned();
    if !path.is_absolute() {
        return Err(MountError::Relative { directory });
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat2(
        rustix::fs::CWD,
        trimmed(path),
        flags,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    );
    let failed = |errno| match errno {
        Errno::NOENT => MountError::NotFound { directory: path.to_owned() },
        Errno::NOTDIR | Errno::LOOP => MountError::NotADirectory { directory: path.to_owned() },
        errno => MountError::Io { what: "the directory cannot be opened", source: Errno::into(errno) },
    };
    let handle = opened.map_err(failed)?;
    let own = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let canonical = rustix::fs::readlinkat(rustix::fs::CWD, own, Vec::new()).map_err(failed)?;
    let canonical = PathBuf::from(OsString::from_vec(canonical.into_bytes()));
    if reserved.iter().any(|reserved| canonical.starts_with(reserved) || reserved.starts_with(&canonical)) {
        return Err(MountError::Reserved { directory: canonical });
    }
    let mut empty = true;
    let listed = beneath::open_directory(&handle, b"").and_then(|directory| {
        beneath::for_each_name(directory, |_| {
            empty = false;
            false
        })
    });
    listed.map_err(failed)?;
    if empty { Ok((handle, canonical)) } else { Err(MountError::NotEmpty { directory: canonical }) }
}

/// Removes a trailing `/`, which would make the kernel follow a symbolic link.
fn trimmed(path: &Path) -> &Path {
    // `components` yields no empty components.
    let trimmed = path.components().as_path();
    if trimmed.as_os_str().is_empty() { path } else { trimmed }
}
