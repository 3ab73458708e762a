//! Access to an image's files before the container exists: `/etc/passwd` and `/etc/group`, and the initial content of
//! its volumes.
//!
//! The snapshot is mounted in a mount namespace of one thread, which ends with the thread: no mount is left in any
//! case. Files are opened with the snapshot as their root, so that no link of the image leads outside.

mod fill;

use std::fs::{File, Permissions};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;

use crate::model::MountTarget;

/// Maximum number of bytes read of `/etc/passwd` and of `/etc/group`.
const MOST_BYTES: u64 = 4 << 20;

/// Returns the text of both files; empty if missing. Blocking.
pub(super) fn read_user_files(mounts: &[Mount]) -> io::Result<(String, String)> {
    with_image_root(mounts, |root| Ok((read_text(root, "etc/passwd")?, read_text(root, "etc/group")?)))
}

/// An empty directory that an instance has at a path.
pub(super) struct EmptyDirectory {
    pub target: MountTarget,
    pub directory: PathBuf,
    /// Set if the path is a `VOLUME` of the image.
    pub is_volume: bool,
}

/// Fills empty directories, each with the image's content at its path. A volume at a path that the image lacks gets the
/// mode that Docker gives it. Blocking.
pub(super) fn fill(mounts: &[Mount], empty: &[EmptyDirectory]) -> io::Result<()> {
    with_image_root(mounts, |root| {
        empty.iter().try_for_each(|EmptyDirectory { target, directory, is_volume }| {
            if !fill::fill(root, target.as_str(), directory)? && *is_volume {
                std::fs::set_permissions(directory, Permissions::from_mode(0o755))?;
            }
            Ok(())
        })
    })
}

fn with_image_root<T: Send>(
    mounts: &[Mount],
    work: impl FnOnce(&OwnedFd) -> io::Result<T> + Send,
) -> io::Result<T> {
    let [mount] = mounts else {
        return Err(io::Error::other("a snapshot is expected to be one mount"));
    };
    crate::task::on_own_thread("image-root", || work(&mount_snapshot(mount)?))?
}

/// Mounts the snapshot for this thread alone, and opens its root.
fn mount_snapshot(mount: &Mount) -> io::Result<OwnedFd> {
    let options = |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name));
    // SAFETY: this thread was made for this and ends soon; no file table is unshared.
    #[expect(unsafe_code, reason = "rustix marks every unshare, for the sake of the file table")]
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
    rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match (mount.r#type.as_str(), options("lowerdir=")) {
        // A plain directory: from the native snapshotter, or for an image without layers.
        ("bind", _) => Ok(rustix::fs::open(mount.source.as_str(), directory, Mode::empty())?),
        ("overlay", Some(lower)) => {
            // Mount options are limited to one page, so the layers are named relative to their common directory.
            let upper = options("upperdir=").unwrap_or_default();
            let dirs: Vec<&Path> = [upper]
                .into_iter()
                .chain(lower.split(':'))
                .filter(|dir| !dir.is_empty())
                .map(Path::new)
                .collect();
            let base = common_ancestor(&dirs);
            rustix::process::chdir(base.as_path())?;
            let relative =
                |dir: &&Path| dir.strip_prefix(&base).unwrap_or(dir).to_string_lossy().into_owned();
            let lower = dirs.iter().map(relative).collect::<Vec<_>>().join(":");
            // Any directory is suitable as the mount point, since no other process sees it.
            let data = std::ffi::CString::new(format!("lowerdir={lower}"))?;
            let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
            rustix::mount::mount(c"overlay", c"/proc", c"overlay", flags, data.as_c_str())?;
            Ok(rustix::fs::open(c"/proc", directory, Mode::empty())?)
        }
        (kind, _) => Err(io::Error::other(format!("a snapshot of an unknown kind: {kind}"))),
    }
}

/// Returns the closest common ancestor of all directories.
fn common_ancestor(dirs: &[&Path]) -> std::path::PathBuf {
    let Some((first, rest)) = dirs.split_first() else { return "/".into() };
    let shared = first.ancestors().skip(1).find(|base| rest.iter().all(|dir| dir.starts_with(base)));
    shared.unwrap_or(Path::new("/")).to_owned()
}

fn read_text(root: &OwnedFd, path: &str) -> io::Result<String> {
    // Non-blocking, since the path may be a fifo.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file: File = match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(file) => file.into(),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(String::new()),
        Err(errno) => return Err(errno.into()),
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named_from_the_directory_that_they_share() {
        let at = |paths: &[&str]| {
            let paths: Vec<&Path> = paths.iter().map(Path::new).collect();
            common_ancestor(&paths).display().to_string()
        };
        assert_eq!(at(&["/s/1/fs", "/s/12/fs", "/s/2/fs"]), "/s");
        assert_eq!(at(&["/s/1/fs"]), "/s/1");
        assert_eq!(at(&["/a/1", "/b/1"]), "/");
        assert_eq!(at(&[]), "/");
    }
}
