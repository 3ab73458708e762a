//! The daemon's own containerd: its directory, its settings, and the driver with which the supervisor keeps it running.
//!
//! ```text
//! <dir>/                 mode 0700, so nobody else reaches the socket
//!   containerd.toml      written before every start
//!   containerd.sock      containerd.sock.ttrpc
//!   containerd.log       containerd.log.1
//!   root/                content, snapshots, records: must survive a reboot
//!   state/               tasks: directories of the shims
//!   runc/                runc's own state
//!   pipes/               pipes of additional processes in instances
//! ```
//!
//! Shims and instances keep running when containerd exits, and it takes them over when it starts again. The shims'
//! sockets lie below `/run/containerd/s`, named by a hash of this containerd's address, the namespace and the instance.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::channel::ContainerdConnection;
use super::{RuncPaths, version};
use crate::supervise::port as supervise;
use crate::supervise::program::find_executable;

mod reason;
mod settings;

/// Maximum length in bytes of a unix socket path on Linux (`sockaddr_un` without the final NUL).
const SOCKET_PATH_LIMIT: usize = 107;
pub(super) const SHIM: &str = "containerd-shim-runc-v2";

#[derive(Clone, Debug)]
pub struct Options {
    /// Directory that belongs to this containerd alone.
    pub dir: PathBuf,
    /// See [`namespace_of_state_dir`](super::namespace_of_state_dir).
    pub namespace: String,
    /// Path of `containerd`, looked up in `PATH` unless it has a `/`.
    pub program: PathBuf,
    /// Path of `runc`, looked up in the same way.
    pub runc: PathBuf,
    /// Path of `hearthd` itself.
    pub keeper: PathBuf,
    pub limits: supervise::ChildLimits,
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
            limits: supervise::ChildLimits::default(),
        }
    }

    /// Returns the child to supervise, and the settings for connecting to it once it runs. Must be called within the
    /// async runtime.
    pub fn plan(self) -> Result<(supervise::ChildSpec, ManagedEndpoint), SocketTooLong> {
        let dir = std::path::absolute(&self.dir).unwrap_or(self.dir);
        let socket = dir.join("containerd.sock");
        // The longer path of its two sockets.
        let ttrpc = dir.join("containerd.sock.ttrpc");
        if ttrpc.as_os_str().len() > SOCKET_PATH_LIMIT {
            return Err(SocketTooLong(ttrpc));
        }
        let kind = ContainerdDriver {
            dir: dir.clone(),
            shim: shim_beside(&self.program).unwrap_or_else(|| SHIM.into()),
            program: self.program.clone(),
            runc: self.runc.clone(),
            connection: ContainerdConnection::new(&socket, &self.namespace),
        };
        let child = supervise::ChildSpec {
            name: "containerd",
            env: path_before_others(&self.program),
            program: self.program,
            args: vec!["--config".into(), dir.join("containerd.toml").into()],
            log: dir.join("containerd.log"),
            root: dir.clone(),
            descendants: supervise::DescendantPolicy::Surviving,
            groups: Vec::new(),
            limits: self.limits,
            driver: Arc::new(kind),
        };
        let runc = find_executable(&self.runc).unwrap_or(self.runc);
        Ok((child, ManagedEndpoint { dir, socket, namespace: self.namespace, runc, keeper: self.keeper }))
    }
}

/// Connection settings for the daemon's own containerd.
#[derive(Clone, Debug)]
pub struct ManagedEndpoint {
    dir: PathBuf,
    socket: PathBuf,
    namespace: String,
    runc: PathBuf,
    keeper: PathBuf,
}

impl ManagedEndpoint {
    pub fn options(self, child: watch::Receiver<supervise::ChildStatus>) -> super::Options {
        super::Options {
            socket: self.socket,
            namespace: self.namespace,
            child: Some(child),
            runc: Some(RuncPaths { program: self.runc, root: self.dir.join("runc") }),
            tasks: Some(self.dir.join("state/io.containerd.runtime.v2.task")),
            reserve: Some(self.dir.join("reserve")),
            pipes: self.dir.join("pipes"),
            keeper: self.keeper,
        }
    }
}

struct ContainerdDriver {
    dir: PathBuf,
    program: PathBuf,
    shim: PathBuf,
    runc: PathBuf,
    connection: ContainerdConnection,
}

#[async_trait]
impl supervise::ChildDriver for ContainerdDriver {
    fn prepare(&self) -> Result<(), String> {
        if !rustix::process::geteuid().is_root() {
            return Err(
                "containerd needs root, and hearthd does not run as root; run hearthd as root, or give it a \
                        containerd of another user with --containerd"
                    .to_owned(),
            );
        }
        for program in [&self.program, &self.shim, &self.runc] {
            find_executable(program).ok_or_else(|| not_installed(program))?;
        }
        let written = settings::write(&self.dir);
        written.map_err(|error| format!("settings of containerd in `{}`: {error}", self.dir.display()))
    }

    async fn probe(&self) -> Result<String, supervise::ProbeError> {
        let version = version::query_version(&self.connection).await?;
        version::check_tasks(&self.connection).await?;
        Ok(version)
    }

    fn explain(&self, log_tail: &str) -> Option<String> {
        reason::explain(log_tail)
    }

    /// Instances keep running; leftovers of the others are removed one by one.
    fn sweep(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Returns the shim of the same release for a containerd that is given by its path.
fn shim_beside(program: &Path) -> Option<PathBuf> {
    let directory = program.parent().filter(|directory| !directory.as_os_str().is_empty())?;
    find_executable(&directory.join(SHIM))
}

/// Returns a `PATH` with the shim's directory first: containerd itself looks beside its program only if `PATH` has no
/// shim, and would use one of another release.
fn path_before_others(program: &Path) -> Vec<(OsString, OsString)> {
    let Some(shim) = shim_beside(program) else { return Vec::new() };
    let others = std::env::var_os("PATH").unwrap_or_default();
    let all = shim.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&others));
    // A directory with a `:` in its name cannot be in `PATH`; containerd then uses its own lookup.
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
        assert_eq!(find_executable(Path::new("no-such-program")), None);
    }
}
