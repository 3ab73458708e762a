//! Binding what is held: the very file or directory that was opened beneath its storage, whatever happens to its name.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

/// File systems that are mounted below it are not part of it.
pub(super) fn bind(held: &OwnedFd, is_directory: bool, point: &Path, read_only: bool) -> io::Result<()> {
    if is_directory {
        DirBuilder::new().mode(0o700).create(point)?;
    } else {
        File::create_new(point)?;
    }
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(held, c"", flags)?;
    set_attributes(&tree, read_only)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let point = rustix::fs::open(point, flags, Mode::empty())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&tree, c"", &point, c"", flags)?;
    Ok(())
}

/// Before anybody sees it: what is mounted on the original later does not appear in the copy, nor the other way round.
fn set_attributes(tree: &OwnedFd, read_only: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 },
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the descriptor is open, the path is a C string, and the kernel reads no more of the struct than the
    // size that is given with it.
    #[expect(unsafe_code, reason = "rustix has no mount_setattr")]
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
