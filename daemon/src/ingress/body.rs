//! Bodies that pass through the proxy: streamed at the reader's pace, without buffering.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::backend::InFlight;
use super::token;
use super::upstream::UpstreamConnection;
use crate::access::TokenAuthority;
use crate::connections::ActiveRequest;

/// Body of a request to an instance.
pub(super) enum RequestBody {
    None,
    /// A small body that is sent again if the first attempt used a closed connection.
    Whole(Option<Bytes>),
    Streamed {
        body: Incoming,
        /// Number of frames that have been read.
        moved: Arc<AtomicU64>,
        /// Identifies the trailers that contain a token of the room.
        access: Arc<TokenAuthority>,
    },
}

impl RequestBody {
    /// Returns the counter of frames that are read of a streamed body.
    pub(super) fn moved(&self) -> Option<Arc<AtomicU64>> {
        match self {
            Self::Streamed { moved, .. } => Some(Arc::clone(moved)),
            Self::None | Self::Whole(_) => None,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::None => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streamed { body, moved, access } => {
                let mut frame = Pin::new(body).poll_frame(cx);
                if let Poll::Ready(frame) = &mut frame {
                    moved.fetch_add(1, Ordering::Relaxed);
                    if let Some(Ok(frame)) = frame
                        && let Some(trailers) = frame.trailers_mut()
                    {
                        token::strip_trailers(trailers, access);
                    }
                }
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::None => true,
            Self::Whole(bytes) => bytes.is_none(),
            Self::Streamed { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::None => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Streamed { body, .. } => body.size_hint(),
        }
    }
}

/// Body of an answer to a client.
pub(super) enum AnswerBody {
    /// A page of the ingress itself.
    Page(Option<Bytes>),
    Streamed(StreamedAnswer),
}

/// Time in which the bytes before a cut are written to the client.
const CUT_DELAY: Duration = Duration::from_millis(500);

/// Body of an instance's answer. Reading it drives the connection to the instance; at the end of the body the
/// connection is kept for the next request.
pub(super) struct StreamedAnswer {
    body: Incoming,
    /// The error that ends the body early, and the time until which it is held back.
    cut: Option<(hyper::Error, Pin<Box<Sleep>>)>,
    upstream: Option<Box<UpstreamConnection>>,
    entered: InFlight,
    max_kept: usize,
    _in_use: ActiveRequest,
}

/// Resources that a streamed answer owns.
pub(super) struct StreamedAnswerParts {
    /// `None` for a connection that a task of its own drives.
    pub(super) upstream: Option<Box<UpstreamConnection>>,
    pub(super) entered: InFlight,
    /// Maximum number of kept connections to one instance.
    pub(super) max_kept: usize,
    /// Usage of the client's connection.
    pub(super) in_use: ActiveRequest,
}

impl StreamedAnswer {
    pub(super) fn new(body: Incoming, ends: StreamedAnswerParts) -> Self {
        let StreamedAnswerParts { upstream, entered, max_kept: room, in_use } = ends;
        Self { body, cut: None, upstream, entered, max_kept: room, _in_use: in_use }
    }

    /// Reads a frame. An error is held back for a moment: hyper discards what it has not written yet when a body fails,
    /// and the client is to receive the bytes that came before the cut.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.cut.is_none() {
            match std::task::ready!(self.poll_body(cx)) {
                Some(Err(error)) => self.cut = Some((error, Box::pin(tokio::time::sleep(CUT_DELAY)))),
                frame => return Poll::Ready(frame),
            }
        }
        if let Some((_, delay)) = &mut self.cut {
            std::task::ready!(delay.as_mut().poll(cx));
        }
        Poll::Ready(self.cut.take().map(|(error, _)| Err(error)))
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(upstream) = &mut self.upstream else { return Pin::new(&mut self.body).poll_frame(cx) };
        // New frames only arrive by driving the connection, so the body itself needs no waker.
        let quietly = &mut Context::from_waker(Waker::noop());
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(quietly) {
            return Poll::Ready(frame);
        }
        if upstream.drive(cx).is_ready() {
            self.upstream = None;
        }
        Pin::new(&mut self.body).poll_frame(quietly)
    }

    fn release(&mut self) {
        if let Some(upstream) = self.upstream.take() {
            self.entered.keep(upstream, self.max_kept);
        }
    }
}

impl Drop for StreamedAnswer {
    /// Releases the connection: hyper does not poll a body that is known to be at its end.
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.release();
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Page(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streamed(streamed) => {
                let frame = streamed.poll(cx);
                if let Poll::Ready(None) = frame {
                    streamed.release();
                }
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Page(bytes) => bytes.is_none(),
            Self::Streamed(streamed) => streamed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Page(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Streamed(streamed) => streamed.body.size_hint(),
        }
    }
}
