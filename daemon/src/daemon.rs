//! Composition root: [`Config`] -> [`Daemon`] (ports bound) -> running, until the stop signal.
//!
//! Ports are bound before anything starts, so that a second daemon or a taken port fails at once; they are served once
//! everything behind them is ready. No other module of the crate depends on this one.

mod descriptors;
mod ledger_check;
mod listeners;
mod liveness;
mod router;
mod services;
mod steps;

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::client::proxy::matcher::Matcher;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use crate::access::TokenAuthority;
use crate::api::grpc::BuilderList;
use crate::api::http::ReadinessCheck;
use crate::api::receive::ReceiveOptions;
use crate::api::serve::ServeOptions;
use crate::api::shares::{CallerShares, ShareLimits};
use crate::audit::{AuditTrail, FileLimits};
use crate::build::{self, RegistryAccess, RegistryCredentialMinter, RoomContexts};
use crate::builders::{self, BuilderPool};
use crate::buildkit::{BuildKitAddress, managed};
use crate::config::Config;
use crate::connections::ConnectionLimiter;
use crate::context::{
    ContextOptions, ContextPreparer, LayerInspection, MountedContexts, StorageRoot, StorageRoots,
};
use crate::control_group::machine_memory;
use crate::deploy::mounts::{self, InstanceMounts, MountedImages};
use crate::deploy::{self, LogFiles, RoomServiceImages};
use crate::disk::{DiskLedger, DiskLimits, SpaceWatch};
use crate::downloads::{self, DownloadCache};
use crate::git_proxy::GitProxy;
use crate::image::port::{LayerCheck, TagQuery};
use crate::image::{ImageStore, RemoteRegistries};
use crate::ingress::{Ingress, TlsTerminator};
use crate::model::access::{ApiScope, ContainersGrant, NamePatterns, RegistryGrant};
use crate::model::id::BuildId;
use crate::model::secret::{RegistryCredential, Secret};
use crate::model::share_owner::ShareOwnerResolver;
use crate::network::steps::StepNetwork;
use crate::packs::store::StoreLimits;
use crate::packs::{PackOptions, PackStore};
use crate::registry::blobs::{BlobStore, scrub_loop};
use crate::registry::{RegistryApi, UploadLimits};
use crate::secrets::RoomSecrets;
use crate::store::StateStore;
use crate::{containerd, supervise, task};

use ledger_check::UploadLedgerCheck;
use listeners::BoundListeners;
pub use listeners::DaemonAddresses;
use liveness::LivenessReceiver;
use services::ServiceRuntime;

/// Time that running builds get after the stop signal; after that they are left for the next run of the daemon.
const DRAIN_GRACE: Duration = Duration::from_secs(10);
/// Time that requests in flight get after `DRAIN_GRACE`.
const REQUEST_GRACE: Duration = Duration::from_secs(3);
/// Time limit for a build to end after it was told to stop.
const STOP_LIMIT: Duration = Duration::from_secs(45);
/// Age at which ended builds are removed.
const KEEP_BUILDS: Duration = Duration::from_secs(90 * 24 * 3600);
/// Lifetime of a build's token for the room's registry; BuildKit requests a new one whenever it needs one.
const BUILD_TOKEN_TTL: Duration = Duration::from_secs(3600);
/// Number of bytes of one step's output that BuildKit accepts beyond the log quota of a build.
const STEP_OUTPUT_EXCESS: u64 = 64 << 10;
/// Time limit for writing the end of the audit trail.
const AUDIT_FLUSH_LIMIT: Duration = Duration::from_secs(3);
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(600);
/// Interval between two checks of the tokens of running calls.
const TOKEN_CHECK_INTERVAL: Duration = Duration::from_secs(2);
const UPLOAD_EXPIRY_INTERVAL: Duration = Duration::from_secs(5);

