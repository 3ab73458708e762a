//! One connection to an instance.
//!
//! The user of a connection drives it: the task of the client's connection polls it while it waits for the head
//! of the answer, and then for its body, so that a request needs no second task and no wake-ups between tasks.
//! Nobody polls a kept connection; that the instance has closed it is noticed at the next use or at the sweep.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::backend::{Backend, OpenSocket};
use super::body::RequestBody;
use super::headers;

type HttpConnection = hyper::client::conn::http1::Connection<TokioIo<TcpStream>, RequestBody>;

/// Maximum size in bytes of the head of an answer.
pub(super) const MAX_HEAD: usize = 128 * 1024;
/// Number of bytes of a body that are read at a time: small enough to be in the processor's cache when written.
pub(super) const PIECE: usize = 128 * 1024;

pub(super) struct UpstreamConnection {
    sender: SendRequest<RequestBody>,
    link: ConnectionDriver,
    socket: OpenSocket,
}

/// Drives the connection.
struct ConnectionDriver {
    /// `None` once the connection has ended without an answer.
    connection: Option<HttpConnection>,
    /// True once the connection has ended and must not be polled again.
    ended: bool,
}

/// A connection whose instance has switched protocols.
pub(super) struct SwitchedConnection {
    pub(super) stream: TcpStream,
    /// Bytes received after the head of the answer.
    pub(super) first: bytes::Bytes,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectFailure {
    /// The address refuses connections or is unreachable; an instance may start there later.
    #[error("{0}")]
    Refused(io::Error),
    #[error("no connection in time")]
    TimedOut,
    #[error("{0}")]
    Other(io::Error),
}

pub(super) enum SendFailure {
    /// The connection was closed before any byte of the request was written; contains the request.
    NotSent(Box<Request<RequestBody>>),
    /// The connection ended without an answer.
    NoAnswer(hyper::Error),
    /// The head of the answer is over [`MAX_HEAD`].
    LargeHead,
    /// The answer is not valid, or reading the client's body failed.
    Broken(hyper::Error),
    TimedOut,
}

/// Connects to an instance.
pub(super) async fn open_stream(
    backend: &Backend,
    limit: Duration,
) -> Result<(TcpStream, OpenSocket), ConnectFailure> {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable};
    let connected = async {
        let stream = TcpStream::connect(backend.address).await?;
        stream.set_nodelay(true)?;
        let socket = backend.register(&stream)?;
        Ok::<_, io::Error>((stream, socket))
    };
    match tokio::time::timeout(limit, connected).await {
        Err(_) => Err(ConnectFailure::TimedOut),
        Ok(Err(error)) => Err(match error.kind() {
            ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable => {
                ConnectFailure::Refused(error)
            }
            _ => ConnectFailure::Other(error),
        }),
        Ok(Ok(connected)) => Ok(connected),
    }
}

impl UpstreamConnection {
    pub(super) async fn connect(backend: &Backend, limit: Duration) -> Result<Box<Self>, ConnectFailure> {
        let (stream, socket) = open_stream(backend, limit).await?;
        let mut builder = http1::Builder::new();
        builder
            .max_header_size(MAX_HEAD)
            .max_headers(headers::most_fields(MAX_HEAD))
            .max_buf_size(MAX_HEAD.max(PIECE));
        let (sender, connection) = builder
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ConnectFailure::Other(io::Error::other(error)))?;
        Ok(Box::new(Self {
            sender,
            link: ConnectionDriver { connection: Some(connection), ended: false },
            socket,
        }))
    }

    /// Makes progress on the connection. Ready when it has ended.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.link.drive(cx)
    }

    /// Reports whether another request can be sent. Notices when the instance has closed the connection.
    pub(super) fn is_reusable(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop())).is_pending() && self.sender.is_ready()
    }

    /// Sends a request and waits for the head of its answer. `limit` starts again whenever `moved`, the number
    /// of frames that were read of the request's body, has changed.
    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
        limit: Duration,
        moved: Option<&AtomicU64>,
    ) -> Result<Response<Incoming>, SendFailure> {
        // Only driving the connection can make the answer ready, so the answer needs no waker. It must not have
        // a coop budget either: when that is used up, it would wait for a wake-up.
        let mut answer = pin!(tokio::task::unconstrained(self.sender.try_send_request(request)));
        let mut passed = pin!(tokio::time::sleep(limit));
        let mut seen = 0;
        std::future::poll_fn(|cx| {
            let quietly = &mut Context::from_waker(Waker::noop());
            let ended = self.link.drive(cx).is_ready();
            if let Poll::Ready(answer) = answer.as_mut().poll(quietly) {
                return Poll::Ready(answer.map_err(SendFailure::from));
            }
            if ended {
                // A request that the connection has not taken is returned when the connection is dropped.
                self.link.connection = None;
                return Poll::Ready(match answer.as_mut().poll(quietly) {
                    Poll::Ready(answer) => answer.map_err(SendFailure::from),
                    Poll::Pending => Err(SendFailure::TimedOut),
                });
            }
            loop {
                ready!(passed.as_mut().poll(cx));
                let now = moved.map_or(0, |moved| moved.load(Ordering::Relaxed));
                if now == seen {
                    return Poll::Ready(Err(SendFailure::TimedOut));
                }
                seen = now;
                passed.as_mut().reset(tokio::time::Instant::now() + limit);
            }
        })
        .await
    }

    /// Takes the connection out of HTTP after a 101 answer. `None` if it has ended meanwhile.
    pub(super) async fn switched(mut self: Box<Self>) -> Option<(SwitchedConnection, OpenSocket)> {
        std::future::poll_fn(|cx| self.drive(cx)).await;
        let parts = self.link.connection?.into_parts();
        Some((SwitchedConnection { stream: parts.io.into_inner(), first: parts.read_buf }, self.socket))
    }
}

impl ConnectionDriver {
    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(connection) = self.connection.as_mut().filter(|_| !self.ended) {
            if let Err(error) = ready!(connection.poll_without_shutdown(cx)) {
                tracing::debug!(%error, "connection to an instance failed");
            }
            self.ended = true;
        }
        Poll::Ready(())
    }
}

impl From<hyper::client::conn::TrySendError<Request<RequestBody>>> for SendFailure {
    fn from(mut failure: hyper::client::conn::TrySendError<Request<RequestBody>>) -> Self {
        if let Some(request) = failure.take_message() {
            return Self::NotSent(Box::new(request));
        }
        let error = failure.into_error();
        if error.is_parse_too_large() {
            return Self::LargeHead;
        }
        // A reset, or an end of input before the first byte.
        let reset = std::error::Error::source(&error)
            .and_then(|source| source.downcast_ref::<io::Error>())
            .is_some_and(|source| {
                use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
                matches!(source.kind(), ConnectionReset | BrokenPipe | ConnectionAborted)
            });
        if error.is_incomplete_message() || error.is_closed() || error.is_canceled() || reset {
            Self::NoAnswer(error)
        } else {
            Self::Broken(error)
        }
    }
}
