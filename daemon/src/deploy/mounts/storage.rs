//! Bind mounts of open file descriptors: the mount shows the file or directory that was opened beneath its storage,
//! even if its name changes later.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::attributes;

/// Binds an open file or directory to a new mount point. File systems mounted below it are not included.
pub(super) fn bind(held: &OwnedFd, is_directory: bool, point: &Path, read_only: bool) -> io::Result<()> {
    if is_directory {
        DirBuilder::new().mode(0o700).create(point)?;
    } else {
        File::create_new(point)?;
    }
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(held, c"", flags)?;
    // Set before the mount becomes visible. Later mounts on the original do not propagate to the copy, nor the other
    // way round.
    let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    attributes::set(&tree, attributes::HARMLESS | read_only, Some(libc::MS_PRIVATE))?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let point = rustix::fs::open(point, flags, Mode::empty())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&tree, c"", &point, c"", flags)?;
    Ok(())
}
