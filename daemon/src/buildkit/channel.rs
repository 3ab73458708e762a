//! Connections to BuildKit: opened when first used, reopened when lost.
//!
//! There are no HTTP/2 pings: BuildKit's server keeps grpc-go's default policy, which closes a connection that pings
//! more often than every five minutes. A unix socket reports the end of the other process by itself, and TCP
//! keep-alive covers the rest.

use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::{BuildKitAddress, CALL_LIMIT, MESSAGE_LIMIT};

const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Creates a client with a connection of its own.
pub(super) fn control(address: &BuildKitAddress) -> ControlClient<Channel> {
    ControlClient::new(channel(address))
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT)
}

/// Creates a client of the gateway with a connection of its own.
pub(super) fn bridge(address: &BuildKitAddress) -> LlbBridgeClient<Channel> {
    LlbBridgeClient::new(channel(address))
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT)
}

fn channel(address: &BuildKitAddress) -> Channel {
    match address {
        BuildKitAddress::Unix(path) => {
            let path = path.clone();
            let connector = tower::service_fn(move |_: http::Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            });
            // The name is only the `:authority` of the requests.
            tuned(Endpoint::from_static("http://buildkitd")).connect_with_connector_lazy(connector)
        }
        BuildKitAddress::Tcp(host) => match Endpoint::from_shared(format!("http://{host}")) {
            Ok(endpoint) => tuned(endpoint).connect_lazy(),
            // The address was checked when it was parsed; an invalid one never connects.
            Err(_) => tuned(Endpoint::from_static("http://invalid.")).connect_lazy(),
        },
    }
}

fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CALL_LIMIT)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(30)))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

/// Reports whether a call failed because the connection or its other end is gone, and not by its answer.
pub(super) fn is_connection_lost(status: &tonic::Status) -> bool {
    let transport = std::error::Error::source(status).is_some();
    transport || status.code() == tonic::Code::Unavailable
}
