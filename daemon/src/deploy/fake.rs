//! Scripted fake of everything that deploys depend on. It outlives the daemon, as the real dependencies do.
//!
//! Every call to a dependency is a point at which the daemon can be made to die: before the call, or right after it has
//! taken effect.

mod container;
mod exec;
mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use container::FakeContainer;

use super::options::DeployDependencies;
use super::port::{
    DomainRoute, InstanceLogs, InstanceState, LogError, LogLines, MountFaultKind, SecretReader,
    ServiceImages, ServiceStore, ServiceStoreError, TokenMinter,
};
use crate::access::policy::AccessDenied;
use crate::model::build::LogStream;
use crate::model::deploy::{ImageFacts, LogLine, ServiceLogQuery};
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::id::{InstanceId, ServiceId};
use crate::model::image::PinnedImage;
use crate::model::secret::{RegistryCredential, Secret};
use crate::model::service::{InstanceLabel, ProcessExit, ServiceName, ServiceRecord, ServiceSpec};
use crate::model::{Digest, MountTarget, Reference};

/// Behaviour of an image's app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FakeApp {
    /// Answers with this status.
    Serves(u16),
    /// Never listens.
    Silent,
    Exits(i32),
    /// Exits for lack of memory.
    Hungry,
    NotFound,
}

/// Permissions of a caller who may do everything.
pub struct AllPermits;

impl crate::deploy::CallerPermissions for AllPermits {
    fn check_run(&self, _: &ServiceSpec) -> Result<(), AccessDenied> {
        Ok(())
    }

    fn check_change(&self, _: &ServiceRecord, _: &str) -> Result<(), AccessDenied> {
        Ok(())
    }
}

#[derive(Default)]
pub struct FakeWorld {
    state: Mutex<FakeWorldState>,
    changes: watch::Sender<u64>,
    /// Number of calls to dependencies since the start of the daemon.
    calls: AtomicUsize,
    /// Number of the call at which the daemon dies.
    dies_at: AtomicUsize,
    dead: Mutex<CancellationToken>,
    pub directory: Option<tempfile::TempDir>,
    pub processes: Arc<exec::FakeProcesses>,
}

#[derive(Default)]
pub struct FakeWorldState {
    /// Number of instance addresses in the network.
    pub addresses: usize,
    /// Apps by the tag of their image.
    pub apps: BTreeMap<String, FakeApp>,
    pub by_digest: BTreeMap<Digest, FakeApp>,
    pub instances: BTreeMap<InstanceId, FakeContainer>,
    pub networks: BTreeSet<InstanceId>,
    pub mounts: BTreeSet<InstanceId>,
    pub broken_mounts: BTreeSet<InstanceId>,
    /// Images that each instance mounts.
    pub mounted: BTreeMap<InstanceId, BTreeMap<MountTarget, PinnedImage>>,
    /// Faults of the next mounts, the last one first.
    pub mount_faults: Vec<MountFaultKind>,
    pub services: BTreeMap<String, ServiceRecord>,
    pub secrets: BTreeMap<String, String>,
    pub routes: Vec<DomainRoute>,
    pub names: BTreeMap<ServiceName, Ipv4Addr>,
    /// Routes with a backend, in the order in which they were set.
    pub history: Vec<(u32, SocketAddr)>,
    /// Operations on instances and routes, by revision.
    pub journal: Vec<String>,
    /// The last environment of each instance.
    pub env: BTreeMap<InstanceId, BTreeMap<String, String>>,
    pub minted: usize,
    pub runtime_unavailable: bool,
    /// Number of stop requests that find the runtime unavailable.
    pub unavailable_stops: usize,
    /// Maximum number of simultaneous instances of one service.
    pub peak: usize,
}

impl FakeWorld {
    pub fn new() -> Arc<Self> {
        let world = Self { directory: Some(tempfile::tempdir().unwrap()), ..Self::default() };
        world.dies_at.store(usize::MAX, Ordering::SeqCst);
        world.state().addresses = 253;
        Arc::new(world)
    }

