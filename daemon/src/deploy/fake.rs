//! Scripted fake of everything that deploys depend on. It outlives the daemon, as the real dependencies do.
//!
//! Every call to a dependency is a point at which the daemon can be made to die: before the call, or right after it has
//! taken effect.

mod exec;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::options::DeployDependencies;
use super::port::{
    BindMount, ContainerRuntime, DomainRoute, ExecSpec, ExecStreams, InstanceImage, InstanceLogs,
    InstanceMounter, InstanceNetwork, InstanceSpec, InstanceState, LogError, LogLines, MountFault,
    MountFaultKind, NetworkAttachment, NetworkError, ObservedInstance, RuntimeError, SecretReader,
    ServiceImages, ServiceStore, ServiceStoreError, TokenMinter, TrafficRouter,
};
use crate::access::policy::AccessDenied;
use crate::model::build::LogStream;
use crate::model::deploy::{ImageFacts, LogLine, ServiceLogQuery};
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::id::{InstanceId, ServiceId};
use crate::model::image::PinnedImage;
use crate::model::secret::{RegistryCredential, Secret};
use crate::model::service::{
    InstanceLabel, ProcessExit, ResourceLimits, ServiceName, ServiceRecord, ServiceSpec,
};
use crate::model::{Digest, MountSpec, MountTarget, Reference};
use crate::task;

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

pub struct FakeContainer {
    pub label: InstanceLabel,
    pub state: InstanceState,
    pub limits: ResourceLimits,
    listener: Option<tokio::task::JoinHandle<()>>,
}

impl Drop for FakeContainer {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
    }
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

impl FakeContainer {
    pub const fn runs(&self) -> bool {
        matches!(self.state, InstanceState::Running { .. })
    }
}

/// Returns the loopback address of an instance.
fn address(id: &InstanceId) -> Ipv4Addr {
    let sum = id.as_str().bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let [_, b, c, d] = sum.to_be_bytes();
    Ipv4Addr::new(127, b.max(1), c, d.clamp(1, 254))
}

async fn serve(address: SocketAddr, status: u16) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 2048];
        let _ = stream.read(&mut request).await;
        let answer = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n\r\nhello");
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

#[async_trait]
impl ContainerRuntime for FakeWorld {
    async fn prepare(&self, _image: &InstanceImage) -> Result<(), RuntimeError> {
        self.live_or_die().await;
        if self.state().runtime_unavailable {
            Err(RuntimeError::Unavailable("gone".to_owned()))
        } else {
            Ok(())
        }
    }

    async fn keep_images(&self, _wanted: &BTreeSet<Digest>) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn start(&self, spec: InstanceSpec) -> Result<(), RuntimeError> {
        self.live_or_die().await;
        let id = spec.label.instance.clone();
        let app = self.state().by_digest[&spec.image.manifest];
        if app == FakeApp::NotFound {
            let message = "exec: \"nope\": not found".to_owned();
            return Err(RuntimeError::StartFailed { code: ErrorCode::CommandNotFound, message });
        }
        {
            let mut state = self.state();
            assert!(state.networks.contains(&id) && state.mounts.contains(&id), "started without its parts");
            let (label, limits) = (spec.label.clone(), spec.limits);
            let container = FakeContainer { label, state: InstanceState::Incomplete, limits, listener: None };
            state.instances.insert(id.clone(), container);
            let env = spec.env.iter().map(|(name, value)| (name.clone(), value.reveal().clone())).collect();
            state.env.insert(id.clone(), env);
        }
        // The daemon may die while the instance is incomplete.
        self.live_or_die().await;
        {
            let mut state = self.state();
            let revision = spec.label.revision;
            state.journal.push(format!("start {revision}"));
            let of_service = |container: &&FakeContainer| container.label.service == spec.label.service;
            let count = state.instances.values().filter(of_service).count();
            state.peak = state.peak.max(count);
            let target = SocketAddr::from((spec.network.address, 8080));
            let status = match app {
                FakeApp::Serves(status) => Some(status),
                _ => None,
            };
            let listener = status.map(|status| task::spawn("app", serve(target, status)));
            let container = state.instances.get_mut(&id).unwrap();
            container.listener = listener;
            container.state = InstanceState::Running { pid: u32::MAX };
        }
        match app {
            FakeApp::Exits(code) => self.end_instance(&id, Some(code), false),
            FakeApp::Hungry => self.end_instance(&id, Some(137), true),
            _ => {}
        }
        // The daemon may also die while the instance is running.
        self.live_or_die().await;
        Ok(())
    }

    async fn stop(&self, instance: &InstanceId, _grace: Duration) -> Result<(), RuntimeError> {
        self.live_or_die().await;
        {
            let mut state = self.state();
            if state.unavailable_stops > 0 {
                state.unavailable_stops -= 1;
                return Err(RuntimeError::Unavailable("gone".to_owned()));
            }
            if let Some(revision) = state.instances.get(instance).map(|container| container.label.revision) {
                state.journal.push(format!("stop {revision}"));
            }
        }
        self.end_instance(instance, Some(0), false);
        self.live_or_die().await;
        Ok(())
    }

