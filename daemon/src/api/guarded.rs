//! Answers that hold a guard, such as a connection use, a share or a permit, until their body has been sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

struct GuardedBody<G> {
    body: Body,
    _guard: G,
}

/// Holds `guard` until the answer's body has been sent or dropped.
pub fn guarded<G: Send + Unpin + 'static>(answer: Response, guard: G) -> Response {
    answer.map(|body| Body::new(GuardedBody { body, _guard: guard }))
}

impl<G: Unpin> HttpBody for GuardedBody<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
