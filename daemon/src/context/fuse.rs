//! The FUSE face: a thin shell that passes what the kernel asks on to a [`Union`].
//!
//! ```text
//! kernel -- /dev/fuse --> threads of fuser, one clone of the device each --> Shell --> Union
//! ```
//!
//! Nothing here decides anything but how long the kernel may remember an answer, and which files it may
//! read by itself (passthrough). No thread of the async runtime is ever used or waited for.

mod ahead;
mod ask;
mod directories;
mod forget;
mod passthrough;
mod shell;
mod wire;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

use super::union::Union;
use shell::Shell;

/// The type that mounts of ours have in the mount table.
pub const FILE_SYSTEM: &str = "fuse.hearth";

/// Threads that answer the kernel.
const MOST_THREADS: usize = 8;

/// A union that is mounted; dropping this leaves it mounted, until the process ends.
pub struct Session {
    background: fuser::BackgroundSession,
}

/// Mounts a union on a directory that is held, so that no path is looked at again. `name` shows in the
/// mount table as its source. Blocks for moments.
///
/// Device files and setuid bits have no effect in it. Others than root may use it when the daemon is
/// root; the kernel then checks permission bits as it does on any disk.
pub fn mount(union: Arc<Union>, directory: &OwnedFd, name: &str) -> io::Result<Session> {
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
    let served = serve(union, device);
    if served.is_err() {
        // The held directory is below the mount: it is found again through its own path.
        let path = rustix::fs::readlinkat(rustix::fs::CWD, point.as_str(), Vec::new())?;
        rustix::mount::unmount(&*path, rustix::mount::UnmountFlags::DETACH)?;
    }
    served
}

fn serve(union: Arc<Union>, device: OwnedFd) -> io::Result<Session> {
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let mut config = fuser::Config::default();
    config.acl = fuser::SessionACL::All;
    config.n_threads = Some(threads.clamp(2, MOST_THREADS));
    config.clone_fd = true;
    let (forget_later, forgetting) = forget::channel();
    let shell = Shell::new(union, forget_later);
    let session = fuser::Session::from_fd(shell, device, fuser::SessionACL::All, config)?;
    // A listing may be a little older already when the kernel gets it.
    forgetting.spawn(session.notifier(), shell::CHANGING.saturating_sub(directories::AHEAD))?;
    Ok(Session { background: session.spawn()? })
}

impl Session {
    /// Whether it was unmounted, and the last file in it was closed.
    pub fn has_ended(&self) -> bool {
        self.background.guard.is_finished()
    }

    /// Waits for that. False when `limit` passed first.
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
