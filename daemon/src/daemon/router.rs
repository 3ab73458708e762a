//! Router of the API: gRPC, `/v2/`, health and metrics.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use hearth_proto::v1::builds_server::BuildsServer;
use hearth_proto::v1::contexts_server::ContextsServer;
use hearth_proto::v1::images_server::ImagesServer;
use hearth_proto::v1::packs_server::PacksServer;
use hearth_proto::v1::secrets_server::SecretsServer;
use hearth_proto::v1::services_server::ServicesServer;
use hearth_proto::v1::storage_server::StorageServer;
use hearth_proto::v1::system_server::SystemServer;
use hearth_proto::{FILE_DESCRIPTOR_SET, MAX_MESSAGE_BYTES};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower_http::catch_panic::CatchPanicLayer;

use crate::access::TokenAuthority;
use crate::api::auth::{CallerAuthenticator, require_caller};
use crate::api::grpc::{
    BuilderList, BuildsService, ContextsService, DiskUsage, ImagesService, IngressAddress, PacksService,
    SecretsService, ServicesService, StorageService, SystemService, WalkThreads,
};
use crate::api::http::{self, ReadinessCheck};
use crate::api::receive::{self, ReceiveOptions};
use crate::audit::AuditTrail;
use crate::context::{MountedContexts, StorageRoots};
use crate::disk::{DiskLedger, FreeSpace};
use crate::image::{ImageStore, RemoteRegistries};
use crate::model::RoomRegistries;
use crate::packs::PackStore;
use crate::registry::blobs::BlobStore;
use crate::secrets::RoomSecrets;
use crate::supervise::readiness::ReadinessStatus;
use crate::{build, deploy};

pub(super) struct RouterParts {
    pub builds: build::Handle,
    pub deploys: deploy::Handle,
    pub secrets: RoomSecrets,
    /// Address at which services are reached.
    pub entrance: IngressAddress,
    pub contexts: build::RoomContexts,
    pub mounts: MountedContexts,
    pub images: ImageStore,
    pub remote_registries: RemoteRegistries,
    pub packs: PackStore,
    pub storage: StorageRoots,
    pub access: Arc<TokenAuthority>,
    pub trail: AuditTrail,
    pub blobs: BlobStore,
    pub readiness: ReadinessCheck,
    pub builders: BuilderList,
    pub metrics: PrometheusHandle,
    /// Downloads that builders fetch.
    pub downloads: Router,
    /// Registry API, `/v2/`.
    pub registry: Router,
    pub room: String,
    pub rooms: RoomRegistries,
    pub max_timeout: Duration,
    pub receive: ReceiveOptions,
    pub disk: DiskLedger,
    pub state_dir: PathBuf,
}

/// Service names of `grpc.health.v1`; the empty one is the whole daemon.
const SERVICES: [&str; 9] = [
    "",
    "hearth.v1.Builds",
    "hearth.v1.Contexts",
    "hearth.v1.Images",
    "hearth.v1.Packs",
    "hearth.v1.Secrets",
    "hearth.v1.Services",
    "hearth.v1.Storage",
    "hearth.v1.System",
];

pub(super) fn build(parts: RouterParts) -> Result<(Router, HealthReporter)> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let usage = DiskUsage {
        disk: parts.disk.clone(),
        packs: parts.packs.clone(),
        images: parts.images.clone(),
        builds: parts.builds.clone(),
        state_dir: parts.state_dir,
    };
    let builds = BuildsService {
        builds: parts.builds,
        rooms: parts.rooms.clone(),
        images: parts.images.clone(),
        max_timeout: parts.max_timeout,
    };
    let contexts = ContextsService {
        contexts: parts.contexts,
        mounts: parts.mounts,
        rooms: parts.rooms.clone(),
        images: parts.images.clone(),
        walks: WalkThreads::default(),
    };
    let images = ImagesService {
        images: parts.images,
        storage: parts.storage.clone(),
        remote_registries: parts.remote_registries,
        disk: parts.disk.clone(),
    };
    let packs = PacksService {
        packs: parts.packs,
        storage: parts.storage.clone(),
        rooms: parts.rooms.clone(),
        disk: parts.disk.clone(),
    };
    let secrets = SecretsService { secrets: parts.secrets, deploys: parts.deploys.clone() };
    let services = ServicesService {
        deploys: parts.deploys,
        rooms: parts.rooms.clone(),
        ingress_address: parts.entrance,
    };
    let system = SystemService {
        room: parts.room,
        room_registries: parts.rooms,
        readiness: Arc::clone(&parts.readiness),
        builders: parts.builders,
        access: Arc::clone(&parts.access),
        usage,
        room_storage: parts.storage.room.clone(),
        trail: parts.trail.clone(),
        blobs: parts.blobs,
        deploys: services.deploys.clone(),
    };
    let gate = CallerAuthenticator::new(parts.access, parts.trail);
    let storage = StorageService { storage: parts.storage, disk: parts.disk };
    macro_rules! sized {
        ($server:expr) => {
            $server.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
        };
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let grpc = Routes::new(sized!(BuildsServer::new(builds)))
        .add_service(sized!(ContextsServer::new(contexts)))
        .add_service(sized!(ImagesServer::new(images)))
        .add_service(sized!(PacksServer::new(packs)))
        .add_service(sized!(SecretsServer::new(secrets)))
        .add_service(sized!(ServicesServer::new(services)))
        .add_service(sized!(StorageServer::new(storage)))
        .add_service(sized!(SystemServer::new(system)));
    let private = grpc
        .into_axum_router()
        .reset_fallback()
        .merge(parts.registry)
        .route_layer(from_fn_with_state(parts.receive, receive::limit_caller))
        .route_layer(from_fn_with_state(gate, require_caller));
    let public = http::router(parts.readiness, parts.metrics)
        .merge(parts.downloads)
        .route_service("/grpc.health.v1.Health/{*method}", health)
        .route_service("/grpc.reflection.v1.ServerReflection/{*method}", reflection().build_v1()?)
        .route_service("/grpc.reflection.v1alpha.ServerReflection/{*method}", reflection().build_v1alpha()?)
        .route_layer(from_fn(receive::limit_public));
    Ok((public.merge(private).fallback(http::unknown_path).layer(CatchPanicLayer::new()), reporter))
}

/// Keeps the status of `grpc.health.v1` equal to `/readyz`.
pub(super) async fn health_loop(
    reporter: HealthReporter,
    readiness: ReadinessCheck,
    mut changes: ReadinessChanges,
) {
    loop {
        let ready = readiness().iter().all(|component| component.ready);
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in SERVICES {
            reporter.set_service_status(service, status).await;
        }
        changes.next().await;
    }
}

/// Sources of readiness changes.
pub(super) struct ReadinessChanges {
    pub buildkit: watch::Receiver<ReadinessStatus>,
    pub containerd: watch::Receiver<ReadinessStatus>,
    pub services: watch::Receiver<Result<(), String>>,
    pub work: watch::Receiver<Result<(), String>>,
    pub disk: watch::Receiver<FreeSpace>,
}

impl ReadinessChanges {
    async fn next(&mut self) {
        tokio::select! {
            () = change(&mut self.buildkit) => {}
            () = change(&mut self.containerd) => {}
            () = change(&mut self.services) => {}
            () = change(&mut self.work) => {}
            () = change(&mut self.disk) => {}
        }
    }
}

/// Waits for a change; a channel whose sender is gone never changes again.
async fn change<T>(of: &mut watch::Receiver<T>) {
    if of.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
