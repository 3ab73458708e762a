//! containerd as the container runtime of the deploy module.
//!
//! ```text
//! deploy::port::ContainerRuntime
//!   images.rs --- blobs of the room --> Content, Diff.Apply --> Snapshots, one per layer, leased per image
//!   start.rs ---- snapshot --> container (record) --> task (shim, runc) --> started
//!   stop.rs ----- stop; remove: task, container, snapshot, and leftovers of a killed shim
//!   observe.rs -- state of each instance, from records, tasks and snapshots
//!   events.rs --- wakes the reconciliation; records exits
//!   exec.rs ----- additional processes, through fifos
//!   managed.rs -- program, settings, probe for the supervisor
//! ```
//!
//! Everything of a daemon lies in its own containerd namespace, named after its state directory: several daemons share
//! one containerd and do not see each other. An instance's snapshot is a root of the garbage collection, so containerd
//! keeps it until [`ContainerRuntime::remove`].
//!
//! Generated types of containerd's API do not leave this module.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, OnceCell, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::deploy::port::{
    ContainerRuntime, ExecSpec, ExecStreams, InstanceImage, InstanceSpec, ObservedInstance, RuntimeError,
};
use crate::image::port::{BlobStorage, LayerCheck};
use crate::model::Digest;
use crate::model::id::InstanceId;
use crate::supervise::port as supervise;
use crate::supervise::readiness::ReadinessWatcher;
use channel::ContainerdConnection;

mod cgroup;
mod channel;
mod content;
mod events;
mod exec;
mod failure;
mod images;
mod labels;
mod leftover;
pub mod managed;
mod namespace;
mod observe;
mod reserve;
mod rootfs;
pub mod spec;
mod start;
mod stop;
mod version;

pub use crate::supervise::readiness::ReadinessStatus;
pub use namespace::namespace_of_state_dir;

pub struct Options {
    pub socket: PathBuf,
    /// See [`namespace_of_state_dir`].
    pub namespace: String,
    /// Status of the daemon's own containerd; `None` for an external one.
    pub child: Option<watch::Receiver<supervise::ChildStatus>>,
    /// Program and state directory of runc; `None` for containerd's defaults.
    pub runc: Option<RuncPaths>,
    /// Task directory of the daemon's own containerd, from which leftovers of a killed shim are removed.
    pub tasks: Option<PathBuf>,
    /// File that reserves disk space beside the daemon's own containerd: see [`reserve`].
    pub reserve: Option<PathBuf>,
    /// Directory for the pipes of additional processes; created if missing.
    pub pipes: PathBuf,
    /// Path of `hearthd` itself, which the shims start as log keepers.
    pub keeper: PathBuf,
}

#[derive(Clone, Debug)]
pub struct RuncPaths {
    pub program: PathBuf,
    pub root: PathBuf,
}

/// Client of a containerd. Cheap to clone; dropping the last clone stops the background tasks.
#[derive(Clone)]
pub struct ContainerdClient {
    inner: Arc<ContainerdContext>,
    status: watch::Receiver<ReadinessStatus>,
    changes: Arc<watch::Sender<u64>>,
    _watch: Arc<DropGuard>,
}

/// State shared by all calls.
struct ContainerdContext {
    connection: ContainerdConnection,
    blobs: Arc<dyn BlobStorage>,
    layers: Arc<dyn LayerCheck>,
    socket: PathBuf,
    namespace: String,
    runc: Option<RuncPaths>,
    tasks: Option<PathBuf>,
    reserve: Option<reserve::DiskReserve>,
    pipes: PathBuf,
    keeper: PathBuf,
    /// Name of the snapshotter, chosen at the first use.
    snapshotter: OnceCell<&'static str>,
    /// Serializes the unpacking and the release of images.
    unpacking: Mutex<()>,
}

impl ContainerdClient {
    /// Creates a client, which connects at the first call and reconnects after a lost connection. Images whose layers
    /// fail the check of `layers` are neither unpacked nor started.
    pub fn connect(options: Options, blobs: Arc<dyn BlobStorage>, layers: Arc<dyn LayerCheck>) -> Self {
        let connection = ContainerdConnection::new(&options.socket, &options.namespace);
        let inner = Arc::new(ContainerdContext {
            connection,
            blobs,
            layers,
            socket: options.socket.clone(),
            namespace: options.namespace,
            runc: options.runc,
            tasks: options.tasks,
            reserve: options.reserve.map(reserve::DiskReserve::open),
            pipes: options.pipes,
            keeper: options.keeper,
            snapshotter: OnceCell::new(),
            unpacking: Mutex::new(()),
        });
        let (sender, status) = watch::channel(ReadinessStatus::default());
        let changes = Arc::new(watch::Sender::new(0));
        let stop = CancellationToken::new();
        let watched = ReadinessWatcher {
            name: "containerd",
            description: format!("containerd at {}", options.socket.display()),
            child: options.child.map(|child| ("containerd", child)),
            sender,
        };
        let (asked, woken, stopped) = (inner.connection.clone(), Arc::clone(&changes), stop.clone());
        crate::task::spawn("containerd-watch", async move {
            let on_query = |_, changed| {
                if changed {
                    woken.send_modify(|count| *count += 1);
                }
            };
            let watch = watched.run(|| version::query_version(&asked), on_query);
            stopped.run_until_cancelled(watch).await;
        });
        let events = events::ContainerdEvents {
            inner: Arc::clone(&inner),
            changes: Arc::clone(&changes),
            status: status.clone(),
        };
        let stopped = stop.clone();
        crate::task::spawn("containerd-events", async move {
            stopped.run_until_cancelled(Box::pin(events.run())).await;
        });
        Self { inner, status, changes, _watch: Arc::new(stop.drop_guard()) }
    }

    /// Returns the current status, which is updated within seconds.
    pub fn status(&self) -> watch::Receiver<ReadinessStatus> {
        self.status.clone()
    }
}

#[async_trait]
impl ContainerRuntime for ContainerdClient {
    async fn prepare(&self, image: &InstanceImage) -> Result<(), RuntimeError> {
        self.inner.prepare(image).await
    }

    async fn keep_images(&self, wanted: &BTreeSet<Digest>) -> Result<(), RuntimeError> {
        self.inner.keep_images(wanted).await
    }

    async fn start(&self, spec: InstanceSpec) -> Result<(), RuntimeError> {
        Box::pin(self.inner.start(&spec)).await
    }

    async fn stop(&self, instance: &InstanceId, grace: Duration) -> Result<(), RuntimeError> {
        self.inner.stop(instance, grace).await
    }

    async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        self.inner.remove(instance).await
    }

    async fn list(&self) -> Result<Vec<ObservedInstance>, RuntimeError> {
        self.inner.list().await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    async fn exec(&self, instance: &InstanceId, exec: ExecSpec) -> Result<ExecStreams, RuntimeError> {
        exec::exec(Arc::clone(&self.inner), instance, exec).await
    }
}
