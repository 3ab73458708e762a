//! Our own containerd: its directory, settings, and what the supervisor needs to keep it running.
//!
//! ```text
//! <dir>/                 mode 0700, so nobody else reaches the socket
//!   containerd.toml      written before every start
//!   containerd.sock      containerd.sock.ttrpc
//!   containerd.log       containerd.log.1
//!   root/                content, snapshots, records: what a reboot must not take
//!   state/               tasks: directories of the shims
//!   runc/                runc's own state
//!   pipes/               of further processes in instances
//! ```
//!
//! Its offspring lasts: shims and instances go on when it ends, and it takes them back when it starts. The shims' sockets
//! lie below `/run/containerd/s`, named by a hash of this containerd's address, the namespace and the instance.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::channel::Connection;
use super::{Runc, version};
use crate::supervise::port as supervise;
use crate::supervise::program::find;

mod reason;
mod settings;

/// Longest path of a unix socket on Linux (`sockaddr_un` without the final NUL).
const SOCKET_PATH_LIMIT: usize = 107;
pub(super) const SHIM: &str = "containerd-shim-runc-v2";

#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of this containerd alone.
    pub dir: PathBuf,
    /// See [`of_state_dir`](super::of_state_dir).
    pub namespace: String,
    /// `containerd`, looked up in `PATH` unless it has a `/`.
    pub program: PathBuf,
    /// `runc`, the same.
    pub runc: PathBuf,
    /// `hearthd` itself.
    pub keeper: PathBuf,
    pub limits: supervise::Limits,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "socket path `{}` has {} bytes; the system allows {SOCKET_PATH_LIMIT}: choose a shorter state directory",
    .0.display(), .0.as_os_str().len()
)]
pub struct SocketTooLong(PathBuf);

impl Options {
    pub fn new(dir: PathBuf, namespace: String, keeper: PathBuf) -> Self {
        Self {
            dir,
            namespace,
            program: "containerd".into(),
            runc: "runc".into(),
            keeper,
            limits: supervise::Limits::default(),
        }
    }

    /// The child to supervise, and how to connect to it once that runs. To be called within the async runtime.
    pub fn plan(self) -> Result<(supervise::Child, Connect), SocketTooLong> {
        let dir = std::path::absolute(&self.dir).unwrap_or(self.dir);
        let socket = dir.join("containerd.sock");
        // The longest of its two sockets.
        let ttrpc = dir.join("containerd.sock.ttrpc");
        if ttrpc.as_os_str().len() > SOCKET_PATH_LIMIT {
            return Err(SocketTooLong(ttrpc));
        }
        let kind = Managed {
            dir: dir.clone(),
            shim: shim_beside(&self.program).unwrap_or_else(|| SHIM.into()),
            program: self.program.clone(),
            runc: self.runc.clone(),
            connection: Connection::new(&socket, &self.namespace),
        };
        let child = supervise::Child {
            name: "containerd",
            env: path_before_others(&self.program),
            program: self.program,
            args: vec!["--config".into(), dir.join("containerd.toml").into()],
            log: dir.join("containerd.log"),
            root: dir.clone(),
            offspring: supervise::Offspring::Lasting,
            groups: Vec::new(),
            limits: self.limits,
            kind: Arc::new(kind),
        };
        let runc = find(&self.runc).unwrap_or(self.runc);
        Ok((child, Connect { dir, socket, namespace: self.namespace, runc, keeper: self.keeper }))
    }
}

/// What connects to our own containerd.
#[derive(Clone, Debug)]
pub struct Connect {
    dir: PathBuf,
    socket: PathBuf,
    namespace: String,
    runc: PathBuf,
    keeper: PathBuf,
}

