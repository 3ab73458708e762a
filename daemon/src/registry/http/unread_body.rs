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
const MAX_DRAIN_BYTES: usize = 16 << 20;
/// Time limit for the next frame of the body.
const FRAME_TIMEOUT: Duration = Duration::from_secs(1);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Slot that receives the body when its reader drops it.
pub(super) struct UnreadBody(Arc<Mutex<Option<Body>>>);

/// Returns the request with a body that is put into the returned slot when it is dropped.
pub(super) fn recover_on_drop(request: Request) -> (Request, UnreadBody) {
    let home = UnreadBody(Arc::default());
    if request.version() > Version::HTTP_11 || request.headers().contains_key(EXPECT) {
        return (request, home);
    }
    let lent = |body| Body::new(RecoverableBody { body, slot: Arc::clone(&home.0) });
    (request.map(lent), home)
}

impl UnreadBody {
    /// Reads and discards the rest of the body, within the limits.
    pub(super) async fn drain(self) {
        let Some(mut body) = self.0.lock().take() else { return };
        let read = async {
            let mut left = MAX_DRAIN_BYTES;
            while let Ok(Some(Ok(frame))) = tokio::time::timeout(FRAME_TIMEOUT, body.frame()).await {
                let length = frame.data_ref().map_or(0, Bytes::len);
                match left.checked_sub(length) {
                    Some(less) => left = less,
                    None => return,
                }
            }
        };
        // The refusal is sent whether or not the drain succeeds.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, read).await;
    }
}

struct RecoverableBody {
    body: Body,
    slot: Arc<Mutex<Option<Body>>>,
}

impl Drop for RecoverableBody {
    fn drop(&mut self) {
        let body = std::mem::take(&mut self.body);
        *self.slot.lock() = Some(body);
    }
}

impl http_body::Body for RecoverableBody {
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
