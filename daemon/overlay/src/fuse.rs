//! FUSE interface: translates the requests of the kernel to an [`OverlayFs`].
//!
//! ```text
//! kernel -- /dev/fuse --> fuser threads, one clone of the device each --> FuseFileSystem --> OverlayFs
//! ```
//!
//! The only decisions made here are how long the kernel may cache an answer, and which files it may read by
//! itself (passthrough). Threads of the async runtime are never used or waited for.

mod convert;
mod filesystem;
mod invalidation;
mod listing_cache;
mod negotiation;
mod passthrough;
mod prefetch;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

use super::union::OverlayFs;
use filesystem::FuseFileSystem;

/// File system type of our mounts in the mount table.
pub const FILE_SYSTEM: &str = "fuse.hearth";

/// Maximum number of threads that answer the kernel.
const MAX_THREADS: usize = 8;

/// A mounted overlay. Dropping the session leaves it mounted until the process ends.
pub struct FuseSession {
    background: fuser::BackgroundSession,
}

/// Mounts an overlay on a directory that is open as a handle, so that no path is resolved again. `name` is
/// the source in the mount table. Blocks briefly.
///
/// Device files and setuid bits have no effect in it. If the daemon is root, other users may access it, and
/// the kernel checks permission bits as on any disk.
pub fn mount(union: Arc<OverlayFs>, directory: &OwnedFd, name: &str) -> io::Result<FuseSession> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let others = if uid.is_root() { ",allow_other" } else { "" };
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{others}",
        device.as_raw_fd(),
        uid.as_raw(),
        gid.as_raw(),
    );
    let options = CString::new(options)?;
    let mut flags = MountFlags::NODEV | MountFlags::NOSUID;
    if union.is_read_only() {
        flags |= MountFlags::RDONLY;
    }
    let point = format!("/proc/self/fd/{}", directory.as_raw_fd());
    rustix::mount::mount(name, point.as_str(), FILE_SYSTEM, flags, options.as_c_str())?;
    let session_result = serve(union, device);
    if session_result.is_err() {
        // The handle refers to the directory below the mount; the mount is reached through the path.
        let path = rustix::fs::readlinkat(rustix::fs::CWD, point.as_str(), Vec::new())?;
        rustix::mount::unmount(&*path, rustix::mount::UnmountFlags::DETACH)?;
    }
    session_result
}

fn serve(union: Arc<OverlayFs>, device: OwnedFd) -> io::Result<FuseSession> {
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let mut config = fuser::Config::default();
    config.acl = fuser::SessionACL::All;
    config.n_threads = Some(threads.clamp(2, MAX_THREADS));
    config.clone_fd = true;
    let (invalidations, invalidation_worker) = invalidation::channel();
    let fuse_filesystem = FuseFileSystem::new(union, invalidations);
    let session = fuser::Session::from_fd(fuse_filesystem, device, fuser::SessionACL::All, config)?;
    // A listing may already be slightly older when the kernel receives it.
    invalidation_worker.spawn(
        session.notifier(),
        filesystem::MUTABLE_TIMEOUT.saturating_sub(listing_cache::MAX_PREFETCH_AGE),
    )?;
    Ok(FuseSession { background: session.spawn()? })
}

impl FuseSession {
    /// Reports whether the file system was unmounted and its last file was closed.
    pub fn has_ended(&self) -> bool {
        self.background.guard.is_finished()
    }

    /// Waits until [`has_ended`](Self::has_ended). Returns false on a timeout after `limit`.
    pub fn wait(&self, limit: Duration) -> bool {
        let start = Instant::now();
        while !self.has_ended() {
            if start.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}
