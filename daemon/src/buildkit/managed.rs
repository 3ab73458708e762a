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

use super::{AddressError, BuildKitAddress, channel};
use crate::git_proxy::GitAccess;
use crate::network::steps::BuilderNetwork;
use crate::supervise::leftover;
use crate::supervise::port as supervise;
use crate::supervise::program::find_executable;

mod capability;
mod containers;
mod git;
mod groups;
mod reason;
mod settings;

pub use groups::{BuilderGroups, StepBounds};
pub use settings::CacheQuota;

const NAME: &str = "buildkitd";
const BUNDLES_DIR: &str = "data/runc-overlayfs/executor";
const NATIVE_BUNDLES_DIR: &str = "data/runc-native/executor";

/// Options of one managed buildkitd.
#[derive(Clone)]
pub struct Options {
    /// Directory of this buildkitd alone.
    pub dir: PathBuf,
    /// Program `buildkitd`, looked up in `PATH` unless it has a `/`.
    pub program: PathBuf,
    /// Program `runc`, looked up in the same way.
    pub runc: PathBuf,
    pub quota: CacheQuota,
    /// Resource limits of its steps.
    pub bounds: StepBounds,
    /// Network of its steps, or the reason why there is none: then buildkitd is not started and reports the reason.
    pub network: Result<BuilderNetwork, String>,
    /// Access to the git proxy; without it buildkitd fetches no repository.
    pub git: Option<GitAccess>,
    pub limits: supervise::ChildLimits,
}

impl Options {
    pub fn new(dir: PathBuf, network: Result<BuilderNetwork, String>) -> Self {
        Self {
            dir,
            network,
            program: "buildkitd".into(),
            runc: "runc".into(),
            quota: CacheQuota::default(),
            bounds: StepBounds::default(),
            git: None,
            limits: supervise::ChildLimits::default(),
        }
    }

    /// Returns the child to supervise, and the options to connect to it once it runs (set
    /// [`child`](super::Options::child) to the supervisor's status).
    pub fn child_and_connection(self) -> Result<(supervise::ChildSpec, super::Options), AddressError> {
        let dir = std::path::absolute(&self.dir).unwrap_or(self.dir);
        let address = BuildKitAddress::unix(dir.join("buildkitd.sock"))?;
        let groups = BuilderGroups::new(self.bounds.clone());
        let kind = BuildkitdChild {
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
        let child = supervise::ChildSpec {
            name: NAME,
            program: self.program,
            args: vec!["--config".into(), dir.join("buildkitd.toml").into()],
            env,
            log: dir.join("buildkitd.log"),
            root: dir.clone(),
            descendants: supervise::DescendantPolicy::Contained,
            groups: groups.membership_files(),
            limits: self.limits,
            driver: Arc::new(kind),
        };
        let executor = Some(dir.join(BUNDLES_DIR));
        let connect = super::Options {
            address,
            child: None,
            bundles_dir: executor,
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
    pub fn clean_up(&self) {
        let swept = leftover::ProcessMarker::of(NAME, &self.dir)
            .and_then(|mark| leftover::kill_marked_processes(&mark, None))
            .and_then(|_| leftover::unmount_below(&self.dir))
            .map_err(|error| error.to_string())
            .and_then(|_| {
                clean_up_leftovers(&self.dir, &self.runc, &BuilderGroups::new(self.bounds.clone()))
            });
        if let Err(error) = swept {
            tracing::error!(directory = %self.dir.display(), error, "failed to clean up after an earlier builder");
        }
    }
}

struct BuildkitdChild {
    dir: PathBuf,
    program: PathBuf,
    runc: PathBuf,
    quota: CacheQuota,
    groups: Arc<BuilderGroups>,
    network: Result<BuilderNetwork, String>,
    git: Option<GitAccess>,
    control: ControlClient<Channel>,
}

#[async_trait]
impl supervise::ChildDriver for BuildkitdChild {
    fn prepare(&self) -> Result<(), String> {
        capability::check()?;
        find_executable(&self.program).ok_or_else(|| not_found(&self.program, "BuildKit"))?;
        let runc = find_executable(&self.runc).ok_or_else(|| not_found(&self.runc, "runc"))?;
        let network = self.network.as_ref().map_err(|reason| {
            format!("steps of builds cannot have a network of their own, so nothing is built: {reason}")
        })?;
        let wiring = settings::StepNetworkSettings {
            config: network.config(),
            plugins: network.plugins(),
            resolver: network.resolver(),
        };
        let write = || -> io::Result<()> {
            fs::create_dir_all(self.dir.join("tmp"))?;
            for executor in [BUNDLES_DIR, NATIVE_BUNDLES_DIR] {
                containers::remove_bundles(&self.dir.join(executor))?;
            }
            network.prepare()?;
            git::prepare(&self.dir, self.git.as_ref())?;
            let groups = self.groups.steps_group();
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
        let swept = clean_up_leftovers(&self.dir, &self.runc, &self.groups);
        let Ok(network) = &self.network else { return swept };
        swept.and(network.release().map_err(|error| format!("networks of steps: {error}")))
    }
}

fn clean_up_leftovers(dir: &Path, runc: &Path, groups: &BuilderGroups) -> Result<(), String> {
    let dir = dir.canonicalize().map_err(|error| error.to_string())?;
    containers::delete_containers_below(&dir, runc)?;
    groups.remove()
}

fn not_found(program: &Path, what: &str) -> String {
    format!("`{}` is not installed; install {what} or configure its path", program.display())
}
