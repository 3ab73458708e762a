//! Attributes of a detached mount.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Attributes that disable set-id bits, file capabilities and devices.
pub(super) const HARMLESS: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// Sets attributes of this mount, not of the mounts below it, and its propagation type if given.
pub(super) fn set(tree: &OwnedFd, attributes: u64, propagation: Option<u64>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: propagation.unwrap_or(0),
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
