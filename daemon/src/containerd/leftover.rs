//! Removal of the leftovers of an instance whose shim was killed, if containerd did not remove them itself.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use sha2::{Digest as _, Sha256};

use super::cgroup;
use crate::supervise::leftover::kill_started_with;

/// Time limit for `runc delete`.
const LIMIT: Duration = Duration::from_secs(10);

/// Locations of an instance's possible leftovers.
pub(super) struct LeftoverPaths {
    /// Set if there was no task: its shim may be running all the same.
    pub lost_shim: Option<LostShim>,
    /// Directory of the shim; `None` for an external containerd.
    pub task: Option<PathBuf>,
    /// Program of runc, and its directory of containers.
    pub runc: Option<(PathBuf, PathBuf)>,
    /// Socket of the shim, which stays after a kill; `None` for an external containerd.
    pub socket: Option<PathBuf>,
    pub cgroup: String,
    pub instance: String,
}

/// The arguments with which containerd started the shim of an instance.
///
/// A shim whose task creation was cancelled right after its start can keep running without a task: containerd 1.6
/// removes its directory ("cleaning up after shim disconnected") and forgets it.
pub(super) struct LostShim {
    pub namespace: String,
    pub instance: String,
}

impl LostShim {
    fn kill(&self) -> io::Result<()> {
        let words = ["-namespace", self.namespace.as_str(), "-id", self.instance.as_str()];
        let ended = kill_started_with(Path::new(super::managed::SHIM), &words)?;
        if ended > 0 {
            tracing::info!(instance.id = self.instance, "killed a shim without a task");
        }
        Ok(())
    }
}

/// Returns the socket path of an instance's shim, by containerd's own rule, which is the same in 1.6 and 2.x.
pub(super) fn shim_socket(containerd: &Path, namespace: &str, instance: &str) -> PathBuf {
    let named = containerd.join(namespace).join(instance);
    let hash = hex::encode(Sha256::digest(named.as_os_str().as_bytes()));
    Path::new("/run/containerd/s").join(hash)
}

/// Removes the leftovers, if there are any; usually there are none. Blocking.
pub(super) fn remove_leftovers(paths: &LeftoverPaths) -> io::Result<()> {
    paths.lost_shim.as_ref().map_or(Ok(()), LostShim::kill)?;
    if let Some((program, root)) = &paths.runc
        && root.join(&paths.instance).exists()
    {
        let mut command = Command::new(program);
        command.arg("--root").arg(root).args(["delete", "--force", &paths.instance]);
        run(&mut command)?;
    }
    cgroup::remove(&paths.cgroup);
    if let Some(socket) = &paths.socket {
        match fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let Some(task) = paths.task.as_ref().filter(|task| task.exists()) else { return Ok(()) };
    let rootfs = task.join("rootfs");
    match rustix::mount::unmount(&rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Not a mount, or missing.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    // Only an empty directory is removed, never files through a mount.
    match fs::remove_dir(&rootfs) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::remove_dir_all(task)
}

fn run(command: &mut Command) -> io::Result<()> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return if status.success() {
                Ok(())
            } else {
                Err(io::Error::other(format!("runc delete: {status}")))
            };
        }
        if started.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::other("runc delete does not end"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_listens_where_containerd_puts_it() {
        // Value that containerd 1.6.20 wrote into the `address` file of such a task.
        let found = shim_socket(Path::new("/tmp/ctdx/c.sock"), "default", "one");
        let name = "bd973bbbd0ec8249a5c69bf6a8b8179367697e9d381aa4158f67e0616f23a185";
        assert_eq!(found, Path::new("/run/containerd/s").join(name));
    }
}