/// Daemon whose ports are bound.
pub struct Daemon {
    config: Config,
    metrics: PrometheusHandle,
    listeners: BoundListeners,
    tls: Option<Arc<TlsTerminator>>,
    storage: StorageRoots,
    store: StateStore,
    blobs: BlobStore,
    disk: DiskLedger,
    space: SpaceWatch,
    access: Arc<TokenAuthority>,
    /// Lock that is held as long as the daemon runs: one daemon per state directory.
    _lock: File,
}

impl Daemon {
    /// Opens the state and binds the ports; nothing is served yet.
    pub async fn bind(config: Config, metrics: PrometheusHandle) -> Result<Self> {
        let state = &config.state_dir;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state)
            .with_context(|| format!("state directory {}", state.display()))?;
        let lock = lock(state)?;
        // A full disk must not prevent the start of the daemon, because removals free space.
        let space = SpaceWatch::start(state, config.builds.min_free_bytes).await.context("free space")?;
        if let Err(error) = builders::remove_leftovers(state, &space).await {
            tracing::error!(%error, "failed to remove the builders of an earlier run");
        }
        listeners::forget_addresses(state)?;
        let storage = StorageRoots {
            room: open_storage(&config.room_storage())?,
            project: open_storage(&config.project_storage())?,
        };
        let store = StateStore::open(&state.join("state.db")).context("state database")?;
        let limits = DiskLimits {
            per_caller: config.uploads.max_bytes_per_caller,
            per_image: config.uploads.max_bytes_per_image,
            min_free: config.uploads.min_free_bytes,
        };
        let disk = DiskLedger::open(&state.join("disk.jsonl"), limits).context("ledger of uploads")?;
        let blobs = BlobStore::open(&state.join("registry")).context("content store")?;
        let blobs = blobs.with_disk_shares(disk.clone());
        let access = TokenAuthority::open(&config.room, &state.join("room.secret"))?;
        let access = access.with_public_keys(&config.token_keys)?.with_trust(config.trust.clone());
        let tls = services::open_tls(&config).await?;
        let listeners = BoundListeners::bind(&config).await?;
        Ok(Self {
            config,
            metrics,
            listeners,
            tls,
            storage,
            store,
            blobs,
            disk,
            space,
            access: Arc::new(access),
            _lock: lock,
        })
    }

    pub fn addresses(&self) -> &DaemonAddresses {
        &self.listeners.addresses
    }

    /// Serves until `stop` is cancelled, then drains.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        let Self { config, metrics, mut listeners, tls, storage, store, blobs, disk, space, access, _lock } =
            self;
        let pulse = liveness::watch(store.clone(), config.state_dir.clone());
        let connection_shares = descriptors::divide_descriptors(&config.connections);
        let kept = FileLimits { bytes: config.audit.max_bytes, age: config.audit_keep() };
        let trail = AuditTrail::open(&config.state_dir.join("audit"), kept);
        let trail = trail.context("audit trail")?;
        let owners = ShareOwnerResolver::default();
        let (builders, step_network) = start_builders(&config, &owners, &space).await?;
        let network = services::open_network(&config).await;
        let (network, own_address) = services::listen_for_services(network, &mut listeners).await;
        let layer_limits = config.layer_limits();
        let images = ImageStore::new(
            config.room_registries(),
            Arc::new(blobs.clone()),
            Arc::new(store.clone()),
            Arc::new(LayerInspection::new(layer_limits)),
        );
        let layers: Arc<dyn LayerCheck> = Arc::new(images.clone());
        let (runtime, runtime_child) = services::start_containerd(&config, Arc::new(blobs.clone()), layers)?;
        images.limit_cache(config.images.cache_max_bytes);
        images.set_share_owners(owners.clone());
        images.limit_images(config.uploads.max_bytes_per_image);
        let limits = UploadLimits {
            idle_timeout: Duration::from_secs(config.uploads.idle_seconds),
            stall_timeout: Duration::from_secs(config.connections.stall_seconds),
            max_image_bytes: config.uploads.max_bytes_per_image,
            ..UploadLimits::default()
        };
        let kept = UploadLedgerCheck { blobs: blobs.clone(), storage: storage.clone(), disk: disk.clone() };
        let registry = RegistryApi::new(limits, blobs.clone(), Arc::new(store.clone()))
            .with_arrivals(Arc::new(images.clone()));
        let contexts = ContextPreparer::new(ContextOptions {
            room: config.room.clone(),
            storage: storage.clone(),
            state_dir: config.state_dir.clone(),
            limits: layer_limits,
        })?;
        let remote_registries =
            RemoteRegistries::new(config.mirrors()?, config.registry_credentials.clone(), config.egress());
        remote_registries.check()?;
        let packs = open_packs(&config, images.clone())?;
        let room = RoomContexts {
            contexts: contexts.clone(),
            images: images.clone(),
            remote_registries: remote_registries.clone(),
            packs: packs.clone(),
            room_storage: storage.room.clone(),
        };
        let files = [storage.room.path(), storage.project.path()];
        let mounts = MountedContexts::open(&config.state_dir, &files).context("records of mounts")?;
        mounts.clear_stale().await;
        let downloads = DownloadCache::open(downloads::Options {
            directory: config.state_dir.join("downloads"),
            policy: config.egress(),
            max_bytes: config.images.downloads_max_bytes,
            min_free: config.uploads.min_free_bytes,
            address: listeners.addresses.registry.to_string(),
        })
        .context("downloads of builds")?;
        let secrets = RoomSecrets::open(&config.state_dir.join("secrets.key"), Arc::new(store.clone()));
        let ports = build::BuildPorts {
            store: Arc::new(store.clone()),
            inputs: Arc::new(store.clone()),
            solver: Arc::new(builders.clone()),
            contexts: Arc::new(room.clone()),
            images: Arc::new(room.clone()),
            downloads: Arc::new(downloads.clone()),
            secrets: Arc::new(secrets.clone()),
        };
        let options =
            build_options(&config, &listeners.addresses, Arc::clone(&access), owners.clone(), space.clone());
        let builds = build::Service::start(options, ports).await?;
        owners.set_build_submitters(builds.handle().submitters());

        let ingress =
            Ingress::new(services::ingress_options(&config, connection_shares.ingress), Arc::clone(&access))
                .context("threads of the ingress")?
                .with_audit(trail.clone());
        let ingress = Arc::new(ingress);
        let mount_options =
            mounts::Options { directory: config.state_dir.join("instances"), storage: storage.clone() };
        let mounted = MountedImages { images: images.clone(), contexts: contexts.clone() };
        let instance_mounts =
            InstanceMounts::open(mount_options, mounted).context("directory of services' mounts")?;
        let ports = deploy::DeployDependencies {
            runtime: Arc::new(runtime.clone()),
            network: services::network_port(&network),
            router: Arc::clone(&ingress) as Arc<dyn deploy::port::TrafficRouter>,
            mounts: Arc::new(instance_mounts.clone()),
            store: Arc::new(store.clone()),
            images: Arc::new(RoomServiceImages {
                images: images.clone(),
                remote_registries: remote_registries.clone(),
            }),
            logs: Arc::new(LogFiles),
            tokens: Arc::clone(&access) as Arc<dyn deploy::port::TokenMinter>,
            secrets: Arc::new(secrets.clone()),
        };
        let logs = config.state_dir.join("service-logs");
        let mut options = deploy::Options::new(config.room.clone(), own_address, logs);
        options.owners = owners.clone();
        options.max_per_owner = config.services.max_per_caller;
        options.default_memory = match config.services.default_memory_bytes {
            Some(bytes) => Some(bytes),
            None => Some(machine_memory().context("memory of the machine")? / 2),
        };
        options.allowed_capabilities = config.services.allow_capabilities.iter().copied().collect();
        services::relocate_images(&store).await?;
        let services =
            ServiceRuntime::start(options, ports, network, (runtime, runtime_child), instance_mounts).await?;

        let token_checks = Arc::clone(&access);
        access.set_service_origins(services.handle().origin_lookup());
        owners.set_service_creators(services.handle().share_owner_lookup());
        packs.set_share_owners(owners.clone());
        // Packs that services uploaded may exist from an earlier run.
        services.handle().list().iter().for_each(|state| packs.register_service_owner(&state.service.id));

        let readiness = readiness(&builders, &services, &pulse, &space);
        let changes = router::ReadinessChanges {
            buildkit: builders.status(),
            containerd: services.containerd(),
            services: services.handle().ready(),
            work: pulse,
            disk: space.changes(),
        };
        let scrub = scrub_loop(blobs.clone(), config.registry.scrub_bytes_per_second);
        let (app, health) = router::build(router::RouterParts {
            blobs,
            builds: builds.handle(),
            deploys: services.handle(),
            secrets,
            entrance: services::entrance(&listeners.addresses),
            contexts: room,
            mounts: mounts.clone(),
            images: images.clone(),
            remote_registries,
            packs: packs.clone(),
            storage,
            access,
            trail: trail.clone(),
            readiness: Arc::clone(&readiness),
            builders: builder_list(&builders),
            metrics,
            downloads: downloads::router(downloads),
            registry: registry.router(),
            room: config.room.clone(),
            rooms: config.room_registries(),
            max_timeout: config.max_timeout(),
            receive: receive_options(&config, owners),
            disk,
            state_dir: config.state_dir.clone(),
        })?;
        let closing = CancellationToken::new();
        let addresses = listeners.addresses.clone();
        let served = ServeOptions {
            router: app,
            connections: ConnectionLimiter::new(connection_shares.api),
            stop: closing.clone(),
            grace: REQUEST_GRACE,
        };
        let servers =
            listeners.serve(&served, ConnectionLimiter::new(connection_shares.socket), ingress, tls);
        drop(served);
        listeners::publish_addresses(&addresses, &config.state_dir)?;
        tracing::info!(
            room = config.room, listen = %addresses.listen, ingress = %addresses.ingress,
            socket = %addresses.socket.display(), "started serving"
        );
        let health = task::spawn("health", router::health_loop(health, readiness, changes));
        let housekeeping =
            task::spawn("housekeeping", housekeeping_loop(images, packs, kept, builders.clone()));
        let uploads = task::spawn("uploads", expire_loop(registry));
        let scrub = task::spawn("content scrub", scrub);
        let calls = task::spawn("calls of tokens", running_calls_loop(token_checks));

        stop.cancelled().await;
        tracing::info!("drain started");
        let running = builds.handle();
        tokio::join!(running.drain(DRAIN_GRACE), services.drain());
        contexts.save().await;
        builders.close_sessions();
        closing.cancel();
        for server in servers {
            if let Err(error) = server.await {
                tracing::error!(%error, "listener failed");
            }
        }
        health.abort();
        housekeeping.abort();
        uploads.abort();
        scrub.abort();
        calls.abort();
        services.end().await;
        mounts.unmount_all().await;
        builders.shutdown().await;
        if let Some(network) = step_network {
            steps::close(network).await;
        }
        trail.flush(AUDIT_FLUSH_LIMIT).await;
        listeners::forget_addresses(&config.state_dir)?;
        listeners::remove_socket(&addresses.socket);
        tracing::info!("stopped");
        Ok(())
    }
}

