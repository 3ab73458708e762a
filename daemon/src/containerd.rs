//! containerd: runs instances for the deploy module.
//!
//! ```text
//! deploy::port::Runtime
//!   images.rs --- blobs of the room --> Content, Diff.Apply --> Snapshots, one per layer, leased per image
//!   start.rs ---- snapshot --> container (record) --> task (shim, runc) --> started
//!   end.rs ------ stop; remove: task, container, snapshot, and what a killed shim left
//!   observe.rs -- what there is of each instance, from records, tasks and snapshots
//!   events.rs --- wakes who compares; writes down exits
//!   exec.rs ----- one more process, through fifos
//!   managed.rs -- program, settings, probe for the supervisor
//! ```
//!
//! All of a daemon lies in a namespace of its own, named after its state directory: several daemons share one
//! containerd and do not see each other. What an instance leaves is never garbage to containerd before
//! [`Runtime::remove`]: its snapshot is a root of the collection.
//!
//! Generated types of containerd's API stay below this module.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, OnceCell, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::deploy::port::{Exec, ExecSpec, InstanceImage, InstanceSpec, Observed, Runtime, RuntimeError};
use crate::image::port::{Blobs, LayerCheck};
use crate::model::Digest;
use crate::model::id::InstanceId;
use crate::supervise::port as supervise;
use crate::supervise::watched::Watched;
use channel::Connection;

mod cgroup;
mod channel;
mod content;
mod end;
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
mod version;

pub use crate::supervise::watched::Status;
pub use namespace::of_state_dir;

pub struct Options {
    pub socket: PathBuf,
    /// See [`of_state_dir`].
    pub namespace: String,
    /// How our own containerd stands; none for one that is not ours.
    pub child: Option<watch::Receiver<supervise::Status>>,
    /// runc's program and its state directory; none for what containerd takes by itself.
    pub runc: Option<Runc>,
    /// Directory of tasks of our own containerd, for what a killed shim leaves in it.
    pub tasks: Option<PathBuf>,
    /// A file of ours beside our own containerd: see [`reserve`].
    pub reserve: Option<PathBuf>,
    /// Directory for the pipes of further processes: made when missing.
    pub pipes: PathBuf,
    /// `hearthd` itself, which the shims start as log keepers.
    pub keeper: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Runc {
    pub program: PathBuf,
    pub root: PathBuf,
}

/// A containerd in use. Cheap to clone; the last clone ends the watch.
#[derive(Clone)]
pub struct Containerd {
    inner: Arc<Inner>,
    status: watch::Receiver<Status>,
    changes: Arc<watch::Sender<u64>>,
    _watch: Arc<DropGuard>,
}

/// What all calls share.
struct Inner {
    connection: Connection,
    blobs: Arc<dyn Blobs>,
    layers: Arc<dyn LayerCheck>,
    socket: PathBuf,
    namespace: String,
    runc: Option<Runc>,
    tasks: Option<PathBuf>,
    reserve: Option<reserve::Reserve>,
    pipes: PathBuf,
    keeper: PathBuf,
    /// Chosen when first needed.
    snapshotter: OnceCell<&'static str>,
    /// Images are unpacked, and given up, one at a time.
    unpacking: Mutex<()>,
}

impl Containerd {
    /// Connects when first needed, and again whenever the connection is gone.
    /// Images whose layers `layers` does not find sound are neither unpacked nor started.
    pub fn connect(options: Options, blobs: Arc<dyn Blobs>, layers: Arc<dyn LayerCheck>) -> Self {
        let connection = Connection::new(&options.socket, &options.namespace);
        let inner = Arc::new(Inner {
            connection,
            blobs,
            layers,
            socket: options.socket.clone(),
            namespace: options.namespace,
            runc: options.runc,
            tasks: options.tasks,
            reserve: options.reserve.map(reserve::Reserve::open),
            pipes: options.pipes,
            keeper: options.keeper,
            snapshotter: OnceCell::new(),
            unpacking: Mutex::new(()),
        });
        let (sender, status) = watch::channel(Status::default());
        let changes = Arc::new(watch::Sender::new(0));
        let stop = CancellationToken::new();
        let watched = Watched {
            name: "containerd",
            place: format!("containerd at {}", options.socket.display()),
            child: options.child.map(|child| ("containerd", child)),
            sender,
        };
        let (asked, woken, stopped) = (inner.connection.clone(), Arc::clone(&changes), stop.clone());
        crate::task::spawn("containerd-watch", async move {
            let told = |changed| {
                if changed {
                    woken.send_modify(|count| *count += 1);
                }
            };
            let watch = watched.run(|| version::of(&asked), told);
            stopped.run_until_cancelled(watch).await;
        });
        let events = events::Events {
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

    /// The newest status; follows the truth within seconds.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}

#[async_trait]
impl Runtime for Containerd {
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

    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        self.inner.list().await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    async fn exec(&self, instance: &InstanceId, exec: ExecSpec) -> Result<Exec, RuntimeError> {
        exec::exec(Arc::clone(&self.inner), instance, exec).await
    }
}
