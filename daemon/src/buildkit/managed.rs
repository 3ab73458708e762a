//! Managed buildkitd: its directory, its settings, and the child definition for the supervisor.
//!
//! ```text
//! <dir>/                 mode 0700, so that no other user reaches the socket
//!   buildkitd.toml       written before every start
//!   buildkitd.sock       otel.sock
//!   buildkitd.log        buildkitd.log.1
//!   data/                BuildKit's root: cache, content, snapshots
//!   tmp/                 its TMPDIR, so that its temporary mounts are below <dir> too
//!   git/                 `git` as buildkitd runs it (git.rs)
//!   cni/                 CNI configuration of its steps (network/steps/builder.rs)
//! ```
//!
//! It runs contained: the processes of its steps and its mounts end with it, even if it is killed.
//!
//! Each `RUN` has a network of its own, made by the daemon ([`crate::network::steps`]). When that network cannot be
//! made, buildkitd is not started: a step never gets the host network instead.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use tonic::transport::Channel;

use super::{Address, AddressError, channel};
use crate::git_proxy::GitAccess;
use crate::network::steps::BuilderNetwork;
use crate::supervise::leftover;
use crate::supervise::port as supervise;
use crate::supervise::program::find;

mod capability;
mod containers;
mod git;
mod groups;
mod reason;
mod settings;

pub use groups::{Bounds, BuilderGroups};
pub use settings::Quota;

const NAME: &str = "buildkitd";
const EXECUTOR: &str = "data/runc-overlayfs/executor";
const EXECUTOR_NATIVE: &str = "data/runc-native/executor";

/// Options of one managed buildkitd.
#[derive(Clone)]
pub struct Options {
    /// Directory of this buildkitd alone.
    pub dir: PathBuf,
    /// Program `buildkitd`, looked up in `PATH` unless it has a `/`.
    pub program: PathBuf,
    /// Program `runc`, looked up in the same way.
    pub runc: PathBuf,
    pub quota: Quota,
    /// Resource limits of its steps.
    pub bounds: Bounds,
    /// Network of its steps, or the reason why there is none: then buildkitd is not started and reports the reason.
    pub network: Result<BuilderNetwork, String>,
    /// Access to the git proxy; without it buildkitd fetches no repository.
    pub git: Option<GitAccess>,
    pub limits: supervise::Limits,
}

impl Options {
    pub fn new(dir: PathBuf, network: Result<BuilderNetwork, String>) -> Self {
        Self {
            dir,
            network,
            program: "buildkitd".into(),
            runc: "runc".into(),
            quota: Quota::default(),
            bounds: Bounds::default(),
            git: None,
            limits: supervise::Limits::default(),
        }
    }

    /// Returns the child to supervise, and the options to connect to it once it runs (set
    /// [`child`](super::Options::child) to the supervisor's status).
    pub fn plan(self) -> Result<(supervise::Child, super::Options), AddressError> {
        let dir = std::path::absolute(&self.dir).unwrap_or(self.dir);
        let address = Address::unix(dir.join("buildkitd.sock"))?;
        let groups = BuilderGroups::new(self.bounds.clone());
        let kind = Buildkitd {
            dir: dir.clone(),
            groups: Arc::clone(&groups),
            program: self.program.clone(),
            runc: self.runc,
            quota: self.quota,
            network: self.network.clone(),
            git: self.git.clone(),
            control: channel::control(&address),
        };
        let variable = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        let output = self.bounds.step_output.map_or_else(|| "-1".to_owned(), |bytes| bytes.to_string());
        let mut env = vec![
            // BuildKit cuts a step's log at 2 MiB and 200 KiB/s by default.
            variable("BUILDKIT_STEP_LOG_MAX_SIZE", &output),
            variable("BUILDKIT_STEP_LOG_MAX_SPEED", "-1"),
            ("TMPDIR".into(), dir.join("tmp").into()),
            ("PATH".into(), git::search_path(&dir)),
        ];
        env.extend(groups.go_memory_limit().map(|bytes| variable("GOMEMLIMIT", &bytes.to_string())));
        let child = supervise::Child {
            name: NAME,
            program: self.program,
            args: vec!["--config".into(), dir.join("buildkitd.toml").into()],
            env,
            log: dir.join("buildkitd.log"),
            root: dir.clone(),
            offspring: supervise::Offspring::Contained,
            groups: groups.members(),
            limits: self.limits,
            kind: Arc::new(kind),
        };
        let executor = Some(dir.join(EXECUTOR));
        let connect = super::Options {
            address,
            child: None,
            executor,
            network: self.network.ok(),
            git: self.git,
            allow_host_network: false,
            groups: Some(groups),
            shared: false,
        };
        Ok((child, connect))
    }

