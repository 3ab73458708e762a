//! Accepts clients' connections and serves them, HTTP/1.1 or HTTP/2.
//!
//! In clear text, the first bytes select the protocol (an HTTP/2 preface with prior knowledge); within TLS, ALPN does.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::headers::{self, ClientPeer};
use super::page::IngressError;
use super::tls::TlsTerminator;
use super::upstream::PIECE;
use super::workers::WorkerSlot;
use super::{Ingress, Options};
use crate::connections::{ConnectionLimitReached, ConnectionPeer, ConnectionPermit};

/// First bytes of an HTTP/2 connection with prior knowledge (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Interval between two checks of a preface that arrives in parts.
const PREFACE_PAUSE: Duration = Duration::from_millis(5);
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a failed accept, which is usually caused by "too many open files".
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Interval between two sweeps of the kept connections to instances. Shorter than any time limit of a request,
/// because a timer that is due before all others makes tokio wake the worker that sets it.
const SWEEP: Duration = Duration::from_secs(5);
/// HTTP/2: time without an answer to a ping after which a connection is closed.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// HTTP/2: bytes in flight per stream and per connection, and maximum number of concurrent streams.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const MAX_STREAMS: u32 = 200;
/// HTTP/2: maximum numbers of streams that a client resets before they are served, and of streams with protocol
/// errors. With more, the connection is closed.
const MAX_RESETS: usize = 20;
const MAX_ERRORS: usize = 128;
/// Time limit for a refused client to send a request and receive the refusal.
const REFUSAL_LIMIT: Duration = Duration::from_secs(2);
/// Time limit for closing a connection that was asked to make room.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// A client's connection that is being served.
pub(super) struct ClientConnection {
    pub(super) client: ClientPeer,
    /// Cancelled when the daemon drains.
    pub(super) stop: CancellationToken,
    pub(super) seat: WorkerSlot,
    pub(super) permit: ConnectionPermit,
}

impl Ingress {
    /// Serves a listener until `stop`. Requests in flight then have `grace` to end, and upgraded connections
    /// are closed at once. With `tls`, every connection begins with a TLS handshake.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Option<Arc<TlsTerminator>>,
        stop: CancellationToken,
        grace: Duration,
    ) {
        set_socket_options(&listener);
        let abort = CancellationToken::new();
        let _abort = abort.clone().drop_guard();
        self.workers.each("sweep", |worker| sweep_loop(Arc::clone(&self), worker, abort.clone()));
        self.workers.spawn("connections", |_| self.connections.clone().sweep_loop(abort.clone()));
        loop {
            let accepted = tokio::select! {
                accepted = accept(&listener) => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let trusted = self.options.trusted_proxies.iter().any(|block| block.contains(peer.ip()));
                    let share = match trusted {
                        true => ConnectionPeer::Proxy(peer.ip()),
                        false => ConnectionPeer::of(peer.ip()),
                    };
                    let admitted = match self.connections.admit(share, &stop) {
                        Ok(held) => ConnectionAdmission::Admitted(held),
                        // If too many connections are waiting already, this one is closed without a reason.
                        Err(_) => match Arc::clone(&self.refusals).try_acquire_owned() {
                            Ok(permit) => ConnectionAdmission::Waiting(share, permit),
                            Err(_) => {
                                count_refusal();
                                continue;
                            }
                        },
                    };
                    let client = ClientPeer::new(peer.ip(), tls.is_some(), trusted);
                    let (ingress, tls) = (Arc::clone(&self), tls.clone());
                    let (stop, abort) = (stop.clone(), abort.clone());
                    self.workers.spawn("ingress connection", |seat| async move {
                        let served = async {
                            let (held, stream) = ingress.await_permit(admitted, stream, tls.is_some(), &stop).await?;
                            let connection = ClientConnection { client, stop, seat, permit: held };
                            serve_one(ingress, stream, tls, connection).await
                        };
                        let outcome = tokio::select! {
                            biased;
                            outcome = served => outcome,
                            () = abort.cancelled() => Err(io::Error::other("aborted at the end of the grace period")),
                        };
                        if let Err(error) = outcome {
                            tracing::debug!(%peer, %error, "connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        if tokio::time::timeout(grace, self.connections.all_closed()).await.is_err() {
            tracing::warn!("ingress connections were still open at the end of the grace period");
        }
    }

    /// Waits for the place of a connection beyond the limits. If there is none, sends the client the reason.
    /// Over TLS, the connection is just closed.
    async fn await_permit(
        &self,
        admission: ConnectionAdmission,
        stream: std::net::TcpStream,
        tls: bool,
        stop: &CancellationToken,
    ) -> io::Result<(ConnectionPermit, std::net::TcpStream)> {
        let (share, _permit) = match admission {
            ConnectionAdmission::Admitted(held) => return Ok((held, stream)),
            ConnectionAdmission::Waiting(share, permit) => (share, permit),
        };
        let crowded = match self.connections.admit_within(CLOSE_LIMIT, share, stop).await {
            Ok(held) => return Ok((held, stream)),
            Err(crowded) => crowded,
        };
        count_refusal();
        if !tls {
            // The connection is closed whether or not the refusal was sent.
            let _ = tokio::time::timeout(REFUSAL_LIMIT, send_refusal(stream, crowded)).await;
        }
        Err(io::Error::other(crowded))
    }
}

/// Place of a new connection.
enum ConnectionAdmission {
    Admitted(ConnectionPermit),
    /// The connection has no place yet, and is one of a bounded number of connections that wait for one.
    Waiting(ConnectionPeer, OwnedSemaphorePermit),
}

fn count_refusal() {
    metrics::counter!("hearth_connections_refused_total").increment(1);
}

/// Answers the first request on the connection with a refusal.
async fn send_refusal(stream: std::net::TcpStream, crowded: ConnectionLimitReached) -> io::Result<()> {
    let stream = TcpStream::from_std(stream)?;
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let answer = IngressError::ConnectionLimit(crowded).page(request.headers().get(http::header::ACCEPT));
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = if begins_http2(&stream).await? {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.max_concurrent_streams(1).serve_connection(TokioIo::new(stream), service).await
    } else {
        http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service).await
    };
    served.map_err(io::Error::other)
}

/// Sweeps the kept connections of a worker. Runs on that worker.
async fn sweep_loop(ingress: Arc<Ingress>, worker: usize, abort: CancellationToken) {
    let mut sweep = tokio::time::interval(SWEEP);
    while abort.run_until_cancelled(sweep.tick()).await.is_some() {
        ingress.sweep(worker);
    }
}

/// Accepts a connection without registering it with a runtime, because it will belong to the runtime of its worker.
async fn accept(listener: &TcpListener) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    let (stream, peer) = listener.accept().await?;
    Ok((stream.into_std()?, peer))
}

/// Sets socket options on the listener. Accepted connections inherit them, which saves system calls for each one.
fn set_socket_options(listener: &TcpListener) {
    use rustix::net::sockopt;
    let set =
        sockopt::set_tcp_nodelay(listener, true).and_then(|()| sockopt::set_socket_keepalive(listener, true));
    if let Err(error) = set {
        tracing::warn!(%error, "failed to set the socket options of the ingress listener");
    }
}

async fn serve_one(
    ingress: Arc<Ingress>,
    stream: std::net::TcpStream,
    tls: Option<Arc<TlsTerminator>>,
    connection: ClientConnection,
) -> io::Result<()> {
    let stream = TcpStream::from_std(stream)?;
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let gone = || io::Error::other("closed before the first request");
    match tls {
        Some(tls) => {
            let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream));
            let handshake = connection.permit.closing().run_until_cancelled(handshake).await;
            let stream = handshake.ok_or_else(gone)?.map_err(late)??;
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                serve_http2(ingress, stream, connection).await
            } else {
                serve_http1(ingress, stream, connection).await
            }
        }
        None => {
            let begins = tokio::time::timeout(ingress.options.head_timeout, begins_http2(&stream));
            let begins = connection.permit.closing().run_until_cancelled(begins).await;
            if begins.ok_or_else(gone)?.map_err(late)?? {
                serve_http2(ingress, stream, connection).await
            } else {
                serve_http1(ingress, stream, connection).await
            }
        }
    }
}

