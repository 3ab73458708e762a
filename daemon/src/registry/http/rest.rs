//! What a refusal left unread of a body.
//!
//! HTTP/1 has no other way to end a request early than to close the connection. A client that still writes then
//! sees that go and not the refusal, so a bounded rest is read and dropped first. One that waits for
//! `100 Continue` has sent nothing, and over HTTP/2 a stream ends by itself.

use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http::Version;
use http::header::EXPECT;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;

/// Read at most; a client that has more to send loses its connection.
const MOST: usize = 16 << 20;
/// Without a byte.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);

/// Where a body is once its reader is done with it.
pub(super) struct Rest(Arc<Mutex<Option<Body>>>);

/// The request with a body that comes back here when it is dropped.
pub(super) fn keep(request: Request) -> (Request, Rest) {
    let home = Rest(Arc::default());
    if request.version() > Version::HTTP_11 || request.headers().contains_key(EXPECT) {
        return (request, home);
    }
    let lent = |body| Body::new(Lent { body, home: Arc::clone(&home.0) });
    (request.map(lent), home)
}

impl Rest {
    /// Reads what is left, within limits.
    pub(super) async fn drain(self) {
        let Some(mut body) = self.0.lock().take() else { return };
        let read = async {
            let mut left = MOST;
            while let Ok(Some(Ok(frame))) = tokio::time::timeout(PAUSE, body.frame()).await {
                let length = frame.data_ref().map_or(0, Bytes::len);
                match left.checked_sub(length) {
                    Some(less) => left = less,
                    None => return,
                }
            }
        };
        // Whatever comes of it, the refusal is the answer.
        let _ = tokio::time::timeout(LONGEST, read).await;
    }
}

struct Lent {
    body: Body,
    home: Arc<Mutex<Option<Body>>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let body = std::mem::take(&mut self.body);
        *self.home.lock() = Some(body);
    }
}

impl http_body::Body for Lent {
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