    /// Removes the processes, mounts and containers that a killed daemon left of this builder, which will not be
    /// started. Blocking.
    pub fn sweep(&self) {
        let swept = leftover::Mark::of(NAME, &self.dir)
            .and_then(|mark| leftover::end_processes(&mark, None))
            .and_then(|_| leftover::unmount_below(&self.dir))
            .map_err(|error| error.to_string())
            .and_then(|_| sweep(&self.dir, &self.runc, &BuilderGroups::new(self.bounds.clone())));
        if let Err(error) = swept {
            tracing::error!(directory = %self.dir.display(), error, "failed to clean up after an earlier builder");
        }
    }
}

struct Buildkitd {
    dir: PathBuf,
    program: PathBuf,
    runc: PathBuf,
    quota: Quota,
    groups: Arc<BuilderGroups>,
    network: Result<BuilderNetwork, String>,
    git: Option<GitAccess>,
    control: ControlClient<Channel>,
}

#[async_trait]
impl supervise::Kind for Buildkitd {
    fn prepare(&self) -> Result<(), String> {
        capability::check()?;
        find(&self.program).ok_or_else(|| not_found(&self.program, "BuildKit"))?;
        let runc = find(&self.runc).ok_or_else(|| not_found(&self.runc, "runc"))?;
        let network = self.network.as_ref().map_err(|reason| {
            format!("steps of builds cannot have a network of their own, so nothing is built: {reason}")
        })?;
        let wiring = settings::StepWiring {
            config: network.config(),
            plugins: network.plugins(),
            resolver: network.resolver(),
        };
        let write = || -> io::Result<()> {
            fs::create_dir_all(self.dir.join("tmp"))?;
            for executor in [EXECUTOR, EXECUTOR_NATIVE] {
                containers::remove_bundles(&self.dir.join(executor))?;
            }
            network.prepare()?;
            git::prepare(&self.dir, self.git.as_ref())?;
            let groups = self.groups.steps();
            settings::write(&self.dir, &runc, &self.quota, &wiring, groups.as_deref())
        };
        self.groups.prepare();
        write().map_err(|error| format!("settings of buildkitd in `{}`: {error}", self.dir.display()))
    }

    async fn probe(&self) -> Result<String, supervise::ProbeError> {
        let version = super::version(self.control.clone()).await?;
        // BuildKit exposes its own trace socket to every step as long as the socket file exists.
        match fs::remove_file(settings::otel_socket(&self.dir)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(supervise::ProbeError::Refused(
                format!("the trace socket cannot be hidden from steps: {error}"),
            )),
            _ => Ok(version),
        }
    }

    fn explain(&self, log_tail: &str) -> Option<String> {
        reason::explain(log_tail)
    }

    fn sweep(&self) -> Result<(), String> {
        let swept = sweep(&self.dir, &self.runc, &self.groups);
        let Ok(network) = &self.network else { return swept };
        swept.and(network.release().map_err(|error| format!("networks of steps: {error}")))
    }
}

fn sweep(dir: &Path, runc: &Path, groups: &BuilderGroups) -> Result<(), String> {
    let dir = dir.canonicalize().map_err(|error| error.to_string())?;
    containers::end_below(&dir, runc)?;
    groups.remove()
}

fn not_found(program: &Path, what: &str) -> String {
    format!("`{}` is not installed; install {what} or configure its path", program.display())
}
