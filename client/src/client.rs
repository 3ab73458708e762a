//! A typed client of `hearth.v1`.
//!
//! ```no_run
//! # async fn example() -> Result<(), hearth::client::ClientError> {
//! use hearth::client::{Address, Client, Target};
//! let target = Target { address: Address::local(), token: None, token_from_environment: false };
//! let client = Client::connect(&target).await?;
//! println!("this is room {}", client.info().await?.room);
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] is cheap to clone; clones share one connection, which is made again when it was
//! lost. Every call has a limit in time; streams are watched by HTTP/2 pings instead.

mod blobs;
mod builds;
mod contexts;
mod error;
mod exec;
mod images;
mod outage;
mod packs;
mod secrets;
mod service_logs;
mod services;
mod storage;
mod target;
mod transfer;
mod upload;
mod watch;

#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;

use std::time::Duration;

use hearth_proto::MAX_MESSAGE_BYTES;
use hearth_proto::v1::builds_client::BuildsClient;
use hearth_proto::v1::images_client::ImagesClient;
use hearth_proto::v1::secrets_client::SecretsClient;
use hearth_proto::v1::services_client::ServicesClient;
use hearth_proto::v1::storage_client::StorageClient;
use hearth_proto::v1::system_client::SystemClient;
use hearth_proto::v1::{
    AuditRecord, Builder, GetDiskUsageRequest, GetDiskUsageResponse, GetInfoRequest, GetInfoResponse,
    ListAuditRecordsRequest, ListBuildersRequest, ListTokenRevocationsRequest, MintTokenRequest,
    MintTokenResponse, RevokeTokensRequest, RotateTokenSecretRequest, RotateTokenSecretResponse,
    TokenRevocation,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

pub use blobs::BlobContent;
pub use contexts::{Answers, ContextFile};
pub use error::ClientError;
pub use exec::ExecProcess;
pub use images::{ArchiveDestination, ArchiveSource};
pub use outage::WatchLimits;
pub use packs::{PackOffer, PackUploadError, Sent, SentPack};
pub use service_logs::{LogRead, ServiceLogs};
pub use storage::{FileContent, Listing};
pub use target::{Address, Target, TargetError, Token};
pub use upload::UploadError;
pub use watch::{BuildWatch, DeployWatch, Watched};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// For calls that the daemon answers from what it has.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// Streams may be silent for long; pings find out whether the other side is still there.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
pub struct Client {
    channel: Wire,
    address: String,
    /// Whether the daemon runs on this machine.
    near: bool,
}

type Wire = InterceptedService<Channel, Bearer>;

/// Puts the participant token on every call.
#[derive(Clone, Debug)]
pub struct Bearer {
    token: Option<MetadataValue<Ascii>>,
    /// Said to a daemon on this machine, which then goes by the peer's own right where the token is of no use.
    from_environment: bool,
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.token {
            request.metadata_mut().insert("authorization", value.clone());
        }
        if self.from_environment {
            request.metadata_mut().insert("hearth-token-from", MetadataValue::from_static("environment"));
        }
        Ok(request)
    }
}

impl Client {
    /// Connects; an address where nobody answers is an error here, not at the first call.
    pub async fn connect(target: &Target) -> Result<Self, ClientError> {
        let near = matches!(target.address, Address::Unix(_));
        let bearer = match &target.token {
            Some(token) => match format!("Bearer {}", token.reveal()).parse::<MetadataValue<Ascii>>() {
                Ok(mut value) => {
                    value.set_sensitive(true);
                    Some(value)
                }
                // Of no use, and nobody gave it for this call.
                Err(_) if near && target.token_from_environment => None,
                Err(_) => {
                    let reason = "has characters that no token has; look at its source";
                    return Err(ClientError::Token(reason));
                }
            },
            None => None,
        };
        let address = target.address.to_string();
        tracing::debug!(%address, token = bearer.is_some(), "connecting");
        let unreachable = |reason: String| ClientError::Unreachable { address: address.clone(), reason };
        let connected = tokio::time::timeout(CONNECT_LIMIT, open(&target.address)?)
            .await
            .map_err(|_| unreachable(format!("no connection within {} s", CONNECT_LIMIT.as_secs())))?
            .map_err(|error| unreachable(error::reason(&error)))?;
        let from_environment = near && bearer.is_some() && target.token_from_environment;
        let bearer = Bearer { token: bearer, from_environment };
        Ok(Self { channel: InterceptedService::new(connected, bearer), address, near })
    }

