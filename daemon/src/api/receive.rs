//! Limits on request bodies: the size of messages, the time without data, and the memory for data that was
//! received and not yet handled.
//!
//! A message is counted from its first byte: in a unary call until the call is answered, in a stream until the
//! next message is requested. Content of `/v2/` is counted until its bytes are dropped. A caller that has
//! reached its share of the memory waits, which the sender sees as a full flow-control window.

mod body;
mod limits;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::HeaderMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::error::ApiError;
use super::guarded::guarded;
use super::http::is_grpc;
use super::shares::{CallerShares, RequestShare, TooManyRequests};
use crate::model::access::Caller;
use crate::model::share_owner::ShareOwnerResolver;
use crate::registry;
pub(super) use body::MessageTooLarge;
use body::{MessageFraming, ReceivedBody};

/// Maximum number of concurrent requests without a token on one connection.
const PUBLIC_REQUESTS: usize = 8;
/// Time limit for data of the body of such a request.
const PUBLIC_WAIT: Duration = Duration::from_secs(10);
/// Delay after which a caller that exceeds a limit should try again.
pub(super) const RETRY: Duration = Duration::from_secs(2);

/// Limits on the requests of callers.
#[derive(Clone)]
pub struct ReceiveOptions {
    pub shares: CallerShares,
    /// Maps callers to the owners of the shares that their requests use.
    pub owners: ShareOwnerResolver,
    /// Time without data after which a body is aborted.
    pub stall: Duration,
}

/// Kind of a request body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyKind {
    /// gRPC messages.
    Messages {
        /// Maximum size in bytes of one message.
        limit: u64,
        is_stream: bool,
        /// True if the sender may be silent for any time, because a person types.
        may_pause: bool,
    },
    Bytes,
}

/// Permits for requests without a token on one connection.
#[derive(Clone)]
pub struct PublicRequests(Arc<Semaphore>);

impl Default for PublicRequests {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(PUBLIC_REQUESTS)))
    }
}

/// Applies the limits to a request, whose [`Caller`] must already be in its extensions.
pub async fn limit_caller(
    State(options): State<ReceiveOptions>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(caller) = request.extensions().get::<Caller>() else {
        return error_answer(
            request.headers(),
            ApiError::internal("the request was not authenticated", "no caller"),
        );
    };
    let owner = options.owners.owner_of(&caller.name);
    let share = match options.shares.begin(&owner.0) {
        Ok(share) => Arc::new(share),
        Err(error) => return error_answer(request.headers(), error.into()),
    };
    request.extensions_mut().insert(owner);
    let received = limits::body_kind(request.uri().path());
    let request = limit_body(request, received, Some(options.stall), Some(Arc::clone(&share)));
    let answer = next.run(request).await;
    if matches!(received, BodyKind::Messages { is_stream: false, .. }) {
        // The request has been handled: its memory is free, however long its answer takes to be sent.
        share.shrink(u64::MAX);
    }
    guarded(answer, share)
}

/// Applies the limits to a request that needs no token.
pub async fn limit_public(request: Request, next: Next) -> Response {
    let permit: Option<OwnedSemaphorePermit> = match request.extensions().get::<PublicRequests>() {
        Some(permits) => match Arc::clone(&permits.0).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => {
                return error_answer(request.headers(), TooManyRequests { limit: PUBLIC_REQUESTS }.into());
            }
        },
        None => None,
    };
    let received = BodyKind::Messages { limit: limits::PUBLIC, is_stream: true, may_pause: false };
    let request = if is_grpc(request.headers()) {
        limit_body(request, received, Some(PUBLIC_WAIT), None)
    } else {
        request
    };
    guarded(next.run(request).await, permit)
}

fn limit_body(
    request: Request,
    received: BodyKind,
    stall: Option<Duration>,
    share: Option<Arc<RequestShare>>,
) -> Request {
    let stall = match received {
        BodyKind::Messages { may_pause: false, .. } => stall,
        // The registry has its own time limits.
        BodyKind::Messages { .. } | BodyKind::Bytes => None,
    };
    let framing = match received {
        BodyKind::Messages { limit, is_stream, .. } => Some(MessageFraming::new(limit, is_stream)),
        BodyKind::Bytes => None,
    };
    request.map(|body| Body::new(ReceivedBody::new(body, framing, stall, share)))
}

/// Converts an error into an answer in the protocol of the request.
pub(super) fn error_answer(headers: &HeaderMap, refusal: ApiError) -> Response {
    if is_grpc(headers) {
        return Status::from(refusal).into_http();
    }
    registry::too_many_requests(&refusal.detail().message)
}
