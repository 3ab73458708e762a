//! A connection after a switch of protocols: bytes both ways, until one end has had enough.
//!
//! It ends when both ends have ended, when nothing moves for the idle limit, or when it is cut: by the drain of
//! its instance, by the end of the daemon, or by that of the token that opened it. A WebSocket that is cut between two frames is told 1001 at both
//! ends; within a frame nothing can be said, and it is closed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::backend::InFlight;
use super::frames::{CLOSE_TO_CLIENT, CLOSE_TO_INSTANCE, Frames};
use super::serve::Connection;
use super::upstream::Upstream;
use crate::access::running::RunningCall;
use crate::connections::InUse;

const BUFFER: usize = 16 * 1024;
/// For the client's side of the switch.
const SWITCH_LIMIT: Duration = Duration::from_secs(10);
/// For a close frame to be written, and for the other end to see it.
const CLOSE_LIMIT: Duration = Duration::from_millis(400);

pub(super) struct Tunnel {
    pub(super) entered: InFlight,
    pub(super) _in_use: InUse,
    /// Its place is held for as long as the tunnel lives.
    pub(super) connection: Arc<Connection>,
    pub(super) websocket: bool,
    /// The call of the token that opened it, on private routes.
    pub(super) running: Option<RunningCall>,
    pub(super) idle: Duration,
}

enum End {
    Done(io::Result<()>),
    Idle,
    Cut,
}

pub(super) async fn run(tunnel: Tunnel, client: OnUpgrade, upstream: Box<Upstream>) -> io::Result<()> {
    // A cut shuts the sockets of plain connections down; this one is told, so that it can say goodbye.
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
    let (mut down, mut up) = (Frames::default(), Frames::default());
    let moved = AtomicU64::new(0);
    let end = {
        let down = pump(switched.first, &mut from_instance, &mut to_client, &mut down, &moved);
        let up = pump(Bytes::new(), &mut from_client, &mut to_instance, &mut up, &moved);
        let both = async { tokio::try_join!(down, up).map(drop) };
        tokio::select! {
            done = both => End::Done(done),
            () = still(&moved, tunnel.idle) => End::Idle,
            () = tunnel.entered.cut().cancelled() => End::Cut,
            () = tunnel.connection.stop.cancelled() => End::Cut,
            () = no_longer_good(tunnel.running.as_ref()) => End::Cut,
        }
    };
    match end {
        End::Done(done) => done,
        End::Idle | End::Cut => {
            let say = tunnel.websocket && matches!(end, End::Cut);
            tokio::join!(
                close(&mut to_client, &mut from_client, &CLOSE_TO_CLIENT, say && down.at_boundary()),
                close(&mut to_instance, &mut from_instance, &CLOSE_TO_INSTANCE, say && up.at_boundary()),
            );
            Ok(())
        }
    }
}

/// Moves bytes until `from` ends, and ends `to` then. Can be dropped at any await: `frames` has followed
/// exactly what was written.
async fn pump(
    first: Bytes,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    frames: &mut Frames,
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

async fn write(mut bytes: &[u8], to: &mut (impl AsyncWrite + Unpin), frames: &mut Frames) -> io::Result<()> {
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

/// Returns when the token that opened the connection is no longer good.
async fn no_longer_good(running: Option<&RunningCall>) {
    match running {
        Some(running) => drop(running.ended().await),
        None => std::future::pending().await,
    }
}

/// Returns when nothing has moved for as long as `limit`.
async fn still(moved: &AtomicU64, limit: Duration) {
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

/// Ends one side, with a last frame where one may be said, and lets it see that: what is still unread when
/// a socket closes would make the kernel throw away what was just written.
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
        Ok(Err(error)) => tracing::debug!(%error, "the other end had gone before the goodbye"),
        Err(_) => tracing::debug!("the other end did not close in time"),
    }
}
