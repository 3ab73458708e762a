//! Drains the part of a request body that was not read when the request was refused.
//!
//! HTTP/1 has no other way to end a request early than to close the connection. A client that is still writing
//! would then see a connection error instead of the response, so a bounded rest of the body is read and
//! discarded first. A client that waits for `100 Continue` has sent nothing, and over HTTP/2 a stream ends by
//! itself.

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
use parking_lot::Mutex;

/// Maximum number of bytes to drain; a client that sends more loses its connection.
const MOST: usize = 16 << 20;
/// Time limit for the next frame of the body.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);

/// Slot that receives the body when its reader drops it.
pub(super) struct Rest(Arc<Mutex<Option<Body>>>);

/// Returns the request with a body that is put into the returned slot when it is dropped.
pub(super) fn keep(request: Request) -> (Request, Rest) {
    let home = Rest(Arc::default());
    if request.version() > Version::HTTP_11 || request.headers().contains_key(EXPECT) {
        return (request, home);
    }
    let lent = |body| Body::new(Lent { body, home: Arc::clone(&home.0) });
    (request.map(lent), home)
}

impl Rest {
    /// Reads and discards the rest of the body, within the limits.
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
        // The refusal is sent whether or not the drain succeeds.
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
