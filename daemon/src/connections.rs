//! Limits the connections of all peers and of each peer, and closes connections that nobody uses.
//!
//! ```text
//! admit --> permit --(begin, end of a request)*--> dropped
//!   |          '-- asked to close: unused for too long, or another peer needs its place
//!   '--> limit reached: no connection can be closed for this one
//! ```
//!
//! When the limit is reached, the longest unused connection of the peer with the most connections is closed for
//! the new one. A connection is never closed for another while it is in use and one of its requests has been
//! admitted.

mod table;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use table::ConnectionTable;

/// Interval between two sweeps for unused connections.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections of all peers together.
    pub total: usize,
    /// Connections of one peer.
    pub per_peer: usize,
    /// Idle timeout of a connection on which no request has been admitted yet.
    pub unadmitted_timeout: Duration,
    /// Idle timeout of a connection on which a request has been admitted.
    pub idle_timeout: Duration,
}

/// Peer whose share a connection counts towards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionPeer {
    Address(IpAddr),
    /// A trusted proxy. It represents many clients, which it limits itself, so it has no share of its own.
    Proxy(IpAddr),
    /// A user of this machine, on a unix socket.
    User(u32),
}

/// Refusal of a new connection: the limit is reached, and no other connection can be closed for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionLimitReached {
    #[error("{limit} connections of this peer are open and in use, which is the most")]
    Peer { limit: usize },
    #[error("{limit} connections are open and in use, which is the most")]
    All { limit: usize },
    /// Some connection could be closed, but the maximum number of them is already being closed.
    #[error("{limit} connections are being closed to make room, which is the most at a time")]
    Closing { limit: usize },
}

/// Limiter for the connections of one or more listeners; cheap to clone.
#[derive(Clone)]
pub struct ConnectionLimiter(Arc<ConnectionLimiterState>);

struct ConnectionLimiterState {
    limits: ConnectionLimits,
    opened: Instant,
    table: Mutex<ConnectionTable>,
    ended: Notify,
}

/// Usage of a connection.
struct ConnectionState {
    requests: AtomicUsize,
    opened: Instant,
    /// Time at which the last request ended, or the connection was opened: milliseconds since the limiter was created.
    last_used_ms: AtomicU64,
    admitted: AtomicBool,
    closing: CancellationToken,
}

/// Place of a connection within the limits. Dropping it frees the place.
pub struct ConnectionPermit {
    shared: Arc<ConnectionLimiterState>,
    usage: ConnectionUse,
    peer: ConnectionPeer,
    number: u64,
}

/// Handle that marks a connection as used; cheap to clone. It does not hold the connection's place.
#[derive(Clone)]
pub struct ConnectionUse(Arc<ConnectionState>);

/// A running request. The connection is in use until this is dropped.
pub struct ActiveRequest(ConnectionUse);

impl ConnectionPeer {
    /// Returns the peer of an address. An IPv6 peer is a /64 network, because its owner has all addresses in it.
    pub fn of(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
            address @ IpAddr::V4(_) => address,
        })
    }

    const fn has_share(self) -> bool {
        !matches!(self, Self::Proxy(_))
    }
}

impl ConnectionLimiter {
    pub fn new(limits: ConnectionLimits) -> Self {
        metrics::describe_counter!(
            "hearth_connections_refused_total",
            "Connections that were refused because a limit was reached."
        );
        let limits =
            ConnectionLimits { total: limits.total.max(1), per_peer: limits.per_peer.max(1), ..limits };
        let (opened, table, ended) = (Instant::now(), Mutex::default(), Notify::new());
        Self(Arc::new(ConnectionLimiterState { limits, opened, table, ended }))
    }