impl Connect {
    pub fn options(self, child: watch::Receiver<supervise::Status>) -> super::Options {
        super::Options {
            socket: self.socket,
            namespace: self.namespace,
            child: Some(child),
            runc: Some(Runc { program: self.runc, root: self.dir.join("runc") }),
            tasks: Some(self.dir.join("state/io.containerd.runtime.v2.task")),
            reserve: Some(self.dir.join("reserve")),
            pipes: self.dir.join("pipes"),
            keeper: self.keeper,
        }
    }
}

struct Managed {
    dir: PathBuf,
    program: PathBuf,
    shim: PathBuf,
    runc: PathBuf,
    connection: Connection,
}

#[async_trait]
impl supervise::Kind for Managed {
    fn prepare(&self) -> Result<(), String> {
        if !rustix::process::geteuid().is_root() {
            return Err(
                "containerd needs root, and hearthd does not run as root; run hearthd as root, or give it a \
                        containerd of another user with --containerd"
                    .to_owned(),
            );
        }
        for program in [&self.program, &self.shim, &self.runc] {
            find(program).ok_or_else(|| not_installed(program))?;
        }
        let written = settings::write(&self.dir);
        written.map_err(|error| format!("settings of containerd in `{}`: {error}", self.dir.display()))
    }

    async fn probe(&self) -> Result<String, supervise::ProbeError> {
        version::of(&self.connection).await
    }

    fn explain(&self, log_tail: &str) -> Option<String> {
        reason::explain(log_tail)
    }

    /// Instances live on; what is left of those that do not is taken away one by one.
    fn sweep(&self) -> Result<(), String> {
        Ok(())
    }
}

/// The shim of the same release, for a containerd that is named by its path.
fn shim_beside(program: &Path) -> Option<PathBuf> {
    let directory = program.parent().filter(|directory| !directory.as_os_str().is_empty())?;
    find(&directory.join(SHIM))
}

/// containerd itself would look beside it only where `PATH` has none, and take another release's.
fn path_before_others(program: &Path) -> Vec<(OsString, OsString)> {
    let Some(shim) = shim_beside(program) else { return Vec::new() };
    let others = std::env::var_os("PATH").unwrap_or_default();
    let all = shim.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&others));
    // A directory that cannot be in a `PATH`, for the `:` in its name, is left to containerd.
    std::env::join_paths(all).map(|path| vec![("PATH".into(), path)]).unwrap_or_default()
}

fn not_installed(program: &Path) -> String {
    let what = if program.ends_with("runc") { "runc" } else { "containerd" };
    format!("`{}` is not installed; install {what}, or configure its path", program.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_state_directory_that_is_too_deep_for_a_socket_is_refused_at_once() {
        let options = |dir: &str| Options::new(dir.into(), "hearth-x".to_owned(), "/bin/true".into());
        assert!(options("/var/lib/hearth/containerd").plan().is_ok());
        let error = options(&format!("/{}", "x".repeat(100))).plan().map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("shorter state directory"), "{error}");
    }

    #[tokio::test]
    async fn a_containerd_that_is_named_by_its_path_uses_the_shim_beside_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("containerd");
        let path_of = |program: &Path| {
            let options = Options::new("/s/containerd".into(), "hearth-x".to_owned(), "/bin/true".into());
            let (child, _) = Options { program: program.to_owned(), ..options }.plan().unwrap();
            child.env.into_iter().find(|(name, _)| name == "PATH").map(|(_, path)| path)
        };
        assert_eq!(path_of(&program), None);
        let shim = dir.path().join(SHIM);
        std::fs::write(&shim, "").unwrap();
        std::fs::set_permissions(&shim, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = path_of(&program).unwrap();
        assert_eq!(std::env::split_paths(&path).next().as_deref(), Some(dir.path()));
        assert_eq!(path_of(Path::new("containerd")), None);
    }

    #[test]
    fn a_missing_program_is_named_with_what_to_install() {
        assert!(not_installed(Path::new(SHIM)).contains("install containerd"));
        assert!(not_installed(Path::new("/opt/runc")).contains("install runc"));
        assert_eq!(find(Path::new("no-such-program")), None);
    }
}
