//! Client of the daemon's gRPC API over TCP: the generated types of `hearth.v1` and no other code of Hearth.

use std::time::Duration;

use hearth_proto::v1::builds_client::BuildsClient;
use hearth_proto::v1::images_client::ImagesClient;
use hearth_proto::v1::packs_client::PacksClient;
use hearth_proto::v1::storage_client::StorageClient;
use hearth_proto::v1::system_client::SystemClient;
use hearth_proto::v1::{
    BuildEvent, BuildSpec, BuildState, ErrorDetail, Mount, MountMode, SubmitBuildRequest, WatchBuildRequest,
    mount,
};
use prost::Message as _;
use prost::bytes::{Buf as _, BufMut as _};
use tokio_stream::StreamExt as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::daemon::Daemon;

/// Runs a future to completion; panics when that takes longer than `limit`.
#[track_caller]
pub fn block_on<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let done = runtime.block_on(async { tokio::time::timeout(limit, future).await });
    done.unwrap_or_else(|_| panic!("not finished within {limit:?}"))
}

/// Interceptor that adds a bearer token to each call, if there is one.
#[derive(Clone)]
pub struct Bearer(Option<String>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let value = format!("Bearer {token}");
            let value =
                MetadataValue::try_from(value).map_err(|_| Status::internal("token is no header value"))?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

type Authorized = InterceptedService<Channel, Bearer>;

/// A connection to one daemon.
#[derive(Clone)]
pub struct Api {
    channel: Channel,
    bearer: Bearer,
}

impl Api {
    /// Connects with the token of the tests, which has every grant.
    pub async fn of(daemon: &Daemon) -> Self {
        let token = daemon.token().to_owned();
        Self::connect(&daemon.listen(), Some(token)).await
    }

    pub async fn connect(address: &str, token: Option<String>) -> Self {
        Self::try_connect(address, token).await.expect("connection")
    }

    /// Connects like [`Self::connect`], to a daemon that may be down.
    pub async fn try_connect(address: &str, token: Option<String>) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("address");
        Ok(Self { channel: endpoint.connect().await?, bearer: Bearer(token) })
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn builds(&self) -> BuildsClient<Authorized> {
        BuildsClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(hearth_proto::MAX_MESSAGE_BYTES)
    }

    pub fn images(&self) -> ImagesClient<Authorized> {
        ImagesClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    pub fn packs(&self) -> PacksClient<Authorized> {
        PacksClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    pub fn storage(&self) -> StorageClient<Authorized> {
        StorageClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    pub fn system(&self) -> SystemClient<Authorized> {
        SystemClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    /// Submits a build and returns its id.
    pub async fn submit(&self, spec: BuildSpec) -> Result<String, Status> {
        let request = SubmitBuildRequest { spec: Some(spec), idempotency_key: String::new() };
        Ok(self.builds().submit(request).await?.into_inner().build_id)
    }

    /// Returns the events of a build from number `from` to its last one; waits for the end of the build.
    pub async fn watch(&self, build_id: &str, from: u64) -> Result<Vec<BuildEvent>, Status> {
        self.events(build_id, from, false).await
    }

    /// Returns the events of a build from number `from` to the newest one that exists now.
    pub async fn events_so_far(&self, build_id: &str, from: u64) -> Result<Vec<BuildEvent>, Status> {
        self.events(build_id, from, true).await
    }

    async fn events(
        &self,
        build_id: &str,
        from_sequence: u64,
        no_follow: bool,
    ) -> Result<Vec<BuildEvent>, Status> {
        let request = WatchBuildRequest { build_id: build_id.to_owned(), from_sequence, no_follow };
        self.builds().watch(request).await?.into_inner().collect().await
    }

    pub async fn state(&self, build_id: &str) -> BuildState {
        let request = hearth_proto::v1::GetBuildRequest { build_id: build_id.to_owned() };
        self.builds().get(request).await.expect("the build").into_inner().state()
    }
}

/// Calls a method by its path with one empty message; returns the first message of the response as bytes.
pub async fn call_empty(address: &str, token: Option<&str>, path: &str) -> Result<Vec<u8>, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("address");
    let channel = endpoint.connect().await.expect("connection");
    let mut bearer = Bearer(token.map(str::to_owned));
    let request = bearer.call(Request::new(()))?;
    let request = request.map(|()| tokio_stream::once(Vec::new()));
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let path = path.parse().expect("the path of a method");
    let answer = grpc.streaming(request, path, Plain).await?;
    Ok(answer.into_inner().message().await?.unwrap_or_default())
}

/// Codec that passes messages as the bytes on the wire.
#[derive(Clone, Copy, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; from.remaining()];
        from.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}

/// Returns the spec of a build of a directory of room storage, mounted read-only at `/context`.
pub fn spec(tag: &str, room_path: &str) -> BuildSpec {
    BuildSpec { tag: tag.to_owned(), mounts: vec![room_mount(room_path, "/context")], ..Default::default() }
}

pub fn room_mount(room_path: &str, target: &str) -> Mount {
    Mount {
        source: Some(mount::Source::RoomPath(room_path.to_owned())),
        target: target.to_owned(),
        mode: MountMode::ReadOnly.into(),
        create: false,
    }
}

/// Returns the `ErrorDetail` that every error of the API carries.
#[track_caller]
pub fn detail(status: &Status) -> ErrorDetail {
    let envelope = RpcStatus::decode(status.details()).expect("google.rpc.Status in the details");
    let any = envelope
        .details
        .iter()
        .find(|any| any.type_url == "type.googleapis.com/hearth.v1.ErrorDetail")
        .unwrap_or_else(|| panic!("no ErrorDetail in {status:?}"));
    ErrorDetail::decode(any.value.as_slice()).expect("an ErrorDetail")
}

/// Message google.rpc.Status, as gRPC puts it into `grpc-status-details-bin`.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}
