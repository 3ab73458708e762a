//! Starts a process from a thread of its own.
//!
//! The parent-death signal fires when the *thread* that forked ends, not the process. A thread of tokio may end at any
//! time; the thread here ends only when its child has exited, or with the daemon.
//!
//! A *contained* child is the first process of a pid namespace and has its own mount namespace: when it exits for any
//! reason, the kernel kills all its descendants and drops all its mounts. This is the only reliable way to stop build
//! steps: a build daemon that is killed or terminated leaves their containers running.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::UnshareFlags;
use tokio::sync::oneshot;

use crate::task;

/// A running process. Dropping it kills the process, so that a panic of the owner or the end of the async runtime
/// leaves no child.
pub(super) struct ChildProcess {
    pub(super) pid: u32,
    pidfd: OwnedFd,
    exited: oneshot::Receiver<io::Result<ExitStatus>>,
}

/// Starts a process. `groups` are files to which the child writes itself before its program begins, to enter control
/// groups.
pub(super) async fn spawn(
    name: &'static str,
    command: Command,
    contained: bool,
    groups: Vec<OwnedFd>,
) -> io::Result<ChildProcess> {
    let (started, answer) = oneshot::channel();
    task::spawn_thread(&format!("own-{name}"), move || own_child(command, contained, groups, started))?;
    answer.await.map_err(|_| io::Error::other("the thread that starts a process panicked"))?
}

fn own_child(
    command: Command,
    contained: bool,
    groups: Vec<OwnedFd>,
    started: oneshot::Sender<io::Result<ChildProcess>>,
) {
    let mut child = match fork(command, contained, groups) {
        Ok(child) => child,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    // The child is not reaped before `wait` below, so its pid cannot have been reused.
    let pidfd = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(rustix::io::Errno::INVAL)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
    let (exit, exited) = oneshot::channel();
    let answer = match pidfd {
        Ok(pidfd) => Ok(ChildProcess { pid: child.id(), pidfd, exited }),
        Err(error) => {
            let _ = child.kill();
            Err(error.into())
        }
    };
    // If the receiver is gone, dropping the returned process kills it.
    drop(started.send(answer));
    let _ = exit.send(child.wait());
}

fn fork(mut command: Command, contained: bool, groups: Vec<OwnedFd>) -> io::Result<Child> {
    let daemon = rustix::process::getpid();
    command.process_group(0);
    if contained {
        // SAFETY: only the pid namespace of this thread's future children changes; no file
        // descriptor, and nothing that another thread sees.
        #[expect(unsafe_code, reason = "rustix marks every unshare, for the sake of the file table")]
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }?;
    }
    let before_exec = move || {
        for group in &groups {
            rustix::io::write(group, b"0")?;
        }
        if contained {
            // SIGKILL leaves nothing, since the namespace ends with its first process.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            return enter_mount_namespace().map_err(io::Error::from);
        }
        // SIGTERM lets a child that is not contained stop its own work.
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        // The daemon may have died between fork and the line above. (In a pid namespace the parent is not visible;
        // leftovers of that moment carry the marker, and the next start kills them.)
        if rustix::process::getppid() == Some(daemon) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec the closure makes system calls only (prctl, getppid, unshare,
    // mount, write) through rustix, with constant C strings: it allocates nothing and takes no lock.
    #[expect(unsafe_code, reason = "a child alone can set its death signal and enter a mount namespace")]
    unsafe {
        command.pre_exec(before_exec);
    }
    command.spawn()
}

/// Enters a mount namespace: mounts inside stay inside, while mounts and unmounts on the host remain visible. `/proc`
/// is replaced by that of the pid namespace, since a container runtime looks up its processes there.
fn enter_mount_namespace() -> rustix::io::Result<()> {
    // SAFETY: the forked child has one thread, and no file table is unshared.
    #[expect(unsafe_code, reason = "rustix marks every unshare, for the sake of the file table")]
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    rustix::mount::mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(c"proc", c"/proc", c"proc", flags, None)
}

impl ChildProcess {
    /// Waits for the exit of the process and describes it. May be awaited to completion only once.
    pub(super) async fn wait(&mut self) -> String {
        match (&mut self.exited).await {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => format!("lost: {error}"),
            Err(_) => "lost with its thread".to_owned(),
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        // An error means that the process has exited, which is the purpose of the signal.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
