//! A typed client of `hearth.v1`.
//!
//! ```no_run
//! # async fn example() -> Result<(), hearth::client::ClientError> {
//! use hearth::client::{Client, DaemonAddress, DaemonTarget};
//! let target =
//!     DaemonTarget { address: DaemonAddress::local(), token: None, token_from_environment: false };
//! let client = Client::connect(&target).await?;
//! println!("this is room {}", client.info().await?.room);
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] is cheap to clone; clones share one connection, which reconnects after a loss. Unary
//! calls have a time limit. Streams have none; HTTP/2 pings detect that their connection is dead.

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
    TokenRevocation, VerifyContentRequest, VerifyContentResponse,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

pub use blobs::BlobContent;
pub use builds::CANCEL_TIMEOUT;
pub use contexts::{ContextFile, ResponseStream};
pub use error::ClientError;
pub use exec::ExecProcess;
pub use images::{ArchiveDestination, ArchiveSource};
pub use outage::ReconnectLimits;
pub use packs::{PackOffer, PackUploadCallback, PackUploadError, PackUploadEvent, SentPack};
pub use service_logs::{ServiceLogItem, ServiceLogs};
pub use services::{DEPLOY_TIMEOUT, REMOVE_TIMEOUT};
pub use storage::{FileContent, FileListing};
pub use target::{DaemonAddress, DaemonTarget, ParticipantToken, TargetError};
pub use upload::UploadError;
pub use watch::{BuildWatch, DeployWatch, WatchItem};

/// Time limit for establishing a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit of calls that the daemon answers from stored state.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval of HTTP/2 pings, which detect a dead connection of a silent stream.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// Time limit for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection to a daemon. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    channel: AuthenticatedChannel,
    address: String,
    /// True when the daemon runs on this machine (unix socket).
    is_local: bool,
}

/// The connection, with the participant token on every call.
type AuthenticatedChannel = InterceptedService<Channel, AuthInterceptor>;

/// Adds the participant token to every call.
#[derive(Clone, Debug)]
pub struct AuthInterceptor {
    token: Option<MetadataValue<Ascii>>,
    /// True when the token comes from the environment. A daemon on this machine then falls back to the peer's
    /// own rights when it cannot use the token.
    from_environment: bool,
}