/// Ends running calls: at once if their token is revoked, and soon after it has expired.
async fn running_calls_loop(access: Arc<TokenAuthority>) {
    loop {
        let ended = access.end_invalid_calls();
        if ended > 0 {
            tracing::info!(ended, "ended calls whose tokens are no longer valid");
        }
        // A change wakes the loop, and otherwise the interval elapses; both lead to a check.
        let _ = tokio::time::timeout(TOKEN_CHECK_INTERVAL, access.keys_changed()).await;
    }
}

fn lock(state: &Path) -> Result<File> {
    let path = state.join("hearthd.lock");
    let lock = supervise::owner::lock(&path).with_context(|| format!("lock {}", path.display()))?;
    lock.with_context(|| {
        format!("another hearthd uses the state directory {}; give each its own", state.display())
    })
}

/// Opens a storage directory. A directory that the daemon creates can be written only by its user; an existing one
/// keeps its mode.
fn open_storage(path: &Path) -> Result<StorageRoot> {
    let made = !path.exists();
    let root = StorageRoot::open_or_create(path).with_context(|| format!("storage {}", path.display()))?;
    if made {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(root)
}

fn open_packs(config: &Config, images: ImageStore) -> Result<PackStore> {
    let limits = StoreLimits {
        total: config.packs.max_bytes,
        per_owner: config.packs.max_bytes_per_caller,
        min_free: config.packs.min_free_bytes,
    };
    let keep = Duration::from_secs(config.packs.keep_seconds);
    let directory = config.state_dir.join("packs");
    PackStore::open(PackOptions { directory, limits, keep }, images).context("content of packs")
}

/// Connects to the configured BuildKits, or starts managed ones with the network of their steps.
async fn start_builders(
    config: &Config,
    owners: &ShareOwnerResolver,
    space: &SpaceWatch,
) -> Result<(BuilderPool, Option<StepNetwork>)> {
    if !config.buildkit.is_empty() {
        let addresses: Vec<BuildKitAddress> =
            config.buildkit.iter().map(|address| address.parse()).collect::<Result<_, _>>()?;
        if !config.egress().is_open() {
            tracing::warn!(
                addresses = config.buildkit.join(" "),
                "[builds.egress] was ignored; it does not apply to the steps of an external BuildKit"
            );
        }
        return Ok((BuilderPool::connect(addresses, config.builder.allow_host_network), None));
    }
    let network = steps::open(config).await?;
    let missing = network.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let mut builder = managed::Options::new(config.state_dir.join("builders"), Err(missing));
    builder.program.clone_from(&config.builder.program);
    builder.quota.max_used = config.builder.max_used_bytes;
    builder.quota.min_free = config.builder.min_free_bytes;
    let namespace = containerd::namespace_of_state_dir(&config.state_dir).context("state directory")?;
    builder.bounds = managed::StepBounds {
        group: Some(format!("{namespace}-builders")),
        step_memory: config.builder.step_memory_bytes,
        step_processes: config.builder.step_processes,
        // A little more than is kept of a whole build, so that an excess is noticed.
        step_output: Some(config.builds.log_quota_bytes.saturating_add(STEP_OUTPUT_EXCESS)),
    };
    let limits = builders::BuilderLimits {
        running: config.builder.max_running.unwrap_or(config.builds.concurrency),
        kept_caches: config.builder.max_kept,
        cache_bytes: config.builder.max_used_bytes,
        idle_timeout: Duration::from_secs(config.builder.idle_seconds),
        idle_memory: config.builder.idle_memory_bytes,
        keep_unused: Duration::from_secs(config.builder.keep_seconds),
    };
    let network = network.ok();
    let state_dir = config.state_dir.clone();
    let git =
        Some(GitProxy::start(config.egress(), Matcher::from_env()).await.context("proxy for git of builds")?);
    let (owners, space) = (owners.clone(), space.clone());
    let options =
        builders::Options { state_dir, limits, owners, builder, network: network.clone(), git, space };
    Ok((BuilderPool::start(options).await.context("builders")?, network))
}

fn build_options(
    config: &Config,
    addresses: &DaemonAddresses,
    access: Arc<TokenAuthority>,
    owners: ShareOwnerResolver,
    space: SpaceWatch,
) -> build::Options {
    build::Options {
        limits: build::AdmissionLimits {
            concurrency: config.builds.concurrency,
            queue: config.builds.queue_length,
            per_caller: config.builds.per_caller,
        },
        log_quota: config.builds.log_quota_bytes,
        logs_per_owner: config.builds.logs_per_owner_bytes,
        default_timeout: config.default_timeout(),
        max_timeout: config.max_timeout(),
        stop_timeout: STOP_LIMIT,
        solver_wait: config.builder_wait(),
        keep_ended: config.builds.keep,
        keep_for: KEEP_BUILDS,
        log_dir: config.state_dir.join("builds"),
        min_free_space: config.builds.min_free_bytes,
        space,
        registry: addresses.registry.to_string(),
        room_registries: config.room_registries(),
        registry_credential: registry_credential(access),
        share_owners: owners,
    }
}

/// Returns the issuer of build tokens: a token may pull what the Dockerfile names and push the result, nothing else.
fn registry_credential(access: Arc<TokenAuthority>) -> RegistryCredentialMinter {
    Arc::new(move |build: &BuildId, may: &RegistryAccess| {
        let names = |repositories: &[crate::model::Repository]| {
            NamePatterns(repositories.iter().map(ToString::to_string).collect())
        };
        let push = may.push.as_slice();
        let registry = RegistryGrant {
            // A push first checks which content exists.
            pull: names(&[&may.pull, push].concat()),
            write: names(push),
            ..RegistryGrant::default()
        };
        let containers = Some(ContainersGrant { registry, ..ContainersGrant::default() });
        let scope = ApiScope { containers, ..ApiScope::default() };
        let password = access.sign_for_build(build, &scope, BUILD_TOKEN_TTL).unwrap_or_else(|error| {
            // BuildKit's requests are then denied, and the build reports that.
            tracing::error!(%error, build.id = %build, "failed to sign the registry token of a build");
            String::new()
        });
        RegistryCredential { username: "build".to_owned(), password: Secret::new(password) }
    })
}

fn receive_options(config: &Config, owners: ShareOwnerResolver) -> ReceiveOptions {
    let limits = ShareLimits {
        requests: config.connections.requests_per_caller,
        receiving: config.connections.receive_bytes,
    };
    ReceiveOptions {
        shares: CallerShares::new(limits),
        owners,
        stall: Duration::from_secs(config.connections.stall_seconds),
    }
}

fn readiness(
    builders: &BuilderPool,
    services: &ServiceRuntime,
    pulse: &LivenessReceiver,
    space: &SpaceWatch,
) -> ReadinessCheck {
    let (status, of_services) = (builders.status(), services.components());
    let (pulse, space) = (pulse.clone(), space.clone());
    Arc::new(move || {
        let mut all = vec![services::component("buildkit", &status.borrow())];
        all.extend(of_services());
        all.push(liveness::component(&pulse));
        all.push(space.component());
        all
    })
}

/// Periodically aborts uploads that have stalled.
async fn expire_loop(registry: RegistryApi) {
    loop {
        tokio::time::sleep(UPLOAD_EXPIRY_INTERVAL).await;
        registry.expire_uploads().await;
    }
}

fn builder_list(builders: &BuilderPool) -> BuilderList {
    let builders = builders.clone();
    Arc::new(move || builders.list())
}

async fn housekeeping_loop(
    images: ImageStore,
    packs: PackStore,
    kept: UploadLedgerCheck,
    builders: BuilderPool,
) {
    loop {
        tokio::time::sleep(HOUSEKEEPING_INTERVAL).await;
        match images.collect_garbage().await {
            Ok(report) => tracing::debug!(?report, "garbage collection finished"),
            Err(error) => tracing::warn!(%error, "failed to collect garbage; the next pass retries"),
        }
        match images.list(TagQuery { limit: 1, ..TagQuery::default() }).await {
            Ok(tags) => builders.set_room_empty(tags.is_empty()),
            Err(error) => {
                tracing::warn!(%error, "failed to list the images of the room; the next pass retries");
            }
        }
        if let Err(error) = packs.sweep().await {
            tracing::warn!(%error, "failed to sweep packs; the next pass retries");
        }
        kept.compare().await;
    }
}
