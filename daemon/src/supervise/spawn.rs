//! Starts processes from a thread of their own.
//!
//! The parent-death signal fires when the *thread* that forked ends, not the process. A thread of
//! tokio's may end at any time; this one ends only when its child has, or with the daemon.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus};
use std::sync::mpsc;
use std::thread;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::sync::oneshot;

/// Sent to a child whose daemon died without a word.
const DEATH_SIGNAL: Signal = Signal::TERM;

pub(super) struct Spawner(mpsc::Sender<Request>);

struct Request {
    command: Command,
    started: oneshot::Sender<io::Result<Process>>,
}

/// A running process. Dropped while it runs, it is killed: an owner that panicked or a runtime
/// that was torn down leaves no child.
pub(super) struct Process {
    pub(super) pid: u32,
    pidfd: OwnedFd,
    exited: oneshot::Receiver<io::Result<ExitStatus>>,
}

impl Spawner {
    pub(super) fn start(name: &'static str) -> io::Result<Self> {
        let (sender, requests) = mpsc::channel::<Request>();
        thread::Builder::new().name(format!("own-{name}")).spawn(move || {
            for request in requests {
                serve(request);
            }
        })?;
        Ok(Self(sender))
    }

    /// The thread waits for the child before it takes the next request.
    pub(super) async fn spawn(&self, command: Command) -> io::Result<Process> {
        let (started, answer) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts processes is gone");
        self.0.send(Request { command, started }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn serve(Request { mut command, started }: Request) {
    let daemon = rustix::process::getpid();
    command.process_group(0);
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(DEATH_SIGNAL))?;
        // The daemon may have died between fork and the line above.
        if rustix::process::getppid() != Some(daemon) {
            return Err(io::Error::from(rustix::io::Errno::SRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls (prctl, getppid) through
    // rustix, which allocates nothing and takes no lock there.
    #[expect(unsafe_code, reason = "the parent-death signal can be set only by the child itself")]
    unsafe {
        command.pre_exec(before_exec);
    }
    let mut child = match command.spawn() {
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
        Ok(pidfd) => Ok(Process { pid: child.id(), pidfd, exited }),
        Err(error) => {
            let _ = child.kill();
            Err(error.into())
        }
    };
    // Nobody waits any more: dropping the process that comes back kills it.
    drop(started.send(answer));
    let _ = exit.send(child.wait());
}

impl Process {
    /// Ends when the process has, however often it was polled before.
    pub(super) async fn wait(&mut self) -> String {
        match (&mut self.exited).await {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => format!("lost: {error}"),
            Err(_) => "lost with its thread".to_owned(),
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        // No such process: it has ended, which is what is waited for.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