    /// Gives a new connection a place. Its own token, a child of `stop`, asks the connection to close.
    pub fn admit(
        &self,
        peer: ConnectionPeer,
        stop: &CancellationToken,
    ) -> Result<ConnectionPermit, ConnectionLimitReached> {
        let usage = Arc::new(ConnectionState {
            requests: AtomicUsize::new(0),
            opened: self.0.opened,
            last_used_ms: AtomicU64::new(milliseconds_since(self.0.opened)),
            admitted: AtomicBool::new(false),
            closing: stop.child_token(),
        });
        let mut table = self.0.table();
        table.make_room(peer, &self.0.limits)?;
        let number = table.insert(peer, Arc::clone(&usage));
        drop(table);
        Ok(ConnectionPermit { shared: Arc::clone(&self.0), usage: ConnectionUse(usage), peer, number })
    }

    /// Like [`admit`](Self::admit), but waits for up to `limit` while other connections are being closed.
    pub async fn admit_within(
        &self,
        limit: Duration,
        peer: ConnectionPeer,
        stop: &CancellationToken,
    ) -> Result<ConnectionPermit, ConnectionLimitReached> {
        let end = tokio::time::Instant::now() + limit;
        loop {
            let ended = self.0.ended.notified();
            let crowded = match self.admit(peer, stop) {
                Err(crowded @ ConnectionLimitReached::Closing { .. }) => crowded,
                admitted => return admitted,
            };
            if tokio::time::timeout_at(end, ended).await.is_err() {
                return Err(crowded);
            }
        }
    }

    /// Asks connections to close that have been idle for too long. See [`sweep_loop`](Self::sweep_loop).
    pub fn sweep(&self) {
        let (now, limits) = (milliseconds_since(self.0.opened), &self.0.limits);
        self.0.table().for_each(|usage| {
            let limit = if usage.admitted.load(Ordering::Relaxed) {
                limits.idle_timeout
            } else {
                limits.unadmitted_timeout
            };
            let unused = now.saturating_sub(usage.last_used_ms.load(Ordering::Relaxed));
            if usage.is_unused() && u128::from(unused) >= limit.as_millis() {
                usage.closing.cancel();
            }
        });
    }

    /// Sweeps until `stop`.
    pub async fn sweep_loop(self, stop: CancellationToken) {
        let mut pause = tokio::time::interval(SWEEP_INTERVAL);
        while stop.run_until_cancelled(pause.tick()).await.is_some() {
            self.sweep();
        }
    }

    pub fn count(&self) -> usize {
        self.0.table().count()
    }

    /// Waits until no connection is open.
    pub async fn all_closed(&self) {
        loop {
            let ended = self.0.ended.notified();
            if self.count() == 0 {
                return;
            }
            ended.await;
        }
    }
}

impl ConnectionLimiterState {
    fn table(&self) -> MutexGuard<'_, ConnectionTable> {
        // A panic while the lock is held leaves the table consistent: every change is one insertion or removal.
        self.table.lock()
    }
}

fn milliseconds_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl ConnectionState {
    fn is_unused(&self) -> bool {
        self.requests.load(Ordering::Relaxed) == 0
    }

    /// Reports whether the connection may be closed for another one.
    fn may_be_closed(&self) -> bool {
        self.is_unused() || !self.admitted.load(Ordering::Relaxed)
    }
}

impl ConnectionPermit {
    /// Token that is cancelled when the connection must close.
    pub fn closing(&self) -> &CancellationToken {
        &self.usage.0.closing
    }

    pub const fn usage(&self) -> &ConnectionUse {
        &self.usage
    }
}

impl ConnectionUse {
    /// Marks the start of a request.
    pub fn begin(&self) -> ActiveRequest {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        ActiveRequest(self.clone())
    }

    /// Records that a request on the connection was admitted: the connection is not closed for others while it is in use.
    pub fn mark_admitted(&self) {
        if !self.0.admitted.load(Ordering::Relaxed) {
            self.0.admitted.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let ConnectionUse(usage) = &self.0;
        usage.last_used_ms.store(milliseconds_since(usage.opened), Ordering::Relaxed);
        usage.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.shared.table().remove(self.peer, self.number);
        self.shared.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
