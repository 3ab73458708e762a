//! DNS resolver for steps: it listens in the builders' namespace, where only steps and builders reach it, and forwards
//! to the resolvers of this machine, which steps need not reach.
//!
//! ```text
//! step --query--> policy --no--> "no such name", and the refusal is recorded
//!                    '--yes--> upstream --answer--> addresses into the set of allowed ones --> step
//! ```
//!
//! Messages are forwarded unchanged; only the question and the addresses of an answer are parsed
//! ([`dns_message`](super::dns_message)). AAAA queries get an empty answer, because steps have no IPv6.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::attachments::within;
use super::dns_message::{AddressRecord, DnsQuery};
use super::refusals::StepRefusals;
use crate::keyed_semaphore::KeyedSemaphore;
use crate::model::egress::EgressPolicy;
use crate::task;

const PORT: u16 = 53;
/// Timeout of one upstream server; programs repeat a query after five seconds.
const UPSTREAM_LIMIT: Duration = Duration::from_secs(2);
/// Maximum number of upstream servers, as in the C library.
const MAX_UPSTREAMS: usize = 3;
/// Maximum number of concurrent queries: of all steps, and of one.
const MAX_QUERIES: usize = 512;
const MAX_QUERIES_OF_ONE: usize = 64;
/// Maximum number of connections: of all steps, and of one; and the idle timeout of a connection.
const MAX_CONNECTIONS: usize = 256;
const MAX_CONNECTIONS_OF_ONE: usize = 8;
const CONNECTION_IDLE: Duration = Duration::from_secs(10);
/// Maximum size of a datagram, whatever size a query offers.
const MAX_DATAGRAM: usize = 4096;

/// Opens the firewall for addresses, for a limited time.
#[async_trait]
pub(super) trait AddressGate: Send + Sync + 'static {
    async fn allow(&self, records: Vec<AddressRecord>) -> io::Result<()>;
}

pub(super) struct ResolverOptions {
    pub(super) policy: EgressPolicy,
    /// Upstream servers; if empty, those of `resolv_conf`.
    pub(super) upstreams: Vec<SocketAddr>,
    pub(super) resolv_conf: PathBuf,
    pub(super) fallback: Vec<Ipv4Addr>,
}

/// Bound sockets of a resolver that does not answer yet.
pub(super) struct StepResolver {
    udp: UdpSocket,
    tcp: TcpListener,
    shared: Arc<ResolverShared>,
}

struct ResolverShared {
    options: ResolverOptions,
    gate: Arc<dyn AddressGate>,
    refusals: Arc<StepRefusals>,
    queries: Arc<KeyedSemaphore<IpAddr>>,
    connections: Arc<KeyedSemaphore<IpAddr>>,
}

impl StepResolver {
    /// Binds the sockets in a namespace, which must already have its address.
    pub(super) fn bind(
        namespace: BorrowedFd<'_>,
        options: ResolverOptions,
        gate: Arc<dyn AddressGate>,
        refusals: Arc<StepRefusals>,
    ) -> io::Result<Self> {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
        let (udp, tcp) = within(namespace, || {
            let udp = std::net::UdpSocket::bind(any)?;
            let tcp = std::net::TcpListener::bind(any)?;
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            io::Result::Ok((udp, tcp))
        })??;
        let shared = ResolverShared {
            options,
            gate,
            refusals,
            queries: KeyedSemaphore::new(MAX_QUERIES, MAX_QUERIES_OF_ONE),
            connections: KeyedSemaphore::new(MAX_CONNECTIONS, MAX_CONNECTIONS_OF_ONE),
        };
        Ok(Self {
            udp: UdpSocket::from_std(udp)?,
            tcp: TcpListener::from_std(tcp)?,
            shared: Arc::new(shared),
        })
    }

    /// Answers queries until `stop` is cancelled.
    pub(super) async fn serve(self, stop: CancellationToken) {
        let Self { udp, tcp, shared } = self;
        let datagrams = serve_datagrams(Arc::new(udp), Arc::clone(&shared));
        let connections = serve_connections(tcp, shared);
        tokio::select! {
            () = stop.cancelled() => {}
            () = datagrams => {}
            () = connections => {}
        }
    }
}

async fn serve_datagrams(socket: Arc<UdpSocket>, shared: Arc<ResolverShared>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Such as an ICMP report that an earlier answer was undeliverable.
                tracing::debug!(%error, "failed to receive a DNS query of a step");
                continue;
            }
        };
        let query = buffer[..length].to_vec();
        // A query beyond the limit is dropped; the program repeats it, as after any lost datagram.
        let Some(work) = shared.queries.try_acquire(from.ip()) else { continue };
        let (socket, shared) = (Arc::clone(&socket), Arc::clone(&shared));
        task::spawn("resolve", async move {
            if let Some(answer) = shared.answer(&query, from.ip(), DnsTransport::Datagram).await
                && let Err(error) = socket.send_to(&answer, from).await
            {
                tracing::debug!(%error, "failed to send a DNS answer to a step");
            }
            drop(work);
        });
    }
}