    /// The address as `hearth --addr` takes it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Which room this is, what runs, and whether it is ready.
    pub async fn info(&self) -> Result<GetInfoResponse, ClientError> {
        self.answer(self.system().get_info(limited(GetInfoRequest {})).await)
    }

    /// Disk usage of each caller, in bytes.
    pub async fn disk_usage(&self) -> Result<GetDiskUsageResponse, ClientError> {
        self.answer(self.system().get_disk_usage(limited(GetDiskUsageRequest {})).await)
    }

    /// Makes a participant token of the room.
    pub async fn mint_token(&self, request: MintTokenRequest) -> Result<MintTokenResponse, ClientError> {
        self.answer(self.system().mint_token(limited(request)).await)
    }

    /// How builders stand: all of them for an admin, that of the own trust domain for others. A daemon that knows no such
    /// question has none to show.
    pub async fn list_builders(&self) -> Result<Vec<Builder>, ClientError> {
        match self.system().list_builders(limited(ListBuildersRequest {})).await {
            Err(status) if status.code() == tonic::Code::Unimplemented => Ok(Vec::new()),
            answer => Ok(self.answer(answer)?.builders),
        }
    }

    /// Replaces the room's secret.
    pub async fn rotate_token_secret(
        &self,
        request: RotateTokenSecretRequest,
    ) -> Result<RotateTokenSecretResponse, ClientError> {
        self.answer(self.system().rotate_token_secret(limited(request)).await)
    }

    /// Refuses the tokens of a name that were made before now.
    pub async fn revoke_tokens(&self, name: String) -> Result<TokenRevocation, ClientError> {
        self.answer(self.system().revoke_tokens(limited(RevokeTokensRequest { name })).await)
    }

    /// The names whose tokens were revoked.
    pub async fn token_revocations(&self) -> Result<Vec<TokenRevocation>, ClientError> {
        let listed = self.system().list_token_revocations(limited(ListTokenRevocationsRequest {})).await;
        self.answer(listed).map(|listed| listed.revocations)
    }

    /// Who changed what, and who was denied what; oldest first.
    pub async fn audit_records(
        &self,
        request: ListAuditRecordsRequest,
    ) -> Result<Vec<AuditRecord>, ClientError> {
        self.answer(self.system().list_audit_records(limited(request)).await).map(|listed| listed.records)
    }

    fn builds(&self) -> BuildsClient<Wire> {
        BuildsClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn images(&self) -> ImagesClient<Wire> {
        ImagesClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn secrets(&self) -> SecretsClient<Wire> {
        SecretsClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn services(&self) -> ServicesClient<Wire> {
        ServicesClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn storage(&self) -> StorageClient<Wire> {
        StorageClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn system(&self) -> SystemClient<Wire> {
        SystemClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn answer<T>(&self, answer: Result<tonic::Response<T>, Status>) -> Result<T, ClientError> {
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| ClientError::from_status(&self.address, &status))
    }
}

fn limited<T>(message: T) -> Request<T> {
    limited_to(CALL_LIMIT, message)
}

fn limited_to<T>(limit: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

fn open(
    address: &Address,
) -> Result<impl Future<Output = Result<Channel, tonic::transport::Error>>, ClientError> {
    // For a unix socket the authority is only a name in HTTP/2 headers.
    let uri = match address {
        Address::Unix(_) => "http://hearthd.local".to_owned(),
        Address::Tcp(authority) => format!("http://{authority}"),
    };
    let endpoint = Endpoint::from_shared(uri)
        .map_err(|_| TargetError::Malformed { given: address.to_string() })?
        .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| ClientError::Protocol(error.to_string()))?
        .connect_timeout(CONNECT_LIMIT)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_LIMIT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .tcp_nodelay(true);
    let socket = match address {
        Address::Unix(path) => Some(path.clone()),
        Address::Tcp(_) => None,
    };
    Ok(async move {
        match socket {
            Some(path) => {
                let connector = tower::service_fn(move |_| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                endpoint.connect_with_connector(connector).await
            }
            None => endpoint.connect().await,
        }
    })
}