impl Interceptor for AuthInterceptor {
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
    /// Connects to a daemon. An unreachable address is reported here and not only by the first call.
    pub async fn connect(target: &DaemonTarget) -> Result<Self, ClientError> {
        let is_local = matches!(target.address, DaemonAddress::Unix(_));
        let bearer = match &target.token {
            Some(token) => match format!("Bearer {}", token.reveal()).parse::<MetadataValue<Ascii>>() {
                Ok(mut value) => {
                    value.set_sensitive(true);
                    Some(value)
                }
                // An unusable token from the environment is ignored on the unix socket, because the user did not
                // choose it for this call and the peer has rights of its own.
                Err(_) if is_local && target.token_from_environment => None,
                Err(_) => {
                    let reason = "contains characters that are not allowed in a token; check its source";
                    return Err(ClientError::Token(reason));
                }
            },
            None => None,
        };
        let address = target.address.to_string();
        tracing::debug!(%address, token = bearer.is_some(), "connecting");
        let unreachable = |reason: String| ClientError::Unreachable { address: address.clone(), reason };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect_channel(&target.address)?)
            .await
            .map_err(|_| unreachable(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())))?
            .map_err(|error| unreachable(error::root_cause(&error)))?;
        let from_environment = is_local && bearer.is_some() && target.token_from_environment;
        let bearer = AuthInterceptor { token: bearer, from_environment };
        Ok(Self { channel: InterceptedService::new(connected, bearer), address, is_local })
    }

    /// Returns the daemon's address in the form that `hearth --addr` accepts.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the name of the room, the version of the daemon, and the readiness of its components.
    pub async fn info(&self) -> Result<GetInfoResponse, ClientError> {
        self.message_or_error(self.system().get_info(unary_request(GetInfoRequest {})).await)
    }

    /// Returns the disk usage of each caller, in bytes.
    pub async fn disk_usage(&self) -> Result<GetDiskUsageResponse, ClientError> {
        self.message_or_error(self.system().get_disk_usage(unary_request(GetDiskUsageRequest {})).await)
    }

    /// Mints a participant token of the room.
    pub async fn mint_token(&self, request: MintTokenRequest) -> Result<MintTokenResponse, ClientError> {
        self.message_or_error(self.system().mint_token(unary_request(request)).await)
    }

    /// Returns the state of the builders: all of them for an admin, and that of the caller's own trust domain
    /// for others. The list is empty if the daemon is too old for this call.
    pub async fn list_builders(&self) -> Result<Vec<Builder>, ClientError> {
        match self.system().list_builders(unary_request(ListBuildersRequest {})).await {
            Err(status) if status.code() == tonic::Code::Unimplemented => Ok(Vec::new()),
            answer => Ok(self.message_or_error(answer)?.builders),
        }
    }

    /// Replaces the secret that signs the room's tokens.
    pub async fn rotate_token_secret(
        &self,
        request: RotateTokenSecretRequest,
    ) -> Result<RotateTokenSecretResponse, ClientError> {
        self.message_or_error(self.system().rotate_token_secret(unary_request(request)).await)
    }

    /// Revokes all tokens of a caller that were made before now.
    pub async fn revoke_tokens(&self, name: String) -> Result<TokenRevocation, ClientError> {
        self.message_or_error(self.system().revoke_tokens(unary_request(RevokeTokensRequest { name })).await)
    }

    /// Returns the callers whose tokens were revoked.
    pub async fn token_revocations(&self) -> Result<Vec<TokenRevocation>, ClientError> {
        let listed =
            self.system().list_token_revocations(unary_request(ListTokenRevocationsRequest {})).await;
        self.message_or_error(listed).map(|listed| listed.revocations)
    }

    /// Returns audit records of changes and denials, oldest first.
    pub async fn audit_records(
        &self,
        request: ListAuditRecordsRequest,
    ) -> Result<Vec<AuditRecord>, ClientError> {
        self.message_or_error(self.system().list_audit_records(unary_request(request)).await)
            .map(|listed| listed.records)
    }

    /// Verifies all stored blobs. The last message is `done`.
    pub async fn verify_content(&self) -> Result<ResponseStream<VerifyContentResponse>, ClientError> {
        let answers = self.system().verify_content(tonic::Request::new(VerifyContentRequest {})).await;
        Ok(self.response_stream(self.message_or_error(answers)?))
    }

    fn builds(&self) -> BuildsClient<AuthenticatedChannel> {
        BuildsClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn images(&self) -> ImagesClient<AuthenticatedChannel> {
        ImagesClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn secrets(&self) -> SecretsClient<AuthenticatedChannel> {
        SecretsClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn services(&self) -> ServicesClient<AuthenticatedChannel> {
        ServicesClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn storage(&self) -> StorageClient<AuthenticatedChannel> {
        StorageClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn system(&self) -> SystemClient<AuthenticatedChannel> {
        SystemClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn message_or_error<T>(&self, answer: Result<tonic::Response<T>, Status>) -> Result<T, ClientError> {
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| ClientError::from_status(&self.address, &status))
    }
}

/// A request with the default time limit of a call.
fn unary_request<T>(message: T) -> Request<T> {
    request_with_timeout(CALL_TIMEOUT, message)
}

fn request_with_timeout<T>(limit: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

fn connect_channel(
    address: &DaemonAddress,
) -> Result<impl Future<Output = Result<Channel, tonic::transport::Error>>, ClientError> {
    // The authority of a unix socket connection is only a name in the HTTP/2 headers.
    let uri = match address {
        DaemonAddress::Unix(_) => "http://hearthd.local".to_owned(),
        DaemonAddress::Tcp(authority) => format!("http://{authority}"),
    };
    let endpoint = Endpoint::from_shared(uri)
        .map_err(|_| TargetError::Malformed { given: address.to_string() })?
        .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| ClientError::Protocol(error.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .tcp_nodelay(true);
    let socket = match address {
        DaemonAddress::Unix(path) => Some(path.clone()),
        DaemonAddress::Tcp(_) => None,
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
