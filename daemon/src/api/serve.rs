//! Accepts connections on a listener and serves one router on them, HTTP/1.1 and HTTP/2 alike.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::ConnectInfo;
use http::HeaderValue;
use http::header::CONNECTION;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::guarded::guarded;
use super::receive::{PublicRequests, error_answer};
use super::unread_request::track_reading;
use crate::connections::{ConnectionLimitReached, ConnectionLimiter, ConnectionPeer, ConnectionPermit};
use crate::task;

/// Time limit for the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Time without an answer to a ping after which a connection is closed.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Bytes in flight per stream and per connection: enough for a fast upload, and bounded because of memory.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const MAX_STREAMS: u32 = 128;
/// Maximum number of bytes of a stream's answer that wait to be sent.
const MAX_SEND_BUFFER: usize = 256 * 1024;
/// Maximum number of bytes of a request's headers. HTTP/2 refuses larger ones, with or without continuation frames.
const MAX_HEADERS: u32 = 32 * 1024;
const MAX_HTTP1_BUFFER: usize = 64 * 1024;
/// HTTP/2: maximum numbers of streams that a client resets before they are served, and of streams with protocol
/// errors. With more, the connection is closed.
const MAX_RESETS: usize = 20;
const MAX_ERRORS: usize = 128;
/// Maximum number of refused connections that are sent a reason at the same time, and the time limit for it.
const MAX_REFUSALS: usize = 64;
const REFUSAL_LIMIT: Duration = Duration::from_secs(2);
const REFUSAL_WINDOW: u32 = 64 * 1024;
/// Time limit for closing a connection that was asked to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// Pause after a failed accept, which is usually caused by "too many open files".
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerIdentity {
    Tcp(SocketAddr),
    /// User id of the process that connected to the unix socket, from the kernel.
    Unix {
        uid: u32,
    },
}

impl PeerIdentity {
    /// Returns the peer whose share of the connections is used.
    fn share(self) -> ConnectionPeer {
        match self {
            Self::Tcp(address) => ConnectionPeer::of(address.ip()),
            Self::Unix { uid } => ConnectionPeer::User(uid),
        }
    }
}

/// Accepts connections together with the identity of the peer.
pub trait PeerListener: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, PeerIdentity)>> + Send;
}

impl PeerListener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<(Self::Stream, PeerIdentity)> {
        let (stream, address) = Self::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok((stream, PeerIdentity::Tcp(address)))
    }
}

impl PeerListener for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<(Self::Stream, PeerIdentity)> {
        let (stream, _) = Self::accept(self).await?;
        let uid = stream.peer_cred()?.uid();
        Ok((stream, PeerIdentity::Unix { uid }))
    }
}

/// Settings of a listener: the router, and the limits on connections.
#[derive(Clone)]
pub struct ServeOptions {
    pub router: Router,
    pub connections: ConnectionLimiter,
    pub stop: CancellationToken,
    /// Time limit for requests in flight after `stop`.
    pub grace: Duration,
}

/// Serves a listener until `stop`, and then waits for the requests in flight.
pub async fn serve<L: PeerListener>(listener: L, served: ServeOptions) {
    let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = served.stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => match served.connections.admit(peer.share(), &served.stop) {
                Ok(held) => {
                    task::spawn("connection", serve_connection(stream, peer, held, served.clone()));
                }
                // If too many connections are waiting already, this one is closed without a reason.
                Err(crowded) => match Arc::clone(&refusals).try_acquire_owned() {
                    Ok(permit) => {
                        task::spawn("crowded connection", serve_late(stream, peer, permit, served.clone()));
                    }
                    Err(_) => count_refusal(peer, crowded),
                },
            },
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(served.grace + CLOSE_LIMIT, served.connections.all_closed()).await.is_err() {
        tracing::warn!("connections were still open at the end of the grace period");
    }
}

fn count_refusal(peer: PeerIdentity, crowded: ConnectionLimitReached) {
    metrics::counter!("hearth_connections_refused_total").increment(1);
    tracing::debug!(?peer, %crowded, "connection refused");
}

/// Serves a connection for which there was no place at once: as soon as others have been closed, or with a refusal.
async fn serve_late<S>(stream: S, peer: PeerIdentity, permit: OwnedSemaphorePermit, served: ServeOptions)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match served.connections.admit_within(CLOSE_LIMIT, peer.share(), &served.stop).await {
        Ok(held) => {
            drop(permit);
            serve_connection(stream, peer, held, served).await;
        }
        Err(crowded) => {
            count_refusal(peer, crowded);
            refuse(stream, crowded, permit).await;
        }
    }
}

async fn serve_connection<S>(stream: S, peer: PeerIdentity, held: ConnectionPermit, served: ServeOptions)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (router, used, public) = (served.router, held.usage().clone(), PublicRequests::default());
    let service = service_fn(move |request: http::Request<Incoming>| {
        let in_use = used.begin();
        let (mut request, reading) = track_reading(request);
        let extensions = request.extensions_mut();
        extensions.insert(ConnectInfo(peer));
        extensions.insert(used.clone());
        extensions.insert(public.clone());
        let answer = router.clone().oneshot(request);
        async move {
            answer.await.map(|mut answer| {
                reading.announce_close(&mut answer);
                guarded(answer, in_use)
            })
        }
    });
    let builder = connection_builder();
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let outcome = tokio::select! {
        biased;
        outcome = connection.as_mut() => outcome,
        () = held.closing().cancelled() => {
            let grace = if served.stop.is_cancelled() { served.grace } else { CLOSE_LIMIT };
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(grace, connection).await {
                Ok(outcome) => outcome,
                Err(_) => Err("closed".into()),
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(?peer, %error, "connection ended");
    }
}

/// Answers the first request on a connection with the reason why the connection is refused.
async fn refuse<S>(stream: S, crowded: ConnectionLimitReached, _permit: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: http::Request<Incoming>| {
        let mut answer = error_answer(request.headers(), crowded.into());
        if request.version() < http::Version::HTTP_2 {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut builder = connection_builder();
    builder.http2().max_concurrent_streams(1).initial_connection_window_size(REFUSAL_WINDOW);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    // The connection is closed whether or not the refusal was sent.
    let _ = tokio::time::timeout(REFUSAL_LIMIT, connection).await;
}

fn connection_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HTTP1_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .max_header_list_size(MAX_HEADERS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_ERRORS);
    builder
}
