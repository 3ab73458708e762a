//! Connections to instances that speak only HTTP/2, with prior knowledge (`--port N/h2c`), as gRPC servers do.
//!
//! Each worker has one connection to such an instance, which carries all its requests at the same time. A task of its
//! own drives the connection; the task ends when no request uses the connection any more and the backend has dropped it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Response, Uri, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::backend::Backend;
use super::body::RequestBody;
use super::exchange::{
    AttemptFailure, InstanceRequest, RequestCopy, attempt_failure, can_be_replayed, connect_failure,
};
use super::headers;
use super::page::IngressError;
use super::upstream::{self, ConnectFailure, MAX_HEAD, SendFailure};
use super::{InFlight, Options, RouteEntry};
use crate::task;

pub(super) type Http2Sender = http2::SendRequest<RequestBody>;

/// Bytes in flight per stream and per connection.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// Sends a request to an instance, and waits for the head of its answer.
pub(super) async fn attempt(
    options: &Options,
    entry: &RouteEntry,
    entered: &InFlight,
    mut request: Box<InstanceRequest>,
    attempt: u32,
) -> Result<Response<Incoming>, AttemptFailure> {
    let shared = if attempt == 1 { entered.shared_http2() } else { None };
    let (mut sender, copy) = match shared {
        Some(sender) => (sender, can_be_replayed(&request).then(|| RequestCopy::of(&request))),
        None => match connect(entered.backend(), options.connect_timeout).await {
            Ok(sender) => {
                entered.share_http2(sender.clone());
                (sender, None)
            }
            Err(failure) => return Err(connect_failure(entry, entered, request, &failure)),
        },
    };
    to_http2(&mut request).map_err(AttemptFailure::Fail)?;
    let moved = request.body().moved();
    match send(&mut sender, *request, options.first_byte_timeout, moved.as_deref()).await {
        Ok(response) => Ok(response),
        Err(SendFailure::NotSent(mut request)) => {
            to_http1(&mut request);
            Err(attempt_failure(entry, SendFailure::NotSent(request), copy, attempt))
        }
        Err(failure) => Err(attempt_failure(entry, failure, copy, attempt)),
    }
}

async fn connect(backend: &Backend, limit: Duration) -> Result<Http2Sender, ConnectFailure> {
    let (stream, socket) = upstream::open_stream(backend, limit).await?;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(headers::http2_list_size(MAX_HEAD));
    let (sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ConnectFailure::Other(std::io::Error::other(error)))?;
    task::spawn("instance connection", async move {
        let _socket = socket;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to an instance failed");
        }
    });
    Ok(sender)
}

/// Sends a request and waits for the head of its answer. `limit` starts again whenever `moved`, the number of frames
/// that were read of the request's body, has changed.
async fn send(
    sender: &mut Http2Sender,
    request: InstanceRequest,
    limit: Duration,
    moved: Option<&AtomicU64>,
) -> Result<Response<Incoming>, SendFailure> {
    if sender.ready().await.is_err() {
        return Err(SendFailure::NotSent(Box::new(request)));
    }
    let answer = sender.try_send_request(request);
    tokio::pin!(answer);
    let mut seen = 0;
    loop {
        if let Ok(answer) = tokio::time::timeout(limit, &mut answer).await {
            return answer.map_err(SendFailure::from);
        }
        let now = moved.map_or(0, |moved| moved.load(Ordering::Relaxed));
        if now == seen {
            return Err(SendFailure::TimedOut);
        }
        seen = now;
    }
}

/// Gives a request the form of HTTP/2: the host is part of the target, and no header is about the connection.
fn to_http2(request: &mut InstanceRequest) -> Result<(), IngressError> {
    let no_host = || IngressError::Malformed("the request's target names no host");
    let host = request.headers_mut().remove(header::HOST).ok_or_else(no_host)?;
    for name in [header::CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING] {
        request.headers_mut().remove(name);
    }
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::try_from(host.as_bytes()).map_err(|_| no_host())?);
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| no_host())?;
    *request.version_mut() = Version::HTTP_2;
    Ok(())
}

/// Undoes [`to_http2`]: the instance that gets the request next may be another one.
fn to_http1(request: &mut InstanceRequest) {
    let uri = std::mem::take(request.uri_mut());
    if let Some(host) = uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
        request.headers_mut().insert(header::HOST, host);
    }
    *request.uri_mut() = uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
    *request.version_mut() = Version::HTTP_11;
    let has_body = !matches!(request.body(), RequestBody::None);
    if has_body && !request.headers().contains_key(header::CONTENT_LENGTH) {
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn a_request_has_its_first_form_again_after_an_attempt_over_http2() {
        let mut request = Request::post("/a?b=1")
            .header("host", "x.test:4380")
            .header("transfer-encoding", "chunked")
            .header("te", "trailers")
            .body(RequestBody::Whole(Some(bytes::Bytes::from_static(b"x"))))
            .unwrap();
        let before = (request.uri().clone(), request.headers().clone());
        to_http2(&mut request).unwrap();
        assert_eq!(request.uri(), "http://x.test:4380/a?b=1");
        assert_eq!(request.headers().len(), 1, "{:?}", request.headers());
        to_http1(&mut request);
        assert_eq!((request.uri().clone(), request.headers().clone()), before);
    }
}