    async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        self.live_or_die().await;
        self.state().instances.remove(instance);
        self.changed();
        self.live_or_die().await;
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ObservedInstance>, RuntimeError> {
        self.live_or_die().await;
        let state = self.state();
        if state.runtime_unavailable {
            return Err(RuntimeError::Unavailable("gone".to_owned()));
        }
        let observed = |container: &FakeContainer| ObservedInstance {
            label: container.label.clone(),
            state: container.state,
        };
        Ok(state.instances.values().map(observed).collect())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    async fn exec(&self, instance: &InstanceId, exec: ExecSpec) -> Result<ExecStreams, RuntimeError> {
        if self.state().instances.get(instance).is_some_and(FakeContainer::runs) {
            exec::start(&self.processes, &exec)
        } else {
            Err(RuntimeError::NotRunning(instance.clone()))
        }
    }
}

#[async_trait]
impl InstanceNetwork for FakeWorld {
    async fn attach(
        &self,
        instance: &InstanceId,
        name: &ServiceName,
        _isolated: bool,
    ) -> Result<NetworkAttachment, NetworkError> {
        self.live_or_die().await;
        self.state().networks.insert(instance.clone());
        self.live_or_die().await;
        let path = std::path::PathBuf::from("/nowhere");
        Ok(NetworkAttachment {
            address: address(instance),
            namespace: path.clone(),
            hostname: name.to_string(),
            hosts: path.clone(),
            resolv_conf: path.clone(),
            hostname_file: path,
        })
    }

    async fn detach(&self, instance: &InstanceId) -> Result<(), NetworkError> {
        self.live_or_die().await;
        let mut state = self.state();
        assert!(!state.instances.contains_key(instance), "the network goes from under a process");
        state.networks.remove(instance);
        Ok(())
    }

    async fn set_names(&self, names: BTreeMap<ServiceName, Ipv4Addr>) -> Result<(), NetworkError> {
        self.live_or_die().await;
        self.state().names = names;
        Ok(())
    }

    async fn reconcile(&self, instances: &BTreeSet<InstanceId>) -> Result<(), NetworkError> {
        self.live_or_die().await;
        self.state().networks.retain(|instance| instances.contains(instance));
        Ok(())
    }

    fn max_addresses(&self) -> usize {
        self.state().addresses
    }

    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::LOCALHOST
    }
}

#[async_trait]
impl TrafficRouter for FakeWorld {
    fn set_routes(&self, routes: Vec<DomainRoute>) {
        if self.dead.lock().is_cancelled() {
            return;
        }
        let mut state = self.state();
        for route in &routes {
            let Some(backend) = route.backend else { continue };
            if state.history.last() != Some(&(route.revision, backend)) {
                state.history.push((route.revision, backend));
                state.journal.push(format!("route {}", route.revision));
            }
        }
        let mut domains = BTreeSet::new();
        assert!(routes.iter().all(|route| domains.insert(route.domain.clone())), "two routes for a domain");
        state.routes = routes;
    }

    async fn drain(&self, backend: SocketAddr, _limit: Duration) -> usize {
        self.live_or_die().await;
        let mut state = self.state();
        assert!(state.routes.iter().all(|route| route.backend != Some(backend)), "drained while routed");
        state.journal.push("drain".to_owned());
        0
    }
}

#[async_trait]
impl InstanceMounter for FakeWorld {
    async fn open(
        &self,
        label: &InstanceLabel,
        _mounts: &[MountSpec],
        images: &BTreeMap<MountTarget, PinnedImage>,
    ) -> Result<Vec<BindMount>, MountFault> {
        self.live_or_die().await;
        {
            let mut state = self.state();
            if let Some(kind) = state.mount_faults.pop() {
                let (target, reason) = ("/data".to_owned(), "trouble".to_owned());
                return Err(MountFault { target, code: ErrorCode::MountFailed, reason, kind });
            }
            state.mounts.insert(label.instance.clone());
            state.mounted.insert(label.instance.clone(), images.clone());
        }
        self.live_or_die().await;
        Ok(Vec::new())
    }

    async fn close(&self, instance: &InstanceId) -> Result<(), MountFault> {
        self.live_or_die().await;
        let mut state = self.state();
        assert!(!state.instances.contains_key(instance), "mounts go from under a process");
        state.mounts.remove(instance);
        Ok(())
    }

    async fn reconcile(&self, instances: &BTreeSet<InstanceId>) -> Result<BTreeSet<InstanceId>, MountFault> {
        self.live_or_die().await;
        let mut state = self.state();
        state.mounts.retain(|instance| instances.contains(instance));
        Ok(state.broken_mounts.clone())
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
        if !directory.is_dir() {
            return Ok(Box::pin(futures::stream::empty()));
        }
        let name = directory.file_name().unwrap().to_str().unwrap().to_owned();
        let line = |text: String| LogLine {
            at: Timestamp::now(),
            stream: LogStream::Stderr,
            text,
            dropped_bytes: 0,
        };
        let lines = futures::stream::iter([Ok(line("begins".to_owned())), Ok(line(format!("I am {name}")))]);
        if query.follow {
            use futures::StreamExt as _;
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