/// Reports whether the connection begins with the HTTP/2 preface. The bytes are only peeked at.
async fn begins_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut start = [0; PREFACE.len()];
    loop {
        let read = stream.peek(&mut start).await?;
        if read == 0 || start[..read] != PREFACE[..read] {
            return Ok(false);
        }
        if read == PREFACE.len() {
            return Ok(true);
        }
        tokio::time::sleep(PREFACE_PAUSE).await;
    }
}

async fn serve_http1<S>(ingress: Arc<Ingress>, stream: S, connection: ClientConnection) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let ends = ShutdownSignals::of(&connection);
    let builder = http1_builder(&ingress.options);
    let connection = Arc::new(connection);
    let service = service_fn(move |request| {
        let (ingress, connection) = (Arc::clone(&ingress), Arc::clone(&connection));
        async move { Ok::<_, Infallible>(ingress.answer(&connection, request).await) }
    });
    let serving = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    serve_until_closed(serving, ends, |serving| serving.graceful_shutdown()).await
}

async fn serve_http2<S>(ingress: Arc<Ingress>, stream: S, connection: ClientConnection) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let ends = ShutdownSignals::of(&connection);
    let builder = http2_builder(&ingress.options);
    let connection = Arc::new(connection);
    let service = service_fn(move |request| {
        let (ingress, connection) = (Arc::clone(&ingress), Arc::clone(&connection));
        async move { Ok::<_, Infallible>(ingress.answer(&connection, request).await) }
    });
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    serve_until_closed(serving, ends, |serving| serving.graceful_shutdown()).await
}

/// Signals that end a connection from the daemon's side.
struct ShutdownSignals {
    /// Cancelled when the daemon stops, and when the connection's place is needed or has been idle for too long.
    closing: CancellationToken,
    stop: CancellationToken,
}

impl ShutdownSignals {
    fn of(connection: &ClientConnection) -> Self {
        Self { closing: connection.permit.closing().clone(), stop: connection.stop.clone() }
    }
}

/// Serves a connection until it ends. When asked to close, it finishes the running requests first.
async fn serve_until_closed<C>(
    serving: C,
    ends: ShutdownSignals,
    shut_down: impl FnOnce(Pin<&mut C>),
) -> io::Result<()>
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut serving = pin!(serving);
    tokio::select! {
        biased;
        outcome = &mut serving => return outcome.map_err(io::Error::other),
        () = ends.closing.cancelled() => {}
    }
    shut_down(serving.as_mut());
    if ends.stop.is_cancelled() {
        return serving.await.map_err(io::Error::other);
    }
    let limited = tokio::time::timeout(CLOSE_LIMIT, serving).await;
    limited.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map_err(io::Error::other)
}

fn http1_builder(options: &Options) -> http1::Builder {
    // A head that is a little too large gets an answer that says so.
    let head = options.max_head_bytes + options.max_head_bytes / 4;
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(options.head_timeout)
        .max_buf_size(head.max(PIECE))
        .max_header_size(head)
        .max_headers(headers::most_fields(head));
    builder
}

fn http2_builder(options: &Options) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(headers::http2_list_size(options.max_head_bytes))
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_ERRORS);
    builder
}
