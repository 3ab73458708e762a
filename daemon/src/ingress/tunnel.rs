//! Tunnel for a connection after a protocol switch: copies bytes in both directions until one end closes.
//!
//! The tunnel ends when both ends have closed, when no bytes move for the idle limit, or when it is aborted: by
//! the drain of its instance, by the shutdown of the daemon, or because the token that opened it became
//! invalid. A WebSocket that is aborted between two frames is sent a close frame with status 1001 at both ends;
//! within a frame none can be sent, and the connection is just closed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::backend::InFlight;
use super::frames::{CLOSE_TO_CLIENT, CLOSE_TO_INSTANCE, FrameTracker};
use super::serve::ClientConnection;
use super::upstream::UpstreamConnection;
use crate::access::running::RunningCall;
use crate::connections::ActiveRequest;

const BUFFER: usize = 16 * 1024;
/// Time limit for the client's side of the protocol switch.
const SWITCH_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for writing a close frame and for the other end to read it.
const CLOSE_LIMIT: Duration = Duration::from_millis(400);

pub(super) struct UpgradeTunnel {
    pub(super) entered: InFlight,
    pub(super) _in_use: ActiveRequest,
    /// Holds the place of the connection for as long as the tunnel lives.
    pub(super) connection: Arc<ClientConnection>,
    pub(super) websocket: bool,
    /// Registered call of the token that opened the tunnel, on private routes.
    pub(super) running: Option<RunningCall>,
    pub(super) idle: Duration,
}

enum TunnelEnd {
    Done(io::Result<()>),
    Idle,
    Aborted,
}

pub(super) async fn run(
    tunnel: UpgradeTunnel,
    client: OnUpgrade,
    upstream: Box<UpstreamConnection>,
) -> io::Result<()> {
    // Plain connections are aborted by shutting down their sockets. This one is deregistered, so that it can
    // send a close frame first.
    let switched = upstream.switched().await;
    let (switched, socket) = switched.ok_or(io::ErrorKind::ConnectionAborted)?;
    drop(socket);
    let client = tokio::time::timeout(SWITCH_LIMIT, client)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        .map_err(io::Error::other)?;
    let (mut from_client, mut to_client) = tokio::io::split(TokioIo::new(client));
    let mut instance = switched.stream;
    let (mut from_instance, mut to_instance) = instance.split();
    let (mut down, mut up) = (FrameTracker::default(), FrameTracker::default());
    let moved = AtomicU64::new(0);
    let end = {
        let down = pump(switched.first, &mut from_instance, &mut to_client, &mut down, &moved);
        let up = pump(Bytes::new(), &mut from_client, &mut to_instance, &mut up, &moved);
        let both = async { tokio::try_join!(down, up).map(drop) };
        tokio::select! {
            done = both => TunnelEnd::Done(done),
            () = wait_until_idle(&moved, tunnel.idle) => TunnelEnd::Idle,
            () = tunnel.entered.cut().cancelled() => TunnelEnd::Aborted,
            () = tunnel.connection.stop.cancelled() => TunnelEnd::Aborted,
            () = token_invalidated(tunnel.running.as_ref()) => TunnelEnd::Aborted,
        }
    };
    match end {
        TunnelEnd::Done(done) => done,
        TunnelEnd::Idle | TunnelEnd::Aborted => {
            let say = tunnel.websocket && matches!(end, TunnelEnd::Aborted);
            tokio::join!(
                close(&mut to_client, &mut from_client, &CLOSE_TO_CLIENT, say && down.at_boundary()),
                close(&mut to_instance, &mut from_instance, &CLOSE_TO_INSTANCE, say && up.at_boundary()),
            );
            Ok(())
        }
    }
}

/// Copies bytes until `from` ends, and then shuts down `to`. Can be dropped at any await: `frames` has tracked
/// exactly what was written.
async fn pump(
    first: Bytes,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    frames: &mut FrameTracker,
    moved: &AtomicU64,
) -> io::Result<()> {
    write(&first, to, frames).await?;
    drop(first);
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        moved.fetch_add(1, Ordering::Relaxed);
        write(&buffer[..read], to, frames).await?;
    }
}

async fn write(
    mut bytes: &[u8],
    to: &mut (impl AsyncWrite + Unpin),
    frames: &mut FrameTracker,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = to.write(bytes).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        frames.follow(&bytes[..written]);
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Waits until the token that opened the connection is no longer valid.
async fn token_invalidated(running: Option<&RunningCall>) {
    match running {
        Some(running) => drop(running.ended().await),
        None => std::future::pending().await,
    }
}

/// Waits until no bytes have moved for `limit`.
async fn wait_until_idle(moved: &AtomicU64, limit: Duration) {
    let mut seen = moved.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(limit).await;
        let now = moved.load(Ordering::Relaxed);
        if now == seen {
            return;
        }
        seen = now;
    }
}

/// Closes one side, with a final frame if `say`, and waits for the other end to read it: unread data at the
/// time of closing a socket would make the kernel discard what was just written.
async fn close(
    to: &mut (impl AsyncWrite + Unpin),
    from: &mut (impl AsyncRead + Unpin),
    frame: &[u8],
    say: bool,
) {
    let goodbye = async {
        if say {
            to.write_all(frame).await?;
        }
        to.shutdown().await?;
        let mut rest = vec![0; BUFFER];
        while from.read(&mut rest).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    match tokio::time::timeout(CLOSE_LIMIT, goodbye).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "failed to send the close frame: the other end had closed"),
        Err(_) => tracing::debug!("the other end did not close the connection in time"),
    }
}
