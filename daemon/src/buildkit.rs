//! BuildKit client: runs Dockerfiles for the build module.
//!
//! ```text
//! build::port::Solver::solve
//!   solve.rs ---- Control.Solve, Control.Status --------------------.
//!   gateway.rs -- Control.Solve, LLBBridge (questions, no image) ----+
//!   session.rs -- Control.Session (tree: file sync, shared key) -----+--> buildkitd
//!              '- Control.Session (build: credentials, secrets) -----'      |
//!   managed.rs -- program, settings, probe, sweep for the supervisor        '-> runc
//! ```
//!
//! The generated types of BuildKit's API are not used outside of this module.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::InfoRequest;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use hearth_proto::status::root_cause_message;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument as _;

use crate::git_proxy::GitAccess;
use crate::network::steps::BuilderNetwork;
use crate::supervise::port as supervise;
use crate::supervise::readiness::ReadinessWatcher;
use session::trees::TreeSessions;

mod address;
mod cache;
mod channel;
mod gateway;
pub mod managed;
mod network_mode;
mod session;
mod solve;
mod version;

pub use crate::supervise::readiness::ReadinessStatus;
pub use address::{AddressError, BuildKitAddress};
pub use cache::CacheError;
pub use version::VersionError;

/// BuildKit's own limit for one message, in both directions, in bytes.
const MESSAGE_LIMIT: usize = 16 << 20;
/// Time limit for one small call.
const CALL_LIMIT: Duration = Duration::from_secs(5);

pub struct Options {
    pub address: BuildKitAddress,
    /// Status of the managed buildkitd process; `None` for an external one.
    pub child: Option<watch::Receiver<supervise::ChildStatus>>,
    /// Directory in which a managed buildkitd keeps the bundles of running steps: a cancelled build has ended only
    /// when its bundles are gone.
    pub bundles_dir: Option<PathBuf>,
    /// Network of the steps of a managed buildkitd.
    pub network: Option<BuilderNetwork>,
    /// Access of a managed buildkitd's git to the git proxy.
    pub git: Option<GitAccess>,
    /// Accept an external BuildKit that gives steps the network of its machine.
    pub allow_host_network: bool,
    /// Control groups of a managed buildkitd, which tell whether a step ran out of memory.
    pub groups: Option<Arc<managed::BuilderGroups>>,
    /// Builds of several trust domains use it, so at least their cache mounts are kept apart.
    pub shared: bool,
}

/// Client of one BuildKit. Cheap to clone; dropping the last clone ends the status watch.
#[derive(Clone)]
pub struct BuildKitClient {
    address: BuildKitAddress,
    control: ControlClient<tonic::transport::Channel>,
    status: watch::Receiver<ReadinessStatus>,
    bundles_dir: Option<PathBuf>,
    network: Option<BuilderNetwork>,
    git: Option<GitAccess>,
    groups: Option<Arc<managed::BuilderGroups>>,
    shared: bool,
    tree_sessions: Arc<TreeSessions>,
    _watch: Arc<DropGuard>,
}

impl BuildKitClient {
    /// Creates a client that connects when first needed, and reconnects when the connection is lost.
    pub fn connect(options: Options) -> Self {
        let control = channel::control(&options.address);
        let (sender, status) = watch::channel(ReadinessStatus {
            detail: Some(format!("waiting for BuildKit at {}", options.address)),
            ..ReadinessStatus::default()
        });
        let trees = Arc::new(TreeSessions::new(options.address.clone()));
        let stop = CancellationToken::new();
        let foreign = options.child.is_none() && !options.allow_host_network;
        let watched = ReadinessWatcher {
            name: "buildkit",
            description: format!("BuildKit at {}", options.address),
            child: options.child.map(|child| ("buildkitd", child)),
            sender,
        };
        let (asked, idle, stopped) = (control.clone(), Arc::clone(&trees), stop.clone());
        let watch = async move {
            // A BuildKit that ends waits for the sessions that are kept for later builds.
            let on_query = |ready, _| if ready { idle.close_idle() } else { idle.close_unused() };
            let watch = watched.run(|| check_usable(asked.clone(), foreign), on_query);
            stopped.run_until_cancelled(watch).await;
        };
        // The caller's span identifies the builder in the log.
        crate::task::spawn("buildkit-watch", watch.in_current_span());
        Self {
            address: options.address,
            control,
            status,
            bundles_dir: options.bundles_dir,
            network: options.network,
            git: options.git,
            groups: options.groups,
            shared: options.shared,
            tree_sessions: trees,
            _watch: Arc::new(stop.drop_guard()),
        }
    }

    /// Receiver of the current status, which is at most a few seconds old.
    pub fn status(&self) -> watch::Receiver<ReadinessStatus> {
        self.status.clone()
    }

    /// Closes the sessions that are kept for later builds, because BuildKit waits for open ones before it exits.
    pub fn close_sessions(&self) {
        self.tree_sessions.close_all();
    }
}

/// Returns the version of a BuildKit that may be used. Refuses an external one that gives steps the network of its
/// machine.
async fn check_usable(
    control: ControlClient<tonic::transport::Channel>,
    foreign: bool,
) -> Result<String, supervise::ProbeError> {
    let version = version(control.clone()).await?;
    if foreign {
        network_mode::check(control).await?;
    }
    Ok(version)
}

/// Asks BuildKit for its version, and refuses one that is too old.
async fn version(
    mut control: ControlClient<tonic::transport::Channel>,
) -> Result<String, supervise::ProbeError> {
    let answer = timeout(CALL_LIMIT, control.info(InfoRequest {})).await;
    let info = match answer {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => {
            return Err(supervise::ProbeError::Refused(VersionError::Unknown.to_string()));
        }
        Ok(Err(status)) => return Err(supervise::ProbeError::NoAnswer(root_cause_message(&status))),
        Err(_) => return Err(supervise::ProbeError::NoAnswer("no answer in time".to_owned())),
    };
    let version = info.buildkit_version.unwrap_or_default().version;
    version::check(&version).map_err(|error| supervise::ProbeError::Refused(error.to_string()))?;
    Ok(version)
}
