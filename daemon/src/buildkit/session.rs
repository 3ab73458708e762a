//! Sessions: services that the daemon provides to BuildKit during a build.
//!
//! `Control.Session` is a stream of byte messages. Inside it, BuildKit is the client and the daemon serves gRPC over
//! HTTP/2. BuildKit identifies a session by its id and by the methods that it announces, and drops one whose
//! `grpc.health.v1.Health` does not answer (checked every 5 s).
//!
//! A build uses three sessions. The sessions of its context and of its Dockerfile serve one tree each. What BuildKit
//! may reuse of a tree depends on the session's id and shared key, so these sessions belong to a version of the tree
//! and are shared by all builds that use it ([`trees`]). The build's own session serves credentials and secrets.
//!
//! Each session has a connection of its own, so that the files of one build never wait behind those of another.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::SecretsServer;
use bollard_buildkit_proto::moby::filesync::v1::auth_server::AuthServer;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Routes;
use tonic::{Request, Status};

use super::{BuildKitAddress, MESSAGE_LIMIT, channel};
use crate::build::port::CredentialProvider;
use crate::context::SessionName;

mod credentials;
mod files;
mod follow_paths;
mod secrets;
mod select;
pub(super) mod trees;
mod tunnel;
mod wire;

pub(super) use secrets::SecretValues;

const OPEN_LIMIT: Duration = Duration::from_secs(10);
const WINDOW: u32 = 4 << 20;
/// Maximum size of the request headers in bytes. Patterns are sent as headers, and a long ignore file makes many.
const HEADER_LIMIT: u32 = 16 << 20;
/// Bytes of content that may wait in one stream for the network.
const SEND_BUFFER: usize = 4 << 20;

/// An open session; dropping it closes it.
pub(super) struct BuildKitSession {
    id: String,
    /// Cancelled when the session has ended, by BuildKit or by the daemon.
    closed: CancellationToken,
    _stop: DropGuard,
}

impl BuildKitSession {
    /// Opens a session that serves one tree.
    async fn open_tree(
        address: &BuildKitAddress,
        name: &SessionName,
        tree: files::ServedTree,
    ) -> Result<Self, Status> {
        let routes = Routes::new(health().await).add_service(wire::FileSyncServer::new(tree));
        let methods = ["/moby.filesync.v1.FileSync/DiffCopy"];
        Self::open(address, name.id.clone(), "tree", &name.shared_key, &methods, routes).await
    }

    /// Opens a build's own session.
    pub(super) async fn open_build(
        address: &BuildKitAddress,
        credentials: Arc<dyn CredentialProvider>,
        secrets: SecretValues,
    ) -> Result<Self, Status> {
        let methods = ["/moby.filesync.v1.Auth/Credentials", "/moby.buildkit.secrets.v1.Secrets/GetSecret"];
        let routes = Routes::new(health().await)
            .add_service(AuthServer::new(credentials::RegistryAuthService(credentials)))
            .add_service(SecretsServer::new(secrets));
        let id = format!("{:032x}", rand::random::<u128>());
        Self::open(address, id, "build", "", &methods, routes).await
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Reports whether the session has ended.
    fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    async fn open(
        address: &BuildKitAddress,
        id: String,
        name: &'static str,
        shared_key: &str,
        methods: &[&'static str],
        routes: Routes,
    ) -> Result<Self, Status> {
        let (writer, outbound) = tunnel::writer();
        let mut request = Request::new(ReceiverStream::new(outbound));
        let headers = request.metadata_mut();
        headers.insert("x-docker-expose-session-uuid", value(&id)?);
        headers.insert("x-docker-expose-session-name", value(name)?);
        headers.insert("x-docker-expose-session-sharedkey", value(shared_key)?);
        for method in methods {
            headers.append("x-docker-expose-session-grpc-method", value(method)?);
        }
        let mut control = channel::control(address);
        let opened = timeout(OPEN_LIMIT, control.session(request)).await;
        let inbound =
            opened.map_err(|_| Status::unavailable("BuildKit does not open a session"))??.into_inner();

        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let over = CancellationToken::new();
        let ended = over.clone().drop_guard();
        let io = TokioIo::new(tokio::io::join(tunnel::reader(inbound), writer));
        let serve = http2::Builder::new(SpawnExecutor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(4 * WINDOW)
            .max_header_list_size(HEADER_LIMIT)
            .max_send_buf_size(SEND_BUFFER)
            .serve_connection(io, TowerToHyperService::new(routes.prepare()));
        crate::task::spawn("session", async move {
            // The connection is closed when its client is dropped.
            let (_control, _ended) = (control, ended);
            if let Some(Err(error)) = stopped.run_until_cancelled(serve).await {
                tracing::debug!(session.name = name, ?error, "session ended by BuildKit");
            }
        });
        Ok(Self { id, closed: over, _stop: stop.drop_guard() })
    }
}

fn value(text: &str) -> Result<MetadataValue<Ascii>, Status> {
    text.parse().map_err(|_| Status::invalid_argument("a session's name or key is not a valid header value"))
}

async fn health()
-> tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health> {
    let (reporter, service) = tonic_health::server::health_reporter();
    // The empty name stands for the whole server, which is what BuildKit asks for.
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    service.max_decoding_message_size(MESSAGE_LIMIT)
}

/// Runs the calls inside a session as tasks of the daemon.
#[derive(Clone)]
struct SpawnExecutor;

impl<F> hyper::rt::Executor<F> for SpawnExecutor
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, call: F) {
        crate::task::spawn("session-call", call);
    }
}

/// Response of a handwritten tonic service.
type GrpcResponse = Result<http::Response<tonic::body::Body>, Infallible>;
