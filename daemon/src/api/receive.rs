//! Bodies of requests as they come: how large a message may be, how long a stream may be silent, and how much memory
//! what has come may hold until it is handled.
//!
//! A message is counted from its first byte: for a single request until it is answered, in a stream until the next
//! message is asked for. Content of `/v2/` is counted until its bytes are let go. Whoever may hold no more waits, which
//! the sender sees as a full window.

mod body;
mod limits;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status};

use super::error::Refusal;
use super::guarded::guarded;
use super::shares::{CallerShares, RequestShare, TooManyRequests};
use crate::model::access::Caller;
use crate::model::share_owner::ShareOwners;
use crate::registry;
use body::{Framing, ReceivedBody};

/// Requests of those who have shown no token, on one connection.
const PUBLIC_REQUESTS: usize = 8;
/// For the body of such a request to come.
const PUBLIC_WAIT: Duration = Duration::from_secs(10);
/// When a caller should try again who has too much under way.
const RETRY: Duration = Duration::from_secs(2);

/// What limits callers' requests.
#[derive(Clone)]
pub struct ReceiveOptions {
    pub shares: CallerShares,
    /// Whose share a caller's requests take.
    pub owners: ShareOwners,
    /// A body of which nothing comes for this long is ended.
    pub stall: Duration,
}

/// What the body of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Received {
    Messages {
        /// Bytes of one message.
        limit: u64,
        is_stream: bool,
        /// The sender may be silent for as long as it likes: somebody types.
        may_pause: bool,
    },
    Bytes,
}

/// Permits for requests without a token, of one connection.
#[derive(Clone)]
pub struct PublicRequests(Arc<Semaphore>);

impl Default for PublicRequests {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(PUBLIC_REQUESTS)))
    }
}

/// Bounds the request of a [`Caller`], who was put into its extensions before.
pub async fn within_share(
    State(options): State<ReceiveOptions>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(caller) = request.extensions().get::<Caller>() else {
        return refused(
            request.headers(),
            Refusal::internal("the request was not authenticated", "no caller"),
        );
    };
    let owner = options.owners.of(&caller.name);
    let share = match options.shares.begin(&owner.0) {
        Ok(share) => Arc::new(share),
        Err(error) => return refused(request.headers(), error.into()),
    };
    request.extensions_mut().insert(owner);
    let received = limits::of_path(request.uri().path());
    let request = bounded(request, received, Some(options.stall), Some(Arc::clone(&share)));
    let answer = next.run(request).await;
    if matches!(received, Received::Messages { is_stream: false, .. }) {
        // The request was handled: what it held is free, whatever its answer takes to be sent.
        share.shrink(u64::MAX);
    }
    guarded(answer, share)
}

/// Bounds a request that needs no token.
pub async fn public(request: Request, next: Next) -> Response {
    let permit: Option<OwnedSemaphorePermit> = match request.extensions().get::<PublicRequests>() {
        Some(permits) => match Arc::clone(&permits.0).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => return refused(request.headers(), TooManyRequests { limit: PUBLIC_REQUESTS }.into()),
        },
        None => None,
    };
    let received = Received::Messages { limit: limits::PUBLIC, is_stream: true, may_pause: false };
    let request = if is_grpc(request.headers()) {
        bounded(request, received, Some(PUBLIC_WAIT), None)
    } else {
        request
    };
    guarded(next.run(request).await, permit)
}

fn bounded(
    request: Request,
    received: Received,
    stall: Option<Duration>,
    share: Option<Arc<RequestShare>>,
) -> Request {
    let stall = match received {
        Received::Messages { may_pause: false, .. } => stall,
        // The registry has limits of its own.
        Received::Messages { .. } | Received::Bytes => None,
    };
    let framing = match received {
        Received::Messages { limit, is_stream, .. } => Some(Framing::new(limit, is_stream)),
        Received::Bytes => None,
    };
    request.map(|body| Body::new(ReceivedBody::new(body, framing, stall, share)))
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// A refusal in the form of what was asked.
pub(super) fn refused(headers: &HeaderMap, refusal: Refusal) -> Response {
    if is_grpc(headers) {
        return Status::from(refusal).into_http();
    }
    registry::too_many(&refusal.detail().message)
}

impl From<TooManyRequests> for Refusal {
    fn from(error: TooManyRequests) -> Self {
        Self::new(Code::ResourceExhausted, "too_many_requests", error.to_string())
            .hint("wait for some of them to end")
            .retryable(Some(RETRY))
    }
}
