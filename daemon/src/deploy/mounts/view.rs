//! FUSE mounts of image trees, served by this process.

use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::context::ContextTree;
use hearth_overlay::fuse::{self, FuseSession};
use hearth_overlay::union::OverlayFs;
use hearth_overlay::union::UpperLayer;

/// Time limit for a FUSE session to end after its unmount, before its connection is aborted.
const END_LIMIT: Duration = Duration::from_secs(2);

/// A FUSE mount of an image, with its session.
pub(super) struct MountedImageView {
    session: FuseSession,
    /// Number of the connection in the kernel's list of FUSE connections.
    connection: u32,
}

/// Mounts a tree on a new directory. With `upper`, a directory for the changes, the tree is writable.
pub(super) fn mount(
    tree: ContextTree,
    point: &Path,
    upper: Option<&Path>,
    name: &str,
) -> io::Result<MountedImageView> {
    let upper = match upper {
        Some(path) => {
            DirBuilder::new().mode(0o700).create(path)?;
            Some(UpperLayer::open(path)?)
        }
        None => None,
    };
    let union = OverlayFs::new(tree, b"", upper)?;
    DirBuilder::new().mode(0o700).create(point)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = rustix::fs::open(point, flags, Mode::empty())?;
    let session = fuse::mount(Arc::new(union), &held, name)?;
    let device = rustix::fs::stat(point)?.st_dev;
    Ok(MountedImageView { session, connection: rustix::fs::minor(device) })
}

impl MountedImageView {
    pub fn has_ended(&self) -> bool {
        self.session.has_ended()
    }

    /// Waits for the session to end after its unmount, and aborts the connection if the mount is still in use
    /// elsewhere.
    pub fn wait_for_end(&self) -> io::Result<()> {
        if self.session.wait(END_LIMIT) {
            return Ok(());
        }
        tracing::warn!(connection = self.connection, "image view is still in use; aborting its connection");
        abort_connection(self.connection)?;
        if self.session.wait(END_LIMIT) { Ok(()) } else { Err(io::ErrorKind::ResourceBusy.into()) }
    }
}

/// Aborts a FUSE connection even if it is in use. The kernel's list of connections is mounted detached for this
/// purpose, since not every machine has it in `/sys`.
pub(super) fn abort_connection(connection: u32) -> io::Result<()> {
    let list = rustix::mount::fsopen(c"fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&list)?;
    let list = rustix::mount::fsmount(&list, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let path = format!("{connection}/abort");
    let abort = rustix::fs::openat(&list, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    File::from(abort).write_all(b"1")
}
