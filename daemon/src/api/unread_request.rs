//! `Connection: close` on responses to HTTP/1 requests whose body was not read to its end.
//!
//! Such a connection cannot carry another request, because the rest of the body would be read as its head. hyper closes
//! it after the response; without the header, a client would learn that from the failure of its next request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

/// Tells whether the body of a request was read to its end.
pub(super) struct RequestReading(Option<Arc<AtomicBool>>);

/// Returns the request with a body whose reading is tracked. Streams of HTTP/2 end independently of each other, so they
/// are not tracked.
pub(super) fn track_reading(request: http::Request<Incoming>) -> (Request, RequestReading) {
    if request.version() > Version::HTTP_11 || request.body().is_end_stream() {
        return (request.map(Body::new), RequestReading(None));
    }
    let ended = Arc::new(AtomicBool::new(false));
    let body = |body| Body::new(TrackedBody { body, ended: Arc::clone(&ended) });
    (request.map(body), RequestReading(Some(ended)))
}

impl RequestReading {
    /// Adds `Connection: close` to the response if the body was not read to its end.
    pub(super) fn announce_close(self, response: &mut Response) {
        if self.0.is_some_and(|ended| !ended.load(Ordering::Relaxed)) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

struct TrackedBody {
    body: Incoming,
    ended: Arc<AtomicBool>,
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        // The reader of a body of known length stops at its last byte.
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.ended.store(true, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
