//! Connections to containerd: opened at the first use, and reopened when lost. Every call carries the namespace and has
//! a time limit.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1 as services;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use services::containers_client::ContainersClient;
use services::content_client::ContentClient;
use services::diff_client::DiffClient;
use services::events_client::EventsClient;
use services::introspection_client::IntrospectionClient;
use services::leases_client::LeasesClient;
use services::snapshots::snapshots_client::SnapshotsClient;
use services::tasks_client::TasksClient;
use services::version_client::VersionClient;

use super::failure::ContainerdFault;

/// Maximum message size in bytes, the same as containerd's own.
const MESSAGE_LIMIT: usize = 16 << 20;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Time limits of calls.
pub(super) mod limit {
    use std::time::Duration;

    /// Limit for calls that read or write records.
    pub const RECORD: Duration = Duration::from_secs(10);
    /// Limit for calls that start or stop processes.
    pub const PROCESS: Duration = Duration::from_secs(30);
    /// Limit for transferring or unpacking one layer.
    pub const LAYER: Duration = Duration::from_secs(1800);
    /// Limit for a garbage collection.
    pub const COLLECT: Duration = Duration::from_secs(120);
}

pub(super) type ContainerdChannel = InterceptedService<Channel, CallHeaders>;

/// The headers by which containerd assigns a call to a namespace and to a lease.
#[derive(Clone)]
pub(super) struct CallHeaders {
    namespace: Option<MetadataValue<Ascii>>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Interceptor for CallHeaders {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let named = [("containerd-namespace", &self.namespace), ("containerd-lease", &self.lease)];
        for (name, value) in named {
            if let Some(value) = value {
                request.metadata_mut().insert(name, value.clone());
            }
        }
        Ok(request)
    }
}

#[derive(Clone)]
pub(super) struct ContainerdConnection {
    channel: Channel,
    headers: CallHeaders,
}

macro_rules! clients {
    ($($name:ident: $client:ident),* $(,)?) => {
        $(pub fn $name(&self) -> $client<ContainerdChannel> {
            $client::with_interceptor(self.channel.clone(), self.headers.clone())
                .max_decoding_message_size(MESSAGE_LIMIT)
        })*
    };
}

impl ContainerdConnection {
    pub fn new(socket: &Path, namespace: &str) -> Self {
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The host name only appears as the `:authority` of the requests.
        let endpoint = Endpoint::from_static("http://containerd").connect_timeout(CONNECT_LIMIT);
        let channel = endpoint.connect_with_connector_lazy(connector);
        // A namespace consists of characters that are valid in a header.
        let headers = CallHeaders { namespace: namespace.parse().ok(), lease: None };
        Self { channel, headers }
    }

    /// Returns a connection whose calls attach what they create to the lease.
    pub fn leased(&self, lease: &str) -> Self {
        let headers = CallHeaders { lease: lease.parse().ok(), ..self.headers.clone() };
        Self { channel: self.channel.clone(), headers }
    }

    clients! {
        containers: ContainersClient,
        content: ContentClient,
        diff: DiffClient,
        events: EventsClient,
        introspection: IntrospectionClient,
        leases: LeasesClient,
        snapshots: SnapshotsClient,
        tasks: TasksClient,
        version: VersionClient,
    }
}

/// Awaits a call with a time limit.
pub(super) async fn call<T>(
    limit: Duration,
    future: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, ContainerdFault> {
    match tokio::time::timeout(limit, future).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(ContainerdFault::from(status)),
        Err(_) => Err(ContainerdFault::Unavailable(format!("no answer within {} s", limit.as_secs()))),
    }
}
