//! Connects to a host that builds may reach: resolves its name here, and checks the address.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, Sleep, sleep, timeout};
use url::Host;

use crate::fetch_policy::FetchPolicy;

/// Time limit for resolving the name and connecting together.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// A connection without any traffic is closed after this.
const IDLE: Duration = Duration::from_secs(300);

#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("builds may not reach `{0}`")]
    Name(String),
    #[error("builds may not reach {1}, where `{0}` is")]
    Address(String, IpAddr),
    #[error("`{0}` cannot be reached: {1}")]
    Unreachable(String, String),
}

pub(super) async fn dial(
    policy: &FetchPolicy,
    host: &Host<String>,
    port: u16,
) -> Result<IdleStream, DialError> {
    let host_text = host.to_string();
    let unreachable = |error: &io::Error| DialError::Unreachable(host_text.clone(), error.to_string());
    let connect = async {
        let allowed = policy.allows_host(host);
        let found: Vec<SocketAddr> = match host {
            Host::Domain(_) if !allowed => return Err(DialError::Name(host_text.clone())),
            Host::Domain(name) => {
                lookup_host((name.as_str(), port)).await.map_err(|error| unreachable(&error))?.collect()
            }
            Host::Ipv4(address) => vec![(*address, port).into()],
            Host::Ipv6(address) => vec![(*address, port).into()],
        };
        let mut last = io::Error::other("its name has no address");
        let mut refused = None;
        for address in found {
            if !allowed || !policy.allows_resolved(address.ip()) {
                refused = Some(address.ip());
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(IdleStream::new(stream)),
                Err(error) => last = error,
            }
        }
        Err(match refused {
            Some(address) => DialError::Address(host_text.clone(), address),
            None => unreachable(&last),
        })
    };
    match timeout(CONNECT_LIMIT, connect).await {
        Ok(connected) => connected,
        Err(_) => Err(unreachable(&io::ErrorKind::TimedOut.into())),
    }
}

/// A connection that fails when it is idle for too long.
pub(super) struct IdleStream {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
}

impl IdleStream {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, idle: Box::pin(sleep(IDLE)) }
    }

    fn or_idle<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.idle.as_mut().reset(Instant::now() + IDLE);
            return polled;
        }
        self.idle.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for IdleStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.or_idle(cx, polled)
    }
}

impl AsyncWrite for IdleStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.or_idle(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