    pub fn state(&self) -> MutexGuard<'_, FakeWorldState> {
        self.state.lock()
    }

    pub fn app(&self, tag: &str, app: FakeApp) {
        self.state().apps.insert(tag.to_owned(), app);
    }

    /// Starts a new run of the daemon, which dies at its n-th call to a dependency.
    pub fn begin_run(&self, dies_at: usize) -> CancellationToken {
        let dead = CancellationToken::new();
        *self.dead.lock() = dead.clone();
        self.calls.store(0, Ordering::SeqCst);
        self.dies_at.store(dies_at, Ordering::SeqCst);
        dead
    }

    /// Blocks a call forever if the daemon dies at it.
    async fn live_or_die(&self) {
        let dead = self.dead.lock().clone();
        if self.calls.fetch_add(1, Ordering::SeqCst) + 1 >= self.dies_at.load(Ordering::SeqCst) {
            dead.cancel();
        }
        if dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }

    pub fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn end_instance(&self, id: &InstanceId, code: Option<i32>, out_of_memory: bool) {
        let mut state = self.state();
        if let Some(container) = state.instances.get_mut(id).filter(|container| container.runs()) {
            let exit = ProcessExit { code, out_of_memory, at: Timestamp::now() };
            container.state = InstanceState::Exited(exit);
            container.listener.take().into_iter().for_each(|listener| listener.abort());
        }
        drop(state);
        self.changed();
    }

    /// Kills an instance with SIGKILL.
    pub fn kill(&self, id: &InstanceId) {
        self.end_instance(id, Some(137), false);
    }

    pub fn exits(&self, id: &InstanceId, code: i32) {
        self.end_instance(id, Some(code), false);
    }

    pub fn running(&self) -> Vec<InstanceLabel> {
        let state = self.state();
        let running = state.instances.values().filter(|container| container.runs());
        running.map(|container| container.label.clone()).collect()
    }

    pub fn ports(self: &Arc<Self>) -> DeployDependencies {
        DeployDependencies {
            runtime: Arc::clone(self) as _,
            network: Arc::clone(self) as _,
            router: Arc::clone(self) as _,
            mounts: Arc::clone(self) as _,
            store: Arc::clone(self) as _,
            images: Arc::clone(self) as _,
            logs: Arc::clone(self) as _,
            tokens: Arc::clone(self) as _,
            secrets: Arc::clone(self) as _,
        }
    }
}

#[async_trait]
impl ServiceStore for FakeWorld {
    async fn services(&self) -> Result<Vec<ServiceRecord>, ServiceStoreError> {
        Ok(self.state().services.values().cloned().collect())
    }

    async fn put(&self, service: &ServiceRecord) -> Result<(), ServiceStoreError> {
        self.live_or_die().await;
        self.state().services.insert(service.id.to_string(), service.clone());
        self.live_or_die().await;
        Ok(())
    }

    async fn remove(&self, service: &ServiceRecord) -> Result<(), ServiceStoreError> {
        self.live_or_die().await;
        self.state().services.remove(service.id.as_str());
        self.live_or_die().await;
        Ok(())
    }
}

#[async_trait]
impl ServiceImages for FakeWorld {
    async fn resolve(
        &self,
        reference: &Reference,
        _caller: &str,
        _given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<ImageFacts, Fault> {
        let mut state = self.state();
        let tag = reference.tag_or_latest().unwrap().as_str().to_owned();
        let Some(app) = state.apps.get(&tag).copied() else {
            return Err(Fault::new(
                FaultStage::Deploy,
                ErrorCode::ImageNotFound,
                format!("there is no image `{reference}`"),
            ));
        };
        let mut sum = [9; 32];
        for (place, byte) in sum.iter_mut().zip(tag.bytes()) {
            *place = byte;
        }
        let digest = Digest::from_sha256(sum);
        state.by_digest.insert(digest, app);
        let repository = reference.repository.clone();
        Ok(ImageFacts {
            repository,
            kept_in: None,
            digest,
            manifest: digest,
            exposed: vec![8080],
            volumes: Vec::new(),
        })
    }

    async fn resolve_mounted(
        &self,
        reference: &Reference,
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<PinnedImage, Fault> {
        let facts = self.resolve(reference, caller, given).await?;
        Ok(PinnedImage { repository: facts.repository, digest: facts.digest })
    }
}

#[async_trait]
impl InstanceLogs for FakeWorld {
    async fn read(&self, directory: &Path, query: ServiceLogQuery) -> Result<LogLines, LogError> {
        use futures::StreamExt as _;
        if !directory.is_dir() {
            return Ok(Box::pin(futures::stream::empty()));
        }
        let name = directory.file_name().unwrap().to_str().unwrap().to_owned();
        let line = |text: String| LogLine {
            at: Timestamp::now(),
            stream: LogStream::Stderr,
            text: text.into_bytes(),
            dropped_bytes: 0,
            unfinished: false,
        };
        let lines = [Ok(line("begins".to_owned())), Ok(line(format!("I am {name}")))];
        let wanted = query.tail.unwrap_or(lines.len());
        let lines = futures::stream::iter(lines).skip(2_usize.saturating_sub(wanted));
        if query.follow {
            return Ok(Box::pin(lines.chain(futures::stream::pending())));
        }
        Ok(Box::pin(lines))
    }
}

impl TokenMinter for FakeWorld {
    fn mint(&self, _: &ServiceId, name: &str, scope: &str) -> Result<Secret<String>, String> {
        crate::access::parse_scope(scope).map_err(|error| error.to_string())?;
        let mut state = self.state();
        state.minted += 1;
        Ok(Secret::new(format!("token {} of {name} for {scope}", state.minted)))
    }
}

#[async_trait]
impl SecretReader for FakeWorld {
    async fn reveal(&self, name: &str) -> Result<Option<Secret<String>>, String> {
        Ok(self.state().secrets.get(name).cloned().map(Secret::new))
    }
}
