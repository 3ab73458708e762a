//! Our own buildkitd: its directory, settings, and what the supervisor needs to keep it running.
//!
//! ```text
//! <dir>/                 mode 0700, so nobody else reaches the socket
//!   buildkitd.toml       written before every start
//!   buildkitd.sock       otel.sock
//!   buildkitd.log        buildkitd.log.1
//!   data/                BuildKit's root: cache, content, snapshots
//!   tmp/                 its TMPDIR: what it mounts for a moment lies below <dir> too
//!   cni/                 how its steps get a network (network/steps/builder.rs)
//! ```
//!
//! It runs contained: its steps' processes and its mounts end with it, however it ends.
//!
//! Each `RUN` has a network of its own, made by this process ([`crate::network::steps`]). Where that cannot be made,
//! buildkitd is not started: no step ever gets the network of the host in its place.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use tonic::transport::Channel;

use super::{Address, AddressError, channel};
use crate::network::steps::BuilderNetwork;
use crate::supervise::port as supervise;
use crate::supervise::program::find;

mod capability;
mod containers;
mod reason;
mod settings;

pub use settings::Quota;

const EXECUTOR: &str = "data/runc-overlayfs/executor";
const EXECUTOR_NATIVE: &str = "data/runc-native/executor";

#[derive(Clone)]
pub struct Options {
    /// Directory of this buildkitd alone.
    pub dir: PathBuf,
    /// `buildkitd`, looked up in `PATH` unless it has a `/`.
    pub program: PathBuf,
    /// `runc`, the same.
    pub runc: PathBuf,
    pub quota: Quota,
    /// The network of its steps, or why there is none: then buildkitd is not started, and says so.
    pub network: Result<BuilderNetwork, String>,
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
            limits: supervise::Limits::default(),
        }
    }

    /// The child to supervise, and how to connect to it once that runs (set
    /// [`child`](super::Options::child) to the supervisor's status).
    pub fn plan(self) -> Result<(supervise::Child, super::Options), AddressError> {
        let dir = std::path::absolute(&self.dir).unwrap_or(self.dir);
        let address = Address::unix(dir.join("buildkitd.sock"))?;
        let kind = Buildkitd {
            dir: dir.clone(),
            program: self.program.clone(),
            runc: self.runc,
            quota: self.quota,
            network: self.network.clone(),
            control: channel::control(&address),
        };
        let variable = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        let child = supervise::Child {
            name: "buildkitd",
            program: self.program,
            args: vec!["--config".into(), dir.join("buildkitd.toml").into()],
            env: vec![
                // BuildKit cuts a step's log at 2 MiB and 200 KiB/s otherwise.
                variable("BUILDKIT_STEP_LOG_MAX_SIZE", "-1"),
                variable("BUILDKIT_STEP_LOG_MAX_SPEED", "-1"),
                ("TMPDIR".into(), dir.join("tmp").into()),
            ],
            log: dir.join("buildkitd.log"),
            root: dir.clone(),
            offspring: supervise::Offspring::Contained,
            limits: self.limits,
            kind: Arc::new(kind),
        };
        let executor = Some(dir.join(EXECUTOR));
        Ok((
            child,
            super::Options {
                address,
                child: None,
                executor,
                network: self.network.ok(),
                allow_host_network: false,
            },
        ))
    }
}

struct Buildkitd {
    dir: PathBuf,
    program: PathBuf,
    runc: PathBuf,
    quota: Quota,
    network: Result<BuilderNetwork, String>,
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
            settings::write(&self.dir, &runc, &self.quota, &wiring)
        };
        write().map_err(|error| format!("settings of buildkitd in `{}`: {error}", self.dir.display()))
    }

    async fn probe(&self) -> Result<String, supervise::ProbeError> {
        let version = super::version(self.control.clone()).await?;
        // BuildKit gives this socket of its own to every step as long as it finds it.
        match fs::remove_file(settings::otel_socket(&self.dir)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(supervise::ProbeError::Refused(
                format!("the socket of traces cannot be taken from steps: {error}"),
            )),
            _ => Ok(version),
        }
    }

    fn explain(&self, log_tail: &str) -> Option<String> {
        reason::explain(log_tail)
    }

    fn sweep(&self) -> Result<(), String> {
        let dir = self.dir.canonicalize().map_err(|error| error.to_string())?;
        let ended = containers::end_below(&dir, &self.runc);
        let Ok(network) = &self.network else { return ended };
        ended.and(network.release().map_err(|error| format!("networks of steps: {error}")))
    }
}

fn not_found(program: &Path, what: &str) -> String {
    format!("`{}` is not installed; install {what} or configure its path", program.display())
}
