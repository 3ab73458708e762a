//! What is left of an instance whose shim was killed, where containerd did not take it away itself.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use super::cgroup;

/// For `runc delete`.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) struct Places {
    /// The shim's directory; none where containerd is not ours.
    pub task: Option<PathBuf>,
    /// runc's program, and its directory of containers.
    pub runc: Option<(PathBuf, PathBuf)>,
    pub cgroup: String,
    pub instance: String,
}

/// Looks first: as a rule there is nothing. Blocking.
pub(super) fn remove(places: &Places) -> io::Result<()> {
    if let Some((program, root)) = &places.runc
        && root.join(&places.instance).exists()
    {
        let mut command = Command::new(program);
        command.arg("--root").arg(root).args(["delete", "--force", &places.instance]);
        run(&mut command)?;
    }
    cgroup::remove(&places.cgroup);
    let Some(task) = places.task.as_ref().filter(|task| task.exists()) else { return Ok(()) };
    let rootfs = task.join("rootfs");
    match rustix::mount::unmount(&rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // It is no mount, or not there.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    // Never through a mount: only what is empty.
    match fs::remove_dir(&rootfs) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::remove_dir_all(task)
}

fn run(command: &mut Command) -> io::Result<()> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return if status.success() {
                Ok(())
            } else {
                Err(io::Error::other(format!("runc delete: {status}")))
            };
        }
        if begun.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::other("runc delete does not end"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