async fn serve_connections(listener: TcpListener, shared: Arc<ResolverShared>) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "failed to accept a DNS connection of a step");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(permit) = shared.connections.try_acquire(from.ip()) else { continue };
        let shared = Arc::clone(&shared);
        task::spawn("resolve-tcp", async move {
            if let Err(error) = shared.serve_connection(stream, from.ip()).await {
                tracing::debug!(%error, "DNS connection of a step failed");
            }
            drop(permit);
        });
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum DnsTransport {
    Datagram,
    Stream,
}

impl ResolverShared {
    async fn serve_connection(self: &Arc<Self>, mut stream: TcpStream, from: IpAddr) -> io::Result<()> {
        loop {
            let Ok(query) = timeout(CONNECTION_IDLE, read_framed(&mut stream)).await else { return Ok(()) };
            let Some(query) = query? else { return Ok(()) };
            let Some(work) = self.queries.try_acquire(from) else { return Ok(()) };
            let Some(answer) = self.answer(&query, from, DnsTransport::Stream).await else { return Ok(()) };
            drop(work);
            let written = timeout(CONNECTION_IDLE, write_framed(&mut stream, &answer)).await;
            written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        }
    }

    async fn answer(&self, message: &[u8], from: IpAddr, transport: DnsTransport) -> Option<Vec<u8>> {
        let query = DnsQuery::parse(message)?;
        if !self.options.policy.allows_name(&query.name) {
            if let IpAddr::V4(from) = from {
                self.refusals.record_name(from, &query.name);
            }
            return Some(query.no_such_name(message));
        }
        if query.is_for_ipv6() {
            return Some(query.empty_answer(message));
        }
        let Some(answer) = self.ask_upstreams(&query, message, transport).await else {
            return Some(query.server_failure(message));
        };
        let records = query.addresses(&answer);
        self.refusals.record_addresses(&query.name, &records);
        if !self.options.policy.is_open()
            && !records.is_empty()
            && let Err(error) = self.gate.allow(records).await
        {
            tracing::warn!(%error, domain = query.name, "failed to open the addresses of an allowed name");
            return Some(query.server_failure(message));
        }
        Some(answer)
    }

    async fn ask_upstreams(
        &self,
        query: &DnsQuery,
        message: &[u8],
        transport: DnsTransport,
    ) -> Option<Vec<u8>> {
        // The upstream query has an id of its own, so that a forged datagram has to guess it.
        let mut asked = message.to_vec();
        asked[..2].copy_from_slice(&rand::random::<[u8; 2]>());
        for upstream in self.upstreams().await {
            let exchange = async {
                match transport {
                    DnsTransport::Datagram => ask_by_datagram(query, &asked, upstream).await,
                    DnsTransport::Stream => ask_by_stream(query, &asked, upstream).await,
                }
            };
            match timeout(UPSTREAM_LIMIT, exchange).await {
                Ok(Ok(mut answer)) => {
                    answer[..2].copy_from_slice(&message[..2]);
                    return Some(answer);
                }
                Ok(Err(error)) => tracing::debug!(%upstream, %error, "failed to query an upstream resolver"),
                Err(_) => tracing::debug!(%upstream, "failed to query an upstream resolver in time"),
            }
        }
        None
    }

    /// Returns the upstream servers, read for each query: the machine may have moved to another network.
    async fn upstreams(&self) -> Vec<SocketAddr> {
        if !self.options.upstreams.is_empty() {
            return self.options.upstreams.iter().copied().take(MAX_UPSTREAMS).collect();
        }
        let text = tokio::fs::read_to_string(&self.options.resolv_conf).await.unwrap_or_default();
        let mut found = servers(&text);
        if found.is_empty() {
            found = self.options.fallback.iter().map(|server| (*server, PORT).into()).collect();
        }
        found.truncate(MAX_UPSTREAMS);
        found
    }
}

/// Parses all `nameserver` lines. Loopback is valid here, because the machine itself asks.
fn servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let words = resolv_conf.lines().map(|line| {
        let mut words = line.split_whitespace();
        (words.next(), words.next())
    });
    words
        .filter_map(|line| match line {
            (Some("nameserver"), Some(server)) => server.parse::<IpAddr>().ok(),
            _ => None,
        })
        .map(|server| SocketAddr::new(server, PORT))
        .collect()
}

async fn ask_by_datagram(query: &DnsQuery, message: &[u8], upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(message).await?;
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if query.is_answered_by(message, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_by_stream(query: &DnsQuery, message: &[u8], upstream: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    write_framed(&mut stream, message).await?;
    match read_framed(&mut stream).await? {
        Some(answer) if query.is_answered_by(message, &answer) => Ok(answer),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no answer to the question")),
    }
}

/// Reads a message with its length prefix; `None` at the end of the connection.
async fn read_framed(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_on_loopback_count_since_the_machine_asks() {
        let text = "nameserver 127.0.0.53\nnameserver ::1\n# nameserver 1.1.1.1\nnameserver x\nsearch a\n";
        let expected: [SocketAddr; 2] = ["127.0.0.53:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(servers(text), expected);
    }
}
